// This file makes a kernel's modules.

package linuxtest

import (
	"encoding/binary"
	"slices"
)

// Modules is where modules are, one after the other; ModuleSize is the size of each, of which
// ModuleText is its code, in front.
const (
	Modules    = 0xffffffffc0200000
	ModuleSize = 3 * pageSize
	ModuleText = pageSize
)

const (
	symbolSize     = 24 // Elf64_Sym
	moduleNameSize = 56 // MODULE_NAME_LEN
)

// A Module is one that a kernel has loaded.
type Module struct {
	Name   string
	Uses   int
	UsedBy []string
	State  string // as the kernel prints it
}

// states are those of modules, as they are numbered (enum module_state in Linux).
var states = []string{"live", "loading", "unloading", "unformed"}

// SetModules makes the kernel have modules, and none that it had before. Each has
// functions with names, one every FunctionSize bytes, all with one ORC entry, and types.
func (d *Data) SetModules(list []Module, entry [orcSize]byte) {
	size, _ := d.Offset("module")
	at := map[string]uint64{}
	d.modules = nil
	var entries, types []uint64
	for i, m := range list {
		one := d.New(int(size))
		at[m.Name], d.modules = one, append(d.modules, one)
		entries = append(entries, d.Field(one, "module.list"))
		d.module(one, Modules+uint64(i)*ModuleSize, m, entry)
		types = append(types, d.moduleTypes(one, m))
	}
	d.Link(d.head("modules"), entries...)
	d.Link(d.head("btf_modules"), types...)
	for i, m := range list {
		var uses []uint64
		for _, user := range m.UsedBy {
			use := d.New(48)
			d.Put(d.Field(use, "module_use.source"), at[user])
			uses = append(uses, d.Field(use, "module_use.source_list"))
		}
		d.Link(d.Field(d.modules[i], "module.source_list"), uses...)
	}
}

// Module gives the struct module of one by its place.
func (d *Data) Module(i int) uint64 { return d.modules[i] }

// module makes a module with its memory at base.
func (d *Data) module(at, base uint64, m Module, entry [orcSize]byte) {
	copy(d.At(d.Field(at, "module.name"))[:moduleNameSize], m.Name)
	d.PutHalf(d.Field(at, "module.state"), uint32(slices.Index(states, m.State)))
	d.PutHalf(d.Field(at, "module.refcnt"), uint32(m.Uses+1))
	names := base + ModuleText // in its memory, as kernels have it
	if size, ok := d.Offset("module_memory"); ok {
		for i, part := range []struct{ base, size uint64 }{{base, ModuleText}, {base + ModuleText, ModuleSize - ModuleText}} {
			piece := d.Field(at, "module.mem") + uint64(i)*size
			d.Put(d.Field(piece, "module_memory.base"), part.base)
			d.PutHalf(d.Field(piece, "module_memory.size"), uint32(part.size))
		}
	} else {
		d.Put(d.Field(at, "module.core_layout.base"), base)
		d.PutHalf(d.Field(at, "module.core_layout.size"), ModuleSize)
		d.PutHalf(d.Field(at, "module.core_layout.text_size"), ModuleText)
	}
	functions := []string{"", m.Name + "_init", m.Name + "_open", "__UNDEF", m.Name + "_data"}
	table := d.New(symbolSize * len(functions))
	text := "\x00"
	for i, name := range functions {
		sym := table + uint64(i)*symbolSize
		d.PutHalf(sym, uint32(len(text)))
		text += name + "\x00"
		section, addr := uint16(1), base+uint64(i)*FunctionSize
		if name == "__UNDEF" {
			section = 0
		}
		if i == 4 {
			addr = base + ModuleText
		}
		binary.LittleEndian.PutUint16(d.At(sym+6), section)
		d.Put(sym+8, addr)
	}
	copy(d.At(names), text)
	kallsyms := d.New(32)
	d.Put(d.Field(at, "module.kallsyms"), kallsyms)
	d.Put(d.Field(kallsyms, "mod_kallsyms.symtab"), table)
	d.PutHalf(d.Field(kallsyms, "mod_kallsyms.num_symtab"), uint32(len(functions)))
	d.Put(d.Field(kallsyms, "mod_kallsyms.strtab"), names)
	ips, entries := d.New(4), d.New(orcSize)
	d.PutHalf(ips, uint32(base-ips))
	copy(d.At(entries), entry[:])
	d.PutHalf(d.Field(at, "module.arch.num_orcs"), 1)
	d.Put(d.Field(at, "module.arch.orc_unwind_ip"), ips)
	d.Put(d.Field(at, "module.arch.orc_unwind"), entries)
}

// moduleTypes makes the types of a module, and gives their entry in the kernel's list.
func (d *Data) moduleTypes(at uint64, m Module) (entry uint64) {
	task, first := int(d.types.numbers["task_struct"]), int(d.types.end)
	b := BTF(int(d.types.names),
		[]any{m.Name + "_dev", kindStruct<<24 | 2, 16, "task", first + 1, 0, "self", first + 2, 64},
		[]any{"", kindPointer << 24, task},
		[]any{"", kindPointer << 24, first},
		[]any{"", kindPrototype<<24 | 1, 0, "d", first + 2},
		[]any{m.Name + "_open", kindFunction << 24, first + 3})
	data := d.New(len(b))
	copy(d.At(data), b)
	types := d.New(208)
	d.Put(d.Field(types, "btf.data"), data)
	d.PutHalf(d.Field(types, "btf.data_size"), uint32(len(b)))
	d.PutHalf(d.Field(types, "btf.start_id"), d.types.end)
	d.PutHalf(d.Field(types, "btf.start_str_off"), d.types.names)
	one := d.New(48)
	d.Put(d.Field(one, "btf_module.module"), at)
	d.Put(d.Field(one, "btf_module.btf"), types)
	return d.Field(one, "btf_module.list")
}

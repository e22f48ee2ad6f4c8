// This file lists a kernel's modules (include/linux/module.h in Linux), with their
// own kallsyms and ORC tables.

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// A Module is a part of the kernel that was loaded.
type Module struct {
	Name   string
	Size   uint64 // of its memory
	Uses   int    // how many things use it
	UsedBy []string
	State  string // ModuleLive, "loading" or "unloading"

	at        uint64   // its struct module
	text      []extent // its code
	parts     []part   // all its memory
	kallsyms  uint64
	orcs      [3]uint64 // number, offsets, entries
	symbols   []symbol  // its functions, by address
	variables []symbol  // its other symbols, by address
	orc       *orc
	loaded    bool // symbols and orc are
}

// moduleKeys are the structures of modules.
var moduleKeys = []string{
	"module", "module.list", "module.name", "module.state",
	"mod_kallsyms.symtab", "mod_kallsyms.num_symtab", "mod_kallsyms.strtab", "module.kallsyms",
	"mod_kallsyms.typetab",                                                               // since 5.2
	"module.refcnt", "module.source_list", "module_use.source_list", "module_use.source", // CONFIG_MODULE_UNLOAD
	"module.arch.num_orcs", "module.arch.orc_unwind_ip", "module.arch.orc_unwind", // CONFIG_UNWINDER_ORC
	// Until 6.3.
	"module.core_layout.base", "module.core_layout.size", "module.core_layout.text_size",
	"module.init_layout.base", "module.init_layout.size", "module.init_layout.text_size",
	// Since 6.4.
	"#module.mem", "module.mem", "module_memory", "module_memory.base", "module_memory.size",
}

// moduleTypeKeys are the structures that modules' types are found by
// (kernel/bpf/btf.c in Linux): since 5.11, with CONFIG_DEBUG_INFO_BTF_MODULES.
var moduleTypeKeys = []string{
	"btf_module.list", "btf_module.module", "btf_module.btf", "btf.data", "btf.data_size", "btf.start_id", "btf.start_str_off",
}

const (
	neededModuleKeys = 8
	mostModules      = 4096
	moduleNameSize   = 56 // MODULE_NAME_LEN
	mostModuleSize   = 256 << 20
	mostModuleMemory = 16 // pieces of one, of which Linux has 7
	mostModuleUses   = 1 << 16
	moduleSymbolSize = 24 // Elf64_Sym
	// mostModuleTables bounds what is read of all modules' symbols, ORC tables and types,
	// of which the largest module of Linux has about 12 MB, and what is made of them.
	mostModuleTables = 64 << 20

	memText, memInitText = 0, 4 // MOD_TEXT, MOD_INIT_TEXT, which begins what goes after the start

	stateUnformed = 3 // MODULE_STATE_UNFORMED
)

// ModuleLive is the state of a module that is neither coming nor going.
const ModuleLive = "live"

var moduleStates = []string{ModuleLive, "loading", "unloading"}

// Modules gives the modules, in the kernel's order: the last that was loaded comes
// first. With an error, they are those before what cannot be read.
//
// Function, Place and Unwind know them from then on, and read of what mem is what
// they need.
// Preconditions: the guest does not run.
func (k *Kernel) Modules(mem Memory) ([]*Module, error) {
	list, err := k.listModules(mem)
	k.mem, k.modules, k.moduleTypes, k.room = mem, list, nil, mostModuleTables
	k.moduleCode = codeOf(list)
	return list, err
}

// ReadModules is Modules, and reads all that Function, Place and Unwind need of them,
// so that those read no table of theirs later. The guest may run meanwhile: SameModules
// tells whether what was read holds.
func (k *Kernel) ReadModules(mem Memory) error {
	list, err := k.Modules(mem)
	for _, m := range list {
		k.load(m)
	}
	return err
}

// SameModules tells whether the modules are still those that were listed last, at the
// same places. Then what was read of them since holds: a kernel does not free a module's
// tables, or change them, before that shows in the list. The guest may run.
func (k *Kernel) SameModules(mem Memory) bool {
	list, err := k.listModules(mem)
	return err == nil && slices.EqualFunc(list, k.modules, func(a, b *Module) bool {
		return a.at == b.at && a.Name == b.Name && a.State == b.State && slices.Equal(a.parts, b.parts) &&
			a.kallsyms == b.kallsyms && a.orcs == b.orcs
	})
}

// listModules reads the list of modules.
func (k *Kernel) listModules(mem Memory) (list []*Module, err error) {
	o, err := k.types(mem)
	if err == nil {
		err = o.need(moduleKeys[:neededModuleKeys]...)
	}
	head, ok := k.Lookup("modules")
	if err == nil && !ok {
		err = errors.New("the guest's kernel does not say where they are (CONFIG_MODULES, CONFIG_KALLSYMS_ALL)")
	}
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	r := reader{mem: mem}
	uses := mostModuleUses
	r.list(head, mostModules, func(entry uint64) bool {
		if m := r.module(o, entry-o["module.list"], &uses); r.err == nil && m != nil {
			list = append(list, m)
		}
		return r.err == nil
	})
	if r.err != nil {
		return list, fmt.Errorf("list modules: %w", r.err)
	}
	return list, nil
}

// module reads a struct module, or gives nil for one that is not set up. Of uses
// there are to be no more than a number, which is counted down.
func (r *reader) module(o offsets, at uint64, uses *int) *Module {
	state := r.half(at + o["module.state"])
	if state >= stateUnformed {
		return nil
	}
	m := &Module{
		Name: r.name(at+o["module.name"], moduleNameSize), State: moduleStates[state],
		at: at, kallsyms: r.word(at + o["module.kallsyms"]),
	}
	r.layout(o, at, m)
	if o.need("module.refcnt", "module.source_list", "module_use.source_list", "module_use.source") == nil {
		m.Uses = int(int32(r.half(at+o["module.refcnt"]))) - 1 // the kernel itself counts as one (MODULE_REF_BASE)
		r.list(at+o["module.source_list"], *uses, func(entry uint64) bool {
			user := r.word(entry - o["module_use.source_list"] + o["module_use.source"])
			m.UsedBy = append(m.UsedBy, r.name(user+o["module.name"], moduleNameSize))
			*uses--
			return true
		})
	}
	if o.need("module.arch.num_orcs", "module.arch.orc_unwind_ip", "module.arch.orc_unwind") == nil {
		m.orcs = [3]uint64{
			uint64(r.half(at + o["module.arch.num_orcs"])),
			r.word(at + o["module.arch.orc_unwind_ip"]), r.word(at + o["module.arch.orc_unwind"]),
		}
	}
	return m
}

// layout reads where a module's memory is.
func (r *reader) layout(o offsets, at uint64, m *Module) {
	add := func(prefix string, base, size, text uint64) {
		text = min(text, size)
		if size > mostModuleSize || base+size < base {
			return
		}
		m.Size += size
		if text > 0 {
			e := extent{base, base + text}
			m.text = append(m.text, e)
			m.parts = append(m.parts, part{prefix + "text", codeFlags, e})
		}
		if text < size {
			m.parts = append(m.parts, part{prefix + "data", dataFlags, extent{base + text, base + size}})
		}
	}
	const core, start = ".", ".init."
	if o.need("module.mem", "#module.mem", "module_memory", "module_memory.base", "module_memory.size") == nil {
		for i := range min(o["#module.mem"], mostModuleMemory) {
			piece := at + o["module.mem"] + i*o["module_memory"]
			base, size := r.word(piece+o["module_memory.base"]), uint64(r.half(piece+o["module_memory.size"]))
			text, prefix := uint64(0), core
			if i == memText || i == memInitText {
				text = size
			}
			if i >= memInitText {
				prefix = start
			}
			add(prefix, base, size, text)
		}
		return
	}
	for _, l := range []struct{ prefix, key string }{{core, "module.core_layout."}, {start, "module.init_layout."}} {
		if o.need(l.key+"base", l.key+"size", l.key+"text_size") == nil {
			add(l.prefix, r.word(at+o[l.key+"base"]), uint64(r.half(at+o[l.key+"size"])), uint64(r.half(at+o[l.key+"text_size"])))
		}
	}
}

// A codePiece is from an address to where the next one begins.
type codePiece struct {
	first uint64
	of    *Module // nil: no module's code
}

// codeOf gives the code of modules, by address. Code that is of several, which only a
// guest that lies has, is of the first of them.
func codeOf(list []*Module) []codePiece {
	var bounds []uint64
	for _, m := range list {
		for _, e := range m.text {
			bounds = append(bounds, e.first, e.end)
		}
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	pieces := make([]codePiece, len(bounds))
	skip := make([]int, len(bounds)) // over pieces that are some module's
	for i, addr := range bounds {
		pieces[i].first, skip[i] = addr, i
	}
	free := func(i int) int {
		for skip[i] != i {
			skip[i] = skip[skip[i]]
			i = skip[i]
		}
		return i
	}
	for _, m := range list {
		for _, e := range m.text {
			first, _ := slices.BinarySearch(bounds, e.first)
			end, _ := slices.BinarySearch(bounds, e.end)
			for i := free(first); i < end; i = free(i) {
				pieces[i].of, skip[i] = m, i+1
			}
		}
	}
	return pieces
}

// module gives the module whose code an address is in, or nil.
func (k *Kernel) module(addr uint64) *Module {
	i := sort.Search(len(k.moduleCode), func(i int) bool { return k.moduleCode[i].first > addr }) - 1
	if i < 0 || k.moduleCode[i].of == nil {
		return nil
	}
	m := k.moduleCode[i].of
	k.load(m)
	return m
}

// load reads the symbols of a module and its ORC tables, once. What cannot be
// read is not there.
func (k *Kernel) load(m *Module) {
	if m.loaded {
		return
	}
	m.loaded = true
	m.symbols, m.variables = k.moduleSymbols(m)
	n := m.orcs[0]
	if k.orc == nil || n == 0 || !k.take(n*(4+orcSize)) {
		return
	}
	o := &orc{start: m.orcs[1], offsets: make([]byte, n*4), entries: make([]byte, n*orcSize), flags: k.orc.flags, offsetFirst: k.orc.offsetFirst}
	if readFull(k.mem, m.orcs[1], o.offsets) == nil && readFull(k.mem, m.orcs[2], o.entries) == nil {
		m.orc = o
	}
}

// take tells whether there is room for so many bytes more of modules' tables.
func (k *Kernel) take(size uint64) bool {
	if size > k.room {
		return false
	}
	k.room -= size
	return true
}

// moduleSymbols reads the symbols of a module: a table of Elf64_Sym, with names in
// a table beside it.
func (k *Kernel) moduleSymbols(m *Module) (functions, variables []symbol) {
	o, err := k.types(k.mem)
	if err != nil {
		return nil, nil
	}
	r := reader{mem: k.mem}
	table, names := r.word(m.kallsyms+o["mod_kallsyms.symtab"]), r.word(m.kallsyms+o["mod_kallsyms.strtab"])
	n := uint64(r.half(m.kallsyms + o["mod_kallsyms.num_symtab"]))
	// The names end where the memory does that they are in.
	size := uint64(0)
	if i := partOf(m.parts, names); i >= 0 {
		size = m.parts[i].end - names
	}
	if r.err != nil || !k.take(n*moduleSymbolSize+size) {
		return nil, nil
	}
	entries, text := make([]byte, n*moduleSymbolSize), make([]byte, size)
	r.read(table, entries)
	readSparse(k.mem, names, text)
	if r.err != nil {
		return nil, nil
	}
	for ; len(entries) > 0; entries = entries[moduleSymbolSize:] {
		name, section := uint64(binary.LittleEndian.Uint32(entries)), binary.LittleEndian.Uint16(entries[6:])
		addr := binary.LittleEndian.Uint64(entries[8:])
		if section == 0 || name >= size || partOf(m.parts, addr) < 0 {
			continue
		}
		end := name
		for end < size && text[end] != 0 && end-name < 512 {
			end++
		}
		if end == name || !k.take(end-name) { // names may be in each other
			continue
		}
		s := symbol{addr: addr, kind: 'd', name: printable(string(text[name:end]))}
		if within(m.text, addr) {
			s.kind = 't'
			functions = append(functions, s)
		} else {
			variables = append(variables, s)
		}
	}
	for _, list := range [][]symbol{functions, variables} {
		sort.SliceStable(list, func(i, j int) bool { return list[i].addr < list[j].addr })
	}
	return functions, variables
}

// readModuleTypes reads the types of a module, or gives nil. The kernel has them in a list
// of its own: what a module says of them itself it forgets when that has started.
func (k *Kernel) readModuleTypes(m *Module) *btf {
	o, err := k.types(k.mem)
	head, ok := k.Lookup("btf_modules")
	if err != nil || !ok || o.need(moduleTypeKeys...) != nil {
		return nil
	}
	r := reader{mem: k.mem}
	if k.moduleTypes == nil {
		k.moduleTypes = map[uint64]uint64{}
		r.list(head, mostModules, func(entry uint64) bool {
			at := entry - o["btf_module.list"]
			k.moduleTypes[r.word(at+o["btf_module.module"])] = r.word(at + o["btf_module.btf"])
			return r.err == nil
		})
		r.err = nil // those before it are known
	}
	at, ok := k.moduleTypes[m.at]
	if !ok {
		return nil
	}
	data, size := r.word(at+o["btf.data"]), uint64(r.half(at+o["btf.data_size"]))
	first, firstName := r.half(at+o["btf.start_id"]), r.half(at+o["btf.start_str_off"])
	if r.err != nil || first != k.btf.end() || int(firstName) != len(k.btf.names) || !k.take(size) {
		return nil
	}
	b := make([]byte, size)
	r.read(data, b)
	if r.err != nil {
		return nil
	}
	t, err := readBTF(b, k.btf, nil)
	if err != nil {
		return nil
	}
	return t
}

// within tells whether an address is in one of some pieces.
func within(pieces []extent, addr uint64) bool {
	for _, e := range pieces {
		if addr >= e.first && addr < e.end {
			return true
		}
	}
	return false
}

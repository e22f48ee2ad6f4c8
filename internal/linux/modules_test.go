package linux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fakeModules is where modules are; fakeModule is a module's size, its code in
// front.
const (
	fakeModules    = 0xffffffffc0200000
	fakeModule     = 3 * pageSize
	fakeModuleText = pageSize
)

// modules makes modules, each of which has functions with names, one every
// functionSize bytes, all with one ORC entry, and types.
func (d *fakeData) modules(version string, list []Module, entry [orcSize]byte) {
	size := int(d.o["module"])
	head := d.new(16)
	d.symbol("modules", head)
	at := map[string]uint64{}
	var entries, types []uint64
	for i, m := range list {
		at[m.Name] = d.new(size)
		entries = append(entries, d.field(at[m.Name], "module.list"))
		d.fakeModule(version, at[m.Name], fakeModules+uint64(i)*fakeModule, m, entry)
		types = append(types, d.fakeModuleTypes(at[m.Name], m))
	}
	d.link(head, entries...)
	head = d.new(16)
	d.symbol("btf_modules", head)
	d.link(head, types...)
	for _, m := range list {
		var uses []uint64
		for _, user := range m.UsedBy {
			use := d.new(48)
			d.put(d.field(use, "module_use.source"), at[user])
			uses = append(uses, d.field(use, "module_use.source_list"))
		}
		d.link(d.field(at[m.Name], "module.source_list"), uses...)
	}
}

func (d *fakeData) fakeModule(version string, at, base uint64, m Module, entry [orcSize]byte) {
	copy(d.at(d.field(at, "module.name")), m.Name)
	for i, state := range append(moduleStates, "unformed") {
		if state == m.State {
			d.putHalf(d.field(at, "module.state"), uint32(i))
		}
	}
	d.putHalf(d.field(at, "module.refcnt"), uint32(m.Uses+1))
	names := base + fakeModuleText // in its memory, as kernels have it
	if version == "6.12" {
		for i, part := range []struct{ base, size uint64 }{{base, fakeModuleText}, {base + fakeModuleText, fakeModule - fakeModuleText}} {
			piece := d.field(at, "module.mem") + uint64(i)*d.o["module_memory"]
			d.put(d.field(piece, "module_memory.base"), part.base)
			d.putHalf(d.field(piece, "module_memory.size"), uint32(part.size))
		}
	} else {
		d.put(d.field(at, "module.core_layout.base"), base)
		d.putHalf(d.field(at, "module.core_layout.size"), fakeModule)
		d.putHalf(d.field(at, "module.core_layout.text_size"), fakeModuleText)
	}
	// The module's memory is somewhere else: it is moved by moved.
	functions := []string{"", m.Name + "_init", m.Name + "_open", "__UNDEF", m.Name + "_data"}
	table := d.new(moduleSymbolSize * len(functions))
	text := "\x00"
	for i, name := range functions {
		sym := table + uint64(i)*moduleSymbolSize
		d.putHalf(sym, uint32(len(text)))
		text += name + "\x00"
		section, addr := uint16(1), base+uint64(i)*functionSize
		if name == "__UNDEF" {
			section = 0
		}
		if i == 4 {
			addr = base + fakeModuleText
		}
		binary.LittleEndian.PutUint16(d.at(sym+6), section)
		d.put(sym+8, addr)
	}
	copy(d.moved(names), text)
	kallsyms := d.new(32)
	d.put(d.field(at, "module.kallsyms"), kallsyms)
	d.put(d.field(kallsyms, "mod_kallsyms.symtab"), table)
	d.putHalf(d.field(kallsyms, "mod_kallsyms.num_symtab"), uint32(len(functions)))
	d.put(d.field(kallsyms, "mod_kallsyms.strtab"), names)
	ips, entries := d.new(4), d.new(orcSize)
	d.putHalf(ips, uint32(base-ips))
	copy(d.at(entries), entry[:])
	d.putHalf(d.field(at, "module.arch.num_orcs"), 1)
	d.put(d.field(at, "module.arch.orc_unwind_ip"), ips)
	d.put(d.field(at, "module.arch.orc_unwind"), entries)
}

// fakeModuleTypes makes the types of a module, and gives their entry in the kernel's list.
func (d *fakeData) fakeModuleTypes(at uint64, m Module) (entry uint64) {
	task, first := int(d.described.structs["task_struct"]), int(d.described.end())
	b := moreBTF(d.described,
		[]any{m.Name + "_dev", kindStruct<<24 | 2, 16, "task", first + 1, 0, "self", first + 2, 64},
		[]any{"", kindPointer << 24, task},
		[]any{"", kindPointer << 24, first},
		[]any{"", kindPrototype<<24 | 1, 0, "d", first + 2},
		[]any{m.Name + "_open", kindFunction << 24, first + 3})
	data := d.new(len(b))
	copy(d.at(data), b)
	types := d.new(208)
	d.put(d.field(types, "btf.data"), data)
	d.putHalf(d.field(types, "btf.data_size"), uint32(len(b)))
	d.putHalf(d.field(types, "btf.start_id"), d.described.end())
	d.putHalf(d.field(types, "btf.start_str_off"), uint32(len(d.described.names)))
	one := d.new(48)
	d.put(d.field(one, "btf_module.module"), at)
	d.put(d.field(one, "btf_module.btf"), types)
	return d.field(one, "btf_module.list")
}

// moved gives memory of a module's.
func (d *fakeData) moved(addr uint64) []byte {
	if d.loaded.b == nil {
		d.loaded = space{fakeModules, make([]byte, 8*fakeModule)}
	}
	return d.loaded.b[addr-fakeModules:]
}

var fakeLoaded = []Module{
	{Name: "ppp_generic", Size: fakeModule, State: "live"},
	{Name: "odd", State: "unformed"},
	{Name: "slhc", Size: fakeModule, Uses: 2, UsedBy: []string{"ppp_generic", "slip"}, State: "live"},
	{Name: "slip", Size: fakeModule, Uses: -1, State: "unloading"},
	{Name: "brd", Size: fakeModule, State: "loading"},
}

func TestModules(t *testing.T) {
	for version := range fakeStructs {
		d := newFakeData(version)
		d.modules(version, fakeLoaded, [orcSize]byte{})
		mem := spaces{d.mem, d.loaded}
		list, err := d.Modules(mem)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var got []Module
		for _, m := range list {
			got = append(got, *m)
		}
		want := append(append([]Module{}, fakeLoaded[0]), fakeLoaded[2:]...)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Module{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
		slhc := uint64(fakeModules + 2*fakeModule)
		for addr, want := range map[uint64]string{
			slhc + functionSize:       "slhc_init+0x0 [slhc]",
			slhc + 2*functionSize + 5: "slhc_open+0x5 [slhc]",
			slhc + fakeModuleText - 1: fmt.Sprintf("slhc_open+%#x [slhc]", fakeModuleText-1-2*functionSize),
			slhc + 5:                  "", // before the first
			slhc + fakeModuleText:     "", // data
			fakeModules + fakeModule:  "", // of the one that is not set up
			fakeModules - 1:           "",
		} {
			if got, _ := d.Place(Frame{RIP: addr}); got != want {
				t.Errorf("%s: %#x is %q, want %q", version, addr, got, want)
			}
		}
	}
}

// A stack goes through a module.
func TestUnwindModule(t *testing.T) {
	for _, l := range fakeLayouts {
		kernel, k := foundKernel(t, l)
		d := newFakeData("6.1")
		data := d.symbols
		d.Kernel = k
		d.symbols = append(d.symbols, data...)
		d.modules("6.1", fakeLoaded, l.entry(24, -16, orcSP, orcPrevSP, orcCall))
		stack := space{fakeStack, make([]byte, pageSize)}
		put := func(addr, v uint64) { binary.LittleEndian.PutUint64(stack.b[addr-fakeStack:], v) }
		mem := spaces{kernel, d.mem, d.loaded, stack}
		const sp = fakeStack + 0x100
		open := uint64(fakeModules + 2*functionSize)
		put(sp, open+9)
		put(sp+8+16, function("startup_xen")+7)
		r := Registers{RIP: function("leaf"), RSP: sp}
		if _, err := k.Unwind(mem, r); err == nil || !strings.Contains(err.Error(), "in no code of the kernel") {
			t.Errorf("%s: before modules are read: got %v", l.name, err)
		}
		if _, err := k.Modules(mem); err != nil {
			t.Fatal(err)
		}
		got, err := k.Unwind(mem, r)
		want := []Frame{{RIP: function("leaf")}, {RIP: open + 9, Call: true}, {RIP: function("startup_xen") + 7, Call: true}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", l.name, err, diff)
		}
		checkFrameInfo(t, k, mem, r, want)
		if name, _ := k.Place(got[1]); name != "ppp_generic_open+0x9 [ppp_generic]" {
			t.Errorf("%s: it is in %s", l.name, name)
		}
		head, _ := d.Lookup("modules")
		d.put(d.field(binary.LittleEndian.Uint64(d.at(head))-d.o["module.list"], "module.arch.orc_unwind"), 8)
		k.Modules(mem)
		if _, err = k.Unwind(mem, r); err == nil || !strings.Contains(err.Error(), "does not say how") {
			t.Errorf("%s: without ORC of the module's: got %v", l.name, err)
		}
	}
}

// The file of a module has its symbols, counted from where it is, in sections for all
// its memory.
func TestModuleFile(t *testing.T) {
	for version := range fakeStructs {
		d := newFakeData(version)
		d.modules(version, fakeLoaded, [orcSize]byte{})
		list, err := d.Modules(spaces{d.mem, d.loaded})
		if err != nil {
			t.Fatal(err)
		}
		m := list[1] // slhc
		if addr, ok := m.Address(); addr != fakeModules+2*fakeModule || !ok {
			t.Errorf("%s: it is at %#x", version, addr)
		}
		file, sections := d.File(m)
		f, err := elf.NewFile(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for i, s := range f.Sections {
			if s.Flags&elf.SHF_ALLOC != 0 {
				got = append(got, fmt.Sprintf("%d %s %#x+%#x", i, s.Name, s.Addr, s.Size))
			}
		}
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			got = append(got, fmt.Sprintf("%s %#x+%#x %v in %d", s.Name, s.Value, s.Size, elf.ST_TYPE(s.Info), s.Section))
		}
		want := []string{
			"1 .text 0x0+0x1000", "2 .data 0x1000+0x2000",
			"slhc_init 0x40+0x40 STT_FUNC in 1", "slhc_open 0x80+0xf80 STT_FUNC in 1", "slhc_data 0x1000+0x2000 STT_OBJECT in 2",
		}
		if diff := cmp.Diff(want, got); diff != "" || sections != 2 {
			t.Errorf("%s: %d sections (-want +got):\n%s", version, sections, diff)
		}
		info, err := f.DWARF()
		if err != nil {
			t.Fatal(err)
		}
		wantInfo := map[string]string{
			"unit":             "0x0+0x1000",
			"type slhc_dev":    "struct slhc_dev {task *struct task_struct@0; self *struct slhc_dev@8}",
			"type task_struct": "struct task_struct /*incomplete*/",
			"slhc_open":        "void 0x80+0xf80",
			"slhc_open 1":      "*struct slhc_dev",
			"prototype 1":      "*struct slhc_dev",
		}
		if diff := cmp.Diff(wantInfo, describe(t, info)); diff != "" {
			t.Errorf("%s: types (-want +got):\n%s", version, diff)
		}
		if _, ok := (&Module{}).Address(); ok {
			t.Error("a module without code has an address")
		}
	}
}

// Types of a module that do not continue the kernel's, or are not there, or are too
// many, are left out, and those of other modules are not.
func TestModuleTypesMissing(t *testing.T) {
	for name, change := range map[string]func(d *fakeData, types uint64){
		"of another kernel": func(d *fakeData, types uint64) { d.putHalf(d.field(types, "btf.start_id"), 7) },
		"of other names":    func(d *fakeData, types uint64) { d.putHalf(d.field(types, "btf.start_str_off"), 7) },
		"not mapped":        func(d *fakeData, types uint64) { d.put(d.field(types, "btf.data"), 8) },
		"too large":         func(d *fakeData, types uint64) { d.putHalf(d.field(types, "btf.data_size"), mostModuleTables) },
		"cut off":           func(d *fakeData, types uint64) { d.putHalf(d.field(types, "btf.data_size"), 30) },
	} {
		d := newFakeData("6.1")
		d.modules("6.1", fakeLoaded, [orcSize]byte{})
		head, _ := d.Lookup("btf_modules")
		entry := binary.LittleEndian.Uint64(d.at(head)) - d.o["btf_module.list"]
		change(d, binary.LittleEndian.Uint64(d.at(d.field(entry, "btf_module.btf"))))
		list, err := d.Modules(spaces{d.mem, d.loaded})
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range list {
			file, _ := d.File(m)
			f, err := elf.NewFile(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			if has := f.Section(".debug_info") != nil; has != (i > 0) {
				t.Errorf("%s: %s has types: %v", name, m.Name, has)
			}
		}
	}
}

// FuzzModules gives a kernel modules that are changed at places.
func FuzzModules(f *testing.F) {
	for i := range 4 {
		f.Add(i%2 == 0, uint64(i), []byte{1, 2, 3, 4, 5}[:i])
	}
	old, late := newFakeData("6.1"), newFakeData("6.12")
	entry := fakeLayouts[0].entry(24, -16, orcSP, orcPrevSP, orcCall)
	old.modules("6.1", fakeLoaded, entry)
	late.modules("6.12", fakeLoaded, entry)
	f.Fuzz(func(t *testing.T, isOld bool, seed uint64, changes []byte) {
		d := late
		if isOld {
			d = old
		}
		d.orc = &orc{flags: orcLayouts[4]}
		d.damage(seed, changes, func(k *Kernel, mem Memory) {
			mem = spaces{mem.(space), d.loaded}
			list, _ := k.Modules(mem)
			for i := range uint64(4 * fakeModule / functionSize) {
				k.Place(Frame{RIP: fakeModules + i*functionSize})
				k.unwindAt(fakeModules + i*functionSize)
			}
			size := 0
			for _, m := range list {
				file, _ := k.File(m)
				size += len(file)
			}
			if size > 3*mostModuleTables {
				t.Fatalf("files have %d bytes", size)
			}
		})
	})
}

func TestModulesNoBTF(t *testing.T) {
	if _, err := (&Kernel{}).Modules(spaces{}); !errors.Is(err, ErrNoBTF) {
		t.Errorf("got %v", err)
	}
}

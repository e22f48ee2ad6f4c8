package linux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gdbserver-xen/internal/linux/linuxtest"
)

var fakeLoaded = []linuxtest.Module{
	{Name: "ppp_generic", State: "live"},
	{Name: "odd", State: "unformed"},
	{Name: "slhc", Uses: 2, UsedBy: []string{"ppp_generic", "slip"}, State: "live"},
	{Name: "slip", Uses: -1, State: "unloading"},
	{Name: "brd", State: "loading"},
}

func TestModules(t *testing.T) {
	for version := range linuxtest.Structs {
		d := newFakeData(version)
		d.SetModules(fakeLoaded, [orcSize]byte{})
		mem := linuxtest.Spaces{d.Mem, d.Loaded}
		list, err := d.Modules(mem)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var got []Module
		for _, m := range list {
			got = append(got, *m)
		}
		var want []Module
		for _, m := range fakeLoaded {
			if m.State != "unformed" {
				want = append(want, Module{Name: m.Name, Size: linuxtest.ModuleSize, Uses: m.Uses, UsedBy: m.UsedBy, State: m.State})
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Module{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
		slhc := uint64(linuxtest.Modules + 2*linuxtest.ModuleSize)
		for addr, want := range map[uint64]string{
			slhc + linuxtest.FunctionSize:            "slhc_init+0x0 [slhc]",
			slhc + 2*linuxtest.FunctionSize + 5:      "slhc_open+0x5 [slhc]",
			slhc + linuxtest.ModuleText - 1:          fmt.Sprintf("slhc_open+%#x [slhc]", linuxtest.ModuleText-1-2*linuxtest.FunctionSize),
			slhc + 5:                                 "", // before the first
			slhc + linuxtest.ModuleText:              "", // data
			linuxtest.Modules + linuxtest.ModuleSize: "", // of the one that is not set up
			linuxtest.Modules - 1:                    "",
		} {
			if got, _ := d.Place(Frame{RIP: addr}); got != want {
				t.Errorf("%s: %#x is %q, want %q", version, addr, got, want)
			}
		}
	}
}

// A stack goes through a module.
func TestUnwindModule(t *testing.T) {
	for _, l := range linuxtest.Layouts {
		kernel, k := foundKernel(t, l)
		d := newFakeData("6.1")
		data := d.symbols
		d.Kernel = k
		d.symbols = append(d.symbols, data...)
		d.SetModules(fakeLoaded, l.CallEntry(24, -16))
		stack := linuxtest.Space{Addr: fakeStack, Bytes: make([]byte, pageSize)}
		put := func(addr, v uint64) { binary.LittleEndian.PutUint64(stack.Bytes[addr-fakeStack:], v) }
		mem := linuxtest.Spaces{kernel, d.Mem, d.Loaded, stack}
		const sp = fakeStack + 0x100
		open := uint64(linuxtest.Modules + 2*linuxtest.FunctionSize)
		put(sp, open+9)
		put(sp+8+16, linuxtest.Function("startup_xen")+7)
		r := Registers{RIP: linuxtest.Function("leaf"), RSP: sp}
		if _, err := k.Unwind(mem, r); err == nil || !strings.Contains(err.Error(), "in no code of the kernel") {
			t.Errorf("%s: before modules are read: got %v", l.Name, err)
		}
		if _, err := k.Modules(mem); err != nil {
			t.Fatal(err)
		}
		got, err := k.Unwind(mem, r)
		want := []Frame{{RIP: linuxtest.Function("leaf")}, {RIP: open + 9, Call: true}, {RIP: linuxtest.Function("startup_xen") + 7, Call: true}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", l.Name, err, diff)
		}
		checkFrameInfo(t, k, mem, r, want)
		if name, _ := k.Place(got[1]); name != "ppp_generic_open+0x9 [ppp_generic]" {
			t.Errorf("%s: it is in %s", l.Name, name)
		}
		head, _ := d.Lookup("modules")
		d.Put(d.Field(binary.LittleEndian.Uint64(d.At(head))-d.Field(0, "module.list"), "module.arch.orc_unwind"), 8)
		k.Modules(mem)
		if _, err = k.Unwind(mem, r); err == nil || !strings.Contains(err.Error(), "does not say how") {
			t.Errorf("%s: without ORC of the module's: got %v", l.Name, err)
		}
	}
}

// The file of a module has its symbols, counted from where it is, in sections for all
// its memory.
func TestModuleFile(t *testing.T) {
	for version := range linuxtest.Structs {
		d := newFakeData(version)
		d.SetModules(fakeLoaded, [orcSize]byte{})
		list, err := d.Modules(linuxtest.Spaces{d.Mem, d.Loaded})
		if err != nil {
			t.Fatal(err)
		}
		m := list[1] // slhc
		if addr, ok := m.Address(); addr != linuxtest.Modules+2*linuxtest.ModuleSize || !ok {
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
		"of another kernel": func(d *fakeData, types uint64) { d.PutHalf(d.Field(types, "btf.start_id"), 7) },
		"of other names":    func(d *fakeData, types uint64) { d.PutHalf(d.Field(types, "btf.start_str_off"), 7) },
		"not mapped":        func(d *fakeData, types uint64) { d.Put(d.Field(types, "btf.data"), 8) },
		"too large":         func(d *fakeData, types uint64) { d.PutHalf(d.Field(types, "btf.data_size"), mostModuleTables) },
		"cut off":           func(d *fakeData, types uint64) { d.PutHalf(d.Field(types, "btf.data_size"), 30) },
	} {
		d := newFakeData("6.1")
		d.SetModules(fakeLoaded, [orcSize]byte{})
		head, _ := d.Lookup("btf_modules")
		entry := binary.LittleEndian.Uint64(d.At(head)) - d.Field(0, "btf_module.list")
		change(d, binary.LittleEndian.Uint64(d.At(d.Field(entry, "btf_module.btf"))))
		list, err := d.Modules(linuxtest.Spaces{d.Mem, d.Loaded})
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

// An address is in the first module whose code has it, however they lie over each other.
func TestCodeOf(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		k := &Kernel{}
		for range rnd.IntN(12) {
			m := &Module{loaded: true}
			for range rnd.IntN(3) {
				first := 10 + rnd.Uint64N(60)
				m.text = append(m.text, extent{first, first + 1 + rnd.Uint64N(30)})
			}
			k.modules = append(k.modules, m)
		}
		k.moduleCode = codeOf(k.modules)
		for addr := range uint64(110) {
			var want *Module
			if i := slices.IndexFunc(k.modules, func(m *Module) bool { return within(m.text, addr) }); i >= 0 {
				want = k.modules[i]
			}
			if got := k.module(addr); got != want {
				t.Fatalf("%d is in %p, want %p, of %v", addr, got, want, k.moduleCode)
			}
		}
	}
}

// shut is memory that is not to be read any more.
type shut struct{ t *testing.T }

func (s shut) Read(addr uint64, _ []byte) (int, error) {
	s.t.Helper()
	s.t.Errorf("%#x is read", addr)
	return 0, errors.New("it is shut")
}

// Once modules were read, names and stacks take no more reading, as long as the list is
// the same.
func TestReadModules(t *testing.T) {
	for version := range linuxtest.Structs {
		d := newFakeData(version)
		d.orc = &orc{flags: orcLayouts[4]}
		d.SetModules(fakeLoaded, linuxtest.Layouts[0].CallEntry(24, -16))
		mem := linuxtest.Spaces{d.Mem, d.Loaded}
		if d.SameModules(mem) {
			t.Errorf("%s: modules are the same that were never listed", version)
		}
		if err := d.ReadModules(mem); err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		d.Kernel.mem = shut{t}
		open := uint64(linuxtest.Modules + 2*linuxtest.FunctionSize)
		if place, _ := d.Place(Frame{RIP: open + 5}); place != "ppp_generic_open+0x5 [ppp_generic]" {
			t.Errorf("%s: place is %q", version, place)
		}
		if e, ok, _ := d.unwindAt(open); !ok || e.spOffset != 24 {
			t.Errorf("%s: entry is %+v", version, e)
		}
		if !d.SameModules(mem) {
			t.Errorf("%s: modules that were just read are others", version)
		}
		at := d.Kernel.modules[1].at // of slhc
		for _, key := range []string{"module.state", "module.name", "module.kallsyms", "module.arch.orc_unwind"} {
			b := d.At(d.Field(at, key))
			b[0] ^= 1
			if d.SameModules(mem) {
				t.Errorf("%s: with another %s modules are the same", version, key)
			}
			b[0] ^= 1
		}
		if d.SameModules(linuxtest.Spaces{}) {
			t.Errorf("%s: modules that cannot be read are the same", version)
		}
	}
}

// FuzzModules gives a kernel modules that are changed at places.
func FuzzModules(f *testing.F) {
	for i := range 4 {
		f.Add(i%2 == 0, uint64(i), []byte{1, 2, 3, 4, 5}[:i])
	}
	old, late := newFakeData("6.1"), newFakeData("6.12")
	entry := linuxtest.Layouts[0].CallEntry(24, -16)
	old.SetModules(fakeLoaded, entry)
	late.SetModules(fakeLoaded, entry)
	f.Fuzz(func(t *testing.T, isOld bool, seed uint64, changes []byte) {
		d := late
		if isOld {
			d = old
		}
		d.orc = &orc{flags: orcLayouts[4]}
		d.damage(seed, changes, func(k *Kernel, mem Memory) {
			mem = linuxtest.Spaces{mem.(linuxtest.Space), d.Loaded}
			list, _ := k.Modules(mem)
			for i := range uint64(4 * linuxtest.ModuleSize / linuxtest.FunctionSize) {
				k.Place(Frame{RIP: linuxtest.Modules + i*linuxtest.FunctionSize})
				k.unwindAt(linuxtest.Modules + i*linuxtest.FunctionSize)
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
	if _, err := (&Kernel{}).Modules(linuxtest.Spaces{}); !errors.Is(err, ErrNoBTF) {
		t.Errorf("got %v", err)
	}
}

package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux/linuxtest"
)

// Symbols are found in each layout that kernels had, wherever KASLR has put them.
func TestFind(t *testing.T) {
	for _, l := range linuxtest.Layouts {
		t.Run(l.Name, func(t *testing.T) {
			k, err := Find(linuxtest.Image(l), linuxtest.Function("asm_exc_page_fault"))
			if err != nil {
				t.Fatal(err)
			}
			if want := "Linux version " + l.Version + " (someone@somewhere) #1"; k.Banner != want {
				t.Errorf("banner is %q, want %q", k.Banner, want)
			}
			if addr, ok := k.Lookup("leaf"); !ok || addr != linuxtest.Function("leaf") {
				t.Errorf("leaf is at %#x", addr)
			}
			if addr, ok := k.Lookup("runqueues"); ok != l.PerCPU || ok && addr != 0x15000 {
				t.Errorf("runqueues is at %#x", addr)
			}
			for addr, want := range map[uint64]string{
				linuxtest.Function("leaf"):                              "leaf+0",
				linuxtest.Function("leaf") + linuxtest.FunctionSize - 1: "leaf+63",
				linuxtest.Base + 1299*linuxtest.FunctionSize + 5:        "function_1299+5",
				linuxtest.Base:     "_text+0", // the first of two names
				linuxtest.Base - 1: "",
				linuxtest.Tables:   "",
				0x400000:           "",
				fakeStack:          "",
			} {
				got := ""
				if name, offset, ok := k.Function(addr); ok {
					got = fmt.Sprintf("%s+%d", name, offset)
				}
				if got != want {
					t.Errorf("%#x is %q, want %q", addr, got, want)
				}
			}
		})
	}
}

func TestNotLinux(t *testing.T) {
	for name, mem := range map[string]Memory{
		"nothing": linuxtest.Spaces{},
		"zeros":   linuxtest.Space{Addr: linuxtest.Base, Bytes: make([]byte, 4<<20)},
		"digits":  linuxtest.Space{Addr: linuxtest.Base, Bytes: []byte(strings.Repeat("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00", 5000))},
	} {
		if _, err := Find(mem, linuxtest.Base); !errors.Is(err, ErrNotLinux) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Find(linuxtest.Space{Addr: linuxtest.Base, Bytes: make([]byte, leastImage)}, linuxtest.Base); !errors.Is(err, ErrNoKallsyms) {
		t.Errorf("an image without symbols: got %v", err)
	}
	if _, err := Find(linuxtest.Space{Addr: linuxtest.Base, Bytes: make([]byte, leastImage/2)}, linuxtest.Base); errors.Is(err, ErrNoKallsyms) {
		t.Errorf("the entry of a kernel: got %v", err)
	}
	if _, err := Find(linuxtest.Image(linuxtest.Layouts[0]), 0x400000); !errors.Is(err, ErrNotLinux) {
		t.Errorf("not in the kernel: got %v", err)
	}
}

// A stack goes through a frame with a frame pointer, what an exception has pushed
// and another stack, to where it ends.
func TestUnwind(t *testing.T) {
	for _, l := range linuxtest.Layouts {
		t.Run(l.Name, func(t *testing.T) {
			kernel, k := foundKernel(t, l)
			stack := linuxtest.Space{Addr: fakeStack, Bytes: make([]byte, 2*pageSize)}
			put := func(addr, v uint64) { binary.LittleEndian.PutUint64(stack.Bytes[addr-fakeStack:], v) }
			mem := linuxtest.Spaces{kernel, stack}
			const sp = fakeStack + 0x100
			put(sp, linuxtest.Function("middle")+9)            // leaf was called by middle
			put(sp+8+16, fakeStack+0x800)                      // middle has pushed rbp
			put(sp+8+24, linuxtest.Function("irq_stack")+0x40) // a call at the end of irq_stack
			put(fakeStack+0x800, fakeStack+0xf00)              // irq_stack's frame
			put(fakeStack+0x808, linuxtest.Function("asm_exc_page_fault")+5)
			regs := uint64(fakeStack + 0x810)
			put(regs+regRIP, linuxtest.Function("leaf")+3) // what was interrupted
			put(regs+regRIP+frameCS, 0x10)
			put(regs+regRIP+frameSP, fakeStack+0x1000)
			put(fakeStack+0x1000, linuxtest.Function("startup_xen")+7)
			want := []Frame{
				{RIP: linuxtest.Function("leaf") + 1},
				{RIP: linuxtest.Function("middle") + 9, Call: true},
				{RIP: linuxtest.Function("irq_stack") + 0x40, Call: true},
				{RIP: linuxtest.Function("asm_exc_page_fault") + 5, Call: true},
				{RIP: linuxtest.Function("leaf") + 3, Interrupted: true},
				{RIP: linuxtest.Function("startup_xen") + 7, Call: true},
			}
			r := Registers{RIP: linuxtest.Function("leaf") + 1, RSP: sp, RBP: 1}
			check := func(name string, r Registers, want []Frame, reason string) {
				t.Helper()
				got, err := k.Unwind(mem, r)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				if reason == "" && r.RIP != 0 {
					checkFrameInfo(t, k, mem, r, want)
				}
				if reason == "" && err != nil || reason != "" && (!errors.Is(err, ErrUnwind) || !strings.Contains(err.Error(), reason)) {
					t.Errorf("%s: got error %v, want %q", name, err, reason)
				}
			}
			check("to its end", r, want, "")
			put(regs+regRIP+frameCS, 0x33)
			put(regs+regRIP, 0x401000)
			check("to user mode", r, append(want[:4:4], Frame{RIP: 0x401000, UserMode: true}), "")
			put(regs+regRIP+frameCS, 0x10)
			check("out of the kernel", r, append(want[:4:4], Frame{RIP: 0x401000, Interrupted: true}), "in no code of the kernel")
			put(sp, linuxtest.Function("startup_xen")+1)
			check("a call of a null pointer", Registers{RSP: sp}, []Frame{{}, {RIP: linuxtest.Function("startup_xen") + 1, Call: true}}, "")
			check("no stack", Registers{RIP: linuxtest.Function("leaf"), RSP: 8}, []Frame{{RIP: linuxtest.Function("leaf")}}, "nothing is mapped at 0x8")
			// A base in a register that a call does not keep.
			put(sp, linuxtest.Function("aligned")+5)
			check("a lost register", r, []Frame{want[0], {RIP: linuxtest.Function("aligned") + 5, Call: true}}, "not known any more")
			put(fakeStack+0x1f8, linuxtest.Function("startup_xen")+1)
			check("a register", Registers{RIP: linuxtest.Function("aligned"), R10: fakeStack + 0x200},
				[]Frame{{RIP: linuxtest.Function("aligned")}, {RIP: linuxtest.Function("startup_xen") + 1, Call: true}}, "")
			// One that goes round and round.
			put(sp, linuxtest.Function("leaf")+1)
			for at := uint64(sp); at < fakeStack+2*pageSize; at += 8 {
				put(at, linuxtest.Function("leaf")+1)
			}
			if got, err := k.Unwind(mem, r); !errors.Is(err, ErrUnwind) || len(got) > maxFrames {
				t.Errorf("a long stack: %d frames, %v", len(got), err)
			}
		})
	}
}

// Code of which ORC does not tell where the caller is.
func TestUnwindStubs(t *testing.T) {
	kernel, k := foundKernel(t, linuxtest.Layouts[2])
	const sp = fakeStack + 0x100
	end := linuxtest.Function("startup_xen") + 7
	switchTo := linuxtest.Function("__switch_to_asm")
	task := []uint64{15, 14, 13, 12, 3, 5, end}
	entry, thunk := linuxtest.Function("xen_asm_exc_page_fault"), linuxtest.Function("__x86_indirect_thunk_r11")
	kernelFrame := []uint64{linuxtest.Function("leaf") + 1, 1<<32 | 0xe030, 0x246, sp + 0x80, 0xe02b}
	userFrame := []uint64{0x401000, 0x33, 0x246, 0x7ffc00000000, 0x2b}
	for _, tt := range []struct {
		name  string
		rip   uint64
		stack []uint64
		want  []Frame
	}{
		{"first", entry, append([]uint64{1, 2}, kernelFrame...), []Frame{{RIP: linuxtest.Function("leaf") + 1, Interrupted: true}, {RIP: end, Call: true}}},
		{"after ENDBR64, with an error code", entry + 4, append([]uint64{1, 2, 4}, kernelFrame...), []Frame{{RIP: linuxtest.Function("leaf") + 1, Interrupted: true}, {RIP: end, Call: true}}},
		{"RCX popped", entry + 5, append([]uint64{2, 4}, userFrame...), []Frame{{RIP: 0x401000, UserMode: true}}},
		{"both popped", entry + 7, userFrame, []Frame{{RIP: 0x401000, UserMode: true}}},
		{"no frame", entry, []uint64{1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20}, nil},
		{"a new task", linuxtest.Function("leaf"), []uint64{linuxtest.Function("ret_from_fork")}, []Frame{{RIP: linuxtest.Function("ret_from_fork")}}},
		{"buffer not filled", switchTo + 0x10, task, []Frame{{RIP: end, Call: true}}},
		{"buffer filled by one", switchTo + 0x10, append([]uint64{switchTo + 0x18}, task...), []Frame{{RIP: end, Call: true}}},
		{"buffer filled by two", switchTo + 0x10, append([]uint64{switchTo + 0x20, switchTo + 0x18}, task...), []Frame{{RIP: end, Call: true}}},
		{"retpoline, first", thunk, []uint64{end}, []Frame{{RIP: end, Call: true}}},
		{"retpoline, inner call", thunk + 12, []uint64{thunk + 5, end}, []Frame{{RIP: end, Call: true}}},
		{"retpoline, return", thunk + 16, []uint64{linuxtest.Function("leaf"), end}, []Frame{{RIP: end, Call: true}}},
	} {
		stack := linuxtest.Space{Addr: fakeStack, Bytes: make([]byte, pageSize)}
		for i, v := range tt.stack {
			binary.LittleEndian.PutUint64(stack.Bytes[0x100+8*i:], v)
		}
		binary.LittleEndian.PutUint64(stack.Bytes[0x180:], end) // who called what was interrupted
		got, err := k.Unwind(linuxtest.Spaces{kernel, stack}, Registers{RIP: tt.rip, RSP: sp})
		if diff := cmp.Diff(append([]Frame{{RIP: tt.rip}}, tt.want...), got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
		if tt.name != "retpoline, return" && tt.name != "no frame" { // there it depends on what is on the stack
			checkFrameInfo(t, k, linuxtest.Spaces{kernel, stack}, Registers{RIP: tt.rip, RSP: sp}, got)
		}
	}
}

// An entry from user mode that has pushed all registers, where ORC says that it has
// not yet.
func TestUnwindRegistersPushed(t *testing.T) {
	entry := linuxtest.Function("asm_exc_nmi") + 9
	stack := linuxtest.Space{Addr: fakeStack, Bytes: make([]byte, pageSize)}
	binary.LittleEndian.PutUint64(stack.Bytes[regRIP:], 0x401000)
	binary.LittleEndian.PutUint64(stack.Bytes[regRIP+frameCS:], 0x33)
	for _, code := range [][]byte{movRSPRAX, nop3} {
		kernel := linuxtest.Image(linuxtest.Layouts[2])
		copy(kernel.Bytes[entry-linuxtest.Base:], code)
		k, err := Find(kernel, linuxtest.Function("leaf"))
		if err != nil {
			t.Fatal(err)
		}
		r := Registers{RIP: entry, RSP: fakeStack}
		got, err := k.Unwind(linuxtest.Spaces{kernel, stack}, r)
		if diff := cmp.Diff([]Frame{{RIP: entry}, {RIP: 0x401000, UserMode: true}}, got); diff != "" || err != nil {
			t.Errorf("% x: %v (-want +got):\n%s", code, err, diff)
		}
		checkFrameInfo(t, k, linuxtest.Spaces{kernel, stack}, r, got)
	}
}

// mostDamage bounds what is allocated for a kernel whose tables are damaged, and so
// what is ever held for it, in bytes.
const mostDamage = 128 << 20

// A kernel whose tables are damaged gives an error or names, in bounded time and
// memory.
func TestDamaged(t *testing.T) {
	rounds := 24 // for each table
	if s := os.Getenv("GDBSERVER_XEN_SOAK"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("GDBSERVER_XEN_SOAK: %v", err)
		}
		rounds = min(n, 10000)
	}
	kernels := map[string][]damagedTable{}
	for _, l := range linuxtest.Layouts {
		whole, k := foundKernel(t, l)
		of := func(first, end string) damagedTable {
			from, _ := k.Lookup(first)
			to, ok := k.Lookup(end)
			if end == "" {
				to, ok = whole.Addr+uint64(len(whole.Bytes)), true
			}
			if !ok {
				t.Fatalf("%s: no %s", l.Name, end)
			}
			return damagedTable{whole, extent{from, to}, use}
		}
		kernels["kallsyms"] = append(kernels["kallsyms"], of("__stop_notes", ""))
		kernels["ORC"] = append(kernels["ORC"], of("__start_orc_unwind_ip", "__stop_orc_unwind"))
	}
	for _, version := range slices.Sorted(maps.Keys(linuxtest.Structs)) {
		d := newFakeData(version)
		btf, _ := d.Lookup("__start_BTF")
		btfEnd, _ := d.Lookup("__stop_BTF")
		d.SetTasks(fakeTasks, fakeStack)
		d.SetModules(fakeLoaded, linuxtest.Layouts[2].CallEntry(24, -16))
		d.ring(fakeMessages...)
		text := d.vmcoreOffsets(ringKeys)
		d.vmcoreInfo(text)
		info := binary.LittleEndian.Uint64(d.At(d.symbols[len(d.symbols)-2].addr))
		kernels["BTF"] = append(kernels["BTF"], damagedTable{d.Mem, extent{btf, btfEnd}, d.use})
		kernels["VMCOREINFO"] = append(kernels["VMCOREINFO"], damagedTable{d.Mem, extent{info, info + uint64(len(text))}, d.use})
	}
	for name, tables := range kernels {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			most, longest := uint64(0), time.Duration(0)
			for i := range rounds {
				table := &tables[i%len(tables)]
				damaged := linuxtest.Space{Addr: table.whole.Addr, Bytes: bytes.Clone(table.whole.Bytes)}
				for range 1 + rnd.IntN(20) {
					at := table.where.first + rnd.Uint64N(table.where.end-table.where.first)
					damaged.Bytes[at-damaged.Addr] ^= byte(1 + rnd.IntN(255))
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				begin := time.Now()
				table.use(damaged, rnd.Uint64())
				longest = max(longest, time.Since(begin))
				runtime.ReadMemStats(&after)
				most = max(most, after.TotalAlloc-before.TotalAlloc)
			}
			t.Logf("%d rounds, at most %d MB and %v for one", rounds, most>>20, longest)
			if most > mostDamage {
				t.Errorf("%d MB were allocated for one kernel", most>>20)
			}
		})
	}
}

// damagedTable is a table of a kernel's that is to be damaged, and what uses it.
type damagedTable struct {
	whole linuxtest.Space
	where extent
	use   func(damaged linuxtest.Space, seed uint64)
}

// use does all that can be done with a kernel's data.
func (d *fakeData) use(damaged linuxtest.Space, _ uint64) {
	k, mem := &Kernel{symbols: d.symbols, orc: &orc{flags: orcLayouts[4]}}, linuxtest.Spaces{damaged, d.Loaded}
	k.ReadTypes(mem)
	records, _ := k.Log(mem)
	WriteLog(io.Discard, records)
	tasks, _ := k.Tasks(mem)
	for _, task := range tasks {
		k.Stack(mem, task)
	}
	modules, _ := k.Modules(mem)
	k.Executable(true)
	for _, m := range modules {
		k.File(m)
	}
}

// use does all that can be done with a kernel.
func use(mem linuxtest.Space, seed uint64) {
	k, err := Find(mem, linuxtest.Function("leaf"))
	if err != nil {
		return
	}
	if file, _ := k.Executable(true); len(file) > 1<<20 || len(k.FrameInfo(true)) > 1<<20 {
		panic("a file is too large")
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		at := mem.Addr + uint64(rnd.IntN(len(mem.Bytes)))
		k.Function(at)
		k.Unwind(mem, Registers{RIP: at, RSP: mem.Addr + uint64(rnd.IntN(len(mem.Bytes))), RBP: mem.Addr + uint64(rnd.IntN(len(mem.Bytes)))})
	}
}

// FuzzFind gives a kernel tables that are changed at places.
func FuzzFind(f *testing.F) {
	for i := range linuxtest.Layouts {
		f.Add(uint8(i), uint64(i), []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, layout uint8, seed uint64, changes []byte) {
		mem := linuxtest.Image(linuxtest.Layouts[int(layout)%len(linuxtest.Layouts)])
		rnd := rand.New(rand.NewPCG(seed, 1))
		for _, c := range changes {
			mem.Bytes[linuxtest.Tables-linuxtest.Base+rnd.IntN(len(mem.Bytes)-(linuxtest.Tables-linuxtest.Base))] ^= c
		}
		use(mem, seed)
	})
}

// What a kernel does not say of itself is told by name.
func TestMissing(t *testing.T) {
	k, err := Find(linuxtest.Image(linuxtest.Layouts[0]), linuxtest.Function("leaf"))
	if err != nil || k.Missing() != nil {
		t.Errorf("%v, missing %v", err, k.Missing())
	}
	k = &Kernel{}
	k.orc, k.noORC = k.findORC(linuxtest.Spaces{})
	k.ReadTypes(linuxtest.Spaces{})
	if err := errors.Join(k.Missing()...); !errors.Is(err, ErrNoORC) || !errors.Is(err, ErrNoBTF) || !errors.Is(err, ErrNoVMCoreInfo) {
		t.Errorf("missing: %v", err)
	}
}

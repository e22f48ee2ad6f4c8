package debugger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Where things of the fake Linux are.
const (
	linuxEntry   = text + 0x100 // entry_SYSCALL_64
	linuxFault   = text + 0x200 // asm_exc_page_fault
	linuxThing   = text + 0x300 // do_thing
	linuxStack   = 0xffffc90000004000
	moduleText   = 0xffffffffc0200000
	moduleData   = moduleText + xen.PageSize
	moduleTables = moduleData + xen.PageSize
	moduleEnd    = moduleTables + xen.PageSize
)

// fakeBTF describes what a Linux has of modules and tasks.
func fakeBTF() []byte {
	var types, names []byte
	names = append(names, 0)
	words := func(list ...uint32) {
		for _, w := range list {
			types = binary.LittleEndian.AppendUint32(types, w)
		}
	}
	name := func(s string) uint32 {
		names = append(append(names, s...), 0)
		return uint32(len(names) - len(s) - 1)
	}
	type member struct {
		name        string
		typ, offset uint32
	}
	structure := func(title string, size uint32, members ...member) {
		words(name(title), 4<<24|uint32(len(members)), size)
		for _, m := range members {
			words(name(m.name), m.typ, m.offset*8)
		}
	}
	words(name("long"), 1<<24, 8, 64) // type 1
	structure("module_layout", 16, member{"base", 1, 0}, member{"size", 1, 8}, member{"text_size", 1, 12})
	structure("mod_arch_specific", 24, member{"num_orcs", 1, 0}, member{"orc_unwind_ip", 1, 8}, member{"orc_unwind", 1, 16})
	structure("module", 256, member{"state", 1, 0}, member{"list", 1, 8}, member{"name", 1, 24}, member{"kallsyms", 1, 80},
		member{"core_layout", 2, 88}, member{"arch", 3, 112})
	structure("mod_kallsyms", 32, member{"symtab", 1, 0}, member{"num_symtab", 1, 8}, member{"strtab", 1, 16})
	structure("thread_struct", 16, member{"sp", 1, 8})
	structure("task_struct", 128, member{"tasks", 1, 0}, member{"pid", 1, 16}, member{"tgid", 1, 20}, member{"comm", 1, 24},
		member{"flags", 1, 40}, member{"exit_state", 1, 44}, member{"real_parent", 1, 48}, member{"signal", 1, 56},
		member{"thread_node", 1, 64}, member{"__state", 1, 80}, member{"cpu", 1, 84}, member{"on_cpu", 1, 88},
		member{"stack", 1, 96}, member{"thread", 6, 104})
	structure("signal_struct", 16, member{"thread_head", 1, 0})
	structure("inactive_task_frame", 56, member{"bp", 1, 40}, member{"ret_addr", 1, 48})
	b := binary.LittleEndian.AppendUint32(nil, 0xeb9f|1<<16)
	for _, v := range []int{24, 0, len(types), len(types), len(names)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return append(append(b, types...), names...)
}

// A fakeLinux is a PV domain 3 that is a Linux with a module, and a connection to it
// that watches when its memory is mapped.
type fakeLinux struct {
	xen.Transport
	x    *xentest.Hypervisor
	d    *xentest.Domain
	pt   *xentest.PageTables
	part map[uint64]string // of frames, what they are of
	list []byte            // the list of modules: its head

	paused, running map[string]bool // what was mapped when
	meanwhile       func(run int)   // is called at each mapping while it runs, with how often it was let run
}

func (f *fakeLinux) Map(domain uint16, frames []uint64, errs []int32, write bool) ([]byte, error) {
	when := f.paused
	if f.d.Pauses() == 0 {
		when = f.running
		if f.meanwhile != nil {
			f.meanwhile(f.x.Calls(xentest.OpUnpauseDomain))
		}
	}
	for _, n := range frames {
		when[f.part[n]] = true
	}
	return f.Transport.Map(domain, frames, errs, write)
}

// link puts the module into the list or, without it, takes it out.
func (f *fakeLinux) link(loaded bool) {
	next := uint64(linuxList)
	if loaded {
		next = moduleData + 8
	}
	binary.LittleEndian.PutUint64(f.list, next)
}

// linuxTasks is where the tasks are: the first, another that sleeps, and its signals.
// linuxList is the head of the list of modules.
const (
	linuxTasks   uint64 = text + 14*xen.PageSize
	linuxSleeper        = linuxTasks + 0x100
	linuxSignals        = linuxTasks + 0x200
	linuxList           = text + 15*xen.PageSize
)

func newFakeLinux(t *testing.T) *fakeLinux {
	t.Helper()
	le := binary.LittleEndian
	x := xentest.New(t, xentest.Config{})
	f := &fakeLinux{
		Transport: x.Transport(), x: x, d: x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV}), part: map[uint64]string{},
		paused: map[string]bool{}, running: map[string]bool{},
	}
	f.pt = f.d.NewPageTables(x86.FourLevel)
	put := func(name string, addr uint64, b []byte) (frame uint64) {
		for len(b) > 0 {
			n := min(len(b), xen.PageSize)
			frame = f.pt.MapPage(addr, b[:n])
			f.part[frame] = name
			b, addr = b[n:], addr+xen.PageSize
		}
		return frame
	}

	// ORC: what holds from an address on.
	orc := func(at uint64, entries map[uint64][6]byte) (ips, rest []byte) {
		var order []uint64
		for addr := range entries {
			order = append(order, addr)
		}
		slices.Sort(order)
		for i, addr := range order {
			e := entries[addr]
			ips, rest = le.AppendUint32(ips, uint32(addr-at-uint64(4*i))), append(rest, e[:]...)
		}
		return ips, rest
	}
	const orcAt, btfAt, namesAt uint64 = text + 2*xen.PageSize, text + 4*xen.PageSize, text + 16*xen.PageSize
	ips, entries := orc(orcAt, map[uint64][6]byte{
		text: {5: 4}, linuxEntry: {5: 4}, linuxFault: {4: 5, 5: 1}, linuxThing: {0: 8, 4: 5},
	})
	btf := fakeBTF()
	put("text", text, make([]byte, xen.PageSize))
	put("banner", text+xen.PageSize, []byte("Linux version 6.1.0 (someone@somewhere) #1\n"))
	put("ORC", orcAt, append(ips, entries...))
	put("types", btfAt, btf)
	f.list = f.d.Frame(put("modules", linuxList, make([]byte, 16)))

	// kallsyms: addresses, number, names, markers, tokens and their index.
	type sym struct {
		addr uint64
		name string
	}
	symbols := []sym{
		{text, "T_text"}, {linuxEntry, "Tentry_SYSCALL_64"}, {linuxFault, "Tasm_exc_page_fault"}, {linuxThing, "Tdo_thing"},
		{text + xen.PageSize, "T_etext"}, {text + xen.PageSize, "Rlinux_banner"},
		{orcAt, "R__start_orc_unwind_ip"}, {orcAt + uint64(len(ips)), "R__stop_orc_unwind_ip"},
		{orcAt + uint64(len(ips)), "R__start_orc_unwind"}, {orcAt + uint64(len(ips)+len(entries)), "R__stop_orc_unwind"},
		{btfAt, "R__start_BTF"}, {btfAt + uint64(len(btf)), "R__stop_BTF"}, {linuxTasks, "Dinit_task"}, {linuxList, "dmodules"},
	}
	for i := range 1000 {
		symbols = append(symbols, sym{namesAt + uint64(i), fmt.Sprintf("dvariable_%d", i)})
	}
	var b, markers, index []byte
	for _, s := range symbols {
		b = le.AppendUint64(b, s.addr)
	}
	b = le.AppendUint64(b, uint64(len(symbols)))
	first := len(b)
	align := func() { b = append(b, make([]byte, (8-len(b)%8)%8)...) }
	for i, s := range symbols {
		if i%256 == 0 {
			markers = le.AppendUint32(markers, uint32(len(b)-first))
		}
		b = append(append(b, byte(len(s.name))), s.name...)
	}
	align()
	b = append(b, markers...)
	align()
	first = len(b)
	for i := range 256 {
		index = le.AppendUint16(index, uint16(len(b)-first))
		if i > ' ' && i <= '~' {
			b = append(b, byte(i), 0)
		} else {
			b = append(b, fmt.Sprintf("to_%02x\x00", i)...)
		}
	}
	align()
	put("kallsyms", namesAt, append(b, index...))

	// A module, in all of whose code a word lies below the return address.
	var m [256]byte
	le.PutUint64(m[8:], linuxList)
	copy(m[24:], "thing")
	le.PutUint64(m[80:], moduleTables)
	le.PutUint64(m[88:], moduleText)
	le.PutUint32(m[96:], uint32(moduleEnd-moduleText))
	le.PutUint32(m[100:], xen.PageSize)
	le.PutUint32(m[112:], 1)
	le.PutUint64(m[120:], moduleTables+0x300)
	le.PutUint64(m[128:], moduleTables+0x400)
	put("modules", moduleData, m[:])
	tables := make([]byte, xen.PageSize)
	le.PutUint64(tables, moduleTables+0x100)
	le.PutUint32(tables[8:], 1)
	le.PutUint64(tables[16:], moduleTables+0x200)
	le.PutUint32(tables[0x100:], 1) // the name
	le.PutUint16(tables[0x106:], 1)
	le.PutUint64(tables[0x108:], moduleText+0x40)
	copy(tables[0x200:], "\x00thing_open\x00")
	ips, entries = orc(moduleTables+0x300, map[uint64][6]byte{moduleText: {0: 16, 4: 5}})
	copy(tables[0x300:], ips)
	copy(tables[0x400:], entries)
	put("tables of modules", moduleTables, tables)
	f.link(true)

	tasks := make([]byte, xen.PageSize)
	le.PutUint64(tasks, linuxSleeper)
	sleeper := tasks[linuxSleeper-linuxTasks:]
	le.PutUint64(sleeper, linuxTasks)
	le.PutUint32(sleeper[16:], 7)
	le.PutUint32(sleeper[20:], 7)
	copy(sleeper[24:], "sleeper")
	le.PutUint64(sleeper[56:], linuxSignals)
	le.PutUint64(sleeper[64:], linuxSignals)
	le.PutUint32(sleeper[80:], 1)
	le.PutUint64(sleeper[96:], linuxStack)
	le.PutUint64(sleeper[112:], linuxStack+0x800)
	le.PutUint64(tasks[linuxSignals-linuxTasks:], linuxSleeper+64)
	put("tasks", linuxTasks, tasks)

	stack := make([]byte, xen.PageSize)
	le.PutUint64(stack[0x830:], linuxThing+5)
	le.PutUint64(stack[0x838:], moduleText+0x60)
	le.PutUint64(stack[0x848:], linuxEntry+5)
	le.PutUint64(stack[0x100:], moduleText+0x60)
	le.PutUint64(stack[0x110:], linuxEntry+5)
	put("stack", linuxStack, stack)
	f.d.UsePageTables(f.pt)
	c := &f.d.VCPU(0).Context
	c.RIP, c.RSP = linuxThing+0x10, linuxStack+0x100
	c.Traps[xen.VectorPageFault].Address = linuxFault
	return f
}

// attach gives the guest.
func (f *fakeLinux) attach(t *testing.T) *guest.Guest {
	t.Helper()
	host, err := xen.NewHost(f)
	if err != nil {
		t.Fatal(err)
	}
	g, err := guest.Attach(host, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// print gives what a report prints, which it must not while the guest is paused.
func (f *fakeLinux) print(t *testing.T, report func(w io.Writer, g *guest.Guest) error) string {
	t.Helper()
	g := f.attach(t)
	var b strings.Builder
	err := report(writerFunc(func(s string) {
		if f.d.Pauses() > 0 {
			t.Errorf("%q is printed while the guest is paused", s)
		}
		b.WriteString(s)
	}), g)
	if err != nil {
		t.Error(err)
	}
	if f.d.Pauses() > 0 {
		t.Error("the guest is paused after it")
	}
	return b.String()
}

const (
	linuxBanner = "Linux version 6.1.0 (someone@somewhere) #1\n\n"
	wholeStack  = linuxBanner + `vCPU 0, kernel mode:
#0   0xffffffff81000310 do_thing+0x10
#1   0xffffffffc0200060 thing_open+0x20 [thing]
#2   0xffffffff81000105 entry_SYSCALL_64+0x5
`
	sleeperStack = linuxBanner + `task 7 sleeper, state S, CPU 0:
#0   0xffffffff81000305 do_thing+0x5
#1   0xffffffffc0200060 thing_open+0x20 [thing]
#2   0xffffffff81000105 entry_SYSCALL_64+0x5
`
	halfStack = linuxBanner + `vCPU 0, kernel mode:
#0   0xffffffff81000310 do_thing+0x10
#1   0xffffffffc0200060
    the stack cannot be followed further: 0xffffffffc0200060 is in no code of the kernel's
`
)

// tablesOfLinux are the parts of the fake Linux that are read while it runs.
var tablesOfLinux = []string{"kallsyms", "ORC", "types", "modules", "tables of modules"}

// No table is read while the guest is paused for its stacks or registers.
func TestPausedForStacksOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		report func(w io.Writer, g *guest.Guest) error
		want   string
		reads  []string // while it is paused
	}{
		"bt":         {Backtraces, wholeStack, []string{"banner", "stack"}},
		"bt --tasks": {TaskBacktraces, sleeperStack, []string{"banner", "stack", "tasks"}},
		"regs":       {Registers, "do_thing+0x10\n", []string{"banner"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLinux(t)
			got := f.print(t, tt.report)
			if !strings.Contains(got, tt.want) {
				t.Errorf("it printed:\n%s", got)
			}
			delete(f.paused, "") // page tables
			for _, part := range tablesOfLinux {
				if !f.running[part] {
					t.Errorf("%s: not read while the guest runs", part)
				}
			}
			want := map[string]bool{}
			for _, part := range tt.reads {
				want[part] = true
			}
			if diff := cmp.Diff(want, f.paused); diff != "" {
				t.Errorf("read while it is paused (-want +got):\n%s", diff)
			}
			if n := f.x.Calls(xentest.OpPauseDomain); n != 2 {
				t.Errorf("it was paused %d times", n)
			}
		})
	}
}

// Modules that come or go between what is read of them and the stacks make no wrong
// names.
func TestModulesMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct {
		loaded bool // at last
		want   string
	}{
		"comes": {true, wholeStack},
		"goes":  {false, halfStack},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLinux(t)
			f.link(!tt.loaded)
			f.meanwhile = func(run int) {
				if run == 2 { // after the stacks were read
					f.link(tt.loaded)
				}
			}
			if diff := cmp.Diff(tt.want, f.print(t, Backtraces)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if f.paused["kallsyms"] || f.paused["ORC"] || f.paused["tables of modules"] != tt.loaded {
				t.Errorf("read while it is paused: %v", f.paused)
			}
		})
	}
}

// Tables that are read by page tables of a process that ends meanwhile are read again
// and, if that goes on, while the guest is paused. Where it ends after the stacks were
// read, a look at the list of modules will do.
func TestProcessEndsMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct {
		first, last  int  // times when it runs that a process ends
		tables, list bool // are read while it is paused
	}{
		"once":       {1, 1, false, false},
		"always":     {1, mostAttempts, true, true},
		"afterwards": {2, 2, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLinux(t)
			f.meanwhile = func(run int) {
				if run >= tt.first && run <= tt.last {
					f.pt.SetEntry(0xffff800000000000, 0, uint64(run)<<1) // which is not present
				}
			}
			if diff := cmp.Diff(wholeStack, f.print(t, Backtraces)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if f.paused["kallsyms"] != tt.tables || f.paused["tables of modules"] != tt.tables || f.paused["modules"] != tt.list {
				t.Errorf("read while it is paused: %v", f.paused)
			}
		})
	}
}

// Where a kernel has no names, that is known without a look while it is paused.
func TestNoNamesWhileRunning(t *testing.T) {
	f := newFakeLinux(t)
	for frame, part := range f.part {
		if part == "kallsyms" {
			clear(f.d.Frame(frame))
		}
	}
	for at := uint64(0); at < 4<<20; at += xen.PageSize { // else it might be an entry alone
		f.part[f.pt.MapPage(text+1<<20+at, nil)] = "rest"
	}
	if got := f.print(t, Registers); !strings.Contains(got, "vCPU 0, kernel mode:\n  rip       ffffffff81000310\n") {
		t.Errorf("it printed:\n%s", got)
	}
	if f.paused["rest"] || !f.running["rest"] {
		t.Errorf("read while it is paused: %v, else: %v", f.paused, f.running)
	}
}

// A client's commands print the same, of a guest that stays paused.
func TestMonitorReports(t *testing.T) {
	f := newFakeLinux(t)
	target, err := New(f.attach(t), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ line, want string }{
		{"bt", wholeStack}, {"bt tasks", sleeperStack}, {"ps", "      7       7       0 S   0 sleeper\n"},
		{"regs", "do_thing+0x10\n"}, {"lsmod", "thing                  12288  0\n"},
	} {
		var b bytes.Buffer
		if err := target.Monitor(t.Context(), tt.line, func(s string) { b.WriteString(s) }); err != nil {
			t.Errorf("%s: %v", tt.line, err)
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s printed:\n%s", tt.line, b.String())
		}
	}
	if f.d.Pauses() != 1 {
		t.Errorf("the guest is paused %d times", f.d.Pauses())
	}
}

package debugger

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/internal/linux/linuxtest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// linuxStack is where stacks are in the fake Linux.
const linuxStack = 0xffffc90000004000

var layout61 = linuxtest.Layouts[2]

// A fakeKernel is a Linux 6.1 that has modules, and a task that sleeps, or more.
type fakeKernel struct {
	k     *linux.Kernel
	image linuxtest.Space
	data  *linuxtest.Data
}

// newFakeKernel makes one with modules, and with more tasks than one.
func newFakeKernel(t *testing.T, more []linuxtest.Task, modules ...linuxtest.Module) *fakeKernel {
	t.Helper()
	f := &fakeKernel{}
	var symbols []linuxtest.Symbol
	f.data = linuxtest.NewData("6.1", func(name string, addr uint64) {
		symbols = append(symbols, linuxtest.Symbol{Addr: addr, Name: name})
	})
	f.data.Apart = true
	f.load(modules...)
	// Last, for who reads them one after the other maps ahead what is behind.
	f.data.SetTasks(append([]linuxtest.Task{{ID: 7, Process: 7, State: 'S', Name: "sleeper"}}, more...), linuxStack+0x800)
	f.image = linuxtest.Image(layout61, symbols...)
	var err error
	if f.k, err = linux.Find(f.image, linuxtest.Function("leaf")); err != nil {
		t.Fatal(err)
	}
	return f
}

// load makes the kernel have modules, and none that it had.
func (f *fakeKernel) load(modules ...linuxtest.Module) {
	f.data.SetModules(modules, layout61.CallEntry(24, -16))
}

// spaces gives the kernel's memory.
func (f *fakeKernel) spaces() linuxtest.Spaces {
	return linuxtest.Spaces{f.image, f.data.Mem, f.data.Loaded}
}

// symbol gives where something of the kernel's is.
func (f *fakeKernel) symbol(t *testing.T, name string) uint64 {
	t.Helper()
	addr, ok := f.k.Lookup(name)
	if !ok {
		t.Fatalf("the kernel has no %s", name)
	}
	return addr
}

// A fakeLinux is a PV domain 3 that is a Linux with a module, and a connection to it
// that watches when its memory is mapped.
type fakeLinux struct {
	xen.Transport
	*fakeKernel
	x    *xentest.Hypervisor
	d    *xentest.Domain
	pt   *xentest.PageTables
	part map[uint64]string // of frames, what they are of
	head uint64            // of the list of modules,
	list []byte            // which is this

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
	next := f.head
	if loaded {
		next = f.data.Field(f.data.Module(0), "module.list")
	}
	binary.LittleEndian.PutUint64(f.list, next)
}

// newFakeLinux makes one with more tasks that sleep, or none. The stack of each of those is
// longer than any real one.
func newFakeLinux(t *testing.T, more int) *fakeLinux {
	t.Helper()
	var tasks []linuxtest.Task
	for i := range more {
		tasks = append(tasks, linuxtest.Task{ID: 8 + i, Process: 7, State: 'S', Name: "deep"})
	}
	x := xentest.New(t, xentest.Config{})
	f := &fakeLinux{
		fakeKernel: newFakeKernel(t, tasks, live("thing")),
		Transport:  x.Transport(), x: x, d: x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV}), part: map[uint64]string{},
		paused: map[string]bool{}, running: map[string]bool{},
	}
	// A system call has called thing_open, and that leaf: on vCPU 0, and where the task
	// sleeps.
	stack := linuxtest.Space{Addr: linuxStack, Bytes: make([]byte, xen.PageSize)}
	if more > 0 {
		stack.Bytes = make([]byte, xen.PageSize*(2+(0x800+(more+1)*linuxtest.TaskStack)/xen.PageSize))
		for at := 0x800 + linuxtest.TaskStack; at < len(stack.Bytes); at += 8 {
			binary.LittleEndian.PutUint64(stack.Bytes[at:], linuxtest.Function("leaf")+5)
		}
	}
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(stack.Bytes[at:], v) }
	put(0x830, linuxtest.Function("leaf")+5)
	for _, at := range []int{0x100, 0x838} {
		put(at, moduleAt(0)+2*linuxtest.FunctionSize+0x20)
		put(at+24, linuxtest.Function("entry_SYSCALL_64")+5)
	}

	// The parts, by where they begin; each ends where the next one does.
	f.head = f.symbol(t, "modules")
	module, banner := f.data.Module(0), f.symbol(t, "linux_banner")
	parts := map[uint64]string{
		linuxtest.Base: "text", linuxtest.Tables: "ORC", banner: "banner", banner + xen.PageSize: "kallsyms",
		f.symbol(t, "__start_BTF"): "types", f.symbol(t, "init_task"): "tasks",
		module: "modules", module + xen.PageSize: "tables of modules", f.head: "modules", f.head + xen.PageSize: "tables of modules",
		moduleAt(0): "text", moduleAt(0) + linuxtest.ModuleText: "tables of modules", linuxStack: "stack",
	}
	f.pt = f.d.NewPageTables(x86.FourLevel)
	for _, s := range append(f.spaces(), stack) {
		part, addr := "nothing", s.Addr
		for page := range slices.Chunk(s.Bytes, xen.PageSize) {
			if name, ok := parts[addr]; ok {
				part = name
			}
			frame := f.pt.MapPage(addr, page)
			f.part[frame] = part
			if addr == f.head {
				f.list = f.d.Frame(frame)
			}
			addr += xen.PageSize
		}
	}
	f.d.UsePageTables(f.pt)
	c := &f.d.VCPU(0).Context
	c.RIP, c.RSP = linuxtest.Function("leaf")+0x10, linuxStack+0x100
	c.Traps[xen.VectorPageFault].Address = linuxtest.Function("asm_exc_page_fault")
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
	err := report(console{t.Context(), func(s string) {
		if f.d.Pauses() > 0 {
			t.Errorf("%q is printed while the guest is paused", s)
		}
		b.WriteString(s)
	}}, g)
	if err != nil {
		t.Error(err)
	}
	if f.d.Pauses() > 0 {
		t.Error("the guest is paused after it")
	}
	return b.String()
}

const (
	linuxBanner = "Linux version 6.1.0-56-amd64 (someone@somewhere) #1\n\n"
	wholeStack  = linuxBanner + `vCPU 0, kernel mode:
#0   0xffffffff812000d0 leaf+0x10
#1   0xffffffffc02000a0 thing_open+0x20 [thing]
#2   0xffffffff81200045 entry_SYSCALL_64+0x5
`
	sleeperStack = linuxBanner + `task 7 sleeper, state S, CPU 0:
#0   0xffffffff812000c5 leaf+0x5
#1   0xffffffffc02000a0 thing_open+0x20 [thing]
#2   0xffffffff81200045 entry_SYSCALL_64+0x5
`
	halfStack = linuxBanner + `vCPU 0, kernel mode:
#0   0xffffffff812000d0 leaf+0x10
#1   0xffffffffc02000a0
    the stack cannot be followed further: 0xffffffffc02000a0 is in no code of the kernel's
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
		"regs":       {Registers, "leaf+0x10\n", []string{"banner"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLinux(t, 0)
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
			f := newFakeLinux(t, 0)
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
			f := newFakeLinux(t, 0)
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
	f := newFakeLinux(t, 0)
	for frame, part := range f.part {
		if part == "kallsyms" {
			clear(f.d.Frame(frame))
		}
	}
	for at := uint64(0); at < 4<<20; at += xen.PageSize { // else it might be an entry alone
		f.part[f.pt.MapPage(linuxtest.Base+1<<20+at, nil)] = "rest"
	}
	if got := f.print(t, Registers); !strings.Contains(got, "vCPU 0, kernel mode:\n  rip       ffffffff812000d0\n") {
		t.Errorf("it printed:\n%s", got)
	}
	if f.paused["rest"] || !f.running["rest"] {
		t.Errorf("read while it is paused: %v, else: %v", f.paused, f.running)
	}
}

// A client's commands print the same, of a guest that stays paused.
func TestMonitorReports(t *testing.T) {
	f := newFakeLinux(t, 0)
	target, err := New(f.attach(t), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ line, want string }{
		{"bt", wholeStack}, {"bt tasks", sleeperStack}, {"ps", "      7       7       0 S   0 sleeper\n"},
		{"regs", "leaf+0x10\n"}, {"lsmod", "thing                  12288  0\n"},
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

// monitored gives what a monitor command prints, in the pieces in which a client gets it.
func monitored(t *testing.T, c *rsptest.Client, line string) (pieces []string) {
	t.Helper()
	if err := c.Post(fmt.Sprintf("qRcmd,%x", line)); err != nil {
		t.Fatal(err)
	}
	for {
		reply, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if reply == "OK" {
			return pieces
		}
		text, err := hex.DecodeString(strings.TrimPrefix(reply, "O"))
		if err != nil || !strings.HasPrefix(reply, "O") {
			t.Fatalf("got %q", reply)
		}
		pieces = append(pieces, string(text))
	}
}

// client gives a client of a server of the guest.
func (f *fakeLinux) client(t *testing.T) *rsptest.Client {
	t.Helper()
	target, err := New(f.attach(t), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return rsptest.Dial(t, target, rsp.Config{})
}

// What a command prints goes to the client in few packets.
func TestMonitorPackets(t *testing.T) {
	c := newFakeLinux(t, 20).client(t)
	for _, line := range []string{"bt tasks", "bt", "ps", "help", "caps", "regs", "stats"} {
		pieces := monitored(t, c, line)
		size := len(strings.Join(pieces, ""))
		if want := (size + consoleSize - 1) / consoleSize; len(pieces) != want || size == 0 {
			t.Errorf("%s: %d packets for %d bytes, want %d", line, len(pieces), size, want)
		}
	}
	if text := strings.Join(monitored(t, c, "bt tasks"), ""); strings.Count(text, "\n#") != 3+20*512 || !strings.HasPrefix(text, sleeperStack) {
		t.Errorf("it printed:\n%.1000s", text)
	}
}

// What a command has printed comes before what went wrong.
func TestMonitorFails(t *testing.T) {
	f := newFakeLinux(t, 0)
	first := binary.LittleEndian.Uint64(f.data.At(f.data.Field(f.symbol(t, "init_task"), "task_struct.tasks")))
	page := f.data.At(first &^ (xen.PageSize - 1))[:xen.PageSize]
	f.data.Put(first, 8)
	f.pt.MapPage(first, page)
	pieces := monitored(t, f.client(t), "ps")
	if len(pieces) != 2 || !strings.HasSuffix(pieces[0], " sleeper\n") || !strings.HasPrefix(pieces[1], "list tasks: nothing is mapped at ") {
		t.Errorf("got %q", pieces)
	}
}

// A client that has enough gets no more.
func TestMonitorInterrupted(t *testing.T) {
	f := newFakeLinux(t, 20)
	target, err := New(f.attach(t), Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"bt tasks", "regs"} {
		ctx, cancel := context.WithCancel(t.Context())
		pieces := 0
		if line == "regs" { // which is short
			cancel()
		}
		err := target.Monitor(ctx, line, func(string) { pieces++; cancel() })
		if want := map[string]int{"bt tasks": 1}[line]; pieces != want || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %d pieces, %v", line, pieces, err)
		}
		cancel()
	}
}

// A guest that has endless stacks has not all of them read, and that is said.
func TestMostFrames(t *testing.T) {
	const depth, more = 512, 10
	f := newFakeLinux(t, mostFrames/depth+more)
	text := f.print(t, TaskBacktraces)
	want := fmt.Sprintf("\n\nThe stacks of %d more tasks are left out: those before have %d frames or more.\n", more, mostFrames)
	if n := strings.Count(text, "\n#"); n != mostFrames+3 || !strings.HasSuffix(text, want) {
		t.Errorf("%d frames, and at the end %q", n, text[max(0, len(text)-300):])
	}
}

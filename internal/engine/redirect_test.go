package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// The memory of a fixture's guest.
const (
	kernelText = 0xffffffff81000000 // one page
	handlers   = 0xffffffff81200000 // one page of trap handlers, 16 bytes each
	stacks     = 0xffffc90000000000 // one page for each vCPU, the one below is not mapped
	userText   = 0x400000
	stackGap   = 0x2000
	callAt     = kernelText + 0x800 // a SYSCALL instruction
	breakAt    = kernelText + 0x100
)

// fixture is a PV guest whose vCPUs this test runs, as the hypervisor would, as
// far as traps go.
type fixture struct {
	*xentest.Hypervisor
	t     *testing.T
	d     *xentest.Domain
	pages map[uint64][]byte // by virtual address
	mask  []bool            // by vCPU: events are masked
	fate  []string          // by vCPU: traps that reached the guest's own handlers
	owed  []*owedTrap       // by vCPU: a trap that was raised, but not delivered
}

// owedTrap is a trap with the handler that was to have it when it was raised.
type owedTrap struct {
	vector uint8
	entry  xen.TrapInfo
}

func newFixture(t *testing.T, vcpus int) *fixture {
	x := xentest.New(t, xentest.Config{})
	f := &fixture{
		Hypervisor: x, t: t, pages: map[uint64][]byte{},
		d:    x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: vcpus}),
		mask: make([]bool, vcpus), fate: make([]string, vcpus), owed: make([]*owedTrap, vcpus),
	}
	pt := f.d.NewPageTables(x86.FourLevel)
	text := make([]byte, xen.PageSize)
	for i := range text {
		text[i] = 0x90
	}
	copy(text[callAt-kernelText:], []byte{0x0f, 0x05})
	f.pages[kernelText] = f.d.Frame(pt.MapPage(kernelText, text))
	handlerPage := make([]byte, xen.PageSize)
	for i := range handlerPage {
		handlerPage[i] = byte(i)
	}
	f.pages[handlers] = f.d.Frame(pt.MapPage(handlers, handlerPage))
	f.pages[userText] = f.d.Frame(pt.MapPage(userText, text))
	for n := range vcpus {
		f.pages[f.stack(n)] = f.d.Frame(pt.MapPage(f.stack(n), nil))
	}
	f.d.UsePageTables(pt)
	for n := range vcpus {
		c := &f.d.VCPU(n).Context
		c.RIP, c.RSP, c.RFLAGS = kernelText+uint64(n), f.stack(n)+0xf80, 0x202
		c.RAX, c.RCX, c.R11, c.R15 = 0xa0+uint64(n), 0xc0, 0x11, 0x15
		c.KernelSP = f.stack(n) + 0xf00
		c.DebugRegs[6] = 0xffff0ff0
		for v := range 20 {
			c.Traps[v] = xen.TrapInfo{Vector: uint8(v), Flags: 3, CS: 0xe033, Address: handlers + 16*uint64(v)}
		}
	}
	return f
}

func (f *fixture) stack(n int) uint64 { return stacks + stackGap*uint64(n) }

// bytes gives the guest's memory at an address, as it is.
func (f *fixture) bytes(addr uint64, n int) []byte {
	page, ok := f.pages[addr&^(xen.PageSize-1)]
	if !ok {
		f.t.Fatalf("the guest touches %#x", addr)
	}
	return page[addr%xen.PageSize:][:n]
}

func (f *fixture) word(addr uint64) uint64 { return binary.LittleEndian.Uint64(f.bytes(addr, 8)) }

// trap raises a trap and delivers it.
func (f *fixture) trap(n int, vector uint8) {
	f.deliver(n, vector, f.d.VCPU(n).Context.Traps[vector])
}

// raise raises a trap, which the vCPU will get when it runs again.
func (f *fixture) raise(n int, vector uint8) {
	f.owed[n] = &owedTrap{vector, f.d.VCPU(n).Context.Traps[vector]}
}

// deliver delivers a trap as the hypervisor does (create_bounce_frame).
func (f *fixture) deliver(n int, vector uint8, entry xen.TrapInfo) {
	c := &f.d.VCPU(n).Context
	kernel := c.Flags&xen.VGCFInKernel != 0
	rsp, cs := c.RSP&^15, uint64(c.CS)&^3
	if !kernel {
		rsp, cs = c.KernelSP, uint64(c.CS)
	}
	if f.mask[n] {
		cs |= 1 << 32
	}
	flags := c.RFLAGS
	if f.mask[n] {
		flags &^= x86.RFLAGSIF
	}
	for i, w := range []uint64{c.RCX, c.R11, c.RIP, cs, flags, c.RSP, uint64(c.SS)} {
		binary.LittleEndian.PutUint64(f.bytes(rsp-56+8*uint64(i), 8), w)
	}
	c.RSP, c.RIP, c.CS, c.SS = rsp-56, entry.Address, 0xe033, 0xe02b
	c.RFLAGS &^= x86.RFLAGSTF
	c.Flags |= xen.VGCFInKernel
	f.mask[n] = f.mask[n] || entry.Flags&4 != 0
	if entry.Address == handlers+16*uint64(vector) {
		f.fate[n] += fmt.Sprintf("#%d ", vector)
	}
}

// run lets a vCPU do one thing: make a hypercall, or execute an instruction of
// one byte.
func (f *fixture) run(n int) {
	f.Do(func() {
		v := f.d.VCPU(n)
		c := &v.Context
		if !v.Online {
			return
		}
		if owed := f.owed[n]; owed != nil {
			f.owed[n] = nil
			f.deliver(n, owed.vector, owed.entry)
			return
		}
		code := f.bytes(c.RIP, 2)
		switch {
		case code[0] == 0xeb && code[1] == 0xfe: // jumps to itself
		case code[0] == 0x0f && code[1] == 0x05 && c.RAX == 23:
			w := func(i uint64) uint64 { return f.word(c.RSP + 8*i) }
			rax, r11, rcx, rip, cs, rflags, rsp, ss := w(0), w(1), w(2), w(4), w(5), w(6), w(7), w(8)
			if w(3) != 0 {
				f.t.Errorf("iret with flags %#x", w(3))
			}
			c.RAX, c.R11, c.RCX, c.RIP, c.CS, c.RSP, c.SS = rax, r11, rcx, rip, uint16(cs)|3, rsp, uint16(ss)
			c.RFLAGS = rflags | x86.RFLAGSIF
			f.mask[n] = rflags&x86.RFLAGSIF == 0
			if cs&3 == 3 {
				c.Flags &^= xen.VGCFInKernel
			}
		case code[0] == 0x0f && code[1] == 0x05 && c.Flags&xen.VGCFInKernel == 0:
			c.RIP += 2
			c.RCX, c.R11 = c.RIP, c.RFLAGS
			f.deliver(n, 0, xen.TrapInfo{Address: c.SyscallCallback})
		case code[0] == 0xcd && c.Flags&xen.VGCFInKernel == 0:
			c.RIP += 2
			f.trap(n, code[1])
		case code[0] == guest.Int3:
			c.RIP++
			f.trap(n, 3)
		default:
			c.RIP++
			if c.RFLAGS&x86.RFLAGSTF != 0 {
				c.DebugRegs[6] |= DR6BS
				f.trap(n, 1)
			}
		}
	})
}

// attach makes an engine for the guest, with a ledger of its own.
func (f *fixture) attach(host *xen.Host, ledger *guest.Ledger) (*guest.Guest, Engine) {
	f.t.Helper()
	g, err := guest.Attach(host, 3, ledger)
	if err != nil {
		f.t.Fatal(err)
	}
	e, err := Choose(g, "", slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	return g, e
}

func (f *fixture) start() (*guest.Guest, Engine) {
	g, e := f.attach(f.Host(), nil)
	f.t.Cleanup(func() {
		if err := errors.Join(e.Close(), g.Detach()); err != nil {
			f.t.Error(err)
		}
	})
	return g, e
}

func check[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// goOn lets vCPUs go on, each running steps, and gives the stops.
func (f *fixture) goOn(e Engine, steps int, motions ...Motion) []Stop {
	f.t.Helper()
	if err := e.Resume(motions); err != nil {
		f.t.Fatal(err)
	}
	for range steps {
		for n := range f.mask {
			f.run(n)
		}
	}
	stops, err := e.Pause()
	return check(f.t, stops, err)
}

func TestRedirectBreakpoint(t *testing.T) {
	f := newFixture(t, 2)
	before := f.d.VCPU(0).Context
	g, e := f.start()
	plant, err := g.Plant(0, kernelText+5, []byte{guest.Int3})
	check(t, plant, err)
	var b [1]byte
	if _, err := g.Read(0, kernelText+5, b[:]); err != nil || b[0] != 0x90 {
		t.Errorf("the planted byte reads as %#x, %v", b[0], err)
	}
	if err := e.Resume([]Motion{Run, Run}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		f.run(0)
		f.run(1)
	}
	if err := e.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	stops, err := e.Pause()
	want := []Stop{{VCPU: 0, Trap: Breakpoint}, {VCPU: 1, Trap: Breakpoint}}
	if diff := cmp.Diff(want, check(t, stops, err)); diff != "" {
		t.Fatalf("stops (-want +got):\n%s", diff)
	}
	r, err := g.Registers(0)
	check(t, r, err)
	if r.RIP != kernelText+5 || r.RSP != before.RSP || r.RAX != before.RAX || r.RCX != before.RCX || r.R11 != before.R11 ||
		r.RFLAGS != 0x202 || r.CS != 0xe033 || r.SS != before.SS {
		t.Errorf("got %+v", r)
	}
	if again, err := e.Pause(); err != nil || len(again) != 2 && len(again) != 0 {
		t.Errorf("paused again: %v, %v", again, err)
	}
	// Sent back, it is where it was, with events on as they were.
	if err := g.Unplant(plant); err != nil {
		t.Fatal(err)
	}
	if stops := f.goOn(e, 1, Run, Stay); len(stops) != 0 {
		t.Errorf("got stops %v", stops)
	}
	c := f.d.VCPU(0).Context
	if c.RIP != kernelText+5 || c.RAX != before.RAX || c.RCX != before.RCX || c.R11 != before.R11 || c.RSP != before.RSP || f.mask[0] {
		t.Errorf("went on with %+v, events masked %v", c, f.mask[0])
	}
	if f.d.VCPU(1).Online {
		t.Error("vCPU 1 was not to run")
	}
}

func TestRedirectStep(t *testing.T) {
	f := newFixture(t, 2)
	g, e := f.start()
	for i := range uint64(5) {
		stops := f.goOn(e, 3, Step, Stay)
		if diff := cmp.Diff([]Stop{{VCPU: 0, Trap: Debug, DR6: DR6BS}}, stops); diff != "" {
			t.Fatalf("stops (-want +got):\n%s", diff)
		}
		r, err := g.Registers(0)
		if check(t, r, err); r.RIP != kernelText+1+i || r.RFLAGS&x86.RFLAGSTF != 0 || r.DR6 != 0xffff0ff0 {
			t.Fatalf("step %d: rip %#x, rflags %#x, dr6 %#x", i, r.RIP, r.RFLAGS, r.DR6)
		}
	}
	if f.d.VCPU(1).Context.RIP != kernelText+1 {
		t.Error("vCPU 1 ran")
	}
	if stops := f.goOn(e, 4, Run, Run); len(stops) != 0 {
		t.Errorf("got stops %v", stops)
	}
	if f.d.VCPU(1).Context.RIP != kernelText+5 || f.fate[0] != "" {
		t.Errorf("vCPU 1 is at %#x, the guest got %q", f.d.VCPU(1).Context.RIP, f.fate[0])
	}
}

// What a step asks of the hypervisor does not grow with the number of vCPUs.
func TestRedirectStepCalls(t *testing.T) {
	const steps = 20
	want := map[xentest.Op]int{
		xentest.OpUnpauseDomain: steps, xentest.OpPauseDomain: steps, xentest.OpGetVCPUContext: steps,
		xentest.OpSetVCPUContext: steps, xentest.OpGetVCPUInfo: 0,
		xentest.OpMap: 0, xentest.OpUnmap: 0,
	}
	for _, vcpus := range []int{1, 16} {
		f := newFixture(t, vcpus)
		_, e := f.start()
		motions := make([]Motion, vcpus)
		motions[0] = Step
		f.goOn(e, 2, motions...) // the others are held from here on
		counts := map[xentest.Op]int{}
		for op := range want {
			counts[op] = f.Calls(op)
		}
		for range steps {
			if err := e.Resume(motions); err != nil {
				t.Fatal(err)
			}
			f.run(0)
			f.run(0)
			if err := e.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if stops, err := e.Pause(); err != nil || len(stops) != 1 {
				t.Fatalf("got stops %v, %v", stops, err)
			}
		}
		for op := range want {
			counts[op] = f.Calls(op) - counts[op]
		}
		if diff := cmp.Diff(want, counts); diff != "" {
			t.Errorf("%d vCPUs: calls (-want +got):\n%s", vcpus, diff)
		}
	}
}

// A step that is not done at the first look goes on, and is waited for.
func TestRedirectSlowStep(t *testing.T) {
	f := newFixture(t, 2)
	_, e := f.start()
	if err := e.Resume([]Motion{Step, Stay}); err != nil {
		t.Fatal(err)
	}
	looked := f.Calls(xentest.OpPauseDomain)
	waited := make(chan error)
	go func() { waited <- e.Wait(t.Context()) }()
	for f.Calls(xentest.OpPauseDomain) == looked || f.d.Pauses() != 0 {
		time.Sleep(time.Millisecond)
	}
	f.run(0)
	f.run(0)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	stops, err := e.Pause()
	if diff := cmp.Diff([]Stop{{VCPU: 0, Trap: Debug, DR6: DR6BS}}, check(t, stops, err)); diff != "" {
		t.Errorf("stops (-want +got):\n%s", diff)
	}
}

// A step that an interrupt handler delays ends when that is done, unless it was
// called off: then its trap is nobody's.
func TestRedirectStepCalledOff(t *testing.T) {
	f := newFixture(t, 1)
	_, e := f.start()
	if err := e.Resume([]Motion{Step}); err != nil {
		t.Fatal(err)
	}
	// An interrupt: the handler runs without TF, which is on the stack.
	f.d.VCPU(0).Context.RFLAGS &^= x86.RFLAGSTF
	if stops, err := e.Pause(); err != nil || len(stops) != 0 {
		t.Fatalf("got %v, %v", stops, err)
	}
	if err := e.Resume([]Motion{Run}); err != nil {
		t.Fatal(err)
	}
	f.d.VCPU(0).Context.RFLAGS |= x86.RFLAGSTF
	f.run(0)
	f.run(0)
	stops, err := e.Pause()
	if check(t, stops, err); len(stops) != 0 || f.fate[0] != "" {
		t.Errorf("got stops %v, the guest got %q", stops, f.fate[0])
	}
	if stops := f.goOn(e, 3, Run); len(stops) != 0 || f.d.VCPU(0).Context.RFLAGS&x86.RFLAGSTF != 0 {
		t.Errorf("got stops %v, rflags %#x", stops, f.d.VCPU(0).Context.RFLAGS)
	}
}

// A step that an interrupt cuts short goes on when the handler is done, where the
// handler meets int3 of ours and of its own too; or on another vCPU.
func TestRedirectFinish(t *testing.T) {
	const elsewhere = kernelText + 0x400 // in the handler
	nothing := func(*fixture, *guest.Guest) *guest.Plant { return nil }
	for _, tt := range []struct {
		name string
		away func(f *fixture, g *guest.Guest) *guest.Plant
		stop []Stop
		back int
	}{
		{"alone", nothing, nil, 0},
		{"breakpoint", func(f *fixture, g *guest.Guest) *guest.Plant {
			p, err := g.Plant(0, elsewhere, []byte{guest.Int3})
			return check(f.t, p, err)
		}, []Stop{{VCPU: 0, Trap: Breakpoint}}, 0},
		{"own int3", func(f *fixture, g *guest.Guest) *guest.Plant {
			f.bytes(elsewhere, 1)[0] = guest.Int3
			return nil
		}, nil, 0},
		{"moved", nothing, nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, 2)
			g, e := f.start()
			plant := tt.away(f, g)
			if err := e.Resume([]Motion{Step, Stay}); err != nil {
				t.Fatal(err)
			}
			c := &f.d.VCPU(0).Context
			was := *c
			// An interrupt: the handler runs without TF, which is on the stack.
			c.RFLAGS, c.RIP, c.RSP = was.RFLAGS&^x86.RFLAGSTF, elsewhere, was.RSP-0x100
			pause := func(want ...Stop) {
				t.Helper()
				stops, err := e.Pause()
				if check(t, stops, err); !cmp.Equal(want, stops) {
					t.Fatalf("got stops %v, want %v", stops, want)
				}
			}
			pause()
			for range 2 {
				if err := e.Resume([]Motion{Finish, Run}); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					f.run(0)
				}
				if c.RFLAGS&x86.RFLAGSTF != 0 {
					t.Error("TF is set in the handler")
				}
				pause(tt.stop...)
				tt.stop = nil
				if plant != nil {
					if err := g.Unplant(plant); err != nil {
						t.Fatal(err)
					}
					plant = nil
				}
			}
			if own := tt.name == "own int3"; own != (c.RIP&^(xen.PageSize-1) == handlers) {
				t.Errorf("the handler is at %#x", c.RIP)
			}
			if err := e.Resume([]Motion{Finish, Run}); err != nil {
				t.Fatal(err)
			}
			b := &f.d.VCPU(tt.back).Context
			b.RFLAGS, b.RIP, b.RSP = was.RFLAGS, was.RIP, f.stack(tt.back)+0xf80
			f.run(tt.back)
			pause(Stop{VCPU: tt.back, Trap: Debug, DR6: DR6BS})
			r, err := g.Registers(tt.back)
			if check(t, r, err); r.RIP != was.RIP+1 || r.RFLAGS&x86.RFLAGSTF != 0 || g.Ledger().Marked(0) || g.Stepping(0) {
				t.Errorf("at %#x, rflags %#x, still to trap %v", r.RIP, r.RFLAGS, g.Ledger().Marked(0))
			}
			if fate := f.fate[0] + f.fate[1]; fate != "" {
				t.Errorf("the guest got %q", fate)
			}
		})
	}
}

// A program that traps itself gets its traps while one of a step in the kernel is
// still to come.
func TestRedirectOwnTrapBeforeLateOne(t *testing.T) {
	f := newFixture(t, 2)
	g, e := f.start()
	if err := e.Resume([]Motion{Step, Run}); err != nil {
		t.Fatal(err)
	}
	c := &f.d.VCPU(0).Context
	was := *c
	c.RFLAGS, c.RIP, c.RSP = was.RFLAGS&^x86.RFLAGSTF, kernelText+0x400, was.RSP-0x100 // an interrupt
	stops, err := e.Pause()
	if check(t, stops, err); len(stops) != 0 || !g.Ledger().Marked(0) {
		t.Fatalf("got stops %v, still to trap %v", stops, g.Ledger().Marked(0))
	}
	for n := range 2 {
		if err := e.Resume([]Motion{Run, Run}); err != nil {
			t.Fatal(err)
		}
		f.Do(func() {
			c := &f.d.VCPU(n).Context
			c.Flags &^= xen.VGCFInKernel
			c.RIP, c.CS, c.RSP, c.SS = userText, 0x33, userText+0x800, 0x2b
			c.RFLAGS |= x86.RFLAGSTF
			c.DebugRegs[6] |= DR6BS
			f.trap(n, 1)
		})
		stops, err := e.Pause()
		if check(t, stops, err); len(stops) != 0 || !g.Ledger().Marked(0) {
			t.Errorf("vCPU %d: got stops %v, still to trap %v", n, stops, g.Ledger().Marked(0))
		}
		if c := &f.d.VCPU(n).Context; c.RIP != handlers+16 || c.DebugRegs[6]&DR6BS == 0 || f.word(c.RSP+32)&x86.RFLAGSTF == 0 {
			t.Errorf("vCPU %d: at %#x, dr6 %#x, rflags of the program %#x", n, c.RIP, c.DebugRegs[6], f.word(c.RSP+32))
		}
	}
	if err := e.Resume([]Motion{Run, Run}); err != nil {
		t.Fatal(err)
	}
	f.Do(func() {
		c.RFLAGS, c.RIP, c.RSP = was.RFLAGS, was.RIP, was.RSP
		c.DebugRegs[6] &^= DR6BS
	})
	f.run(0)
	stops, err = e.Pause()
	if check(t, stops, err); len(stops) != 0 || g.Ledger().Marked(0) || c.DebugRegs[6]&DR6BS != 0 {
		t.Errorf("the late one: got stops %v, still to trap %v, dr6 %#x", stops, g.Ledger().Marked(0), c.DebugRegs[6])
	}
}

// Traps of the guest's own reach its handlers, with the frame that these expect.
func TestRedirectPassesTraps(t *testing.T) {
	f := newFixture(t, 1)
	_, e := f.start()
	f.goOn(e, 0, Step) // so that traps are redirected
	f.goOn(e, 3, Run)
	rip := f.d.VCPU(0).Context.RIP
	f.bytes(rip, 1)[0] = guest.Int3
	if stops := f.goOn(e, 2, Run); len(stops) != 0 {
		t.Errorf("got stops %v", stops)
	}
	c := f.d.VCPU(0).Context
	if c.RIP != handlers+3*16 || f.word(c.RSP+16) != rip+1 || f.word(c.RSP+8) != c.R11 {
		t.Errorf("after int3: at %#x, frame says %#x", c.RIP, f.word(c.RSP+16))
	}
	f.Do(func() { f.trap(0, 1) })
	stops, err := e.Pause()
	if check(t, stops, err); len(stops) != 0 || f.d.VCPU(0).Context.RIP != handlers+16 {
		t.Errorf("after #DB: stops %v, at %#x", stops, f.d.VCPU(0).Context.RIP)
	}
}

// A debug register that the guest sets itself while it runs is its own: its #DB comes
// to its handler, and is still in DR6 if we had a trap of ours at the same time.
func TestRedirectOwnDebugRegister(t *testing.T) {
	f := newFixture(t, 1)
	g, e := f.start()
	if err := g.SetDebugRegs(0, [4]uint64{3: breakAt}, 1<<6); err != nil {
		t.Fatal(err)
	}
	if err := e.Resume([]Motion{Run}); err != nil {
		t.Fatal(err)
	}
	c := &f.d.VCPU(0).Context
	f.Do(func() {
		c.DebugRegs[0], c.DebugRegs[7] = userText, c.DebugRegs[7]|2|1<<16
		c.DebugRegs[6] |= 1 << 0
		f.trap(0, 1)
	})
	stops, err := e.Pause()
	if check(t, stops, err); len(stops) != 0 || c.RIP != handlers+16 || c.DebugRegs[6]&1 == 0 {
		t.Errorf("got stops %v, the guest is at %#x with dr6 %#x", stops, c.RIP, c.DebugRegs[6])
	}
	for _, tt := range []struct {
		motion     Motion
		dr6, cause uint64
	}{{Run, 1<<0 | 1<<3, 1 << 3}, {Step, DR6BS | 1<<0 | 1<<3, DR6BS | 1<<3}} {
		f.Do(func() {
			c.RIP, c.RSP = kernelText, f.stack(0)+0xf80
			c.DebugRegs[6] = dr6Reserved
		})
		if err := errors.Join(g.Resume(), g.Pause(), e.Resume([]Motion{tt.motion})); err != nil {
			t.Fatal(err)
		}
		f.Do(func() {
			c.RIP, c.DebugRegs[6] = kernelText+1, c.DebugRegs[6]|tt.dr6
			f.trap(0, 1)
		})
		stops, err := e.Pause()
		if diff := cmp.Diff([]Stop{{VCPU: 0, Trap: Debug, DR6: tt.cause}}, check(t, stops, err)); diff != "" {
			t.Errorf("stops (-want +got):\n%s", diff)
		}
		if r, err := g.Registers(0); check(t, r, err).DR6 != dr6Reserved|1 {
			t.Errorf("the guest is left dr6 %#x", r.DR6)
		}
	}
}

func TestRedirectUserMode(t *testing.T) {
	f := newFixture(t, 1)
	c := &f.d.VCPU(0).Context
	c.Flags &^= xen.VGCFInKernel
	c.RIP, c.CS, c.RSP, c.SS = userText, 0x33, userText+0x800, 0x2b
	g, e := f.start()
	plant, err := g.Plant(0, userText+2, []byte{guest.Int3})
	check(t, plant, err)
	if stops := f.goOn(e, 5, Run); len(stops) != 1 {
		t.Fatalf("got stops %v", stops)
	}
	r, err := g.Registers(0)
	if check(t, r, err); r.RIP != userText+2 || r.CS != 0x33 || r.SS != 0x2b || r.RSP != userText+0x800 {
		t.Errorf("got rip %#x cs %#x rsp %#x", r.RIP, r.CS, r.RSP)
	}
	if s, err := g.State(0); err != nil || !s.UserMode {
		t.Errorf("state %+v, %v", s, err)
	}
	if err := g.Lift(plant); err != nil {
		t.Fatal(err)
	}
	if stops := f.goOn(e, 2, Step); len(stops) != 1 || stops[0].Trap != Debug {
		t.Fatalf("got stops %v", stops)
	}
	if err := g.Replant(plant); err != nil {
		t.Fatal(err)
	}
	f.goOn(e, 3, Run)
	if c.RIP != userText+5 || c.Flags&xen.VGCFInKernel != 0 || c.CS != 0x33 {
		t.Errorf("went on at %#x, cs %#x", c.RIP, c.CS)
	}
}

// A guest that registers its handlers anew, and a vCPU that comes up, are noticed.
func TestRedirectNewHandlers(t *testing.T) {
	f := newFixture(t, 2)
	f.d.VCPU(1).Online, f.d.VCPU(1).Uninitialised = false, true
	g, e := f.attach(f.Host(), nil)
	plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
	check(t, plant, err)
	if err := e.Resume([]Motion{Run}); err != nil {
		t.Fatal(err)
	}
	f.Do(func() {
		f.d.VCPU(0).Context.Traps[3].Address = handlers + 0x800
		f.d.VCPU(0).Context.Traps[1].Address = handlers + 0x810
	})
	if _, err := e.Pause(); err != nil {
		t.Fatal(err)
	}
	f.goOn(e, 1, Run)
	if got := f.d.VCPU(0).Context.Traps[3].Address; got == handlers+0x800 {
		t.Error("the new handlers are not redirected")
	}
	if err := e.Resume([]Motion{Run}); err != nil {
		t.Fatal(err)
	}
	fresh := f.d.VCPU(1).Context.Traps
	f.Do(func() { f.d.VCPU(1).Online, f.d.VCPU(1).Uninitialised = true, false })
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- e.Wait(ctx) }()
	for redirected := false; !redirected; time.Sleep(time.Millisecond) {
		f.Do(func() { redirected = f.d.VCPU(1).Context.Traps[3].Address != fresh[3].Address })
	}
	cancel()
	<-waited
	if err := errors.Join(e.Close(), g.Detach()); err != nil {
		t.Fatal(err)
	}
	if got := f.d.VCPU(0).Context.Traps[3].Address; got != handlers+0x800 {
		t.Errorf("the guest got handler %#x back", got)
	}
	if got := f.d.VCPU(1).Context.Traps; got != fresh {
		t.Error("vCPU 1 did not get its handlers back")
	}
}

// poll lets the engine look at the running guest, which has nothing to tell.
func (f *fixture) poll(e Engine) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := e.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.t.Fatalf("Wait gives %v", err)
	}
}

// A vCPU that was down, and has come to a breakpoint before it was seen to be up again,
// has stopped as any.
func TestRedirectComesUp(t *testing.T) {
	f := newFixture(t, 2)
	g, e := f.start()
	plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
	check(t, plant, err)
	if err := e.Resume([]Motion{Run, Run}); err != nil {
		t.Fatal(err)
	}
	f.Do(func() { f.d.VCPU(1).Online = false })
	f.poll(e)
	f.Do(func() { f.d.VCPU(1).Online, f.d.VCPU(1).Context.RIP = true, breakAt })
	f.run(1)
	stops, err := e.Pause()
	if diff := cmp.Diff([]Stop{{VCPU: 1, Trap: Breakpoint}}, check(t, stops, err)); diff != "" {
		t.Errorf("stops (-want +got):\n%s", diff)
	}
}

// A vCPU that a step has taken down does not come up again with RFLAGS.TF when the guest
// was given back.
func TestRedirectStepTakesDown(t *testing.T) {
	f := newFixture(t, 2)
	g, e := f.attach(f.Host(), nil)
	if err := e.Resume([]Motion{Run, Step}); err != nil {
		t.Fatal(err)
	}
	f.Do(func() { f.d.VCPU(1).Online = false })
	f.poll(e)
	if _, err := e.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Close(), g.Detach()); err != nil {
		t.Fatal(err)
	}
	if v := f.d.VCPU(1); v.Online || v.Context.RFLAGS&x86.RFLAGSTF != 0 {
		t.Errorf("it is up: %v; RFLAGS %#x", v.Online, v.Context.RFLAGS)
	}
}

// A step is begun anew where the guest could not be resumed for it.
func TestRedirectResumeFails(t *testing.T) {
	f := newFixture(t, 1)
	_, e := f.start()
	f.FailAlways(xentest.OpUnpauseDomain, unix.EIO)
	if err := e.Resume([]Motion{Step}); !errors.Is(err, unix.EIO) {
		t.Fatalf("got error %v", err)
	}
	f.ClearFaults()
	if stops := f.goOn(e, 3, Step); len(stops) != 1 {
		t.Errorf("stops %+v", stops)
	}
	f.goOn(e, 1, Run)
	if c := f.d.VCPU(0).Context; c.RFLAGS&x86.RFLAGSTF != 0 {
		t.Errorf("the guest has RFLAGS %#x", c.RFLAGS)
	}
}

// Where the handler of vector 9 cannot be used, padding is; where there is
// nothing, that is said, and nothing changed.
func TestRedirectParkingSpot(t *testing.T) {
	f := newFixture(t, 1)
	c := &f.d.VCPU(0).Context
	for _, v := range unusedVectors {
		c.Traps[v] = xen.TrapInfo{}
	}
	before := string(f.bytes(handlers, xen.PageSize))
	g, err := guest.Attach(f.Host(), 3, nil)
	check(t, g, err)
	defer g.Detach()
	if _, err := Choose(g, "", slog.New(slog.DiscardHandler)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without a place: %v", err)
	}
	if string(f.bytes(handlers, xen.PageSize)) != before {
		t.Error("the guest's text was changed")
	}
	for i := range 12 {
		f.bytes(handlers+0x300, 16)[i] = guest.Int3
	}
	e, err := Choose(g, "", slog.New(slog.DiscardHandler))
	check(t, e, err)
	plant, err := g.Plant(0, kernelText+3, []byte{guest.Int3})
	check(t, plant, err)
	if stops := f.goOn(e, 5, Run); len(stops) != 1 {
		t.Errorf("got stops %v", stops)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A stack that has no room below the trap's frame for a second one.
func TestRedirectFullStack(t *testing.T) {
	f := newFixture(t, 1)
	c := &f.d.VCPU(0).Context
	c.RSP = f.stack(0) + 80 // the frame starts 24 bytes above the page's start
	g, e := f.start()
	plant, err := g.Plant(0, kernelText+1, []byte{guest.Int3})
	check(t, plant, err)
	if stops := f.goOn(e, 3, Run); len(stops) != 1 {
		t.Fatalf("got stops %v", stops)
	}
	if err := g.Unplant(plant); err != nil {
		t.Fatal(err)
	}
	f.goOn(e, 2, Run)
	if c.RIP != kernelText+2 || c.RSP != f.stack(0)+80 || c.R11 != 0x11 || c.RCX != 0xc0 {
		t.Errorf("went on at %#x, rsp %#x, r11 %#x", c.RIP, c.RSP, c.R11)
	}
}

// runner is a connection on which the vCPUs of a guest that runs do one thing
// after each call.
type runner struct {
	xen.Transport
	f *fixture
}

func (r *runner) Hypercall(op uint64, args [5]uint64) (int64, error) {
	n, err := r.Transport.Hypercall(op, args)
	if r.f.d.Pauses() == 0 {
		for n := range r.f.mask {
			r.f.run(n)
		}
	}
	return n, err
}

// A trap that was raised but not delivered when the guest was paused is a stop;
// and it does not come to a guest that was given back.
func TestRedirectOwedTrap(t *testing.T) {
	for _, tt := range []struct {
		name   string
		vector uint8
		stop   Stop
		rip    uint64 // where it stops
	}{
		{"int3", 3, Stop{Trap: Breakpoint}, breakAt},
		{"watchpoint", 1, Stop{Trap: Debug, DR6: 1}, breakAt + 1},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s killed=%v", tt.name, killed), func(t *testing.T) {
				f := newFixture(t, 1)
				mem := make([]byte, guest.LedgerSize)
				ledger, err := guest.NewLedger(mem)
				check(t, ledger, err)
				host, err := xen.NewHost(&runner{f.Transport(), f})
				t.Cleanup(func() { host.Close() })
				g, e := f.attach(check(t, host, err), ledger)
				plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
				check(t, plant, err)
				if err := g.SetDebugRegs(0, [4]uint64{userText}, 0xd0001); err != nil {
					t.Fatal(err)
				}
				if err := e.Resume([]Motion{Run}); err != nil {
					t.Fatal(err)
				}
				f.Do(func() {
					c := &f.d.VCPU(0).Context
					c.RIP = breakAt + 1
					if tt.vector == 1 {
						c.DebugRegs[6] |= 1
					}
					f.raise(0, tt.vector)
				})
				f.d.Pause() // before the vCPU gets it
				g.Pause()
				f.d.Unpause()
				if killed {
					g.ReleaseFrames() // as all that a process had mapped
					left, err := guest.OpenLedger(mem)
					if err := Recover(host, check(t, left, err), slog.New(slog.DiscardHandler)); err != nil {
						t.Fatal(err)
					}
				} else {
					stops, err := e.Pause()
					if diff := cmp.Diff([]Stop{tt.stop}, check(t, stops, err)); diff != "" {
						t.Errorf("stops (-want +got):\n%s", diff)
					}
					if r, err := g.Registers(0); check(t, r, err).RIP != tt.rip {
						t.Errorf("stopped at %#x, want %#x", r.RIP, tt.rip)
					}
					if err := errors.Join(e.Close(), g.Detach()); err != nil {
						t.Fatal(err)
					}
				}
				for range 3 {
					f.run(0)
				}
				if c := f.d.VCPU(0).Context; c.RIP < breakAt || c.RIP > breakAt+0x40 || f.fate[0] != "" || f.mask[0] {
					t.Errorf("runs on at %#x, events masked %v, the guest got %q", c.RIP, f.mask[0], f.fate[0])
				}
			})
		}
	}
}

// killer is a connection that ends the process right before or after some call.
type killer struct {
	xen.Transport
	left  int // calls, each of which counts twice
	maps  [][]byte
	after func() // each call
}

type killed struct{}

func (k *killer) count() {
	if k.left--; k.left < 0 {
		panic(killed{})
	}
}

// release does what the kernel does for a process that has ended.
func (k *killer) release() {
	for _, m := range k.maps {
		k.Transport.Unmap(m)
	}
	k.Transport.Close()
}

func (k *killer) Hypercall(op uint64, args [5]uint64) (int64, error) {
	k.count()
	result, err := k.Transport.Hypercall(op, args)
	if k.after != nil {
		k.after()
	}
	k.count()
	return result, err
}

func (k *killer) Map(domain uint16, frames []uint64, errs []int32, write bool) ([]byte, error) {
	k.count()
	mem, err := k.Transport.Map(domain, frames, errs, write)
	if err == nil {
		k.maps = append(k.maps, mem)
	}
	k.count()
	return mem, err
}

func (k *killer) Unmap(mem []byte) error {
	for i := range k.maps {
		if &k.maps[i][0] == &mem[0] {
			k.maps = append(k.maps[:i], k.maps[i+1:]...)
			break
		}
	}
	return k.Transport.Unmap(mem)
}

// recover undoes what a killed server has left, if anything.
func (f *fixture) recover(mem []byte, where string) {
	f.t.Helper()
	left, err := guest.OpenLedger(mem)
	if err != nil {
		return
	}
	if err := Recover(f.Host(), left, slog.New(slog.DiscardHandler)); err != nil {
		f.t.Fatalf("%s: %v", where, err)
	}
}

// untilKilled tells whether f was done, and says so, before a killer ended it.
func untilKilled(f func() bool) bool {
	defer func() {
		if r := recover(); r != nil && r != (killed{}) {
			panic(r)
		}
	}()
	return f()
}

// A step of POPF is done although RFLAGS.TF is gone after it: nothing is left to trap.
// That it may have been begun by a server that was killed makes no difference.
func TestRedirectStepPopFlags(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			f := newFixture(t, 1)
			mem := make([]byte, guest.LedgerSize)
			ledger, err := guest.NewLedger(mem)
			g, e := f.attach(f.Host(), check(t, ledger, err))
			if err := e.Resume([]Motion{Step}); err != nil {
				t.Fatal(err)
			}
			c := &f.d.VCPU(0).Context
			f.Do(func() {
				c.RIP, c.RFLAGS = c.RIP+1, c.RFLAGS&^x86.RFLAGSTF
				c.DebugRegs[6] |= DR6BS
				f.trap(0, 1)
			})
			began := time.Now()
			if killed {
				f.ReleaseMappings()
				left, err := guest.OpenLedger(mem)
				if err := Recover(f.Host(), check(t, left, err), slog.New(slog.DiscardHandler)); err != nil {
					t.Fatal(err)
				}
			} else {
				stops, err := e.Pause()
				if diff := cmp.Diff([]Stop{{VCPU: 0, Trap: Debug, DR6: DR6BS}}, check(t, stops, err)); diff != "" {
					t.Errorf("stops (-want +got):\n%s", diff)
				}
				if g.Ledger().Marked(0) {
					t.Error("a trap of the step is still to come")
				}
				if err := errors.Join(e.Close(), g.Detach()); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(began); took >= settleTime {
				t.Errorf("it takes %v to undo: a trap is waited for that does not come", took)
			}
			f.run(0)
			if c.RIP != kernelText+1 || c.RFLAGS != 0x202 || f.fate[0] != "" {
				t.Errorf("runs on at %#x, rflags %#x, the guest got %q", c.RIP, c.RFLAGS, f.fate[0])
			}
		})
	}
}

// A trap that is still to come is not waited for once the domain has shut down.
func TestRedirectCloseAfterShutdown(t *testing.T) {
	f := newFixture(t, 1)
	g, e := f.attach(f.Host(), nil)
	if err := e.Resume([]Motion{Step}); err != nil {
		t.Fatal(err)
	}
	f.Do(func() {
		f.d.VCPU(0).Context.RFLAGS &^= x86.RFLAGSTF // in the handler of an interrupt
		f.d.Shutdown = true
	})
	stops, err := e.Pause()
	if check(t, stops, err); len(stops) != 0 || !g.Ledger().Marked(0) {
		t.Fatalf("got stops %v, still to trap %v", stops, g.Ledger().Marked(0))
	}
	began := time.Now()
	if err := errors.Join(e.Close(), g.Detach()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= settleTime {
		t.Errorf("it takes %v to close", took)
	}
}

// What PUSHF has pushed in the step of a server that was killed then has no TF.
func TestRedirectRecoverPushedFlags(t *testing.T) {
	f := newFixture(t, 1)
	f.bytes(kernelText, 1)[0] = 0x9c
	mem := make([]byte, guest.LedgerSize)
	ledger, err := guest.NewLedger(mem)
	_, e := f.attach(f.Host(), check(t, ledger, err))
	if err := e.Resume([]Motion{Step}); err != nil {
		t.Fatal(err)
	}
	c := &f.d.VCPU(0).Context
	c.RSP -= 8
	pushed := f.bytes(c.RSP, 8)
	binary.LittleEndian.PutUint64(pushed, c.RFLAGS)
	c.RIP++
	c.DebugRegs[6] |= DR6BS
	f.trap(0, 1)
	f.ReleaseMappings()
	left, err := guest.OpenLedger(mem)
	if err := Recover(f.Host(), check(t, left, err), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(pushed); got != 0x202 {
		t.Errorf("flags %#x are left on the stack", got)
	}
	f.run(0)
	if c.RIP != kernelText+1 || c.RFLAGS&x86.RFLAGSTF != 0 || f.fate[0] != "" {
		t.Errorf("runs on at %#x, rflags %#x, the guest got %q", c.RIP, c.RFLAGS, f.fate[0])
	}
}

// Wherever the server is killed, what it leaves can be undone: bytes, traps and
// vCPUs are as they were, and the vCPUs run on as if nothing had been.
func TestRedirectKilledAnywhere(t *testing.T) {
	for calls := 0; ; calls++ {
		f := newFixture(t, 2)
		c := &f.d.VCPU(1).Context
		c.Flags &^= xen.VGCFInKernel
		c.RIP, c.CS, c.RSP, c.SS = userText, 0x33, userText+0x800, 0x2b
		traps := f.d.VCPU(0).Context.Traps
		for n := range 2 {
			f.d.VCPU(n).Ext[avxAt], f.d.VCPU(n).Ext[512] = 0x5a, 7 // XSTATE_BV
		}
		text, handlerPage := string(f.bytes(kernelText, xen.PageSize)), string(f.bytes(handlers, xen.PageSize))
		user := string(f.bytes(userText, xen.PageSize))
		debug := [2][8]uint64{{0: userText, 6: dr6Reserved, 7: 2}, {6: dr6Reserved}} // a breakpoint of its own
		f.d.VCPU(0).Context.DebugRegs = debug[0]

		mem := make([]byte, guest.LedgerSize)
		ledger, err := guest.NewLedger(mem)
		check(t, ledger, err)
		k := &killer{Transport: f.Transport(), left: calls}
		done := untilKilled(func() bool {
			host, err := xen.NewHost(k)
			g, e := f.attach(check(t, host, err), ledger)
			a, err := g.Plant(0, kernelText+4, []byte{guest.Int3})
			check(t, a, err)
			b, err := g.Plant(1, userText+4, []byte{guest.Int3})
			check(t, b, err)
			lend := func(n int) {
				addr, dr7, err := g.OwnDebugRegs(0)
				check(t, addr, err)
				addr[n] = breakAt
				if err := g.SetDebugRegs(0, addr, dr7|1<<(2*n)); err != nil {
					t.Fatal(err)
				}
			}
			lend(3)
			f.goOn(e, 6, Run, Run)
			f.Do(func() { // it takes another for itself, and is not told of ours
				debug[0][2], debug[0][7] = userText+1, 2|2<<4
				c := &f.d.VCPU(0).Context
				c.DebugRegs[2], c.DebugRegs[7] = debug[0][2], debug[0][7]
			})
			if err := errors.Join(g.Resume(), g.Pause()); err != nil {
				t.Fatal(err)
			}
			lend(1)
			if err := g.Lift(a); err != nil {
				t.Fatal(err)
			}
			f.goOn(e, 2, Step, Stay)
			if err := g.Replant(a); err != nil {
				t.Fatal(err)
			}
			if err := g.Unplant(b); err != nil {
				t.Fatal(err)
			}
			f.goOn(e, 1, Run, Step)
			f.goOn(e, 3, Run, Run)
			return errors.Join(e.Close(), g.Detach()) == nil
		})
		if done {
			if calls < 100 {
				t.Errorf("all is done after %d calls", calls)
			}
			k.Transport.Close()
			return
		}
		k.release()
		where := fmt.Sprintf("killed at call %d", calls)
		began := time.Now()
		f.recover(mem, where)
		if took := time.Since(began); took > settleTime {
			t.Errorf("%s: it takes %v to undo: a trap is waited for that does not come", where, took)
		}
		if string(f.bytes(kernelText, xen.PageSize)) != text || string(f.bytes(userText, xen.PageSize)) != user ||
			string(f.bytes(handlers, xen.PageSize)) != handlerPage {
			t.Fatalf("%s: bytes were left behind", where)
		}
		for n := range 2 {
			v := f.d.VCPU(n)
			if v.Ext[avxAt] != 0x5a {
				t.Fatalf("%s: vCPU %d has lost its AVX state", where, n)
			}
			if !v.Online || v.Context.Traps != traps || v.Context.DebugRegs != debug[n] {
				t.Fatalf("%s: vCPU %d: online %v, traps as before %v, debug registers %#x, want %#x",
					where, n, v.Online, v.Context.Traps == traps, v.Context.DebugRegs, debug[n])
			}
			for range 3 {
				f.run(n)
			}
			c := &v.Context
			base, rsp := uint64(kernelText), f.stack(n)+0xf80
			if n == 1 {
				base, rsp = userText, userText+0x800
			}
			if c.RIP < base || c.RIP > base+0x40 || c.RSP != rsp || c.RFLAGS&x86.RFLAGSTF != 0 || f.mask[n] || f.fate[n] != "" ||
				c.RAX != 0xa0+uint64(n) || c.RCX != 0xc0 || c.R11 != 0x11 || c.R15 != 0x15 {
				t.Fatalf("%s: vCPU %d runs on at %#x, rsp %#x, rflags %#x, rax %#x, events masked %v, the guest got %q",
					where, n, c.RIP, c.RSP, c.RFLAGS, c.RAX, f.mask[n], f.fate[n])
			}
		}
	}
}

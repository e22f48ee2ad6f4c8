package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// text is where Linux's kernel text begins.
const text = 0xffffffff81000000

// int3Handler is where the kernel handles int3.
const int3Handler = text + 0x30010

// dr6Reserved is those bits of DR6 that always read as ones (SDM vol. 3B, section 18.2.3).
const dr6Reserved = 0xffff_0ff0

// monitored is a fake hypervisor with a PVH domain, whose kernel has code.
type monitored struct {
	t *testing.T
	*xentest.Hypervisor
	d        *xentest.Domain
	frame    uint64 // of the code
	handlers uint64 // frame of the handler of int3
	stacks   uint64 // frame of the stack
	mem      []byte // the ledger's
	g        *guest.Guest
	e        Engine
}

func newMonitored(t *testing.T, config xentest.Config, vcpus int, code []byte) *monitored {
	t.Helper()
	pollRing(t)
	x := xentest.New(t, config)
	f := &monitored{t: t, Hypervisor: x, mem: make([]byte, guest.LedgerSize)}
	f.d = x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH, VCPUs: vcpus})
	pt := f.d.NewPageTables(x86.FourLevel)
	f.frame = pt.MapPage(text, code)
	f.handlers = pt.MapPage(int3Handler, nops)
	// A gate for vector 3, in a table of its own page.
	idt := make([]byte, 64)
	binary.LittleEndian.PutUint16(idt[48:], int3Handler&0xffff)
	binary.LittleEndian.PutUint16(idt[54:], int3Handler>>16&0xffff)
	binary.LittleEndian.PutUint32(idt[56:], int3Handler>>32)
	pt.MapPage(text+0x20000, idt)
	f.stacks = pt.MapPage(text+0x10000, nil)
	f.d.UsePageTables(pt)
	for n := range vcpus {
		f.d.VCPU(n).Saved.Bases[8] = text + 0x20000
		f.place(n, text, text+0x10800)
	}
	f.attach()
	return f
}

// pollRing makes the engine do without event channels.
func pollRing(t *testing.T) {
	old := openChannels
	openChannels = func() (*xen.EventChannels, error) { return nil, nil }
	t.Cleanup(func() { openChannels = old })
}

func (f *monitored) attach() { f.attachTo(f.Host()) }

func (f *monitored) attachTo(host *xen.Host) {
	f.t.Helper()
	ledger, err := guest.NewLedger(f.mem)
	if err != nil {
		f.t.Fatal(err)
	}
	if f.g, err = guest.Attach(host, 3, ledger); err != nil {
		f.t.Fatal(err)
	}
	if f.e, err = Choose(f.g, "", slog.New(slog.DiscardHandler)); err != nil {
		f.t.Fatal(err)
	}
}

// detach gives the guest back, and checks that it has all its bytes.
func (f *monitored) detach(code []byte) {
	f.t.Helper()
	if err := errors.Join(f.e.Close(), f.g.Detach()); err != nil {
		f.t.Error(err)
	}
	f.same(code)
}

// same checks the guest's code and that nothing of ours is left on its vCPUs.
func (f *monitored) same(code []byte) {
	f.t.Helper()
	if f.d.Pauses() == 0 && f.d.Frame(f.handlers)[0x10] != 0 {
		f.t.Errorf("the handler of int3 is % x", f.d.Frame(f.handlers)[0x10:0x12])
	}
	if got := f.d.Frame(f.frame)[:len(code)]; !bytes.Equal(got, code) {
		f.t.Errorf("code is % x, was % x", got, code)
	}
	for n := 0; f.d.Pauses() == 0 && n < f.g.NumVCPUs(); n++ {
		if v := f.d.VCPU(n); !v.Online || v.Context.RFLAGS&x86.RFLAGSTF != 0 || v.Waiting > 0 {
			f.t.Errorf("vCPU %d: online %v, rflags %#x, waiting %d", n, v.Online, v.Context.RFLAGS, v.Waiting)
		}
	}
}

func (f *monitored) place(n int, rip, rsp uint64) {
	f.Do(func() { f.d.VCPU(n).Context.RIP, f.d.VCPU(n).Context.RSP = rip, rsp })
}

func (f *monitored) plant(addr uint64) *guest.Plant {
	f.t.Helper()
	p, err := f.g.Plant(0, addr, []byte{guest.Int3})
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *monitored) resume(motions ...Motion) {
	f.t.Helper()
	if err := f.e.Resume(motions); err != nil {
		f.t.Fatal(err)
	}
	if f.d.Pauses() != 0 {
		f.t.Fatal("guest does not run")
	}
}

// int3 makes a vCPU come to an int3, and debug to a #DB.
func (f *monitored) int3(n int, rip, rsp uint64) {
	f.t.Helper()
	f.place(n, rip, rsp)
	if !f.d.Report(n, xen.VMEvent{Reason: xen.ReasonBreakpoint, Type: xen.SoftwareException, Length: 1}) {
		f.t.Fatal("the int3 goes to the guest")
	}
}

func (f *monitored) debug(n int, rip, rsp uint64) {
	f.t.Helper()
	f.place(n, rip, rsp)
	if !f.d.Report(n, xen.VMEvent{Reason: xen.ReasonDebug, Type: xen.HardwareException}) {
		f.t.Fatal("the #DB goes to the guest")
	}
}

// wait waits for stops, which must be these.
func (f *monitored) wait(want ...Stop) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	if err := f.e.Wait(ctx); err != nil {
		f.t.Fatal(err)
	}
	f.pause(want...)
}

func (f *monitored) pause(want ...Stop) {
	f.t.Helper()
	got, err := f.e.Pause()
	if err != nil {
		f.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Fatalf("stops (-want +got):\n%s", diff)
	}
	if again, err := f.e.Pause(); err != nil || len(again) > 0 {
		f.t.Fatalf("stops are given again: %+v, %v", again, err)
	}
}

// idle waits for a while, in which nothing must stop.
func (f *monitored) idle() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.e.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.t.Fatalf("Wait gives %v, want the context's error", err)
	}
}

func (f *monitored) tf(n int) bool { return f.d.VCPU(n).Context.RFLAGS&x86.RFLAGSTF != 0 }

var (
	rsp  = uint64(text + 0x10800)
	nops = bytes.Repeat([]byte{0x90}, 16)
)

// A guest in which nothing can stop is not touched.
func TestMonitorLeavesAlone(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.resume(Run, Run)
	if n := f.Calls(xentest.OpVMEventOp) + f.Calls(xentest.OpPopulate); n != 0 {
		t.Errorf("%d calls about a ring", n)
	}
	f.idle()
	f.pause()
	f.detach(nops)
}

// Two vCPUs stop at once; one stays while the other goes on.
func TestMonitorBreakpoints(t *testing.T) {
	for _, release := range []string{"4.14", "4.17", "4.22"} {
		f := newMonitored(t, xentest.Config{Release: release}, 3, nops)
		f.plant(text + 4)
		f.resume(Run, Run, Run)
		f.int3(2, text+4, rsp)
		f.int3(0, text+4, rsp)
		f.wait(Stop{VCPU: 0, Trap: Breakpoint}, Stop{VCPU: 2, Trap: Breakpoint})
		if r, err := f.g.Registers(2); err != nil || r.RIP != text+4 {
			t.Errorf("rip is %#x, %v", r.RIP, err)
		}
		f.resume(Stay, Run, Run)
		if f.d.VCPU(0).Waiting != 1 || f.d.VCPU(2).Waiting != 0 {
			t.Error("the wrong vCPU goes on")
		}
		f.idle()
		f.resumed()
		f.detach(nops)
	}
}

// resumed pauses without any stop.
func (f *monitored) resumed() {
	f.t.Helper()
	f.pause()
}

// An int3 of the guest's own goes to the guest, one that has gone is tried again.
func TestMonitorPassesInt3(t *testing.T) {
	code := append([]byte{0xcc}, nops...)
	f := newMonitored(t, xentest.Config{}, 2, code)
	f.plant(text + 4)
	f.resume(Run, Run)
	f.int3(1, text, rsp)
	f.idle()
	if diff := cmp.Diff([]xen.Injection{{Vector: 3, Type: xen.SoftwareException, Length: 1}}, f.d.VCPU(1).Injected); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
	f.int3(1, text+8, rsp)
	f.idle()
	if n := len(f.d.VCPU(1).Injected); n != 1 || f.d.VCPU(1).Waiting > 0 {
		t.Errorf("%d injected, waiting %d", n, f.d.VCPU(1).Waiting)
	}
	f.debug(0, text+9, rsp)
	f.idle()
	if diff := cmp.Diff([]xen.Injection{{Vector: 1, Type: xen.HardwareException}}, f.d.VCPU(0).Injected); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
	f.pause()
	f.detach(code)
}

func TestMonitorStepByFlag(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.resume(Step, Stay)
	if !f.tf(0) || f.tf(1) || f.d.VCPU(1).Online {
		t.Errorf("TF %v and %v, other vCPU online %v", f.tf(0), f.tf(1), f.d.VCPU(1).Online)
	}
	f.debug(0, text+1, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	if f.tf(0) {
		t.Error("TF stays")
	}
	// The step of a vCPU that is called off.
	f.resume(Step, Run)
	if !f.tf(0) || !f.d.VCPU(1).Online {
		t.Error("the second step does not begin")
	}
	f.pause()
	if f.tf(0) {
		t.Error("TF stays after a step that is called off")
	}
	f.detach(nops)
}

// A step that was called off in a handler of the guest's does not reach the guest
// later.
func TestMonitorStaleStep(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 1, nops)
	handler := func() { f.Do(func() { f.d.VCPU(0).Context.RFLAGS &^= x86.RFLAGSTF }) }
	back := func() { f.Do(func() { f.d.VCPU(0).Context.RFLAGS |= x86.RFLAGSTF }) }
	for name, trap := range map[string]func(){
		"trapped":     func() { back(); f.debug(0, text+1, rsp); f.idle() },
		"not trapped": func() { back() },
	} {
		f.resume(Step)
		handler()
		f.pause()
		if !f.g.Ledger().Marked(0) {
			t.Fatalf("%s: forgotten", name)
		}
		f.resume(Run)
		trap()
		f.pause()
		if f.tf(0) || f.g.Ledger().Marked(0) || len(f.d.VCPU(0).Injected) > 0 {
			t.Errorf("%s: TF %v, still to trap %v, injected %v", name, f.tf(0), f.g.Ledger().Marked(0), f.d.VCPU(0).Injected)
		}
	}
	f.detach(nops)
}

// A program that traps itself gets its traps while one of a step in the kernel is
// still to come.
func TestMonitorOwnTrapBeforeLateOne(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	flag := func(n int, on bool) {
		f.Do(func() {
			f.d.VCPU(n).Context.RFLAGS &^= x86.RFLAGSTF
			if on {
				f.d.VCPU(n).Context.RFLAGS |= x86.RFLAGSTF
			}
		})
	}
	f.resume(Step, Run)
	flag(0, false) // in a handler
	f.pause()
	f.resume(Run, Run)
	for n := range 2 {
		flag(n, true)
		f.debug(n, 0x400001, 0x7000)
		f.idle()
		if len(f.d.VCPU(n).Injected) != 1 || !f.tf(n) || !f.g.Ledger().Marked(0) {
			t.Errorf("vCPU %d: injected %v, TF %v, still to trap %v", n, f.d.VCPU(n).Injected, f.tf(n), f.g.Ledger().Marked(0))
		}
	}
	f.pause()
	if !f.tf(0) {
		t.Error("the program has lost TF")
	}
	f.resume(Run, Run)
	flag(0, true)
	f.debug(0, text+1, rsp)
	f.idle()
	flag(1, false)
	f.pause()
	if len(f.d.VCPU(0).Injected) != 1 || f.tf(0) || f.g.Ledger().Marked(0) {
		t.Errorf("the late one: injected %v, TF %v, still to trap %v", f.d.VCPU(0).Injected, f.tf(0), f.g.Ledger().Marked(0))
	}
	f.detach(nops)
}

// A step that an interrupt cuts short goes on when the handler is done, perhaps on
// another vCPU.
func TestMonitorFinish(t *testing.T) {
	for _, code := range [][]byte{nops, append([]byte{0x0f, 0x01, 0xd9}, nops...)} { // by RFLAGS.TF, and by an int3
		length := uint64(1)
		if code[0] != 0x90 {
			length = 3
		}
		for _, moved := range []bool{false, true} {
			f := newMonitored(t, xentest.Config{}, 2, code)
			f.resume(Step, Stay)
			tf := f.d.VCPU(0).Context.RFLAGS & x86.RFLAGSTF
			f.place(0, text+8, rsp-0x100)
			f.Do(func() { f.d.VCPU(0).Context.RFLAGS &^= x86.RFLAGSTF })
			f.pause()
			for range 2 {
				f.resume(Finish, Run)
				if f.tf(0) {
					t.Error("TF is set in the handler")
				}
				f.pause()
			}
			f.resume(Finish, Run)
			n := 0
			switch {
			case tf == 0:
				f.int3(0, text+length, rsp)
			case moved:
				n = 1
				fallthrough
			default:
				f.Do(func() { f.d.VCPU(n).Context.RFLAGS |= tf })
				f.debug(n, text+length, rsp)
			}
			f.wait(Stop{VCPU: n, Trap: Debug, DR6: DR6BS})
			if f.tf(n) || f.g.Ledger().Marked(0) || f.g.Stepping(0) {
				t.Errorf("TF %v, still to trap %v", f.tf(n), f.g.Ledger().Marked(0))
			}
			f.detach(code)
		}
	}
}

// A step that comes to a breakpoint has not hit that.
func TestMonitorStepOntoBreakpoint(t *testing.T) {
	code := append([]byte{0x0f, 0x01, 0xd9}, nops...)
	f := newMonitored(t, xentest.Config{}, 1, code)
	p := f.plant(text + 3)
	f.resume(Step)
	f.int3(0, text+3, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	if err := f.g.Unplant(p); err != nil {
		t.Fatal(err)
	}
	f.detach(code)
}

// What PUSHF has pushed in a step has no TF; what POPF has popped stays.
func TestMonitorFlags(t *testing.T) {
	code := append([]byte{0x9c, 0x9d}, nops...)
	f := newMonitored(t, xentest.Config{}, 1, code)
	f.resume(Step)
	if err := f.stack(rsp-8, 0x302); err != nil {
		t.Fatal(err)
	}
	f.debug(0, text+1, rsp-8)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	var flags [8]byte
	if _, err := f.g.Read(0, rsp-8, flags[:]); err != nil || flags[0] != 2 || flags[1] != 2 {
		t.Errorf("pushed flags are % x, %v", flags, err)
	}
	f.resume(Step)
	f.Do(func() { f.d.VCPU(0).Context.RFLAGS = 0x2 })
	f.debug(0, text+2, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	if f.tf(0) || f.g.Ledger().Marked(0) {
		t.Error("a step over POPF is not done")
	}
	f.detach(code)
}

// stack writes to the stack as the guest does.
func (f *monitored) stack(addr, v uint64) error {
	g, err := guest.Attach(f.Host(), 3, nil)
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
	return errors.Join(g.Write(0, addr, b), g.Detach())
}

// Instructions that the hypervisor may execute are stepped by an int3 behind
// them. Others who come to it are taken over it.
func TestMonitorStepByInt3(t *testing.T) {
	code := append([]byte{0x0f, 0x01, 0xd9}, nops...)
	f := newMonitored(t, xentest.Config{}, 3, code)
	f.resume(Step, Run, Stay)
	if f.tf(0) || f.d.Frame(f.frame)[3] != 0xcc {
		t.Fatalf("TF is %v, code % x", f.tf(0), f.d.Frame(f.frame)[:4])
	}
	f.int3(1, text+3, rsp-0x100)
	f.idle()
	if !f.tf(1) || f.d.VCPU(0).Online || f.d.Frame(f.frame)[3] != 0x90 || f.d.VCPU(1).Waiting > 0 {
		t.Fatalf("detour: TF %v, other online %v, code % x", f.tf(1), f.d.VCPU(0).Online, f.d.Frame(f.frame)[:4])
	}
	f.debug(1, text+4, rsp-0x100)
	f.idle()
	if f.tf(1) || !f.d.VCPU(0).Online || f.d.VCPU(2).Online || f.d.Frame(f.frame)[3] != 0xcc {
		t.Fatalf("after the detour: TF %v, code % x", f.tf(1), f.d.Frame(f.frame)[:4])
	}
	f.int3(0, text+3, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	f.same(code)
	// A step that is called off leaves nothing.
	f.place(0, text, rsp)
	if err := f.g.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := f.g.Pause(); err != nil {
		t.Fatal(err)
	}
	f.resume(Step, Stay, Stay)
	f.pause()
	f.detach(code)
}

// An instruction that takes its vCPU down, as HLT without interrupts does, is no step
// that is done, and its end is taken away.
func TestMonitorStepTakesDown(t *testing.T) {
	code := []byte{0xf4, 0x90, 0x90}
	f := newMonitored(t, xentest.Config{}, 2, code)
	f.resume(Step, Run)
	f.Do(func() { f.d.VCPU(0).Online = false })
	f.pause()
	f.resume(Stay, Run)
	f.Do(func() { f.d.VCPU(0).Online = true })
	f.pause()
	f.detach(code)
}

// A step is begun anew where the guest could not be resumed for it, and leaves nothing.
func TestMonitorResumeFails(t *testing.T) {
	for _, code := range [][]byte{nops, {0x0f, 0xa2, 0x90}} { // with CPUID, by an int3
		f := newMonitored(t, xentest.Config{}, 1, code)
		f.FailAlways(xentest.OpUnpauseDomain, unix.EIO)
		if err := f.e.Resume([]Motion{Step}); !errors.Is(err, unix.EIO) {
			t.Fatalf("got error %v", err)
		}
		f.ClearFaults()
		f.resume(Step)
		if f.tf(0) {
			f.debug(0, text+1, rsp)
		} else {
			f.int3(0, text+2, rsp)
		}
		f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
		f.same(code)
		f.detach(code)
	}
}

// A processor with a monitor trap flag steps by it.
func TestMonitorStepByMonitorTrapFlag(t *testing.T) {
	f := newMonitored(t, xentest.Config{Intel: true}, 2, nops)
	f.resume(Step, Stay)
	if f.tf(0) || !f.d.VCPU(0).SingleStep {
		t.Errorf("TF %v, single step %v", f.tf(0), f.d.VCPU(0).SingleStep)
	}
	f.place(0, text+1, rsp)
	if !f.d.Report(0, xen.VMEvent{Reason: xen.ReasonSingleStep}) {
		t.Fatal("the step is not reported")
	}
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	f.resume(Step, Stay)
	f.pause()
	f.detach(nops)
}

// A debug register of ours that hits is reported, the guest's own is not.
func TestMonitorDebugRegisters(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 1, nops)
	if err := f.g.SetDebugRegs(0, [4]uint64{0, text + 8}, 0x404); err != nil {
		t.Fatal(err)
	}
	f.resume(Run)
	c := &f.d.VCPU(0).Context
	f.Do(func() { c.DebugRegs[6] = dr6Reserved | 3 })
	f.debug(0, text+8, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: 2})
	if c.DebugRegs[6] != dr6Reserved|1 {
		t.Errorf("the guest is left dr6 %#x", c.DebugRegs[6])
	}
	f.resume(Run)
	f.Do(func() { c.DebugRegs[6] = dr6Reserved | 1 })
	f.debug(0, text+9, rsp)
	f.idle()
	f.Do(func() { // it sets one itself
		c.DebugRegs[2], c.DebugRegs[6], c.DebugRegs[7] = text, dr6Reserved|4, c.DebugRegs[7]|2<<4
	})
	f.debug(0, text+10, rsp)
	f.idle()
	if len(f.d.VCPU(0).Injected) != 2 {
		t.Error("the guest's own #DB is kept from it")
	}
	f.pause()
	f.resume(Step)
	f.Do(func() { c.DebugRegs[6] |= DR6BS | 2 | 4 })
	f.debug(0, text+11, rsp)
	f.wait(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS | 2})
	if c.DebugRegs[6] != dr6Reserved|4 {
		t.Errorf("after a step the guest is left dr6 %#x", c.DebugRegs[6])
	}
	f.detach(nops)
}

// A domain that shuts down, to be saved perhaps, is told of while it still has what is
// planted in it.
func TestMonitorShutDown(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.plant(text + 4)
	f.resume(Run, Run)
	f.d.Crash()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := f.e.Wait(ctx); !errors.Is(err, ErrShutDown) {
		t.Errorf("Wait gives %v, want ErrShutDown", err)
	}
	f.detach(nops)
}

// A domain that dies is let go.
func TestMonitorDomainDies(t *testing.T) {
	for name, die := range map[string]func(f *monitored){
		"dying": func(f *monitored) { f.Do(func() { f.d.Dying = true }) },
		"gone":  func(f *monitored) { f.d.Destroy() },
	} {
		f := newMonitored(t, xentest.Config{}, 2, nops)
		f.plant(text + 4)
		f.resume(Run, Run)
		die(f)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := f.e.Wait(ctx); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("%s: Wait gives %v, want ErrNoDomain", name, err)
		}
		if err := f.e.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		if err := f.g.ReleaseFrames(); err != nil {
			t.Error(err)
		}
		if n := f.Mapped(); n > 0 {
			t.Errorf("%s: %d mappings keep the domain", name, n)
		}
		f.d.Destroy()
	}
}

func TestMonitorUnavailable(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 1, nops)
	f.plant(text)
	other, err := f.Host().OpenRing(3, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.e.Resume([]Motion{Run}); !errors.Is(err, xen.ErrRingInUse) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("another listens: %v, want ErrRingInUse", err)
	}
	f.detach(nops)
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// unreportedInt3 makes a vCPU take an int3 as an emulated processor does that does
// not look at what the hypervisor intercepts.
func (f *monitored) unreportedInt3(n int, rip uint64) {
	f.t.Helper()
	for i, w := range []uint64{rip + 1, 0x10, 0x246, rsp, 0x18} {
		if err := f.stack(rsp-40+8*uint64(i), w); err != nil {
			f.t.Fatal(err)
		}
	}
	f.place(n, int3Handler, rsp-40)
	f.Do(func() { f.d.VCPU(n).Context.RFLAGS = 0x46 })
}

// An int3 that is not reported does not reach the guest's handler.
func TestMonitorUnreported(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.plant(text + 4)
	f.resume(Run, Run)
	if got := f.d.Frame(f.handlers)[0x10:0x12]; !bytes.Equal(got, jumpToItself) {
		t.Fatalf("the handler of int3 is % x", got)
	}
	f.unreportedInt3(1, text+4)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := f.e.Wait(ctx); !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrUnreported) {
		t.Errorf("Wait gives %v, want ErrUnreported", err)
	}
	f.pause()
	if c := &f.d.VCPU(1).Context; c.RIP != text+4 || c.RSP != rsp || c.RFLAGS != 0x246 {
		t.Errorf("vCPU is at %#x, rsp %#x, rflags %#x", c.RIP, c.RSP, c.RFLAGS)
	}
	f.resume(Run, Run)
	f.pause()
	f.plant(text + 5)
	if err := f.e.Resume([]Motion{Run, Run}); !errors.Is(err, ErrUnreported) {
		t.Errorf("Resume gives %v, want ErrUnreported", err)
	}
	f.detach(nops)
}

// A vCPU that is in the guest's handler by an int3 of the guest's own, from before that
// was guarded or past the monitor, goes on there: alone, and then the guard is there.
func TestMonitorOwnInt3AtGuard(t *testing.T) {
	for _, before := range []bool{true, false} {
		f := newMonitored(t, xentest.Config{}, 2, nops)
		f.resume(Run, Run)
		if before {
			f.unreportedInt3(0, text+8)
		}
		f.pause()
		f.plant(text + 4)
		goesOn := make(chan struct{})
		go func() {
			defer close(goesOn)
			for on := false; !on && t.Context().Err() == nil; {
				runs := f.d.Pauses() == 0
				f.Do(func() {
					c := &f.d.VCPU(0).Context
					if on = runs && c.RIP == int3Handler && !f.d.VCPU(1).Online; on {
						c.RIP += 3
					}
				})
			}
		}()
		f.resume(Run, Run)
		if !before {
			f.unreportedInt3(0, text+8)
			f.idle()
		}
		select {
		case <-goesOn:
		case <-time.After(5 * time.Second):
			t.Fatal("the vCPU does not go on")
		}
		f.idle()
		if got := f.d.Frame(f.handlers)[0x10:0x12]; !bytes.Equal(got, jumpToItself) {
			t.Errorf("the handler of int3 is % x", got)
		}
		f.int3(1, text+4, rsp)
		f.wait(Stop{VCPU: 1, Trap: Breakpoint})
		f.detach(nops)
	}
}

// Nor does it in the way of giving the guest back.
func TestMonitorCloseUnreported(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.plant(text + 4)
	f.resume(Run, Run)
	f.unreportedInt3(1, text+4)
	f.detach(nops)
	if rip := f.d.VCPU(1).Context.RIP; rip != text+4 {
		t.Errorf("vCPU is at %#x", rip)
	}
}

// Wherever a session dies, another process gives the guest back.
func TestMonitorRecover(t *testing.T) {
	code := append([]byte{0x0f, 0x01, 0xd9}, nops...)
	states := map[string]func(f *monitored){
		"planted": func(f *monitored) {},
		"running": func(f *monitored) { f.resume(Run, Run) },
		"stopped, not seen": func(f *monitored) {
			f.resume(Run, Run)
			f.int3(0, text+5, rsp)
			f.int3(1, text+5, rsp)
		},
		"stopped": func(f *monitored) {
			f.resume(Run, Run)
			f.int3(0, text+5, rsp)
			f.wait(Stop{VCPU: 0, Trap: Breakpoint})
		},
		"stepping": func(f *monitored) {
			f.place(0, text+8, rsp)
			f.again()
			f.resume(Step, Stay)
		},
		"stepped, not seen": func(f *monitored) {
			f.place(0, text+8, rsp)
			f.again()
			f.resume(Step, Stay)
			f.debug(0, text+9, rsp)
		},
		"stepping by int3": func(f *monitored) { f.resume(Step, Stay) },
		"int3 not reported": func(f *monitored) {
			f.resume(Run, Run)
			f.unreportedInt3(1, text+5)
		},
		"on a detour": func(f *monitored) {
			f.resume(Step, Run)
			f.int3(1, text+3, rsp-64)
			f.idle()
		},
	}
	for _, intel := range []bool{false, true} {
		for name, reach := range states {
			if intel && name != "stepping" && name != "running" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				f := newMonitored(t, xentest.Config{Intel: intel}, 2, code)
				f.plant(text + 5)
				reach(f)
				// The process dies: its mappings go with it, and nothing else.
				f.ReleaseMappings()
				ledger, err := guest.OpenLedger(f.mem)
				if err != nil {
					t.Fatal(err)
				}
				if err := Recover(f.Host(), ledger, slog.New(slog.DiscardHandler)); err != nil {
					t.Fatal(err)
				}
				if f.d.Pauses() != 0 {
					t.Error("guest stays paused")
				}
				f.same(code)
				if rip := f.d.VCPU(1).Context.RIP; rip == int3Handler {
					t.Error("vCPU is in the handler of int3")
				}
			})
		}
	}
}

// The ring of somebody else's is left, wherever the server is killed.
func TestMonitorKilledBesideAnother(t *testing.T) {
	f := newLively(t, xentest.Config{})
	host := f.Host()
	other, err := host.OpenRing(3, 2)
	check(t, other, err)
	for calls, done := 0, false; !done; calls++ {
		done = f.until(calls, func(host *xen.Host) error {
			f.attachTo(host)
			f.plant(livesBreak)
			if err := f.e.Resume([]Motion{Run, Run}); !errors.Is(err, xen.ErrRingInUse) {
				t.Fatalf("Resume gives %v, want ErrRingInUse", err)
			}
			return errors.Join(f.e.Close(), f.g.Detach())
		})
		f.until(math.MaxInt, f.recover)
		if has, err := host.HasRing(3); !has || err != nil {
			t.Fatalf("killed at call %d: another's ring is there: %v, %v", calls, has, err)
		}
	}
	check(t, other, other.Close())
}

// A ring that was given up is no longer noted: the next may be somebody else's.
func TestMonitorKilledAfterItsRing(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 1, nops)
	openChannels = func() (*xen.EventChannels, error) { return nil, xen.ErrNoEvtchn }
	f.plant(text)
	if err := f.e.Resume([]Motion{Run}); !errors.Is(err, xen.ErrNoEvtchn) {
		t.Fatalf("Resume gives %v, want ErrNoEvtchn", err)
	}
	other, err := f.Host().OpenRing(3, 1)
	check(t, other, err)
	f.ReleaseMappings()
	ledger, err := guest.OpenLedger(f.mem)
	if err := Recover(f.Host(), check(t, ledger, err), slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	f.same(nops)
	if has, err := f.Host().HasRing(3); !has || err != nil {
		t.Errorf("another's ring is there: %v, %v", has, err)
	}
	if err := f.Host().DisableRing(3); err != nil {
		t.Error(err)
	}
}

// An int3 whose frame cannot be mapped just now is not forgotten.
func TestMonitorRecoverUnmapped(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 1, nops)
	f.plant(text)
	for _, tt := range []struct {
		name   string
		giveUp func() error
	}{
		{"detach", func() error { return errors.Join(f.g.ReleaseFrames(), f.g.Detach()) }},
		{"recover", func() error {
			f.ReleaseMappings()
			ledger, err := guest.OpenLedger(f.mem)
			return Recover(f.Host(), check(t, ledger, err), slog.New(slog.DiscardHandler))
		}},
	} {
		f.FailAlways(xentest.OpMap, unix.ENOMEM)
		err := tt.giveUp()
		f.ClearFaults()
		if _, left := guest.OpenLedger(f.mem); !errors.Is(err, unix.ENOMEM) || left != nil {
			t.Errorf("%s gives %v, want ENOMEM; the ledger: %v", tt.name, err, left)
		}
	}
	ledger, err := guest.OpenLedger(f.mem)
	if err := Recover(f.Host(), check(t, ledger, err), slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	f.same(nops)
}

// A vCPU that the guest has taken down since its step began is in nobody's way.
func TestMonitorRecoverVCPUDown(t *testing.T) {
	f := newMonitored(t, xentest.Config{}, 2, nops)
	f.resume(Step, Run)
	f.Do(func() { f.d.VCPU(0).Online = false })
	f.ReleaseMappings()
	ledger, err := guest.OpenLedger(f.mem)
	if err := Recover(f.Host(), check(t, ledger, err), slog.New(slog.DiscardHandler)); err != nil || f.d.VCPU(0).Online {
		t.Errorf("%v; vCPU 0 is up: %v", err, f.d.VCPU(0).Online)
	}
}

// again makes the guest's registers be read anew.
func (f *monitored) again() {
	f.t.Helper()
	if err := errors.Join(f.g.Resume(), f.g.Pause()); err != nil {
		f.t.Fatal(err)
	}
}

// What the vCPUs of TestMonitorKilledAnywhere execute, each its own round. Of all
// instructions only what matters to an engine is played.
var livesText = []byte{
	0: 0x90, 0x90, // a breakpoint is at the second
	2: 0x50,             // pushes to where a debug register looks
	3: 0x9c,             // PUSHF
	4: 0x90,             // an interrupt may come
	5: 0x0f, 0x01, 0xd9, // VMMCALL, which the hypervisor executes
	8: 0x90, 0x9d, 0xc3, // POPF, and a return to where its vCPU begins
	11: 0x9c, 0xcc, 0x90, 0xf1, 0xeb, 0xf7, // another way there, with traps of its own
	17: 0x90, 0x90, 0xcf, // an interrupt's handler
}

// Addresses in livesText, and the one that it pushes to.
const (
	livesBreak   = text + 1
	livesMeet    = text + 8
	livesOther   = text + 11
	livesHandler = text + 17
	livesWatch   = text + 0x10f00
)

// avxAt is where an XSAVE area has AVX's state (SDM vol. 1, section 13.4.2).
const avxAt = 576

// life is what a vCPU has really been through.
type life struct {
	begin    uint64
	rip      uint64
	ran      uint64 // instructions, which RBX counts too
	injected int    // exceptions that it has taken
	back     uint64 // on the interrupt's stack: RIP, and RFLAGS.TF
	flag     uint64
}

// lively is a guest whose vCPUs execute their code.
type lively struct {
	*monitored
	lives     []life
	interrupt bool // vCPU 0 is to get an interrupt before the next step by RFLAGS.TF
}

func newLively(t *testing.T, config xentest.Config) *lively {
	f := &lively{monitored: newMonitored(t, config, 2, livesText)}
	if err := f.g.Detach(); err != nil {
		t.Fatal(err)
	}
	f.lives = []life{{begin: text, rip: text}, {begin: livesOther, rip: livesOther}}
	for n, l := range f.lives {
		v := f.d.VCPU(n)
		v.Context.DebugRegs[6] = dr6Reserved
		v.Ext[avxAt], v.Ext[512] = 0x5a, 7 // XSTATE_BV
		f.place(n, l.rip, rsp-uint64(n)*0x100)
	}
	return f
}

// live lets each vCPU that may run execute one instruction.
func (f *lively) live() {
	for n := range f.lives {
		if v := f.d.VCPU(n); f.d.Pauses() == 0 && v.Online && v.Waiting == 0 {
			f.execute(n, v)
		}
	}
}

func (f *lively) execute(n int, v *xentest.VCPU) {
	c, l := &v.Context, &f.lives[n]
	if c.RIP != l.rip || c.RBX != l.ran || l.rip-text >= uint64(len(livesText)) {
		f.t.Fatalf("vCPU %d runs at %#x after %d instructions, it was at %#x after %d", n, c.RIP, c.RBX, l.rip, l.ran)
	}
	flag := c.RFLAGS & x86.RFLAGSTF
	if f.interrupt && n == 0 && flag != 0 {
		f.interrupt = false
		l.back, l.flag, l.rip = l.rip, flag, livesHandler
		f.Do(func() { c.RIP, c.RFLAGS = l.rip, c.RFLAGS&^flag })
		return
	}
	goTo := func(rip, dr6, rflags uint64) {
		l.ran++
		l.rip = rip
		f.Do(func() {
			c.RIP, c.RBX, c.RFLAGS = rip, l.ran, c.RFLAGS|rflags
			c.DebugRegs[6] |= dr6
		})
	}
	own := func(vector uint8, code byte) {
		if livesText[l.rip-text] != code {
			f.t.Fatalf("vCPU %d gets exception %d at %#x", n, vector, l.rip)
		}
		goTo(l.rip+1, 0, 0)
	}
	trapping := map[uint8]byte{xen.VectorBreakpoint: guest.Int3, xen.VectorDebug: 0xf1}
	if len(v.Injected) > l.injected {
		vector := v.Injected[l.injected].Vector
		l.injected++
		own(vector, trapping[vector])
		return
	}
	dr6 := uint64(0)
	if flag != 0 {
		dr6 = DR6BS
	}
	switch code := f.d.Frame(f.frame)[l.rip-text:]; code[0] {
	case guest.Int3:
		if !f.d.Report(n, xen.VMEvent{Reason: xen.ReasonBreakpoint, Type: xen.SoftwareException, Length: 1}) {
			own(xen.VectorBreakpoint, guest.Int3)
		}
		return
	case 0xf1:
		if !f.d.Report(n, xen.VMEvent{Reason: xen.ReasonDebug, Type: xen.PrivilegedTrap, Length: 1}) {
			own(xen.VectorDebug, 0xf1)
		}
		return
	case 0x0f:
		if flag != 0 {
			f.t.Fatalf("vCPU %d is stepped over VMMCALL by RFLAGS.TF", n)
		}
		goTo(l.rip+3, 0, 0)
	case 0xeb:
		goTo(l.rip+2+uint64(int8(code[1])), dr6, 0)
	case 0xc3:
		goTo(l.begin, dr6, 0)
	case 0xcf:
		goTo(l.back, 0, l.flag)
		return
	case 0x9c:
		goTo(l.rip+1, dr6, 0)
		c.RSP -= 8
		binary.LittleEndian.PutUint64(f.d.Frame(f.stacks)[c.RSP-text-0x10000:], c.RFLAGS)
	case 0x9d:
		goTo(l.rip+1, dr6, 0)
		c.RFLAGS = binary.LittleEndian.Uint64(f.d.Frame(f.stacks)[c.RSP-text-0x10000:])
		c.RSP += 8
		if c.RFLAGS != 0x202 {
			f.t.Fatalf("vCPU %d pops flags %#x", n, c.RFLAGS)
		}
	case 0x50:
		dr6 |= c.DebugRegs[7] & 1
		fallthrough
	default:
		goTo(l.rip+1, dr6, 0)
	}
	if dr6 != 0 && !f.d.Report(n, xen.VMEvent{Reason: xen.ReasonDebug, Type: xen.HardwareException}) {
		f.t.Fatalf("vCPU %d gets a #DB, dr6 %#x, at %#x", n, dr6, l.rip)
	}
	if dr6 == 0 && v.SingleStep {
		f.d.Report(n, xen.VMEvent{Reason: xen.ReasonSingleStep})
	}
}

// goOn lets vCPUs go on until there is a stop, which must be this.
func (f *lively) goOn(want Stop, motions ...Motion) {
	f.t.Helper()
	if err := f.e.Resume(motions); err != nil {
		f.t.Fatal(err)
	}
	for n := 0; f.d.VCPU(want.VCPU).Waiting == 0 && n < 20; n++ {
		f.live()
	}
	f.wait(want)
}

// session is that of a debugger, with all that the engine does.
func (f *lively) session(host *xen.Host) error {
	f.attachTo(host)
	step := Stop{VCPU: 0, Trap: Debug, DR6: DR6BS}

	plant := f.plant(livesBreak)
	f.goOn(Stop{VCPU: 0, Trap: Breakpoint}, Run, Run)
	for n := range f.lives {
		check(f.t, n, f.g.SetDebugRegs(n, [4]uint64{livesWatch}, 0x10001))
	}
	check(f.t, plant, f.g.Lift(plant))
	f.goOn(step, Step, Stay)
	check(f.t, plant, f.g.Replant(plant))
	f.goOn(Stop{VCPU: 0, Trap: Debug, DR6: 1}, Run, Run)
	f.goOn(step, Step, Run) // over PUSHF
	// A step that an interrupt cuts short, but for one by the monitor trap flag.
	f.interrupt = !f.e.(*monitor).mtf
	if f.interrupt {
		check(f.t, step, f.e.Resume([]Motion{Step, Stay}))
		f.pause()
		f.goOn(step, Finish, Run)
	} else {
		f.goOn(step, Step, Run)
	}
	// One over VMMCALL, while another vCPU comes to the int3 behind that.
	for f.lives[1].rip != livesMeet {
		check(f.t, step, f.e.Resume([]Motion{Stay, Run}))
		f.pause()
	}
	f.goOn(step, Step, Run)
	check(f.t, step, f.e.Resume([]Motion{Run, Run}))
	f.pause()
	return errors.Join(f.e.Close(), f.g.Detach())
}

// recover undoes what is left in the ledger.
func (f *lively) recover(host *xen.Host) error {
	left, err := guest.OpenLedger(f.mem)
	if err != nil {
		return nil
	}
	return Recover(host, left, slog.New(slog.DiscardHandler))
}

// until does something, and ends the process before or after so many calls.
func (f *lively) until(calls int, do func(*xen.Host) error) (done bool) {
	f.t.Helper()
	k := &killer{Transport: f.Transport(), left: calls, after: f.live}
	defer k.release()
	return untilKilled(func() bool {
		host, err := xen.NewHost(k)
		err = do(check(f.t, host, err))
		return check(f.t, true, err)
	})
}

// Wherever the server is killed, in the middle of what the engine does, what it leaves
// can be undone, also if who undoes it is killed, and no vCPU is set back, loses a
// trap of its own or gets one of ours.
func TestMonitorKilledAnywhere(t *testing.T) {
	for _, intel := range []bool{false, true} {
		f := newLively(t, xentest.Config{Intel: intel})
		page, handler := string(f.d.Frame(f.frame)), string(f.d.Frame(f.handlers))
		calls := 0
		for done := false; !done; calls++ {
			f.interrupt = false
			began := time.Now()
			done = f.until(calls, f.session)
			if !done && !f.until(7*calls%200, f.recover) {
				f.until(math.MaxInt, f.recover)
			}
			for range 20 {
				f.live()
			}
			where := fmt.Sprintf("monitor trap flag %v, killed at call %d", intel, calls)
			if took := time.Since(began); took > settleTime {
				t.Fatalf("%s: it takes %v to undo: a trap is waited for that does not come", where, took)
			}
			if leaks := f.Leaks(); len(leaks) > 0 || f.d.Pauses() > 0 {
				t.Fatalf("%s: %d pauses, %q", where, f.d.Pauses(), leaks)
			}
			if string(f.d.Frame(f.frame)) != page || string(f.d.Frame(f.handlers)) != handler {
				t.Fatalf("%s: text is not as before", where)
			}
			for n, l := range f.lives {
				v := f.d.VCPU(n)
				c := &v.Context
				if v.Ext[avxAt] != 0x5a {
					t.Fatalf("%s: vCPU %d has lost its AVX state", where, n)
				}
				if !v.Online || c.RIP != l.rip || c.RBX != l.ran || c.RFLAGS != 0x202 || c.DebugRegs[0] != 0 || c.DebugRegs[6]&(DR6BS|DR6Breaks) != 0 || c.DebugRegs[7] != 0 {
					t.Fatalf("%s: vCPU %d is online %v, at %#x after %d instructions, was at %#x after %d; rflags %#x, debug registers %#x",
						where, n, v.Online, c.RIP, c.RBX, l.rip, l.ran, c.RFLAGS, c.DebugRegs)
				}
			}
		}
		if calls < 300 {
			t.Errorf("all is done after %d calls", calls)
		}
	}
}

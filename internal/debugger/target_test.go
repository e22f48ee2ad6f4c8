package debugger

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

const text = 0xffffffff81000000

// newTarget makes a target of a domain 3 with some vCPUs, which set may change
// before it is attached to.
func newTarget(t testing.TB, config xentest.Config, kind xen.Kind, vcpus int, set func(d *xentest.Domain)) (*Target, *xentest.Domain, *xentest.Hypervisor) {
	t.Helper()
	x := xentest.New(t, config)
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: kind, VCPUs: vcpus})
	pt := d.NewPageTables(x86.FourLevel)
	pt.MapPage(text, []byte("kernel text"))
	d.UsePageTables(pt)
	if set != nil {
		set(d)
	}
	g, err := guest.Attach(x.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	target, err := New(g, Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := target.Detach(); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	return target, d, x
}

func thread(n int) rsp.ThreadID { return rsp.ThreadID{PID: 3, TID: n} }

var all = []rsp.Action{{Kind: rsp.Continue, Thread: rsp.ThreadID{PID: -1, TID: -1}}}

// wait waits for a stop, not for long.
func wait(t *testing.T, target *Target) rsp.StopReply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stop, err := target.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stop
}

// A standing is a thread, and how it stands.
type standing struct {
	Thread rsp.Thread
	How    string
}

// standings gives the threads as a client's list shows them.
func standings(target *Target) (list []standing, err error) {
	threads, err := target.Threads()
	for _, th := range threads {
		list = append(list, standing{th, target.Describe(th.ID)})
	}
	return list, err
}

func TestThreads(t *testing.T) {
	target, d, x := newTarget(t, xentest.Config{}, xen.PV, 4, func(d *xentest.Domain) {
		d.VCPU(1).Context.Flags &^= xen.VGCFInKernel
		d.VCPU(2).Online = false
		d.VCPU(3).Blocked = true
	})
	want := []standing{
		{rsp.Thread{ID: thread(1), Name: "vCPU 0", Core: 0}, "kernel mode"},
		{rsp.Thread{ID: thread(2), Name: "vCPU 1", Core: 1}, "user mode"},
		{rsp.Thread{ID: thread(4), Name: "vCPU 3", Core: 3}, "kernel mode, blocked"},
	}
	got, err := standings(target)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("threads (-want +got):\n%s", diff)
	}
	x.Do(func() {
		for n := range 4 {
			d.VCPU(n).Online = false
		}
	})
	again := func() {
		if err := target.Resume(all); err != nil {
			t.Fatal(err)
		}
		if err := target.Interrupt(); err != nil {
			t.Fatal(err)
		}
		wait(t, target)
	}
	again()
	got, err = standings(target)
	if err != nil || len(got) != 4 || got[2].How != "kernel mode, offline" {
		t.Errorf("with all vCPUs off: %+v, %v", got, err)
	}
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	d.Destroy()
	if _, err := target.Threads(); !errors.Is(err, rsp.ErrNoThread) || !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("of a domain that is gone: %v", err)
	}
}

func TestThreadsOfRunningGuest(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	got, err := standings(target)
	if err != nil || len(got) != 1 || got[0].How != "running" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := target.ReadRegisters(thread(1), rsp.NewRegisters(target.Description())); !errors.Is(err, rsp.ErrRunning) {
		t.Errorf("registers: %v, want ErrRunning", err)
	}
	if _, err := target.ReadMemory(thread(1), text, make([]byte, 1)); !errors.Is(err, rsp.ErrRunning) {
		t.Errorf("memory: %v, want ErrRunning", err)
	}
}

// A stop of a guest with many vCPUs, and the registers of one, read none of the others:
// only what lists them all does, and each once.
func TestContextsAreReadOnce(t *testing.T) {
	const vcpus = 64
	target, _, x := newTarget(t, xentest.Config{}, xen.PV, vcpus, nil)
	target.engine = engine.Plain(target.guest, errors.New("not in this test"))
	contexts := func() int { return x.Calls(xentest.OpGetVCPUContext) }
	regs := rsp.NewRegisters(target.Description())
	for range 2 {
		if err := target.Resume(all); err != nil {
			t.Fatal(err)
		}
		if err := target.Interrupt(); err != nil {
			t.Fatal(err)
		}
		before := contexts()
		stop := wait(t, target)
		for range 3 {
			if threads, err := target.Threads(); err != nil || len(threads) != vcpus {
				t.Fatalf("got %d threads, %v", len(threads), err)
			}
			for _, id := range []rsp.ThreadID{stop.Thread, thread(vcpus)} {
				if err := target.ReadRegisters(id, regs); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := target.ReadMemory(thread(vcpus), text, make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
		}
		if n := contexts() - before; n != 2 {
			t.Errorf("a stop, the list of threads and registers of two read %d contexts", n)
		}
		for range 2 {
			if _, err := standings(target); err != nil {
				t.Fatal(err)
			}
		}
		if n := contexts() - before; n != vcpus {
			t.Errorf("with what each thread is at, %d contexts were read", n)
		}
	}
}

// The first stop is that of a vCPU with something to do.
func TestFirstStop(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 3, func(d *xentest.Domain) {
		d.VCPU(0).Blocked = true
		d.VCPU(1).Online = false
	})
	want := rsp.StopReply{Signal: 5, Thread: thread(3), Expedite: []int{6, 7, 16}}
	if diff := cmp.Diff(want, target.Stop()); diff != "" {
		t.Errorf("stop (-want +got):\n%s", diff)
	}
	idle, _, _ := newTarget(t, xentest.Config{}, xen.PV, 2, func(d *xentest.Domain) {
		d.VCPU(0).Blocked, d.VCPU(1).Blocked = true, true
	})
	if got := idle.Stop().Thread; got != thread(1) {
		t.Errorf("all idle: stopped %v, want the first", got)
	}
}

func TestRegistersOfThreads(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 2, func(d *xentest.Domain) {
		d.VCPU(0).Context.RIP, d.VCPU(1).Context.RIP = text+1, text+2
		d.VCPU(0).Blocked = true
	})
	regs := rsp.NewRegisters(target.Description())
	rip, _ := regs.Index("rip")
	for id, want := range map[rsp.ThreadID]uint64{
		thread(1): text + 1, thread(2): text + 2,
		{}: text + 2, {PID: -1, TID: -1}: text + 2, // any: the one that stopped
	} {
		regs.Clear()
		if err := target.ReadRegisters(id, regs); err != nil {
			t.Fatal(err)
		}
		if got, known := regs.Uint(rip); !known || got != want {
			t.Errorf("thread %v: rip %#x, want %#x", id, got, want)
		}
	}
	if i, _ := regs.Index("efer"); regs.Known(i) {
		t.Error("efer of a PV guest is known")
	}
	if err := target.ReadRegisters(thread(3), regs); !errors.Is(err, rsp.ErrNoThread) {
		t.Errorf("thread 3: %v, want ErrNoThread", err)
	}

	one := rsp.NewRegisters(target.Description())
	one.SetUint(rip, text+3)
	if err := target.WriteRegisters(thread(2), one); err != nil {
		t.Fatal(err)
	}
	if d.VCPU(0).Context.RIP != text+1 || d.VCPU(1).Context.RIP != text+3 {
		t.Errorf("rips %#x and %#x", d.VCPU(0).Context.RIP, d.VCPU(1).Context.RIP)
	}
	if err := target.WriteRegisters(thread(3), one); !errors.Is(err, rsp.ErrNoThread) {
		t.Errorf("writing thread 3: %v, want ErrNoThread", err)
	}
}

// All of a G packet goes back as it came, since nothing differs.
func TestWriteBackAllRegisters(t *testing.T) {
	target, _, x := newTarget(t, xentest.Config{}, xen.PVH, 1, nil)
	regs := rsp.NewRegisters(target.Description())
	if err := target.ReadRegisters(thread(1), regs); err != nil {
		t.Fatal(err)
	}
	if err := target.WriteRegisters(thread(1), regs); err != nil {
		t.Error(err)
	}
	if n := x.Calls(xentest.OpSetVCPUContext); n != 0 {
		t.Errorf("%d writes of what is so already", n)
	}
}

func TestWriteRegistersRefused(t *testing.T) {
	write := func(t *testing.T, config xentest.Config, kind xen.Kind, name, text string) {
		t.Helper()
		target, d, x := newTarget(t, config, kind, 1, nil)
		before := d.VCPU(0).Context
		regs := rsp.NewRegisters(target.Description())
		rax, _ := regs.Index("rax")
		i, _ := regs.Index(name)
		regs.SetUint(rax, 0x1234)
		regs.SetUint(i, 0x5678)
		err := target.WriteRegisters(thread(1), regs)
		if !errors.Is(err, rsp.ErrNotSupported) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", name, err, text)
		}
		if d.VCPU(0).Context != before || x.Calls(xentest.OpSetVCPUContext) != 0 {
			t.Errorf("%s: something was written", name)
		}
	}
	write(t, xentest.Config{}, xen.PV, "efer", "vCPU 0: efer: not supported: its value cannot be known")
	write(t, xentest.Config{}, xen.PV, "cr8", "vCPU 0: cr8: not supported: its value cannot be known")
	write(t, xentest.Config{}, xen.PV, "cr3", "vCPU 0: cr3: the hypervisor does not let it be changed from outside")
	lossy := xentest.Config{Release: "4.21", Extra: ".0"}
	write(t, lossy, xen.PV, "r8", "vCPU 0: r8: not supported: its value cannot be known")
	write(t, lossy, xen.PV, "rbx", "writing a register would zero r8 to r15")
}

// Where there is hardware virtualization control registers can be written, but
// not with what no processor takes.
func TestWriteSystemRegister(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PVH, 1, nil)
	write := func(name string, value uint64) error {
		t.Helper()
		regs := rsp.NewRegisters(target.Description())
		i, _ := regs.Index(name)
		regs.SetUint(i, value)
		return target.WriteRegisters(thread(1), regs)
	}
	if err := write("cr8", 5); err != nil || d.VCPU(0).HVM.TPR != 0x50 {
		t.Errorf("cr8: %v, task priority %#x", err, d.VCPU(0).HVM.TPR)
	}
	err := write("cs", 0x5678)
	if !errors.Is(err, guest.ErrInvalid) || !strings.Contains(err.Error(), "vCPU 0: cs: ") {
		t.Errorf("cs: %v", err)
	}
}

func TestMemory(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	p := make([]byte, 0x2000)
	if n, err := target.ReadMemory(thread(1), text, p); err != nil || n != 0x1000 || !bytes.HasPrefix(p, []byte("kernel text")) {
		t.Errorf("read %d bytes, %q, %v", n, p[:11], err)
	}
	if n, err := target.ReadMemory(thread(1), 0x1000, p); n != 0 || !errors.Is(err, rsp.ErrUnmapped) {
		t.Errorf("read of nothing: %d, %v, want ErrUnmapped", n, err)
	}
	if _, err := target.ReadMemory(thread(9), text, p); !errors.Is(err, rsp.ErrNoThread) {
		t.Errorf("read as thread 9: %v, want ErrNoThread", err)
	}
	if err := target.WriteMemory(rsp.ThreadID{}, text, []byte("KERNEL")); err != nil {
		t.Fatal(err)
	}
	if err := target.WriteMemory(thread(1), text+0xfff, []byte("no")); !errors.Is(err, rsp.ErrUnmapped) {
		t.Errorf("write over the edge: %v, want ErrUnmapped", err)
	}
	if n, err := target.ReadMemory(thread(1), text, p); err != nil || !bytes.HasPrefix(p, []byte("KERNEL text")) || p[0xfff] != 0 {
		t.Errorf("read back %d bytes, %q, %v", n, p[:11], err)
	}
}

func TestResumeRefusals(t *testing.T) {
	tests := []struct {
		name    string
		actions []rsp.Action
		text    string // empty: it resumes
	}{
		{"all continue", all, ""},
		{"each continues", []rsp.Action{{Kind: rsp.Continue, Thread: thread(1)}, {Kind: rsp.Continue, Thread: thread(2)}}, ""},
		{"one and the rest", []rsp.Action{{Kind: rsp.Continue, Thread: thread(2)}, all[0]}, ""},
		{"any", []rsp.Action{{Kind: rsp.Continue}}, ""},
		{"first action wins", []rsp.Action{all[0], {Kind: rsp.Step, Thread: thread(1)}}, ""},
		{"nothing", nil, "not supported: vCPU 0 cannot stand still while others run"},
		{"one alone", []rsp.Action{{Kind: rsp.Continue, Thread: thread(2)}}, "not supported: vCPU 0 cannot stand still while others run"},
		{"one left out", []rsp.Action{{Kind: rsp.Continue, Thread: thread(1)}}, "not supported: vCPU 1 cannot stand still while others run"},
		{"one halted", []rsp.Action{{Kind: rsp.Halt, Thread: thread(2)}, all[0]}, "not supported: vCPU 1 cannot stand still while others run"},
		{"step", []rsp.Action{{Kind: rsp.Step, Thread: thread(2)}, all[0]}, "not supported: vCPU 1 cannot be stepped"},
		{"step all", []rsp.Action{{Kind: rsp.Step, Thread: rsp.ThreadID{PID: -1, TID: -1}}}, "not supported: vCPU 0 cannot be stepped"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 2, nil)
			err := target.Resume(tt.actions)
			if tt.text == "" {
				if err != nil || d.Pauses() != 0 {
					t.Errorf("got %v, pause count %d", err, d.Pauses())
				}
				return
			}
			if !errors.Is(err, rsp.ErrNotSupported) || !strings.HasPrefix(err.Error(), tt.text) || !strings.Contains(err.Error(), "no trap handlers") || d.Pauses() != 1 {
				t.Errorf("got %v, pause count %d, want %s", err, d.Pauses(), tt.text)
			}
		})
	}
}

func TestWaitInterrupt(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	// One that comes while it stands still is for that stop, not for the next.
	if err := target.Interrupt(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := target.Resume(all); err != nil {
			t.Fatal(err)
		}
		if d.Pauses() != 0 {
			t.Fatal("does not run")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if stop, err := target.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Wait gives %+v, %v, want the context's error", stop, err)
		}
		cancel()
		if d.Pauses() != 0 {
			t.Fatal("an ended Wait stopped the guest")
		}
		for range 2 { // two are as one
			if err := target.Interrupt(); err != nil {
				t.Fatal(err)
			}
		}
		want := rsp.StopReply{Signal: 2, Thread: thread(1), Expedite: expedited}
		if diff := cmp.Diff(want, wait(t, target)); diff != "" {
			t.Errorf("stop (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, target.Stop()); diff != "" {
			t.Errorf("last stop (-want +got):\n%s", diff)
		}
		if d.Pauses() != 1 {
			t.Errorf("pause count %d, want 1", d.Pauses())
		}
	}
}

func TestWaitInterruptFromElsewhere(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(5 * time.Millisecond)
		target.Interrupt()
	}()
	if got := wait(t, target).Signal; got != 2 {
		t.Errorf("signal %d, want 2", got)
	}
}

func TestWaitDomainEnds(t *testing.T) {
	for name, end := range map[string]func(x *xentest.Hypervisor, d *xentest.Domain){
		"destroyed": func(_ *xentest.Hypervisor, d *xentest.Domain) { d.Destroy() },
		"dying":     func(x *xentest.Hypervisor, d *xentest.Domain) { x.Do(func() { d.Dying = true }) },
	} {
		t.Run(name, func(t *testing.T) {
			target, d, x := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
			if err := target.Resume(all); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(5*time.Millisecond, func() { end(x, d) })
			stop := wait(t, target)
			if stop.Reason != rsp.StopExited || stop.Thread.PID != 3 {
				t.Errorf("stop %+v, want that it exited", stop)
			}
			if target.Stop().Reason != rsp.StopExited {
				t.Errorf("last stop %+v", target.Stop())
			}
		})
	}
	// It may go between the interrupt and our pause.
	t.Run("destroyed when interrupted", func(t *testing.T) {
		target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
		if err := target.Resume(all); err != nil {
			t.Fatal(err)
		}
		d.Destroy()
		if err := target.Interrupt(); err != nil {
			t.Fatal(err)
		}
		if stop := wait(t, target); stop.Reason != rsp.StopExited {
			t.Errorf("stop %+v, want that it exited", stop)
		}
	})
}

// A domain that is about to be saved or migrated is given back before it leaves, even if
// that was asked for while it was stopped.
func TestWaitDomainLeaves(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	leaving := make(chan struct{}, 1)
	target.leaving = leaving
	var said string
	target.SetConsole(func(text string) { said += text })
	leaving <- struct{}{}
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	if stop := wait(t, target); stop.Reason != rsp.StopExited || stop.Thread.PID != 3 {
		t.Errorf("stop %+v, want that it exited", stop)
	}
	if d.Pauses() != 0 || !strings.Contains(said, "saved or migrated") {
		t.Errorf("the domain is paused %d times, and the client told %q", d.Pauses(), said)
	}
}

// So is one of which that was asked as it stopped, when it is to go on.
func TestWaitDomainLeavesAfterStop(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	leaving := make(chan struct{}, 1)
	target.leaving = leaving
	ctx, over := target.withInterrupt(t.Context())
	leaving <- struct{}{}
	<-ctx.Done()
	over() // what Wait had was a stop
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	if stop := wait(t, target); stop.Reason != rsp.StopExited || d.Pauses() != 0 {
		t.Errorf("stop %+v, and the domain is paused %d times; want that it exited, and runs", stop, d.Pauses())
	}
}

// failing is an engine that cannot give back what it has changed.
type failing struct{ engine.Engine }

var errFailing = errors.New("it cannot")

func (failing) Close() error { return errFailing }

// What an engine cannot give back stays in the ledger, for the guardian.
func TestDetachFails(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	d.Alloc()
	mem := make([]byte, guest.LedgerSize)
	ledger, err := guest.NewLedger(mem)
	if err != nil {
		t.Fatal(err)
	}
	g, err := guest.Attach(x.Host(), 3, ledger)
	if err != nil {
		t.Fatal(err)
	}
	target, err := New(g, Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	whole := target.engine
	target.engine = failing{whole}
	if err := target.Detach(); !errors.Is(err, errFailing) || d.Pauses() != 0 {
		t.Errorf("Detach gives %v, and the domain is paused %d times", err, d.Pauses())
	}
	if _, err := guest.OpenLedger(mem); err != nil {
		t.Errorf("the ledger is over: %v", err)
	}
	target.engine = whole
	if err := target.Detach(); err != nil {
		t.Error(err)
	}
	if _, err := guest.OpenLedger(mem); !errors.Is(err, guest.ErrLedger) {
		t.Errorf("the ledger is not over: %v", err)
	}
}

func TestWaitCrash(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 2, func(d *xentest.Domain) { d.VCPU(0).Blocked = true })
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(5*time.Millisecond, d.Crash)
	want := rsp.StopReply{Signal: 6, Thread: thread(2), Expedite: expedited}
	if diff := cmp.Diff(want, wait(t, target)); diff != "" {
		t.Errorf("stop (-want +got):\n%s", diff)
	}
	if d.Pauses() != 1 {
		t.Errorf("pause count %d, want 1: it is to be looked at", d.Pauses())
	}
	if err := target.ReadRegisters(thread(1), rsp.NewRegisters(target.Description())); err != nil {
		t.Errorf("registers of a crashed guest: %v", err)
	}
}

// A question about the domain that fails once is asked again.
func TestWaitOutlivesAFailedPoll(t *testing.T) {
	target, d, x := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	x.Fail(xentest.OpGetDomainInfo, 1, unix.EAGAIN)
	d.Crash()
	if stop := wait(t, target); stop.Signal != 6 {
		t.Errorf("stop %+v, want signal 6", stop)
	}
}

func TestWaitCannotPause(t *testing.T) {
	target, _, x := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	x.Fail(xentest.OpPauseDomain, 1, unix.EOVERFLOW)
	if err := target.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if stop, err := target.Wait(t.Context()); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("got %+v, %v, want EOVERFLOW", stop, err)
	}
}

func TestDetachGivesBack(t *testing.T) {
	target, d, x := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	if _, err := target.ReadMemory(thread(1), text, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if err := target.Detach(); err != nil {
		t.Fatal(err)
	}
	if d.Pauses() != 0 || x.Mapped() != 0 {
		t.Errorf("pause count %d, %d mappings", d.Pauses(), x.Mapped())
	}
}

func TestMonitor(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	run := func(line string) (string, error) {
		var b strings.Builder
		err := target.Monitor(t.Context(), line, func(s string) { b.WriteString(s) })
		return b.String(), err
	}
	for _, line := range []string{"help", "", "  "} {
		out, err := run(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		for _, c := range monitorCommands {
			if !strings.Contains(out, c.name) || !strings.Contains(out, c.doc) {
				t.Errorf("%q does not list %s", line, c.name)
			}
		}
	}
	if out, err := run("stats"); err != nil || !strings.Contains(out, "hypercalls ") || !strings.Contains(out, "mappings   0\n") {
		t.Errorf("stats: %q, %v", out, err)
	}
	if out, err := run("nonsense"); err == nil || out != "" || err.Error() != "no monitor command \"nonsense\": `monitor help` lists them" {
		t.Errorf("nonsense: %q, %v", out, err)
	}
}

// What needs a Linux says that there is none; registers are there all the same.
func TestMonitorNotLinux(t *testing.T) {
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, 2, func(d *xentest.Domain) {
		d.VCPU(1).Context.RBX = 0x4321
	})
	var b strings.Builder
	for _, line := range []string{"bt", "dmesg", "ps", "lsmod"} {
		if err := target.Monitor(t.Context(), line, func(s string) { b.WriteString(s) }); !errors.Is(err, linux.ErrNotLinux) || b.Len() > 0 {
			t.Errorf("%s: %q, %v", line, &b, err)
		}
	}
	if err := target.Monitor(t.Context(), "regs", func(s string) { b.WriteString(s) }); err != nil {
		t.Error(err)
	}
	if !strings.Contains(b.String(), "vCPU 1, kernel mode:\n") || !strings.Contains(b.String(), " rbx       0000000000004321 ") {
		t.Errorf("got\n%s", &b)
	}
	if d.Pauses() != 1 {
		t.Errorf("it is paused %d times", d.Pauses())
	}
}

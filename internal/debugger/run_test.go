package debugger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/agent"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// scriptedLeg is what a scripted engine is asked to do, and what comes of it.
type scriptedLeg struct {
	motions []engine.Motion
	stops   []engine.Stop
	rip     map[int]uint64 // of vCPUs after it
	silent  bool           // Wait does not return by itself
	late    bool           // Wait returns nil, but only when it is interrupted
	during  func()         // what happens meanwhile, if not nil
	fails   error          // of Wait
}

// scripted is an engine that does what it is told, and nothing else.
type scripted struct {
	t    *testing.T
	g    *guest.Guest
	legs []scriptedLeg
	now  *scriptedLeg
}

func (e *scripted) Name() string { return "scripted" }

func (e *scripted) Resume(motions []engine.Motion) error {
	if len(e.legs) == 0 {
		e.t.Fatalf("there is no leg for %v", motions)
	}
	e.now, e.legs = &e.legs[0], e.legs[1:]
	if diff := cmp.Diff(e.now.motions, motions); diff != "" {
		e.t.Errorf("motions (-want +got):\n%s", diff)
	}
	return e.g.Resume()
}

func (e *scripted) Wait(ctx context.Context) error {
	if e.now.silent || e.now.late {
		<-ctx.Done()
	}
	if e.now.silent {
		return ctx.Err()
	}
	return e.now.fails
}

func (e *scripted) Pause() ([]engine.Stop, error) {
	if e.now.during != nil {
		e.now.during()
	}
	if err := e.g.Pause(); err != nil {
		return nil, err
	}
	for n, rip := range e.now.rip {
		if err := e.g.Alter(n, func(ctx *xen.VCPUContext) { ctx.RIP = rip }); err != nil {
			return nil, err
		}
	}
	stops := e.now.stops
	e.now = &scriptedLeg{}
	return stops, nil
}

func (e *scripted) Close() error { return e.g.Pause() }

const (
	run  = engine.Run
	step = engine.Step
	stay = engine.Stay

	finish = engine.Finish
	spot   = text + 5
)

var (
	hit0     = engine.Stop{VCPU: 0, Trap: engine.Breakpoint}
	hit1     = engine.Stop{VCPU: 1, Trap: engine.Breakpoint}
	stepped0 = engine.Stop{VCPU: 0, Trap: engine.Debug, DR6: engine.DR6BS}
	stepped1 = engine.Stop{VCPU: 1, Trap: engine.Debug, DR6: engine.DR6BS}
)

// newScripted makes a target of two vCPUs with a scripted engine.
func newScripted(t *testing.T, set func(d *xentest.Domain), legs ...scriptedLeg) (*Target, *xentest.Domain) {
	t.Helper()
	return scriptedOf(t, 2, set, legs...)
}

// scriptedOf is newScripted of as many vCPUs.
func scriptedOf(t *testing.T, vcpus int, set func(d *xentest.Domain), legs ...scriptedLeg) (*Target, *xentest.Domain) {
	t.Helper()
	target, d, _ := newTarget(t, xentest.Config{}, xen.PV, vcpus, set)
	e := &scripted{t: t, g: target.guest, legs: legs}
	target.engine, target.noEngine = e, nil
	t.Cleanup(func() {
		if len(e.legs) > 0 {
			t.Errorf("%d legs were not needed", len(e.legs))
		}
	})
	return target, d
}

func insert(t *testing.T, target *Target, b rsp.Breakpoint) {
	t.Helper()
	b.Thread = thread(1)
	if err := target.InsertBreakpoint(b); err != nil {
		t.Fatal(err)
	}
}

// stopAfter resumes and gives the stop.
func stopAfter(t *testing.T, target *Target, actions []rsp.Action) rsp.StopReply {
	t.Helper()
	if err := target.Resume(actions); err != nil {
		t.Fatal(err)
	}
	return wait(t, target)
}

func wantStop(t *testing.T, got rsp.StopReply, n int, cause rsp.BreakpointKind) {
	t.Helper()
	if got.Signal != signalTRAP || got.Thread != thread(n) || got.Cause != cause {
		t.Fatalf("got stop %+v, want thread %d, cause %v", got, n, cause)
	}
}

var (
	breakpointAtSpot = rsp.Breakpoint{Kind: rsp.SoftwareBreakpoint, Addr: spot, Size: 1}
	stepThread1      = []rsp.Action{{Kind: rsp.Step, Thread: thread(1)}, all[0]}
)

// vCPUs that hit at once are told one after the other, without running in between,
// and each gets off the breakpoint by a step of its own before all run again.
func TestHitsAtOnce(t *testing.T) {
	target, d := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0, hit1}, rip: map[int]uint64{0: spot, 1: spot}},
		scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
		scriptedLeg{motions: []engine.Motion{stay, step}, stops: []engine.Stop{stepped1}, rip: map[int]uint64{1: spot + 1}},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: spot}},
	)
	insert(t, target, breakpointAtSpot)
	if d.Pauses() != 1 {
		t.Fatalf("pause count %d", d.Pauses())
	}
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)
}

// A hit that was not told yet is none any more when its breakpoint is gone.
func TestHitOfRemovedBreakpoint(t *testing.T) {
	target, _ := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0, hit1}, rip: map[int]uint64{0: spot, 1: spot}},
		scriptedLeg{motions: []engine.Motion{run, run}, silent: true},
	)
	insert(t, target, breakpointAtSpot)
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
	if err := target.RemoveBreakpoint(breakpointAtSpot); err != nil {
		t.Fatal(err)
	}
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	if err := target.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if stop := wait(t, target); stop.Signal != signalINT {
		t.Errorf("got stop %+v", stop)
	}
}

// conditional is a breakpoint with a condition.
func conditional(t *testing.T, code ...byte) rsp.Breakpoint {
	t.Helper()
	expr, err := agent.Parse(code)
	if err != nil {
		t.Fatal(err)
	}
	b := breakpointAtSpot
	b.Conditions = []agent.Expr{expr}
	return b
}

// ifRAXIsOne is a breakpoint with that condition.
func ifRAXIsOne(t *testing.T) rsp.Breakpoint {
	t.Helper()
	return conditional(t, 0x26, 0, 0, 0x22, 1, 0x13, 0x27) // reg 0; const8 1; equal; end
}

// A false condition begins the next leg, and is told to nobody. Commands print.
func TestConditions(t *testing.T) {
	target, _ := newScripted(t,
		func(d *xentest.Domain) { d.VCPU(0).Context.RAX, d.VCPU(1).Context.RAX = 0, 1 },
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}},
		scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: spot}},
	)
	insert(t, target, ifRAXIsOne(t))
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)
}

// A vCPU that comes up while the guest runs is not held at the next leg: the kernel that
// brings it up waits for it.
func TestVCPUComesUp(t *testing.T) {
	stepThread2 := []rsp.Action{{Kind: rsp.Step, Thread: thread(2)}, all[0]}
	for _, actions := range [][]rsp.Action{all, stepThread2} {
		var d *xentest.Domain
		target, d := newScripted(t,
			func(d *xentest.Domain) { d.VCPU(1).Online, d.VCPU(1).Context.RAX = false, 1 },
			scriptedLeg{motions: []engine.Motion{run, stay}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot},
				during: func() { d.VCPU(1).Online = true }},
			scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
			scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: spot}},
		)
		insert(t, target, ifRAXIsOne(t))
		wantStop(t, stopAfter(t, target, actions), 2, rsp.SoftwareBreakpoint)
	}
}

// Beside a vCPU whose step takes it down, none is held: the hypervisor would take that
// for the last one, and power the domain off.
func TestStepTakesDown(t *testing.T) {
	const next = spot + 4
	downs := func(d *xentest.Domain) {
		c := &d.VCPU(0).Context
		c.RIP, c.RAX, c.RDI = spot, 24, 2 // VCPUOP_down
	}
	syscall := func(target *Target) {
		t.Helper()
		if err := target.guest.Write(0, spot, []byte{0x0f, 0x05}); err != nil {
			t.Fatal(err)
		}
	}
	var d *xentest.Domain
	down := scriptedLeg{motions: []engine.Motion{step, run}, silent: true, during: func() { d.VCPU(0).Online = false }}
	target, d := newScripted(t, downs, down,
		scriptedLeg{motions: []engine.Motion{stay, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: next}},
	)
	syscall(target)
	insert(t, target, breakpointAtSpot)
	insert(t, target, rsp.Breakpoint{Kind: rsp.SoftwareBreakpoint, Addr: next, Size: 1})
	target.past[0] = place{rip: spot}
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)

	// A step for the client that has done so will not end, and the client is told.
	for _, actions := range [][]rsp.Action{stepThread1, stepThread1[:1]} {
		target, d = newScripted(t, downs, down)
		syscall(target)
		var said strings.Builder
		target.SetConsole(func(text string) { said.WriteString(text) })
		if stop := stopAfter(t, target, actions); stop.Signal != 0 || stop.Thread != thread(2) {
			t.Errorf("got stop %+v, want none of a signal, in thread 2", stop)
		}
		if want := "vCPU 0 has gone down in its step.\n"; !strings.HasSuffix(said.String(), want) {
			t.Errorf("said %q, want %q", said.String(), want)
		}
	}

	// One that stands on a breakpoint too gets off it before.
	target, _ = newScripted(t, downs,
		scriptedLeg{motions: []engine.Motion{stay, step}, stops: []engine.Stop{stepped1}, rip: map[int]uint64{1: next + 1}},
		scriptedLeg{motions: []engine.Motion{step, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: next}},
	)
	for addr, code := range map[uint64][]byte{spot: {0x0f, 0x05}, next: {0xfb}} { // and STI
		if err := target.guest.Write(0, addr, code); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.guest.Alter(1, func(ctx *xen.VCPUContext) { ctx.RIP = next }); err != nil {
		t.Fatal(err)
	}
	insert(t, target, breakpointAtSpot)
	insert(t, target, rsp.Breakpoint{Kind: rsp.SoftwareBreakpoint, Addr: next, Size: 1})
	target.past[0], target.past[1] = place{rip: spot}, place{rip: next}
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)

	// Others that the client has standing still run too, and it is told.
	target, _ = newScripted(t, downs,
		scriptedLeg{motions: []engine.Motion{step, run}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 2}})
	syscall(target)
	var said strings.Builder
	target.SetConsole(func(text string) { said.WriteString(text) })
	wantStop(t, stopAfter(t, target, stepThread1[:1]), 1, rsp.NoBreakpoint)
	if want := "vCPU 0 stepped over what minds whether others are online, so that they ran too.\n"; said.String() != want {
		t.Errorf("said %q", said.String())
	}
}

// A vCPU that a breakpoint's instruction takes down hits it again when it comes there
// again, be it by the same way.
func TestBreakpointTakesDown(t *testing.T) {
	var d *xentest.Domain
	up := func(on bool) func() { return func() { d.VCPU(0).Online = on } }
	target, d := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}},
		scriptedLeg{motions: []engine.Motion{step, stay}, silent: true, during: up(false)},
		scriptedLeg{motions: []engine.Motion{stay, run}, during: up(true), rip: map[int]uint64{0: spot + 2}},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}},
	)
	insert(t, target, breakpointAtSpot)
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
}

// When waiting fails, the client takes the guest for stopped. So it is, what has stopped
// is told next, and breakpoints are where they were.
func TestWaitFails(t *testing.T) {
	failure := errors.New("failure")
	target, d := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{step, stay}, fails: failure, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: spot}},
	)
	insert(t, target, breakpointAtSpot)
	if err := target.guest.Alter(0, func(ctx *xen.VCPUContext) { ctx.RIP = spot }); err != nil {
		t.Fatal(err)
	}
	target.past[0] = place{rip: spot}
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	if _, err := target.Wait(t.Context()); !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	if d.Pauses() != 1 || target.guest.PlantedAt(0, spot) == nil {
		t.Errorf("%d pauses, breakpoint planted: %v", d.Pauses(), target.guest.PlantedAt(0, spot) != nil)
	}
	wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)
}

// A condition that cannot be evaluated stops the guest, and the client reads why.
func TestConditionFails(t *testing.T) {
	target, _ := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}})
	var said strings.Builder
	target.SetConsole(func(text string) { said.WriteString(text) })
	insert(t, target, conditional(t, 0x22, 0, 0x17, 0x27)) // const8 0; ref8; end
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
	want := fmt.Sprintf("The condition of the software breakpoint at %#x: ", uint64(spot))
	if !strings.HasPrefix(said.String(), want) || !strings.HasSuffix(said.String(), ".\n") {
		t.Errorf("said %q", said.String())
	}
}

// Under a step, others are held whatever the client says of them. One that lands
// on a breakpoint is a step.
func TestStepOntoBreakpoint(t *testing.T) {
	target, _ := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot}},
	)
	insert(t, target, breakpointAtSpot)
	wantStop(t, stopAfter(t, target, stepThread1), 1, rsp.NoBreakpoint)
}

// A range is stepped through without a word.
func TestRangeStep(t *testing.T) {
	leg := func(rip uint64) scriptedLeg {
		return scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: rip}}
	}
	target, _ := newScripted(t, nil, leg(text+1), leg(text+3), leg(text+9))
	stop := stopAfter(t, target, []rsp.Action{{Kind: rsp.StepRange, Thread: thread(1), Start: text, End: text + 9}})
	wantStop(t, stop, 1, rsp.NoBreakpoint)
}

// A step that does not get done alone lets others run, and says so if the client
// had not asked for it. One that is offline changes nothing of that.
func TestStepNeedsOthers(t *testing.T) {
	target, _ := scriptedOf(t, 3, func(d *xentest.Domain) { d.VCPU(2).Online = false },
		scriptedLeg{motions: []engine.Motion{step, stay, stay}, silent: true},
		scriptedLeg{motions: []engine.Motion{finish, run, run}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: text + 1}},
	)
	var said strings.Builder
	target.SetConsole(func(text string) { said.WriteString(text) })
	if err := target.guest.Hold(1); err != nil {
		t.Fatal(err)
	}
	wantStop(t, stopAfter(t, target, []rsp.Action{{Kind: rsp.Step, Thread: thread(1)}}), 1, rsp.NoBreakpoint)
	if !strings.Contains(said.String(), "vCPU 0 could not finish its step alone") {
		t.Errorf("said %q", said.String())
	}
}

// A step that was done as another vCPU hit is not told when its vCPU is to run on.
func TestStepDoneAmongHits(t *testing.T) {
	target, _ := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{stay, step}, silent: true},
		scriptedLeg{motions: []engine.Motion{run, finish}, stops: []engine.Stop{hit0, stepped1}, rip: map[int]uint64{0: spot, 1: text + 1}},
		scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}},
	)
	insert(t, target, breakpointAtSpot)
	actions := []rsp.Action{{Kind: rsp.Step, Thread: thread(2)}, {Kind: rsp.Continue, Thread: rsp.ThreadID{PID: -1, TID: -1}}}
	wantStop(t, stopAfter(t, target, actions), 1, rsp.SoftwareBreakpoint)
	wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
}

// A step that an interrupt cuts short goes on when its handler is done, also where
// the handler has a breakpoint with a false condition. What was interrupted may
// move to another vCPU.
func TestStepCutShort(t *testing.T) {
	handler := scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}}
	off := scriptedLeg{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}}
	last := scriptedLeg{motions: []engine.Motion{finish, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: text + 1}}
	target, _ := newScripted(t, nil, handler, off, last)
	insert(t, target, never(t))
	wantStop(t, stopAfter(t, target, stepThread1), 1, rsp.NoBreakpoint)
	if r, err := target.guest.Registers(0); err != nil || r.RIP != text+1 {
		t.Errorf("the step ends at %#x, %v", r.RIP, err)
	}

	for _, tt := range []struct {
		actions []rsp.Action
		told    int
	}{
		{stepThread1, 2},
		{[]rsp.Action{{Kind: rsp.Step, Thread: thread(1)}}, 1},
	} {
		target, _ := newScripted(t, nil,
			scriptedLeg{motions: []engine.Motion{step, stay}, silent: true},
			scriptedLeg{motions: []engine.Motion{finish, run}, stops: []engine.Stop{stepped1}},
		)
		wantStop(t, stopAfter(t, target, tt.actions), tt.told, rsp.NoBreakpoint)
	}
}

// never is a breakpoint whose condition is false.
func never(t *testing.T) rsp.Breakpoint {
	t.Helper()
	return conditional(t, 0x22, 0, 0x27) // const8 0; end
}

// An interrupt that comes with a hit that is for nobody is not lost.
func TestInterruptAmongHits(t *testing.T) {
	target, _ := newScripted(t, nil,
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}, late: true})
	insert(t, target, never(t))
	if err := target.Resume(all); err != nil {
		t.Fatal(err)
	}
	if err := target.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if stop := wait(t, target); stop.Signal != signalINT {
		t.Errorf("got stop %+v", stop)
	}
}

// impatient is an engine that never waits.
type impatient struct{ scripted }

func (e *impatient) Resume([]engine.Motion) error  { return e.g.Resume() }
func (e *impatient) Wait(context.Context) error    { return context.DeadlineExceeded }
func (e *impatient) Pause() ([]engine.Stop, error) { return nil, e.g.Pause() }

// An interrupt stops the guest whatever its wait is at.
func TestInterruptAnyTime(t *testing.T) {
	target, _ := newScripted(t, nil)
	target.engine = &impatient{scripted{t: t, g: target.guest}}
	for range 1000 {
		if err := target.Resume(all); err != nil {
			t.Fatal(err)
		}
		go target.Interrupt()
		if stop := wait(t, target); stop.Signal != signalINT {
			t.Fatalf("got stop %+v, want an interrupt", stop)
		}
	}
}

// Watchpoints take the debug registers that the guest leaves free, in aligned
// pieces.
func TestDebugRegisters(t *testing.T) {
	target, d := newScripted(t,
		func(d *xentest.Domain) { // has a breakpoint of its own
			d.VCPU(0).Context.DebugRegs[1], d.VCPU(0).Context.DebugRegs[7] = text, 1<<2
		},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{{VCPU: 1, Trap: engine.Debug, DR6: 1 << 2}}},
	)
	insert(t, target, rsp.Breakpoint{Kind: rsp.Watch, Addr: 0x1004, Size: 12})
	c := &d.VCPU(1).Context
	if c.DebugRegs[3] != 0x1004 || c.DebugRegs[2] != 0x1008 || c.DebugRegs[7]&0xff != 1<<6|1<<4 {
		t.Errorf("debug registers %#x", c.DebugRegs)
	}
	err := target.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.HardwareBreakpoint, Thread: thread(1), Addr: text, Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	err = target.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.HardwareBreakpoint, Thread: thread(1), Addr: text + 1, Size: 1})
	if !errors.Is(err, rsp.ErrNotSupported) || !strings.Contains(err.Error(), "4 of the 4 debug registers are in use, and this needs 1: delete") {
		t.Errorf("a fifth: %v", err)
	}
	stop := stopAfter(t, target, all)
	wantStop(t, stop, 2, rsp.Watch)
	if stop.WatchAddr != 0x1008 {
		t.Errorf("watch address %#x", stop.WatchAddr)
	}
	if err := target.Detach(); err != nil {
		t.Fatal(err)
	}
	if d.VCPU(0).Context.DebugRegs[7] != 1<<2 || d.VCPU(1).Context.DebugRegs[7] != 0 {
		t.Errorf("after detach dr7 is %#x and %#x", d.VCPU(0).Context.DebugRegs[7], d.VCPU(1).Context.DebugRegs[7])
	}
}

// A vCPU that comes up while the guest runs is watched soon, whatever happens elsewhere.
func TestWatchVCPUThatComesUp(t *testing.T) {
	var d *xentest.Domain
	comesUp := func() { d.VCPU(1).Online = true }
	fired := scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{{VCPU: 1, Trap: engine.Debug, DR6: 1 << 3}}}
	for name, legs := range map[string][]scriptedLeg{
		"in a leg": {{motions: []engine.Motion{run, stay}, silent: true}, fired},
		// It is given debug registers before its kernel clears them.
		"as a leg ends": {
			{motions: []engine.Motion{run, stay}, during: comesUp},
			{motions: []engine.Motion{run, run}, silent: true, during: func() { d.VCPU(1).Context.DebugRegs = [8]uint64{} }},
			fired},
	} {
		t.Run(name, func(t *testing.T) {
			var target *Target
			target, d = newScripted(t, func(d *xentest.Domain) { d.VCPU(1).Online = false }, legs...)
			insert(t, target, rsp.Breakpoint{Kind: rsp.Watch, Addr: 0x1008, Size: 8})
			if err := target.Resume(all); err != nil {
				t.Fatal(err)
			}
			if legs[0].silent {
				comesUp()
			}
			wantStop(t, wait(t, target), 2, rsp.Watch)
			if c := &d.VCPU(1).Context; c.DebugRegs[3] != 0x1008 || c.DebugRegs[7]&0xff != 1<<6 {
				t.Errorf("debug registers %#x", c.DebugRegs)
			}
		})
	}
}

// What the guest does with debug registers while it runs is its own: it stays, what
// is in its way moves where it can, and the guest has all of its own in the end.
func TestGuestSetsDebugRegisters(t *testing.T) {
	const (
		ours  = 0x1008
		guest = 0x2000
	)
	type registers = [8]uint64
	tests := []struct {
		name    string
		before  registers
		guest   registers // as it makes them of a vCPU
		ours    int       // where our watchpoint is then
		running registers // of that vCPU, when it runs again
		after   registers // given back
	}{
		{
			name:    "one for itself",
			guest:   registers{1: guest, 3: ours, 7: 2<<2 | 1<<20},
			ours:    3,
			running: registers{1: guest, 3: ours, 7: 2<<2 | 1<<20 | 1<<6 | 9<<28},
			after:   registers{1: guest, 7: 2<<2 | 1<<20},
		},
		{
			name:    "the task with one is switched out",
			before:  registers{1: guest, 7: 2<<2 | 1<<20},
			guest:   registers{1: guest, 3: ours},
			ours:    3,
			running: registers{1: guest, 3: ours, 7: 1<<6 | 9<<28},
			after:   registers{1: guest},
		},
		{
			name:    "the one that we use",
			guest:   registers{3: guest, 7: 2<<6 | 3<<28},
			ours:    2,
			running: registers{2: ours, 3: guest, 7: 2<<6 | 3<<28 | 1<<4 | 9<<24},
			after:   registers{3: guest, 7: 2<<6 | 3<<28},
		},
		{
			name:    "all",
			guest:   registers{guest, guest, guest, guest, 7: 0xaa},
			ours:    3,
			running: registers{guest, guest, guest, ours, 7: 0x2a | 1<<6 | 9<<28},
			after:   registers{guest, guest, guest, guest, 7: 0xaa},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target, d := newScripted(t,
				func(d *xentest.Domain) { d.VCPU(1).Context.DebugRegs = tt.before },
				scriptedLeg{motions: []engine.Motion{run, run}, silent: true},
				scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{{VCPU: 0, Trap: engine.Debug, DR6: 1 << tt.ours}}},
			)
			insert(t, target, rsp.Breakpoint{Kind: rsp.Watch, Addr: ours, Size: 8})
			if err := target.Resume(all); err != nil {
				t.Fatal(err)
			}
			c := &d.VCPU(1).Context
			c.DebugRegs = tt.guest
			if err := target.Interrupt(); err != nil {
				t.Fatal(err)
			}
			if stop := wait(t, target); stop.Signal != signalINT {
				t.Fatalf("got stop %+v", stop)
			}
			if err := target.Resume(all); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.running, c.DebugRegs); diff != "" {
				t.Errorf("running (-want +got):\n%s", diff)
			}
			other := registers{7: 1<<(2*tt.ours) | 9<<(16+4*tt.ours)}
			other[tt.ours] = ours
			if diff := cmp.Diff(other, d.VCPU(0).Context.DebugRegs); diff != "" {
				t.Errorf("the other vCPU (-want +got):\n%s", diff)
			}
			stop := wait(t, target)
			wantStop(t, stop, 1, rsp.Watch)
			if stop.WatchAddr != ours {
				t.Errorf("watch address %#x", stop.WatchAddr)
			}
			if err := target.Detach(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.after, c.DebugRegs); diff != "" {
				t.Errorf("given back (-want +got):\n%s", diff)
			}
		})
	}
}

// A planted byte that the guest overwrites is the guest's, and that is said.
func TestRewrittenBreakpoint(t *testing.T) {
	var frame uint64
	target, d := newScripted(t, func(d *xentest.Domain) {
		pt := d.NewPageTables(x86.FourLevel)
		frame = pt.MapPage(text, []byte("kernel text"))
		d.UsePageTables(pt)
	})
	insert(t, target, breakpointAtSpot)
	var said strings.Builder
	target.SetConsole(func(text string) { said.WriteString(text) })
	page := d.Frame(frame)
	if page[5] != guest.Int3 {
		t.Fatalf("there is no int3, but % x", page[:8])
	}
	page[5] = 0x42
	if err := target.RemoveBreakpoint(breakpointAtSpot); err != nil {
		t.Fatal(err)
	}
	if page[5] != 0x42 || !strings.Contains(said.String(), "overwritten by the guest itself") {
		t.Errorf("the guest has %#x, said %q", page[5], said.String())
	}
}

// What a read watchpoint compares with is seen in the address space of its thread, so that
// the first read is told.
func TestReadWatchInAddressSpace(t *testing.T) {
	const data = 0x5000
	target, _ := newScripted(t,
		func(d *xentest.Domain) {
			for n, contents := range []string{"one", "another"} {
				pt := d.NewPageTables(x86.FourLevel)
				pt.MapPage(text, []byte("kernel text"))
				pt.MapPage(data, []byte(contents))
				d.VCPU(n).Context.ControlRegs[3] = pt.CR3()
			}
		},
		scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{{VCPU: 1, Trap: engine.Debug, DR6: 1 << 3}}},
	)
	err := target.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.ReadWatch, Thread: thread(2), Addr: data, Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	wantStop(t, stopAfter(t, target, all), 2, rsp.ReadWatch)
}

// The work of an instruction that functions begin with is done in the vCPU's stead, so that
// it need not step off a breakpoint; but not a write to memory that debug registers may
// watch, the client's or the guest's own.
func TestSkip(t *testing.T) {
	const stack = text + 0x10000
	for name, tt := range map[string]struct {
		client, own bool // which watch
		legs        []scriptedLeg
	}{
		"nothing is watched": {},
		"the client watches": {client: true, legs: []scriptedLeg{
			{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
		}},
		"the guest watches": {own: true, legs: []scriptedLeg{
			{motions: []engine.Motion{step, stay}, stops: []engine.Stop{stepped0}, rip: map[int]uint64{0: spot + 1}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			hit := scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit0}, rip: map[int]uint64{0: spot}}
			last := scriptedLeg{motions: []engine.Motion{run, run}, stops: []engine.Stop{hit1}, rip: map[int]uint64{1: spot}}
			target, d := newScripted(t, func(d *xentest.Domain) {
				pt := d.NewPageTables(x86.FourLevel)
				pt.MapPage(text, []byte(".....\x55")) // at spot: PUSH RBP
				pt.MapPage(stack, nil)
				d.UsePageTables(pt)
				c := &d.VCPU(0).Context
				c.RSP, c.RBP = stack+0x100, 0x1234
				if tt.own {
					c.DebugRegs[7] = 1 << 2
				}
			}, append(append([]scriptedLeg{hit}, tt.legs...), last)...)
			insert(t, target, breakpointAtSpot)
			if tt.client {
				insert(t, target, rsp.Breakpoint{Kind: rsp.Watch, Addr: stack + 0xf8, Size: 8})
			}
			wantStop(t, stopAfter(t, target, all), 1, rsp.SoftwareBreakpoint)
			wantStop(t, stopAfter(t, target, all), 2, rsp.SoftwareBreakpoint)
			var pushed [2]byte
			if _, err := target.ReadMemory(thread(1), stack+0xf8, pushed[:]); err != nil {
				t.Fatal(err)
			}
			sp, skipped := d.VCPU(0).Context.RSP, tt.legs == nil
			if (pushed == [2]byte{0x34, 0x12}) != skipped || (sp == stack+0xf8) != skipped {
				t.Errorf("pushed % x, RSP is %#x", pushed, sp)
			}
		})
	}
}

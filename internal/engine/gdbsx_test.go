// This file tests the engine gdbsx on a fake hypervisor.

package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Where the guest of these tests has what.
const (
	gdbsxText  = uint64(0xffffffff81000000)
	handlerDB  = gdbsxText + 0x100
	handlerBP  = gdbsxText + 0x200
	handler9   = gdbsxText + 0x300
	syscallAt  = gdbsxText + 0x400
	intAt      = gdbsxText + 0x500
	codeAt     = gdbsxText + 0x600
	ownInt3At  = gdbsxText + 0x700
	stackTop   = uint64(0xffff888000010000)
	fakeVector = 0x30
)

// fakePV is a PV guest with two vCPUs on a fake hypervisor with gdbsx, whose
// processor and trap handling are the test's.
type fakePV struct {
	t      *testing.T
	x      *xentest.Hypervisor
	d      *xentest.Domain
	text   []byte
	stack  []byte
	ledger []byte
	host   *xen.Host
	g      *guest.Guest
	e      Engine
}

func newFakePV(t *testing.T, pauses int) *fakePV {
	t.Helper()
	f := &fakePV{t: t, x: xentest.New(t, xentest.Config{GDBSX: true}), ledger: make([]byte, guest.LedgerSize)}
	f.d = f.x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2, Pauses: pauses})
	pt := f.d.NewPageTables(x86.FourLevel)
	f.text = f.d.Frame(pt.MapPage(gdbsxText, slices.Repeat([]byte{0x90}, xen.PageSize)))
	copy(f.text[syscallAt-gdbsxText:], "\x0f\x05")
	copy(f.text[intAt-gdbsxText:], []byte{0xcd, fakeVector})
	f.text[ownInt3At-gdbsxText] = guest.Int3
	f.stack = f.d.Frame(pt.MapPage(stackTop-xen.PageSize, nil))
	f.d.UsePageTables(pt)
	for n := range 2 {
		c := &f.d.VCPU(n).Context
		for vector, handler := range map[int]uint64{1: handlerDB, 3: handlerBP, 9: handler9} {
			c.Traps[vector] = xen.TrapInfo{Vector: uint8(vector), Flags: 4, CS: 0xe033, Address: handler}
		}
		c.RIP, c.RSP, c.RFLAGS = codeAt+uint64(n), stackTop-uint64(n+1)*0x400, 0x202
	}
	f.host = f.x.Host()
	return f
}

// attachOnly takes the guest.
func (f *fakePV) attachOnly() {
	f.t.Helper()
	l, err := guest.NewLedger(f.ledger)
	if err != nil {
		f.t.Fatal(err)
	}
	if f.g, err = guest.Attach(f.host, 3, l); err != nil {
		f.t.Fatal(err)
	}
	if f.e, err = Choose(f.g, "gdbsx", slog.New(slog.DiscardHandler)); err != nil {
		f.g.Detach()
		f.t.Fatal(err)
	}
}

// attach takes the guest, and gives it back at the end of the test.
func (f *fakePV) attach() {
	f.t.Helper()
	f.attachOnly()
	text, traps := string(f.text), f.d.VCPU(0).Context.Traps
	f.t.Cleanup(func() {
		if f.g != nil {
			f.release()
		}
		if string(f.text) != text {
			f.t.Error("the guest's text is not as before")
		}
		if f.d.VCPU(0).Context.Traps != traps || f.d.VCPU(1).Context.Traps != traps {
			f.t.Error("the guest's trap tables are not as before")
		}
	})
}

func (f *fakePV) release() {
	f.t.Helper()
	if err := errors.Join(f.e.Close(), f.g.Detach()); err != nil {
		f.t.Error(err)
	}
	f.g = nil
}

// recover ends the process by a kill, and has another undo what that left.
func (f *fakePV) recover() {
	f.t.Helper()
	if err := f.g.ReleaseFrames(); err != nil { // the kernel does
		f.t.Fatal(err)
	}
	f.g = nil
	l, err := guest.OpenLedger(f.ledger)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := Recover(f.host, l, slog.New(slog.DiscardHandler)); err != nil {
		f.t.Error(err)
	}
}

func (f *fakePV) resume(motions ...Motion) {
	f.t.Helper()
	if err := f.e.Resume(motions); err != nil {
		f.t.Fatal(err)
	}
}

// wait waits for a stop, which there must be or not.
func (f *fakePV) wait(want bool) {
	f.t.Helper()
	patience := 20 * time.Millisecond
	if want {
		patience = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	if err := f.e.Wait(ctx); (err == nil) != want {
		f.t.Fatalf("Wait gives %v, want a stop: %v", err, want)
	}
}

func (f *fakePV) pause(want ...Stop) {
	f.t.Helper()
	got, err := f.e.Pause()
	if err != nil || !slices.Equal(got, want) {
		f.t.Fatalf("Pause gives %+v, %v, want %+v", got, err, want)
	}
}

// int3 is a vCPU that executes int3 in the kernel.
func (f *fakePV) int3(n int, addr uint64) {
	f.t.Helper()
	f.d.VCPU(n).Context.RIP = addr + 1
	if !f.d.Int3(n) {
		f.t.Fatal("int3 does not stop the guest")
	}
}

// debug is a vCPU that takes a #DB in the kernel.
func (f *fakePV) debug(n int, rip, dr6 uint64) {
	f.t.Helper()
	c := &f.d.VCPU(n).Context
	c.RIP, c.DebugRegs[6] = rip, c.DebugRegs[6]|dr6
	if !f.d.DebugTrap(n) {
		f.t.Fatal("#DB does not stop the guest")
	}
}

// bounce is what the hypervisor does with a trap that is the guest's (Xen,
// create_bounce_frame).
func (f *fakePV) bounce(n int, vector uint8, rip uint64) {
	c := &f.d.VCPU(n).Context
	frame := c.RSP&^15 - 7*8
	for i, w := range []uint64{c.RCX, c.R11, rip, 0xe030, c.RFLAGS, c.RSP, uint64(c.SS)} {
		binary.LittleEndian.PutUint64(f.stack[frame-(stackTop-xen.PageSize)+uint64(8*i):], w)
	}
	c.RSP, c.RIP = frame, c.Traps[vector].Address
	c.RFLAGS &^= x86.RFLAGSTF
}

// frame gives a word of what bounce has put on a vCPU's stack.
func (f *fakePV) frame(n, word int) uint64 {
	return binary.LittleEndian.Uint64(f.stack[f.d.VCPU(n).Context.RSP-(stackTop-xen.PageSize)+uint64(8*word):])
}

func (f *fakePV) plant(addr uint64) *guest.Plant {
	f.t.Helper()
	p, err := f.g.Plant(0, addr, []byte{guest.Int3})
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fakePV) wantRIP(n int, want uint64) {
	f.t.Helper()
	if r, err := f.g.Registers(n); err != nil || r.RIP != want {
		f.t.Errorf("vCPU %d is at %#x, %v, want %#x", n, r.RIP, err, want)
	}
}

func (f *fakePV) wantPauses(want int) {
	f.t.Helper()
	if got := f.d.Pauses(); got != want {
		f.t.Errorf("the domain is paused %d times, want %d", got, want)
	}
}

// Two vCPUs that come to a breakpoint at once are each reported, once, and each
// of their pauses is taken back.
func TestGDBSXBreakpoints(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.plant(codeAt)
	f.resume(Run, Run)
	f.wantPauses(0)
	f.wait(false)
	f.int3(1, codeAt)
	f.int3(0, codeAt)
	f.wait(true)
	f.pause(Stop{VCPU: 0, Trap: Breakpoint}, Stop{VCPU: 1, Trap: Breakpoint})
	f.wantPauses(1)
	f.wantRIP(0, codeAt)
	f.wantRIP(1, codeAt)
	f.pause()
	f.resume(Run, Run)
	f.wantPauses(0)
	f.wait(false)
	f.pause()
}

// A step runs one vCPU, with the other paused by itself, and leaves nothing of it
// in RFLAGS and DR6.
func TestGDBSXStep(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	c := &f.d.VCPU(0).Context
	c.DebugRegs[6] = 0xffff0ff0 | DR6BS // of long ago
	for range 3 {
		f.resume(Step, Stay)
		if c.RFLAGS&x86.RFLAGSTF == 0 || c.DebugRegs[6]&DR6BS != 0 {
			t.Fatalf("rflags %#x, dr6 %#x", c.RFLAGS, c.DebugRegs[6])
		}
		if f.d.OwnPauses(0) != 0 || f.d.OwnPauses(1) != 1 {
			t.Errorf("pauses of vCPUs: %d, %d", f.d.OwnPauses(0), f.d.OwnPauses(1))
		}
		f.debug(0, codeAt+3, DR6BS)
		f.wait(true)
		f.pause(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
		f.wantPauses(1)
		f.wantRIP(0, codeAt+3)
		if c.RFLAGS&x86.RFLAGSTF != 0 {
			t.Errorf("rflags %#x after a step", c.RFLAGS)
		}
	}
	f.resume(Run, Run)
	if f.d.OwnPauses(1) != 0 {
		t.Error("a vCPU that runs is paused")
	}
	f.pause()
}

// The hypervisor gives the guest the #DB of an instruction that it has executed
// itself.
func TestGDBSXStepOverEmulated(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.resume(Step, Stay)
	f.d.VCPU(0).Context.DebugRegs[6] |= DR6BS
	f.bounce(0, 1, codeAt+3)
	f.wait(true)
	f.pause(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
	f.wantPauses(1)
	f.wantRIP(0, codeAt+3)
}

// A debug register of ours that fires is told from a step.
func TestGDBSXDebugRegister(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	for n := range 2 {
		if err := f.g.SetDebugRegs(n, [4]uint64{0, 0xffff888000000000}, 1<<2|1<<20); err != nil {
			t.Fatal(err)
		}
	}
	f.resume(Run, Run)
	f.debug(1, codeAt+9, 1<<1)
	f.wait(true)
	f.pause(Stop{VCPU: 1, Trap: Debug, DR6: 1 << 1})
	f.wantPauses(1)
}

// A domain that somebody else pauses has not stopped, and stays paused.
func TestGDBSXPausedByOthers(t *testing.T) {
	f := newFakePV(t, 2)
	f.attach()
	f.plant(codeAt)
	f.resume(Run, Run)
	f.wantPauses(2)
	f.wait(false)
	f.pause()
	f.wantPauses(3)
	f.release()
	f.wantPauses(2)
	if n := f.d.VIRQs(); n != 0 {
		t.Errorf("%d interrupts", n)
	}
}

// An int3 of the guest's own, and a #DB of its own, come to its handlers, and it
// sees them as without us.
func TestGDBSXGuestsOwnTraps(t *testing.T) {
	for vector, handler := range map[uint8]uint64{1: handlerDB, 3: handlerBP} {
		f := newFakePV(t, 0)
		f.attach()
		f.plant(codeAt)
		if err := f.g.SetDebugRegs(0, [4]uint64{3: codeAt}, 1<<6); err != nil {
			t.Fatal(err)
		}
		f.resume(Run, Run)
		rip := ownInt3At + 1
		if vector == 3 {
			f.int3(0, ownInt3At)
		} else {
			f.d.VCPU(0).Context.DebugRegs[0], f.d.VCPU(0).Context.DebugRegs[7] = rip, 1<<6|1
			f.debug(0, rip, 1)
		}
		f.wait(true)
		f.pause()
		f.wantPauses(1)
		f.wantRIP(0, rip) // as far as anybody can see
		f.resume(Run, Run)
		c := &f.d.VCPU(0).Context
		if c.RIP != intAt {
			t.Fatalf("the guest is at %#x, want an INT at %#x", c.RIP, intAt)
		}
		if entry := c.Traps[fakeVector]; entry.Flags&3 != 3 {
			t.Errorf("the guest may not execute INT: %+v", entry)
		}
		f.bounce(0, fakeVector, intAt+2)
		f.wait(true)
		f.pause()
		f.wantPauses(1)
		f.resume(Run, Run)
		if c.RIP != handler || f.frame(0, 2) != rip || c.Traps[fakeVector] != (xen.TrapInfo{}) {
			t.Errorf("vector %d: at %#x with frame of %#x, want %#x and %#x; entry %+v",
				vector, c.RIP, f.frame(0, 2), handler, rip, c.Traps[fakeVector])
		}
		if vector == 1 && c.DebugRegs[6]&1 == 0 {
			t.Errorf("the guest does not see why: dr6 %#x", c.DebugRegs[6])
		}
		f.pause()
	}
}

// A #DB that the guest has got stays in DR6 until it looks, however often the
// guest is stopped before.
func TestGDBSXLeavesDR6(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.plant(codeAt)
	f.resume(Run, Run)
	c := &f.d.VCPU(0).Context
	c.DebugRegs[6] = 0xffff0ff0 | DR6BS
	f.bounce(0, 1, codeAt+9)
	f.wait(true)
	f.pause()
	for range 3 {
		f.resume(Run, Run)
		if c.RIP != handlerDB || c.DebugRegs[6]&DR6BS == 0 {
			t.Fatalf("the guest is at %#x with dr6 %#x", c.RIP, c.DebugRegs[6])
		}
		f.int3(1, codeAt)
		f.wait(true)
		f.pause(Stop{VCPU: 1, Trap: Breakpoint})
	}
}

// A #DB that does not show, since the guest has left its bit in DR6, is found by
// counting pauses, and so is a pause of somebody else's.
func TestGDBSXHiddenTrap(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.plant(codeAt)
	c := &f.d.VCPU(1).Context
	c.DebugRegs[6] = 0xffff0ff0 | DR6BS
	f.resume(Run, Run)
	f.debug(1, codeAt+9, DR6BS)
	f.wait(true)
	f.pause()
	f.wantPauses(1)
	f.resume(Run, Run)
	if c.RIP != intAt {
		t.Errorf("the guest is at %#x, and does not get its trap", c.RIP)
	}
	f.bounce(1, fakeVector, intAt+2)
	f.wait(true)
	f.pause()
	c.DebugRegs[6] = 0xffff0ff0 // it has looked
	f.resume(Run, Run)
	f.d.Pause()
	f.wait(true)
	f.pause()
	f.wantPauses(2)
	f.resume(Run, Run)
	f.wait(false)
	f.d.Unpause()
	f.wait(false)
	f.pause()
}

// An int3 of the guest's own that is not delivered yet at the end is executed by
// the guest again.
func TestGDBSXCloseWithOwnInt3(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.plant(codeAt)
	f.resume(Run, Run)
	f.int3(0, ownInt3At)
	f.wait(true)
	f.pause()
	f.release()
	if rip := f.d.VCPU(0).Context.RIP; rip != ownInt3At {
		t.Errorf("the guest is at %#x, want %#x", rip, ownInt3At)
	}
}

// Wherever a process is killed, the next one gives the guest back what it had.
func TestGDBSXRecover(t *testing.T) {
	begin := func(f *fakePV) {
		f.attach()
		f.plant(codeAt)
		f.resume(Run, Run)
	}
	for name, state := range map[string]func(f *fakePV){
		"attached": func(f *fakePV) { f.attach() },
		"running":  begin,
		"stopped": func(f *fakePV) {
			begin(f)
			f.int3(0, codeAt)
		},
		"twice stopped": func(f *fakePV) {
			begin(f)
			f.int3(0, codeAt)
			f.int3(1, codeAt)
			f.wait(true)
		},
		"told, not noted": func(f *fakePV) {
			begin(f)
			f.int3(0, codeAt)
			e := f.e.(*gdbsx)
			s := e.scratch()
			s.asking = true
			e.setScratch(s)
			if n, err := f.host.NextDebugEvent(3); n != 0 || err != nil {
				t.Errorf("event of %d, %v", n, err)
			}
		},
		"collected": func(f *fakePV) {
			begin(f)
			f.int3(0, codeAt)
			f.wait(true)
			f.pause(Stop{VCPU: 0, Trap: Breakpoint})
		},
		"stepping": func(f *fakePV) {
			begin(f)
			f.pause()
			f.d.VCPU(0).Context.RIP = codeAt
			f.resume(Step, Stay)
		},
		"stepped": func(f *fakePV) {
			begin(f)
			f.pause()
			f.resume(Step, Stay)
			f.debug(0, codeAt, DR6BS)
		},
		"own int3": func(f *fakePV) {
			begin(f)
			f.d.VCPU(1).Context.RIP = codeAt
			f.int3(0, ownInt3At)
			f.wait(true)
			f.pause()
			f.resume(Run, Stay)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, pauses := range []int{0, 1} {
				f := newFakePV(t, pauses)
				state(f)
				f.recover()
				f.wantPauses(pauses)
				for n := range 2 {
					c := &f.d.VCPU(n).Context
					if want := codeAt + uint64(n); c.RIP != codeAt && c.RIP != want && c.RIP != ownInt3At {
						t.Errorf("vCPU %d is at %#x", n, c.RIP)
					}
					if c.RFLAGS&x86.RFLAGSTF != 0 {
						t.Errorf("vCPU %d is being stepped", n)
					}
				}
			}
		})
	}
}

// Wherever the server is killed, in the middle of what the engine does, what it leaves
// can be undone, and no vCPU that runs meanwhile is set back to where it was before.
func TestGDBSXKilledAnywhere(t *testing.T) {
	for pauses := range 2 {
		calls := 0
		for killedGDBSX(t, pauses, calls) {
			calls += 1 + 10*pauses // many are for counting those pauses
		}
		if calls < 100 {
			t.Errorf("%d pauses of others: all is done after %d calls", pauses, calls)
		}
	}
}

// killedGDBSX kills a server of a domain that others have paused, and tells whether it
// was still at work then.
func killedGDBSX(t *testing.T, pauses, calls int) bool {
	t.Helper()
	f := newFakePV(t, pauses)
	text, traps := string(f.text), f.d.VCPU(0).Context.Traps
	var lived [2]uint64
	live := func() {
		for n := range lived {
			if f.d.Pauses() > 0 || f.d.OwnPauses(n) > 0 {
				continue
			}
			f.x.Do(func() {
				f.d.VCPU(n).Context.RBX++
				lived[n]++
			})
		}
	}
	k := &killer{Transport: f.x.Transport(), left: calls, after: live}
	done := untilKilled(func() bool {
		host, err := xen.NewHost(k)
		f.host = check(t, host, err)
		f.attachOnly()
		plant := f.plant(codeAt)
		f.resume(Run, Run)
		f.int3(0, codeAt)
		f.wait(true)
		f.pause(Stop{VCPU: 0, Trap: Breakpoint})
		if err := f.g.Lift(plant); err != nil {
			t.Fatal(err)
		}
		f.resume(Step, Stay)
		f.debug(0, codeAt+1, DR6BS)
		f.wait(true)
		f.pause(Stop{VCPU: 0, Trap: Debug, DR6: DR6BS})
		if err := f.g.Replant(plant); err != nil {
			t.Fatal(err)
		}
		f.resume(Run, Run)
		f.pause()
		return errors.Join(f.e.Close(), f.g.Detach()) == nil
	})
	k.left, k.after = math.MaxInt, nil // what is left of it does not count
	k.release()
	if done {
		return false
	}
	where := fmt.Sprintf("%d pauses of others, killed at call %d", pauses, calls)
	if left, err := guest.OpenLedger(f.ledger); err == nil {
		rescuer := &killer{Transport: f.x.Transport(), left: math.MaxInt, after: live}
		host, err := xen.NewHost(rescuer)
		if err := Recover(check(t, host, err), left, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		rescuer.release()
	}
	if string(f.text) != text || f.d.Pauses() < pauses || f.d.Pauses() > 2*pauses || f.d.Debugged {
		t.Fatalf("%s: text as before %v, %d pauses, debugging %v", where, string(f.text) == text, f.d.Pauses(), f.d.Debugged)
	}
	if f.d.Pauses() > pauses { // the last that was made to count them
		if err := f.x.Host().Unpause(3); err != nil {
			t.Fatal(err)
		}
	}
	for n := range lived {
		c := &f.d.VCPU(n).Context
		if c.RBX != lived[n] || f.d.OwnPauses(n) != 0 || c.Traps != traps || c.RFLAGS&x86.RFLAGSTF != 0 {
			t.Fatalf("%s: vCPU %d has run %d times and says %d, %d pauses, traps as before %v, rflags %#x",
				where, n, lived[n], c.RBX, f.d.OwnPauses(n), c.Traps == traps, c.RFLAGS)
		}
	}
	return true
}

// Where the hypervisor cannot do it, an engine for PV guests says why.
func TestUnavailable(t *testing.T) {
	for _, tt := range []struct {
		engine string
		config xentest.Config
		want   string
	}{
		{"gdbsx", xentest.Config{}, "built without CONFIG_GDBSX"},
		{"gdbsx", xentest.Config{GDBSX: true, Release: "4.16"}, "before Xen 4.17"},
		{"gdbsx", xentest.Config{GDBSX: true, Release: "4.21", Extra: ".1"}, "would zero r8 to r15"},
		{"redirect", xentest.Config{Release: "4.21", Extra: ".1"}, "would zero r8 to r15"},
	} {
		x := xentest.New(t, tt.config)
		d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
		d.Alloc()
		g, err := guest.Attach(x.Host(), 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Choose(g, tt.engine, slog.New(slog.DiscardHandler))
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
	}
}

// A vCPU that a step has taken down does not come up again with RFLAGS.TF when the guest
// was given back.
func TestGDBSXStepTakesDown(t *testing.T) {
	f := newFakePV(t, 0)
	f.attach()
	f.resume(Run, Step)
	f.x.Do(func() { f.d.VCPU(1).Online = false })
	f.wait(false)
	f.pause()
	f.release()
	if v := f.d.VCPU(1); v.Online || v.Context.RFLAGS&x86.RFLAGSTF != 0 {
		t.Errorf("it is up: %v; RFLAGS %#x", v.Online, v.Context.RFLAGS)
	}
}

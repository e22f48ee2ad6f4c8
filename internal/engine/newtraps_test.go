package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// newHandler is where a guest's new handler is.
const newHandler = handlers + 0x800

// register has the guest, which must be running, register a handler anew for one
// vector alone, and gives what its trap table is to be in the end.
func (f *fixture) register(vector uint8, before [256]xen.TrapInfo) [256]xen.TrapInfo {
	f.t.Helper()
	if f.d.Pauses() != 0 {
		f.t.Fatal("a guest that is paused registers nothing")
	}
	t := xen.TrapInfo{Vector: vector, Flags: 3, CS: 0xe033, Address: newHandler}
	f.Do(func() { f.d.VCPU(0).Context.Traps[vector] = t })
	before[vector] = t
	return before
}

// runAnew lets the guest run, and register a handler anew.
func (f *fixture) runAnew(e Engine, vector uint8, before [256]xen.TrapInfo) [256]xen.TrapInfo {
	f.t.Helper()
	if err := e.Resume([]Motion{Run}); err != nil {
		f.t.Fatal(err)
	}
	traps := f.register(vector, before)
	if _, err := e.Pause(); err != nil {
		f.t.Fatal(err)
	}
	return traps
}

// bothVectors runs a test for either vector being registered anew alone.
func bothVectors(t *testing.T, test func(t *testing.T, vector uint8)) {
	for _, vector := range []uint8{xen.VectorDebug, xen.VectorBreakpoint} {
		t.Run(fmt.Sprint("vector ", vector), func(t *testing.T) { test(t, vector) })
	}
}

// A guest that registers one of its two handlers anew loses neither when they are
// redirected again.
func TestRedirectOneNewHandler(t *testing.T) {
	bothVectors(t, func(t *testing.T, vector uint8) {
		f := newFixture(t, 1)
		traps := f.d.VCPU(0).Context.Traps
		f.bytes(kernelText+4, 1)[0] = guest.Int3 // of the guest's own
		g, e := f.attach(f.Host(), nil)
		plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
		check(t, plant, err)
		traps = f.runAnew(e, vector, traps)
		f.goOn(e, 6, Run)
		for _, v := range []uint8{xen.VectorDebug, xen.VectorBreakpoint} {
			if got, err := g.Trap(0, v); err != nil || got != traps[v] {
				t.Errorf("the guest's entry for vector %d is %+v, %v, want %+v", v, got, err, traps[v])
			}
		}
		if got := f.d.VCPU(0).Context.RIP; got != traps[3].Address {
			t.Errorf("the guest's own int3 leads to %#x, want %#x", got, traps[3].Address)
		}
		if err := errors.Join(e.Close(), g.Detach()); err != nil {
			t.Fatal(err)
		}
		if f.d.VCPU(0).Context.Traps != traps {
			t.Error("the guest did not get its handlers back")
		}
	})
}

// So it is if the guest is given back before.
func TestRedirectOneNewHandlerThenDetach(t *testing.T) {
	bothVectors(t, func(t *testing.T, vector uint8) {
		f := newFixture(t, 1)
		traps := f.d.VCPU(0).Context.Traps
		g, e := f.attach(f.Host(), nil)
		plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
		check(t, plant, err)
		traps = f.runAnew(e, vector, traps)
		if err := errors.Join(e.Close(), g.Detach()); err != nil {
			t.Fatal(err)
		}
		if f.d.VCPU(0).Context.Traps != traps {
			t.Error("the guest did not get its handlers back")
		}
	})
}

// And if the server is killed, before or after they are redirected again.
func TestRedirectOneNewHandlerKilledAnywhere(t *testing.T) {
	bothVectors(t, func(t *testing.T, vector uint8) {
		for calls := 0; ; calls++ {
			f := newFixture(t, 1)
			traps := f.d.VCPU(0).Context.Traps
			mem := make([]byte, guest.LedgerSize)
			ledger, err := guest.NewLedger(mem)
			check(t, ledger, err)
			k := &killer{Transport: f.Transport(), left: calls}
			done := untilKilled(func() bool {
				host, err := xen.NewHost(k)
				g, e := f.attach(check(t, host, err), ledger)
				plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
				check(t, plant, err)
				if err := e.Resume([]Motion{Run}); err != nil {
					t.Fatal(err)
				}
				traps = f.register(vector, traps)
				if _, err := e.Pause(); err != nil {
					t.Fatal(err)
				}
				f.goOn(e, 1, Run)
				return errors.Join(e.Close(), g.Detach()) == nil
			})
			if done {
				k.Transport.Close()
				return
			}
			k.release()
			f.recover(mem, fmt.Sprintf("killed at call %d", calls))
			if f.d.VCPU(0).Context.Traps != traps {
				t.Fatalf("killed at call %d: the guest did not get its handlers back", calls)
			}
		}
	})
}

// While the guest runs, a handler that it registers anew is redirected at once.
func TestRedirectOneNewHandlerWhileItRuns(t *testing.T) {
	bothVectors(t, func(t *testing.T, vector uint8) {
		f := newFixture(t, 1)
		traps := f.d.VCPU(0).Context.Traps
		g, e := f.attach(f.Host(), nil)
		plant, err := g.Plant(0, breakAt, []byte{guest.Int3})
		check(t, plant, err)
		if err := e.Resume([]Motion{Run}); err != nil {
			t.Fatal(err)
		}
		traps = f.register(vector, traps)
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error, 1)
		go func() { waited <- e.Wait(ctx) }()
		redirected := false
		for deadline := time.Now().Add(5 * time.Second); !redirected && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			f.Do(func() { redirected = f.d.VCPU(0).Context.Traps[vector].Address != newHandler })
		}
		cancel()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting: %v", err)
		}
		if !redirected {
			t.Error("the new handler was not redirected")
		}
		if err := errors.Join(e.Close(), g.Detach()); err != nil {
			t.Fatal(err)
		}
		if f.d.VCPU(0).Context.Traps != traps {
			t.Error("the guest did not get its handlers back")
		}
	})
}

// A guest that overwrites the parking spot, as Linux does with the handlers that it
// boots with, is debugged by another one; and wherever the server is killed, it is
// given back.
func TestRedirectSpotLost(t *testing.T) {
	const poison, newSpot = 0xcc, handlers + 0x900
	for calls := 0; ; calls++ {
		f := newFixture(t, 2)
		traps := [2][256]xen.TrapInfo{f.d.VCPU(0).Context.Traps, f.d.VCPU(1).Context.Traps}
		memory := string(f.bytes(handlers, xen.PageSize))
		mem := make([]byte, guest.LedgerSize)
		ledger, err := guest.NewLedger(mem)
		check(t, ledger, err)
		k := &killer{Transport: f.Transport(), left: calls}
		done := untilKilled(func() bool {
			host, err := xen.NewHost(k)
			g, e := f.attach(check(t, host, err), ledger)
			plant, err := g.Plant(0, kernelText+4, []byte{guest.Int3})
			check(t, plant, err)
			f.goOn(e, 1, Run, Stay)
			if err := e.Resume([]Motion{Run, Run}); err != nil {
				t.Fatal(err)
			}
			f.Do(func() {
				old := f.bytes(handlers+16*9, 16)
				for i := range old {
					old[i] = poison
				}
				for n := range traps {
					for _, now := range []*[256]xen.TrapInfo{&traps[n], &f.d.VCPU(n).Context.Traps} {
						now[9].Address = newSpot
						now[xen.VectorDebug] = xen.TrapInfo{Vector: xen.VectorDebug, Flags: 3, CS: 0xe033, Address: newHandler}
					}
				}
				memory = memory[:16*9] + string(old) + memory[16*10:]
			})
			if _, err := e.Pause(); err != nil {
				t.Fatal(err)
			}
			if stops := f.goOn(e, 6, Run, Run); len(stops) != 2 {
				t.Errorf("killed at call %d: stops %v after the parking spot was lost, want one of each vCPU", calls, stops)
			}
			return errors.Join(e.Close(), g.Detach()) == nil
		})
		if done {
			k.Transport.Close()
		} else {
			k.release()
			f.recover(mem, fmt.Sprintf("killed at call %d", calls))
		}
		for n := range traps {
			if f.d.VCPU(n).Context.Traps != traps[n] {
				t.Fatalf("killed at call %d: vCPU %d did not get its handlers back", calls, n)
			}
		}
		if string(f.bytes(handlers, xen.PageSize)) != memory || f.bytes(kernelText+4, 1)[0] != 0x90 {
			t.Fatalf("killed at call %d: bytes were left behind", calls)
		}
		if done {
			return
		}
	}
}

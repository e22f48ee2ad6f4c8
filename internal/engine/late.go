// This file keeps account of single-step traps that are still to come, and of the flag
// for one where the guest has stored it.

package engine

import (
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
)

// lateTraps are the traps of steps that were called off in a handler of the
// guest's: what that has interrupted comes back with RFLAGS.TF, of which the guest
// knows nothing. The ledger notes whose they are.
type lateTraps struct {
	ledger *guest.Ledger
	from   []uint64 // by vCPU: RIP of the step, 0 if it is not known
}

func newLateTraps(g *guest.Guest) lateTraps {
	return lateTraps{ledger: g.Ledger(), from: make([]uint64, g.NumVCPUs())}
}

// expect notes that a vCPU's step from an address is still to trap. The address is
// 0 if that may be in another mode than the step.
func (l *lateTraps) expect(n int, from uint64) {
	l.ledger.Mark(n, true)
	l.from[n] = from
}

// forget notes that no step of a vCPU is to trap any more.
func (l *lateTraps) forget(n int) { l.ledger.Mark(n, false) }

// of gives the vCPU of whose step a trap of vCPU n at an address is, or -1: n, if
// it can be, or another, as what was to be stepped may have moved since. A trap in
// user mode is of no step in the kernel, but of a program that traps itself.
func (l *lateTraps) of(n int, rip uint64) int {
	if l.awaited(n, rip) {
		return n
	}
	for m := range l.from {
		if l.awaited(m, rip) {
			return m
		}
	}
	return -1
}

func (l *lateTraps) awaited(n int, rip uint64) bool {
	return l.ledger.Marked(n) && (l.from[n] == 0 || int64(l.from[n])^int64(rip) >= 0)
}

// any tells whether a trap is still to come.
func (l *lateTraps) any() bool {
	for n := range l.from {
		if l.ledger.Marked(n) {
			return true
		}
	}
	return false
}

// clearPushedTF takes RFLAGS.TF out of what PUSHF has just pushed, if it is there.
func clearPushedTF(g *guest.Guest, n int, rsp uint64) error {
	var flags [2]byte
	const tf = byte(x86.RFLAGSTF >> 8)
	if got, err := g.Read(n, rsp, flags[:]); err != nil || got < len(flags) || flags[1]&tf == 0 {
		return err
	}
	flags[1] &^= tf
	return g.Write(n, rsp, flags[:])
}

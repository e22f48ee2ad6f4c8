// This file changes how single vCPUs run: it takes them off, redirects their
// traps, and undoes that and all else.

package guest

import (
	"errors"
	"fmt"
	"slices"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// Hold takes a vCPU off, so that it stands still while others run. To the guest's
// kernel it looks as if it got no time.
// Preconditions: the guest is paused.
func (g *Guest) Hold(n int) error {
	if g.Held(n) {
		return nil
	}
	c, err := g.context(n)
	if err != nil || c.ctx.Flags&xen.VGCFOnline == 0 {
		return err
	}
	if g.ownPauses {
		g.ledger.set(n, flagHeld|flagOwnPause, true)
		return g.host.PauseVCPU(g.id, n)
	}
	g.ledger.set(n, flagHeld, true)
	c.ctx.Flags &^= xen.VGCFOnline
	return g.setState(n, c)
}

// HoldByPauses makes Hold use the hypervisor's pauses of single vCPUs, of which
// the guest sees nothing at all.
// Preconditions: the hypervisor has gdbsx's calls.
func (g *Guest) HoldByPauses() { g.ownPauses = true }

// Release ends a Hold.
// Preconditions: the guest is paused.
func (g *Guest) Release(n int) error {
	if !g.Held(n) {
		return nil
	}
	if g.ledger.has(n, flagOwnPause) {
		return g.endOwnPause(n)
	}
	c, err := g.context(n)
	if err != nil {
		return err
	}
	c.ctx.Flags |= xen.VGCFOnline
	if err := g.setState(n, c); err != nil {
		return err
	}
	g.ledger.set(n, flagHeld, false)
	return nil
}

// endOwnPause ends a Hold by a pause, which may not have been made yet.
func (g *Guest) endOwnPause(n int) error {
	err := g.host.UnpauseVCPU(g.id, n)
	if err != nil && !errors.Is(err, xen.ErrVCPUNotPaused) {
		return err
	}
	g.ledger.set(n, flagHeld|flagOwnPause, false)
	return nil
}

// Held tells whether a vCPU was taken off by Hold.
func (g *Guest) Held(n int) bool { return g.ledger.has(n, flagHeld) }

// What a kernel takes its vCPU down by, and asks whether others are up (Xen public
// headers xen.h and vcpu.h).
const (
	hypercallVCPUOp = 24
	vcpuOpDown      = 2
	vcpuOpIsUp      = 3
)

// SeesHeld tells whether the instruction that a vCPU stands at does something else where
// vCPUs are held, which the hypervisor takes for down: it takes the vCPU down, with which
// the domain powers off if that is the last, or asks whether one is up. (Xen,
// common_vcpu_op and hvm_vcpu_down.)
// Preconditions: the guest is paused.
func (g *Guest) SeesHeld(n int) (bool, error) {
	c, err := g.context(n)
	if err != nil || g.ownPauses || g.inUserMode(c) {
		return false, err
	}
	ctx := &c.ctx
	op := ctx.RDI
	if g.kind != xen.PV && c.hvm.EFER&x86.EFERLMA == 0 {
		op = ctx.RBX
	}
	calls := uint32(ctx.RAX) == hypercallVCPUOp && (uint32(op) == vcpuOpDown || uint32(op) == vcpuOpIsUp)
	halts := g.kind != xen.PV && ctx.RFLAGS&x86.RFLAGSIF == 0
	if !calls && !halts {
		return false, nil // nearly always, so that nothing is read
	}
	var code [3]byte
	_, _ = g.Read(n, ctx.RIP, code[:]) // what cannot be read is none of these
	if g.kind == xen.PV {
		return [2]byte(code[:]) == [2]byte{0x0f, 0x05}, nil // SYSCALL
	}
	vmcall := code == [3]byte{0x0f, 0x01, 0xc1} || code == [3]byte{0x0f, 0x01, 0xd9} // or VMMCALL
	return calls && vmcall || halts && code[0] == 0xf4, nil                          // HLT
}

// Armed tells whether there is anything that makes a vCPU trap: planted bytes, or
// debug registers.
func (g *Guest) Armed() bool {
	if len(g.plants) > 0 {
		return true
	}
	for n := range g.vcpus {
		if g.ledger.has(n, flagDebug) {
			return true
		}
	}
	return false
}

// SetStepping notes that a vCPU is about to get RFLAGS.TF from us, or does not have
// it any longer.
func (g *Guest) SetStepping(n int, on bool) {
	g.ledger.set(n, flagFlagged|flagFinishing, false)
	g.ledger.set(n, flagStepping, on)
}

// SetFinishing notes that what a vCPU is stepping for is what the engine has marked
// it for.
func (g *Guest) SetFinishing(n int) { g.ledger.set(n, flagFinishing, true) }

// Finishing tells what SetFinishing has noted.
func (g *Guest) Finishing(n int) bool { return g.ledger.has(n, flagFinishing) }

// Stepping tells what SetStepping has noted.
func (g *Guest) Stepping(n int) bool { return g.ledger.has(n, flagStepping) }

// SteppedAway tells whether a stepping vCPU without RFLAGS.TF had it from us when it
// ran: it is in a handler of the guest's then, and will come out of that with it. Else
// a process was killed before it came to set it, or after it had taken it back.
func (g *Guest) SteppedAway(n int) bool { return g.ledger.has(n, flagFlagged) }

// Trap gives an entry of a PV vCPU's trap table, as the guest registered it.
// Preconditions: the guest is paused and PV.
func (g *Guest) Trap(n int, vector uint8) (xen.TrapInfo, error) {
	c, err := g.context(n)
	if err != nil {
		return xen.TrapInfo{}, err
	}
	if slices.Contains(redirectedVectors, vector) && g.redirected(&c.ctx, vector) {
		return g.ledger.trap(n, vector), nil
	}
	return c.ctx.Traps[vector], nil
}

// redirectedVectors are those whose traps lead to the parking spot. A guest may
// register either alone anew: Linux does so with #DB when it boots.
var redirectedVectors = []uint8{xen.VectorDebug, xen.VectorBreakpoint}

// redirected tells whether an entry of a vCPU's trap table leads to the parking spot.
func (g *Guest) redirected(ctx *xen.VCPUContext, vector uint8) bool {
	return g.parking.spot != 0 && ctx.Traps[vector].Address == SpotOf(g.parking.spot, vector)
}

// Redirected tells whether all traps that RedirectTraps redirects lead to the parking
// spot, by a context as the hypervisor has it.
func (g *Guest) Redirected(ctx *xen.VCPUContext) bool {
	return !slices.ContainsFunc(redirectedVectors, func(v uint8) bool { return !g.redirected(ctx, v) })
}

// RedirectTraps makes a vCPU's debug and breakpoint traps lead to the parking
// spot, as far as they do not. A guest that has registered others meanwhile gets
// those back in the end.
// Preconditions: the guest is paused; SetParking was called.
func (g *Guest) RedirectTraps(n int) error {
	c, err := g.context(n)
	if err != nil || g.Redirected(&c.ctx) {
		return err
	}
	for _, v := range redirectedVectors {
		if g.redirected(&c.ctx, v) {
			continue // what the guest has there is noted
		}
		t := &c.ctx.Traps[v]
		g.ledger.setTrap(n, v, *t)
		t.Flags |= xen.TrapMasksEvents
		t.Address = SpotOf(g.parking.spot, v)
	}
	g.ledger.set(n, flagTraps, true)
	return g.setState(n, c)
}

// Disarm takes back all that was planted and the debug registers, so that nothing
// of ours stops the guest any more.
// Preconditions: the guest is paused.
func (g *Guest) Disarm() error {
	// The parking spot stays until no vCPU can come there.
	errs := []error{g.unplant(func(p *Plant) bool { return !g.atParking(p) })}
	for n := range g.vcpus {
		if g.ledger.has(n, flagDebug) {
			errs = append(errs, g.restore(n, flagDebug))
		}
	}
	_ = g.tellWritten() // Detach does it again if that failed, and says why
	return errors.Join(errs...)
}

// undo gives the guest back all that has been changed. It is quick if that is
// nothing.
func (g *Guest) undo() error {
	const changes = flagHeld | flagTraps | flagDebug | flagReturning | flagTrapping
	changed := len(g.plants) > 0 || g.parking.spot != 0
	for n := range g.vcpus {
		changed = changed || g.ledger.has(n, changes)
	}
	if !changed {
		return nil
	}
	if err := g.Pause(); err != nil {
		return err
	}
	errs := []error{g.Disarm()}
	for n := range g.vcpus {
		if g.ledger.has(n, changes) {
			errs = append(errs, g.restore(n, changes))
		}
	}
	errs = append(errs, g.unplant(func(*Plant) bool { return true }))
	g.SetParking(0, 0)
	return errors.Join(errs...)
}

// restore undoes changes of a vCPU, all at once.
// Preconditions: the guest is paused.
func (g *Guest) restore(n int, changes vcpuFlag) error {
	done := func() error {
		g.ledger.set(n, changes, false)
		return nil
	}
	if changes&flagHeld != 0 && g.ledger.has(n, flagOwnPause) {
		if err := g.endOwnPause(n); err != nil {
			return err
		}
	}
	c, err := g.context(n)
	switch {
	case errors.Is(err, xen.ErrVCPUOffline), errors.Is(err, xen.ErrNoVCPU):
		return done()
	case err != nil:
		return err
	}
	before := c.ctx
	has := func(f vcpuFlag) bool { return changes&f != 0 && g.ledger.has(n, f) }
	if has(flagHeld) {
		c.ctx.Flags |= xen.VGCFOnline
	}
	if has(flagTraps) {
		for _, v := range redirectedVectors {
			if g.redirected(&c.ctx, v) {
				c.ctx.Traps[v] = g.ledger.trap(n, v)
			}
		}
	}
	if has(flagTrapping) {
		g.dropTrap(n, c)
	}
	if has(flagDebug) {
		g.returnDebugRegs(n, c)
	}
	if c.ctx == before {
		return done()
	}
	if err := g.setState(n, c); err != nil {
		return fmt.Errorf("give vCPU %d back what it had: %w", n, err)
	}
	c.fetched = false
	return done()
}

// This file keeps a guest from int3 of ours that the processor does not report.
//
// That is the case on emulated processors: QEMU's, up to version 10 at least,
// delivers a guest's INT3 without a look at what the hypervisor intercepts. The
// guest's kernel would take it for an error of its own and panic. So until the
// first int3 has been reported, the kernel's handler of int3 begins with a jump to
// itself, and a vCPU that comes there can be sent back.

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// ErrUnreported says that the processor does not report int3.
var ErrUnreported = errors.New("the processor, which seems to be an emulated one, does not report a guest's int3 to the hypervisor")

// jumpToItself is JMP rel8 to its own address.
var jumpToItself = []byte{0xeb, 0xfe}

// plantGuard plants the jump, where it can.
// Preconditions: the guest is paused.
func (e *monitor) plantGuard() error {
	if e.reported || e.guard != nil {
		return nil
	}
	vcpus, err := e.g.VCPUs()
	if err != nil || len(vcpus) == 0 {
		return err
	}
	r, err := e.g.Registers(vcpus[0])
	if err != nil || r.EFER&x86.EFERLMA == 0 {
		return err
	}
	at, err := e.g.Gate(vcpus[0], xen.VectorBreakpoint)
	if err == nil {
		e.g.Ledger().SetScratch(at)
		e.guard, err = e.g.Plant(vcpus[0], at, jumpToItself)
	}
	if err != nil {
		e.g.Ledger().SetScratch(0)
		e.log.Debug("handler of int3 is not guarded", "err", err)
	}
	return nil
}

// liftGuard takes the jump away.
func (e *monitor) liftGuard() error {
	if e.guard == nil {
		return nil
	}
	if err := e.unplant(e.guard); err != nil {
		return err
	}
	e.guard = nil
	e.g.Ledger().SetScratch(0)
	return nil
}

// trapped tells whether a vCPU is at the jump.
func (e *monitor) trapped() (bool, error) {
	if e.guard == nil {
		return false, nil
	}
	for n := range e.hops {
		var ctx xen.VCPUContext
		err := e.host.VCPUContext(e.g.ID(), n, &ctx)
		switch {
		case isDown(err):
		case err != nil:
			return false, err
		case ctx.RIP == e.guard.Addr():
			return true, nil
		}
	}
	return false, nil
}

// giveUp takes all int3 of ours away, after one was not reported, and says so.
func (e *monitor) giveUp() error {
	err := e.g.Pause()
	if err != nil {
		return err
	}
	return errors.Join(fmt.Errorf("%w: %w", ErrUnavailable, ErrUnreported), e.takeUnreported())
}

// takeUnreported takes all int3 of ours away.
// Preconditions: the guest is paused.
func (e *monitor) takeUnreported() error {
	var err error
	for n := range e.hops {
		err = errors.Join(err, e.sendBack(n, e.guard.Addr()))
	}
	err = errors.Join(err, e.g.Disarm())
	e.guard = nil
	e.g.Ledger().SetScratch(0)
	e.unreported = true
	return err
}

// sendBack puts a vCPU that is at the jump, by an int3 of ours in the kernel, back
// to that int3. One that has come there by its own goes on in the handler.
func (e *monitor) sendBack(n int, guarded uint64) error {
	r, err := e.g.Registers(n)
	if isDown(err) {
		return nil
	}
	if err != nil || r.RIP != guarded {
		return err
	}
	// What the processor has pushed (SDM vol. 3A, section 6.14.2).
	const (
		rip    = 0
		cs     = 8
		rflags = 16
		rsp    = 24
	)
	var frame [32]byte
	if got, err := e.g.Read(n, r.RSP, frame[:]); err != nil || got < len(frame) {
		return err
	}
	word := binary.LittleEndian.Uint64
	if e.g.PlantedAt(n, word(frame[rip:])-1) == nil || frame[cs]&3 != 0 {
		return nil
	}
	return e.g.Alter(n, func(ctx *xen.VCPUContext) {
		ctx.RIP, ctx.RFLAGS, ctx.RSP = word(frame[rip:])-1, word(frame[rflags:]), word(frame[rsp:])
	})
}

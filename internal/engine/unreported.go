// This file keeps a guest from int3 of ours that the processor does not report.
//
// That is the case on emulated processors: QEMU's, up to version 10 at least,
// delivers a guest's INT3 without a look at what the hypervisor intercepts. The
// guest's kernel would take it for an error of its own and panic. So until the
// first int3 has been reported, the kernel's handler of int3 begins with a jump to
// itself, and a vCPU that comes there can be sent back. One that was there before, by
// an int3 of the guest's own, is let off first.

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

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
		for _, n := range vcpus {
			if err := e.letOff(n, at); err != nil {
				return err
			}
		}
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

// letOff lets a vCPU run that is where the jump is to be, until it is not: others, which
// might come to an int3 of ours, are held. It takes one whose domain somebody else has
// paused, or that is held itself, as it is.
// Preconditions: the guest is paused.
func (e *monitor) letOff(n int, at uint64) error {
	for deadline := time.Now().Add(briefly); time.Now().Before(deadline); {
		r, err := e.g.Registers(n)
		if isDown(err) || err == nil && (r.RIP != at || e.waiting[n] || e.g.Held(n)) {
			return nil
		}
		if err != nil {
			return err
		}
		held, err := e.holdOthers(n)
		if err == nil {
			err = e.g.ResumeBriefly()
		}
		if err == nil {
			time.Sleep(pollFirst)
			err = e.g.Pause()
		}
		if err = errors.Join(err, e.release(held)); err != nil {
			return err
		}
	}
	return nil
}

// atGuard tells whether a vCPU is at the jump.
func (e *monitor) atGuard() (bool, error) {
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

// trapped tells whether a vCPU is at the jump by an int3 of ours.
// Preconditions: the guest is paused.
func (e *monitor) trapped() (bool, error) {
	if e.guard == nil {
		return false, nil
	}
	for n := range e.hops {
		_, ours, err := e.unreportedAt(n, e.guard.Addr())
		if ours || err != nil {
			return ours, err
		}
	}
	return false, nil
}

// lookAtGuard deals with a vCPU that is at the jump.
func (e *monitor) lookAtGuard() error {
	if err := e.g.Pause(); err != nil {
		return err
	}
	switch trapped, err := e.trapped(); {
	case err != nil:
		return err
	case trapped:
		return e.giveUp()
	}
	if err := e.liftGuard(); err != nil {
		return err
	}
	if err := e.plantGuard(); err != nil {
		return err
	}
	return e.goOn()
}

// giveUp takes all int3 of ours away, after one was not reported, and says so.
// Preconditions: the guest is paused.
func (e *monitor) giveUp() error {
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

// An interruptFrame is what the processor pushes for an exception without an error code
// (SDM vol. 3A, section 6.14.2).
type interruptFrame struct{ RIP, CS, RFLAGS, RSP uint64 }

// unreportedAt tells whether a vCPU is where the jump is by an int3 of ours, and gives
// what the processor has pushed for that.
func (e *monitor) unreportedAt(n int, guarded uint64) (frame interruptFrame, ours bool, err error) {
	r, err := e.g.Registers(n)
	if isDown(err) {
		return frame, false, nil
	}
	if err != nil || r.RIP != guarded {
		return frame, false, err
	}
	b := make([]byte, binary.Size(frame))
	if got, err := e.g.Read(n, r.RSP, b); err != nil || got < len(b) {
		return frame, false, err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &frame); err != nil {
		return frame, false, err
	}
	return frame, e.g.PlantedAt(n, frame.RIP-1) != nil, nil
}

// sendBack puts a vCPU that is at the jump, by an int3 of ours in the kernel, back
// to that int3. One that has come there by its own goes on in the handler.
func (e *monitor) sendBack(n int, guarded uint64) error {
	frame, ours, err := e.unreportedAt(n, guarded)
	if err != nil || !ours || frame.CS&3 != 0 {
		return err
	}
	return e.g.Alter(n, func(ctx *xen.VCPUContext) {
		ctx.RIP, ctx.RFLAGS, ctx.RSP = frame.RIP-1, frame.RFLAGS, frame.RSP
	})
}

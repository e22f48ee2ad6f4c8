// This file follows stacks, as the kernel does itself
// (arch/x86/kernel/unwind_orc.c in Linux).

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrUnwind says that a stack cannot be followed to its end, and why.
var ErrUnwind = errors.New("the stack cannot be followed further")

// Registers are those of a vCPU that stacks are followed by.
type Registers struct {
	RIP, RSP, RBP      uint64
	RDX, RDI, R10, R13 uint64
}

// A Frame is a function that has not returned.
type Frame struct {
	RIP         uint64
	Call        bool // RIP is behind a call
	Interrupted bool // RIP is where an interrupt or exception came
	UserMode    bool // it is not in the kernel; the last one
}

// Place gives an address in the frame's function: a call may be the last that it
// does.
func (f Frame) Place() uint64 {
	if f.Call {
		return f.RIP - 1
	}
	return f.RIP
}

// maxFrames bounds what is followed. A kernel's stack has 16 KB.
const maxFrames = 512

// Offsets in struct pt_regs, and from its rip on in what the processor pushes for
// an interrupt (arch/x86/include/asm/ptrace.h in Linux).
const (
	regR13  = 16
	regBP   = 32
	regR10  = 56
	regDX   = 96
	regDI   = 112
	regRIP  = 128
	framePC = 0
	frameCS = 8
	frameSP = 24
)

// unwinder is on its way up a stack.
type unwinder struct {
	k       *Kernel
	mem     Memory
	r       Registers
	scratch bool   // RDX, RDI, R10 and R13 are known
	regs    uint64 // address of a struct pt_regs that the other registers are in, or 0
	call    bool   // RIP is behind a call
	stopped bool   // RIP was interrupted
	err     error
}

// Unwind follows a stack from a vCPU's registers in kernel mode to its end, or to
// user mode. With ErrUnwind, the frames are those before.
func (k *Kernel) Unwind(mem Memory, r Registers) ([]Frame, error) {
	u := &unwinder{k: k, mem: mem, r: r, scratch: true}
	return u.frames()
}

// frames goes up the whole stack.
func (u *unwinder) frames() ([]Frame, error) {
	var frames []Frame
	for len(frames) < maxFrames {
		frame := Frame{RIP: u.r.RIP, Call: u.call, Interrupted: u.stopped}
		frames = append(frames, frame)
		if u.k.orc == nil {
			return frames, fmt.Errorf("%w: %w", ErrUnwind, ErrNoORC)
		}
		done, user := u.step(frame.Place())
		switch {
		case u.err != nil:
			return frames, fmt.Errorf("%w: %w", ErrUnwind, u.err)
		case user:
			return append(frames, Frame{RIP: u.r.RIP, UserMode: true}), nil
		case done:
			return frames, nil
		}
	}
	return frames, fmt.Errorf("%w: it has over %d frames", ErrUnwind, maxFrames)
}

// word reads a word of the stack.
func (u *unwinder) word(addr uint64) uint64 {
	var b [8]byte
	n, err := u.mem.Read(addr, b[:])
	if u.err == nil && (err != nil || n < len(b)) {
		u.err = fmt.Errorf("nothing is mapped at %#x", addr)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// register gives a register that callers do not have back.
func (u *unwinder) register(now uint64, offset uint64) uint64 {
	switch {
	case u.regs != 0:
		return u.word(u.regs + offset)
	case !u.scratch && u.err == nil:
		u.err = errors.New("it is based on a register that is not known any more")
	}
	return now
}

// step goes to the caller from a place in a function.
func (u *unwinder) step(at uint64) (done, user bool) {
	e, ok, known := u.k.unwindAt(at)
	switch {
	case u.r.RIP == 0 && u.scratch:
		e = orcEntry{spOffset: 8, spReg: orcSP, bpReg: orcNone, orcType: orcCall} // a call of a null pointer
	case !known:
		u.err = fmt.Errorf("%#x is in no code of the kernel's", u.r.RIP)
		return false, false
	case !ok:
		u.err = fmt.Errorf("the kernel does not say how, at %#x", u.r.RIP)
		return false, false
	case e.end:
		if e, ok = u.stub(); !ok {
			return true, false
		}
	}
	if e.orcType == orcFrame && u.registersPushed() {
		e = pushedEntry
	}
	u.unstuff(&e)
	base := u.base(&e)
	was := *u
	u.regs = 0
	switch e.orcType {
	case orcCall:
		if base <= was.r.RSP && e.spReg == orcSP && u.err == nil {
			u.err = fmt.Errorf("it goes down, at %#x", base)
		}
		u.r.RIP, u.r.RSP, u.stopped = u.word(base-8), base, false
		u.call = !u.k.threadBegins(u.r.RIP)
	case orcRegs:
		u.regs = base
		user = u.interrupted(base + regRIP)
	case orcFrame:
		// The registers, as far as they are known, are still the same.
		u.regs = was.regs
		user = u.interrupted(base)
	}
	u.scratch = u.scratch && e.orcType == orcFrame
	switch {
	case e.bpReg == orcPrevSP:
		u.r.RBP = u.word(base + uint64(int64(e.bpOffset)))
	case e.bpReg == orcBP:
		u.r.RBP = u.word(was.r.RBP + uint64(int64(e.bpOffset)))
	case u.regs != 0:
		u.r.RBP = u.word(u.regs + regBP)
	}
	return false, user
}

// base gives what an entry's offsets are counted from: the stack pointer of the
// caller, as it was before the call.
func (u *unwinder) base(e *orcEntry) uint64 {
	offset := uint64(int64(e.spOffset))
	switch e.spReg {
	case orcSP:
		return u.r.RSP + offset
	case orcBP:
		return u.r.RBP + offset
	case orcBPIndirect:
		return u.word(u.r.RBP + offset)
	case orcSPIndirect:
		if u.k.orc.offsetFirst {
			return u.word(u.r.RSP + offset)
		}
		return u.word(u.r.RSP) + offset
	case orcDX:
		return u.register(u.r.RDX, regDX)
	case orcDI:
		return u.register(u.r.RDI, regDI)
	case orcR10:
		return u.register(u.r.R10, regR10)
	case orcR13:
		return u.register(u.r.R13, regR13)
	}
	if u.err == nil {
		u.err = fmt.Errorf("it is based on register %d", e.spReg)
	}
	return 0
}

// interrupted goes to what was interrupted, which the processor's frame tells.
func (u *unwinder) interrupted(frame uint64) (user bool) {
	u.r.RIP, u.r.RSP, u.call, u.stopped = u.word(frame+framePC), u.word(frame+frameSP), false, true
	return u.word(frame+frameCS)&3 != 0
}

// threadBegins tells whether an address is where a new task begins. A task that was
// switched to for the first time returns there, from no call (copy_thread in Linux).
func (k *Kernel) threadBegins(addr uint64) bool {
	name, offset, ok := k.Function(addr)
	return ok && offset == 0 && (name == "ret_from_fork" || name == "ret_from_fork_asm")
}

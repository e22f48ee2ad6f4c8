// This file steps programs of PV guests into their kernel. The hypervisor takes
// RFLAGS.TF from the kernel's handler and gives it back with the program, so that a
// step by that alone ends when the kernel is done, and never if it has ended the
// program. A vCPU that comes from a trap is in the kernel already: it is only sent to
// the handler, and nothing of the guest runs.
//
// The kernel goes back to its program, or to what an interrupt has interrupted, by the
// hypercall iret, which takes RFLAGS from the kernel's frame: RFLAGS.TF of ours would be
// lost. A vCPU that is about to make it is stepped without running, too.

package engine

import (
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// vectorCall is that of INT by which 32-bit programs call Linux.
const vectorCall = 0x80

// enterKernel makes a step of a program's vCPU that calls the kernel, if it can be
// made so, and tells whether it has.
func (e *redirect) enterKernel(n int) (bool, error) {
	if user, err := e.g.UserMode(n); !user || err != nil {
		return false, err
	}
	r, err := e.g.Registers(n)
	if err != nil {
		return false, err
	}
	ctx, err := e.g.Context(n)
	if err != nil {
		return false, err
	}
	var code [15]byte
	got, _ := e.g.Read(n, r.RIP, code[:])
	i := decode(code[:got], true)
	call := guest.Call{Length: uint64(i.length)}
	switch t := ctx.Traps[vectorCall]; {
	case i.class == syscall:
		call.Handler, call.Masks, call.KeepsInRC = ctx.SyscallCallback, ctx.Flags&xen.VGCFSyscallMasksEvents != 0, true
	case i.class == gated && i.vector == vectorCall:
		call.Handler, call.Masks = t.Address, t.Flags&xen.TrapMasksEvents != 0
	}
	if call.Handler == 0 {
		return false, nil
	}
	return e.g.EnterKernel(n, call)
}

// leaveKernel makes a step of a vCPU whose kernel is about to make the hypercall iret,
// if it is, and tells whether it has.
func (e *redirect) leaveKernel(n int) (bool, error) {
	r, err := e.g.Registers(n)
	if err != nil || r.RAX != guest.HypercallIret || !e.isSyscall(n, r.RIP) {
		return false, err
	}
	return e.g.LeaveKernel(n)
}

// This file is about vCPUs of a PV guest that stand at the parking spot, to
// which their traps were redirected: what their registers were before the trap,
// and how they go on.

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// parking is where traps of a PV guest lead.
type parking struct {
	spot    uint64 // two instructions that jump to themselves: for #DB, and 2 bytes on for #BP; 0: none
	syscall uint64 // a SYSCALL instruction of the guest's own
}

// ParkingBytes is what is planted at the parking spot: JMP to itself, twice.
var ParkingBytes = []byte{0xeb, 0xfe, 0xeb, 0xfe}

// SpotOf gives the address that a trap leads to, by vector: 1 or 3.
func SpotOf(spot uint64, vector uint8) uint64 {
	if vector == 3 {
		return spot + 2
	}
	return spot
}

// parked is a vCPU that a trap has led to the parking spot.
type parked struct {
	vector    uint8 // 1 or 3; 0 if it is on its way back already
	user      bool  // it came from user mode
	cs        uint64
	frame     uint64 // where on its stack the hypervisor has put, or finds, what to go back to
	raw       rawState
	returning bool // frame is one for the iret hypercall
	trapping  bool // it is to execute an INT yet: there is no frame, and only RIP differs
}

// rawState is what a trap has changed of a context.
type rawState struct {
	rax, rcx, r11, rip, rflags, rsp uint64
	cs, ss                          uint16
}

func rawOf(ctx *xen.VCPUContext) rawState {
	return rawState{ctx.RAX, ctx.RCX, ctx.R11, ctx.RIP, ctx.RFLAGS, ctx.RSP, ctx.CS, ctx.SS}
}

func (r rawState) into(ctx *xen.VCPUContext) {
	ctx.RAX, ctx.RCX, ctx.R11, ctx.RIP, ctx.RFLAGS, ctx.RSP = r.rax, r.rcx, r.r11, r.rip, r.rflags, r.rsp
	ctx.CS, ctx.SS = r.cs, r.ss
}

const (
	// trapWords is the size of what the hypervisor puts on a 64-bit guest's stack
	// for a trap without error code: rcx r11 rip cs rflags rsp ss. The upper half
	// of cs holds the event mask (Xen, create_bounce_frame).
	trapWords = 7
	// iretWords is the size of struct iret_context (Xen public header
	// arch-x86/xen-x86_64.h): rax r11 rcx flags rip cs rflags rsp ss.
	iretWords = 9
	// inSyscall in that flags says that rcx and r11 are to get rip and rflags, not
	// what is in the frame (VGCF_in_syscall).
	inSyscall = 1 << 8
	// intSize is the size of an INT instruction.
	intSize = 2
)

// HypercallIret is __HYPERVISOR_iret (Xen public header xen.h).
const HypercallIret = 23

// SetParking tells where redirected traps lead: the address of ParkingBytes, and
// that of a SYSCALL instruction. Zeros end it.
func (g *Guest) SetParking(spot, syscall uint64) {
	g.ledger.setParking(spot, syscall)
	g.parking = parking{spot, syscall}
}

// atParking tells whether planted bytes are those of the parking spot.
func (g *Guest) atParking(p *Plant) bool { return g.parking.spot != 0 && p.addr == g.parking.spot }

// ParkingLost tells whether the guest has overwritten the parking spot, as it does
// with code that it needs only to boot.
// Preconditions: the guest is paused.
func (g *Guest) ParkingLost() bool {
	i := slices.IndexFunc(g.plants, g.atParking)
	return g.parking.spot != 0 && (i < 0 || errors.Is(g.intact(g.plants[i]), ErrRewritten))
}

// LeaveParking undoes what leads vCPUs to the parking spot, and takes that back, so
// that SetParking can tell of another.
// Preconditions: the guest is paused.
func (g *Guest) LeaveParking() error {
	const changes = flagTraps | flagTrapping
	for n := range g.vcpus {
		if !g.ledger.has(n, changes) {
			continue
		}
		if err := g.restore(n, changes); err != nil {
			return err
		}
	}
	return g.unplant(g.atParking)
}

// unpark finds out whether a vCPU whose context was just read stands at the
// parking spot or is on its way back, and gives it the registers from before.
func (g *Guest) unpark(n int, c *vcpu) error {
	c.parked = nil
	ctx := &c.ctx
	if g.parking.spot == 0 || ctx.Flags&xen.VGCFInKernel == 0 {
		return nil
	}
	p := parked{frame: ctx.RSP, raw: rawOf(ctx)}
	words := trapWords
	switch {
	case ctx.RIP == SpotOf(g.parking.spot, 1):
		p.vector = 1
	case ctx.RIP == SpotOf(g.parking.spot, 3):
		p.vector = 3
	case ctx.RIP == g.parking.syscall && ctx.RAX == HypercallIret && g.ledger.has(n, flagReturning):
		p.returning = true
		words = iretWords
	case g.ledger.has(n, flagTrapping):
		if s := g.ledger.softTrap(n); ctx.RIP == s.at {
			c.parked = &parked{cs: uint64(ctx.CS), raw: p.raw, trapping: true}
			ctx.RIP = s.rip
		}
		return nil
	default:
		return nil
	}
	var mem [8 * iretWords]byte
	if got, err := g.mem.read(&c.view, p.frame, mem[:8*words]); err != nil || got < 8*words {
		return fmt.Errorf("vCPU %d is parked, but its stack at %#x cannot be read: %w", n, p.frame, ErrUnmapped)
	}
	g.unwind(c, &p, mem[:8*words])
	if s := g.ledger.softTrap(n); g.ledger.has(n, flagTrapping) && ctx.RIP == s.at+intSize {
		ctx.RIP = s.rip
	}
	return nil
}

// unwind gives a vCPU the registers that it will go on with, from its frame.
func (g *Guest) unwind(c *vcpu, p *parked, frame []byte) {
	ctx := &c.ctx
	w := func(i int) uint64 { return binary.LittleEndian.Uint64(frame[8*i:]) }
	rest := 2 // where rip stands
	if p.returning {
		ctx.RAX, ctx.R11, ctx.RCX = w(0), w(1), w(2)
		rest = 4
	} else {
		ctx.RCX, ctx.R11 = w(0), w(1)
	}
	p.cs = w(rest+1) & 0xffff
	p.user = p.cs&3 == 3
	// In a kernel's frame the hypervisor says ring 0, elsewhere 3.
	ctx.RIP, ctx.CS, ctx.RFLAGS, ctx.RSP, ctx.SS = w(rest), uint16(p.cs)|3, w(rest+2), w(rest+3), uint16(w(rest+4))
	c.parked = p
	if p.user {
		user := *ctx
		user.Flags &^= xen.VGCFInKernel
		c.view = pvView(&user)
	}
}

// sendBack prepares a parked vCPU to go on with the registers in c: a frame for
// the iret hypercall on its stack, and the context that makes that hypercall. The
// hypercall also restores what a context does not show: the event mask, and
// which mode the vCPU is in.
func (g *Guest) sendBack(n int, c *vcpu) (xen.VCPUContext, error) {
	p, ctx := c.parked, c.ctx
	if p.trapping {
		// If the client has moved it, the trap is from there.
		s := g.ledger.softTrap(n)
		s.rip, ctx.RIP = ctx.RIP, s.at
		g.ledger.setSoftTrap(n, s)
		return ctx, nil
	}
	kernel := c.view.ofKernel()
	cs := p.cs
	if ctx.CS|3 != uint16(p.cs)|3 { // the client has chosen another
		cs = uint64(ctx.CS)
	}
	words := [iretWords]uint64{ctx.RAX, ctx.R11, ctx.RCX, 0, ctx.RIP, cs, ctx.RFLAGS, ctx.RSP, uint64(ctx.SS)}
	var mem [8 * iretWords]byte
	for i, w := range words {
		binary.LittleEndian.PutUint64(mem[8*i:], w)
	}
	frame := p.frame
	if !p.returning {
		// Below the trap's own frame, which stays good until the vCPU leaves it.
		frame -= 8 * iretWords
	}
	err := g.mem.write(&kernel, frame, mem[:])
	if errors.Is(err, ErrUnmapped) && !p.returning {
		// The stack is all but full. Then the two frames share what they have in
		// common.
		frame = p.frame - 8*(iretWords-trapWords)
		err = g.mem.write(&kernel, frame, mem[:])
	}
	if err != nil {
		return ctx, fmt.Errorf("vCPU %d cannot be sent back from its trap, its stack is full: %w", n, err)
	}
	p.frame, p.returning, p.vector = frame, true, 0
	p.raw.rax, p.raw.rip, p.raw.rsp = HypercallIret, g.parking.syscall, frame
	g.ledger.set(n, flagReturning, true)
	p.raw.into(&ctx)
	ctx.EntryVector &^= xen.EntryVectorSyscall
	return ctx, nil
}

// ParkedBy gives the vector of the trap that has led a vCPU to the parking spot:
// 1 or 3, or 0 if it does not stand there.
// Preconditions: the guest is paused.
func (g *Guest) ParkedBy(n int) (uint8, error) {
	c, err := g.context(n)
	if err != nil || c.parked == nil {
		return 0, err
	}
	return c.parked.vector, nil
}

// PassTrap lets a parked vCPU go on in the guest's own handler of the trap: what
// the hypervisor has put on its stack is what that expects. With hideTF, RFLAGS.TF is
// taken out of that.
// Preconditions: the guest is paused; ParkedBy(n) != 0.
func (g *Guest) PassTrap(n int, hideTF bool) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	p := c.parked
	handler, err := g.Trap(n, p.vector)
	if err != nil {
		return err
	}
	if hideTF {
		kernel := c.view.ofKernel()
		var w [8]byte
		at := p.frame + 8*4 // rflags
		if _, err := g.mem.read(&kernel, at, w[:]); err != nil {
			return err
		}
		w[1] &^= 1 // bit 8
		if err := g.mem.write(&kernel, at, w[:]); err != nil {
			return err
		}
	}
	p.raw.into(&c.ctx)
	c.ctx.RIP = handler.Address
	c.parked = nil
	err = g.setState(n, c)
	c.fetched = false
	return err
}

// A Call is an instruction by which a program calls its kernel.
type Call struct {
	Handler   uint64 // in the kernel
	Length    uint64 // of the instruction
	Masks     bool   // the handler begins with events masked
	KeepsInRC bool   // RCX and R11 get RIP and RFLAGS, as by SYSCALL (SDM vol. 2B)
}

// kernelCS is the code segment of a 64-bit PV guest's kernel as the hypervisor has it
// on its stack: in ring 0.
const kernelCS = 0xe033 &^ 3

// EnterKernel lets a parked vCPU call its kernel, as the hypervisor would: what the
// trap has put on the kernel's stack is made what the handler expects there. It does
// nothing, and says so, if the vCPU is not parked, or does not come from a program.
// Preconditions: the guest is paused.
func (g *Guest) EnterKernel(n int, call Call) (done bool, err error) {
	c, err := g.context(n)
	if err != nil || c.parked == nil || !c.parked.user {
		return false, err
	}
	p, ctx := c.parked, &c.ctx
	frame := p.frame
	if p.returning {
		frame += 8 * iretWords
	}
	if frame != ctx.KernelSP-8*trapWords {
		return false, nil
	}
	rip, rflags := ctx.RIP+call.Length, ctx.RFLAGS
	if call.KeepsInRC {
		ctx.RCX, ctx.R11 = rip, rflags
	}
	var mem [8 * trapWords]byte
	for i, w := range [trapWords]uint64{ctx.RCX, ctx.R11, rip, p.cs, rflags, ctx.RSP, uint64(ctx.SS)} {
		binary.LittleEndian.PutUint64(mem[8*i:], w)
	}
	kernel := c.view.ofKernel()
	if err := g.mem.write(&kernel, frame, mem[:]); err != nil {
		return false, err
	}
	c.view, p.user, p.cs = kernel, false, kernelCS
	return true, g.Alter(n, func(ctx *xen.VCPUContext) {
		ctx.RIP, ctx.RSP, ctx.CS, ctx.SS = call.Handler, frame, kernelCS|3, p.raw.ss
		ctx.RFLAGS &^= x86.RFLAGSTF | x86.RFLAGSIF | x86.RFLAGSRF
		if !call.Masks {
			ctx.RFLAGS |= x86.RFLAGSIF
		}
	})
}

// LeaveKernel lets a vCPU whose kernel is about to make the hypercall iret be on its
// way back already, by the kernel's own frame: it has the registers from there, and
// will make that hypercall when it runs. It does nothing, and says so, if the vCPU is
// not in the kernel, or the frame cannot be read.
// Preconditions: the guest is paused, and has a parking spot; the vCPU is at a SYSCALL
// instruction with HypercallIret in RAX.
func (g *Guest) LeaveKernel(n int) (done bool, err error) {
	c, err := g.context(n)
	if err != nil || !g.inKernel(c) || g.ledger.has(n, flagTrapping) {
		return false, err
	}
	kernel, ctx := c.view.ofKernel(), &c.ctx
	var frame [8 * iretWords]byte
	if got, err := g.mem.read(&kernel, ctx.RSP, frame[:]); err != nil || got < len(frame) {
		return false, nil
	}
	p := &parked{raw: rawOf(ctx), frame: ctx.RSP, returning: true}
	if c.parked != nil {
		p.raw = c.parked.raw
	}
	g.unwind(c, p, frame[:])
	if binary.LittleEndian.Uint64(frame[8*3:])&inSyscall != 0 {
		// It would go back by SYSRET. Our frame says no such thing.
		ctx.RCX, ctx.R11 = ctx.RIP, ctx.RFLAGS|x86.RFLAGSIF
	}
	err = g.setState(n, c)
	c.fetched = false
	return err == nil, err
}

// StartTrap makes a vCPU that is in the guest's kernel take a trap of its own, #DB
// or int3, as it would have without a debugger: it executes an INT instruction at
// an address, whose entry in the trap table leads to the parking spot meanwhile.
// There, FinishTrap goes on with it.
//
// That way the hypervisor puts the trap on the stack, and saves and masks events,
// which nobody else can.
//
// Preconditions: the guest is PV, paused, and has a parking spot; the vCPU is not
// parked; soft is the instruction's vector, and SoftVector takes it.
func (g *Guest) StartTrap(n int, vector uint8, at uint64, soft uint8) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	g.ledger.setSoftTrap(n, softTrap{at: at, vector: soft, rip: c.ctx.RIP})
	for _, v := range softEntries(soft) {
		c.ctx.Traps[v] = xen.TrapInfo{
			Vector: v, Flags: 3 | xen.TrapMasksEvents, CS: c.ctx.Traps[vector].CS,
			Address: SpotOf(g.parking.spot, vector),
		}
	}
	c.ctx.RIP = at
	c.ctx.EntryVector &^= xen.EntryVectorSyscall
	err = g.setState(n, c)
	c.fetched = false
	return err
}

// softEntries gives the entries of a trap table that an INT may use. The
// hypervisor finds the vector in the error code of a general protection fault,
// where QEMU's emulation of a processor, until version 10 at least, has twice of
// it (do_interrupt64 in target/i386/tcg/seg_helper.c).
func softEntries(soft uint8) [2]uint8 { return [2]uint8{soft, 2 * soft} }

// SoftVector tells whether StartTrap can use INT of a vector: the guest has no
// trap handler for it, and the hypervisor does not keep it for itself, as it does
// int3, INTO and its own system calls (Xen, arch/x86/traps.c).
// Preconditions: the guest is paused and PV.
func (g *Guest) SoftVector(n int, soft uint8) bool {
	c, err := g.context(n)
	if err != nil {
		return false
	}
	for _, v := range softEntries(soft) {
		if v < 32 || v == 0x80 || v == 0x82 || c.ctx.Traps[v].Address != 0 {
			return false
		}
	}
	return true
}

// Trapping tells whether a vCPU is to finish a StartTrap.
func (g *Guest) Trapping(n int) bool { return g.ledger.has(n, flagTrapping) }

// FinishTrap lets a vCPU that StartTrap has brought to the parking spot go on in
// the guest's own handler, as PassTrap does.
// Preconditions: the guest is paused; ParkedBy(n) != 0 and Trapping(n).
func (g *Guest) FinishTrap(n int, hideTF bool) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	s := g.ledger.softTrap(n)
	kernel := c.view.ofKernel()
	if err := g.mem.write(&kernel, c.parked.frame+8*2, binary.LittleEndian.AppendUint64(nil, s.rip)); err != nil {
		return err
	}
	for _, v := range softEntries(s.vector) {
		c.ctx.Traps[v] = xen.TrapInfo{}
	}
	if err := g.PassTrap(n, hideTF); err != nil {
		return err
	}
	g.ledger.set(n, flagTrapping, false)
	return nil
}

// dropTrap takes a StartTrap back. The guest loses its #DB, but will execute its
// int3 again.
func (g *Guest) dropTrap(n int, c *vcpu) {
	s := g.ledger.softTrap(n)
	if c.parked != nil && c.ctx.RIP == s.rip && c.ctx.Traps[s.vector].Address == SpotOf(g.parking.spot, xen.VectorBreakpoint) {
		c.ctx.RIP--
	}
	if c.parked != nil && c.parked.trapping {
		c.parked = nil // there is no frame to go back by
	}
	for _, v := range softEntries(s.vector) {
		c.ctx.Traps[v] = xen.TrapInfo{}
	}
}

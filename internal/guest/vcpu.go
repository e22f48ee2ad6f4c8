// This file reads and writes the registers of vCPUs.

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// ErrReadOnly says that the hypervisor offers no way to change a register.
var ErrReadOnly = errors.New("the hypervisor does not let it be changed from outside")

// isAMD tells whether HVM and PVH guests run on SVM. Tests put another in its
// place.
var isAMD = sync.OnceValue(x86.ThisIsAMD)

// vcpu is a vCPU with what was read of it since the guest was paused.
type vcpu struct {
	asked   bool
	info    xen.VCPUInfo // if asked
	fetched bool
	ctx     xen.VCPUContext
	known   xen.VCPUContext   // what the hypervisor has, of a 64-bit guest
	ctx32   xen.VCPUContext32 // of a 32-bit PV guest; ctx then is its Widen
	ext     xen.ExtState
	// extKnown is what the hypervisor has of ext.Data. Neither is ever changed in
	// place.
	extKnown []byte
	hvm      xen.HVMCPU     // of an HVM or PVH guest
	saved    *xen.VCPUState // to be loaded before ctx, if not nil
	view     view
	parked   *parked // if it stands at the parking spot; ctx then is as before the trap
}

// State is how a vCPU stands.
type State struct {
	xen.VCPUInfo
	UserMode bool // it was stopped outside the guest's kernel
}

// context reads a vCPU's state, once while the guest is paused.
func (g *Guest) context(n int) (*vcpu, error) {
	if !g.paused {
		return nil, ErrNotPaused
	}
	if n < 0 || n >= len(g.vcpus) {
		return nil, fmt.Errorf("vCPU %d: %w", n, xen.ErrNoVCPU)
	}
	c := &g.vcpus[n]
	if c.fetched {
		return c, nil
	}
	if err := g.readContext(n, c); err != nil {
		return nil, err
	}
	ext, err := g.host.VCPUExtState(g.id, n)
	if err != nil {
		return nil, err
	}
	c.ext, c.extKnown = ext, ext.Data
	switch {
	case g.pv32:
		c.view = pv32View(&c.ctx32)
	case g.kind == xen.PV:
		c.view = pvView(&c.ctx)
		if err := g.unpark(n, c); err != nil {
			return nil, err
		}
	default:
		hvm, err := g.host.HVMCPU(g.id, n)
		switch {
		case err == nil:
			c.hvm = hvm
		case g.Held(n) && c.hvm != (xen.HVMCPU{}) && errors.Is(err, xen.ErrVCPUOffline):
			// The save state leaves out a vCPU that is taken off. It has not run
			// since it was.
		default:
			return nil, err
		}
		c.view = hvmView(&c.ctx, c.hvm)
	}
	c.fetched = true
	return c, nil
}

// Alter changes a vCPU's state without reading it back, for changes that the
// hypervisor is known to take: of RIP, RFLAGS and DR6.
// Preconditions: the guest is paused.
func (g *Guest) Alter(n int, change func(ctx *xen.VCPUContext)) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	before := c.ctx.RFLAGS
	change(&c.ctx)
	if before&^c.ctx.RFLAGS&x86.RFLAGSTF != 0 {
		g.ledger.set(n, flagFlagged, false)
	}
	flagged := c.ctx.RFLAGS&^before&x86.RFLAGSTF != 0
	if g.kind == xen.PV {
		c.ctx.EntryVector &^= xen.EntryVectorSyscall
	}
	if err := g.setState(n, c); err != nil {
		return err
	}
	if flagged && g.Stepping(n) {
		g.ledger.set(n, flagFlagged, true)
	}
	return nil
}

// Context gives a vCPU's state as the hypervisor has it, also where the vCPU is
// parked. It holds until the state is changed or the guest resumed.
// Preconditions: the guest is paused and not a 32-bit PV guest.
func (g *Guest) Context(n int) (*xen.VCPUContext, error) {
	c, err := g.context(n)
	if err != nil {
		return nil, err
	}
	return &c.known, nil
}

// readContext reads a vCPU's context in the layout of the guest.
func (g *Guest) readContext(n int, c *vcpu) error {
	if !g.pv32 {
		err := g.host.VCPUContext(g.id, n, &c.ctx)
		c.known = c.ctx
		return err
	}
	err := g.host.VCPUContext32(g.id, n, &c.ctx32)
	c.ctx = c.ctx32.Widen()
	return err
}

// VCPUs gives the numbers of the vCPUs that can be debugged: those that are up
// or, if none is, those that ever were.
func (g *Guest) VCPUs() ([]int, error) { return g.AppendVCPUs(nil) }

// AppendVCPUs is VCPUs, and appends them to a list.
func (g *Guest) AppendVCPUs(up []int) ([]int, error) {
	var known []int
	before := len(up)
	for n := range g.vcpus {
		if g.surelyUp(n) {
			up = append(up, n)
			continue
		}
		info, err := g.schedule(n)
		switch {
		case errors.Is(err, xen.ErrNoVCPU):
			continue
		case err != nil:
			return nil, err
		case info.Online:
			up = append(up, n)
		default:
			known = append(known, n)
		}
	}
	if len(up) > before {
		return up, nil
	}
	for _, n := range known {
		if _, err := g.context(n); err == nil {
			up = append(up, n)
		}
	}
	return up, nil
}

// surelyUp tells whether a vCPU is known to be up without asking: we hold it, or have
// found it parked.
func (g *Guest) surelyUp(n int) bool {
	c := &g.vcpus[n]
	return g.Held(n) || g.paused && c.fetched && c.parked != nil
}

// schedule tells how a vCPU is scheduled. It asks once while the guest is paused.
func (g *Guest) schedule(n int) (xen.VCPUInfo, error) {
	c := &g.vcpus[n]
	if c.asked && g.paused {
		return c.info, nil
	}
	info, err := g.host.VCPUInfo(g.id, n)
	info.Online = info.Online || g.Held(n)
	c.info, c.asked = info, g.paused && err == nil
	return info, err
}

// Scheduled tells how a vCPU is scheduled, without a look at its registers.
func (g *Guest) Scheduled(n int) (xen.VCPUInfo, error) {
	if n < 0 || n >= len(g.vcpus) {
		return xen.VCPUInfo{}, fmt.Errorf("vCPU %d: %w", n, xen.ErrNoVCPU)
	}
	return g.schedule(n)
}

// State tells how a vCPU stands.
func (g *Guest) State(n int) (State, error) {
	c, err := g.context(n)
	if err != nil {
		return State{}, err
	}
	info, err := g.schedule(n)
	return State{VCPUInfo: info, UserMode: g.inUserMode(c)}, err
}

// UserMode tells whether a vCPU was stopped outside the guest's kernel.
// Preconditions: the guest is paused.
func (g *Guest) UserMode(n int) (bool, error) {
	c, err := g.context(n)
	return err == nil && g.inUserMode(c), err
}

// inKernel tells whether the hypervisor takes a vCPU to be in the guest's kernel,
// when it says which GS base is which. A PV kernel runs in ring 3, as its users
// do, so the hypervisor's flag decides.
func (g *Guest) inKernel(c *vcpu) bool {
	switch {
	case c.parked != nil:
		return !c.parked.user
	case g.kind == xen.PV:
		return c.ctx.Flags&xen.VGCFInKernel != 0
	}
	return c.ctx.CS&3 == 0
}

// inUserMode tells whether a vCPU was stopped outside the guest's kernel. The low
// bits of CS are a privilege level in protected mode only; real mode has all
// privileges, virtual-8086 mode none (SDM vol. 3A, sections 5.5 and 20.2).
func (g *Guest) inUserMode(c *vcpu) bool {
	switch {
	case g.kind == xen.PV:
	case c.ctx.ControlRegs[0]&x86.CR0PE == 0:
		return false
	case c.ctx.RFLAGS&x86.RFLAGSVM != 0:
		return true
	}
	return !g.inKernel(c)
}

// gsBases gives where a vCPU's context holds the active GS base, and the one
// that SWAPGS would bring in.
func (g *Guest) gsBases(c *vcpu) (active, other *uint64) {
	if g.inKernel(c) {
		return &c.ctx.GSBaseKernel, &c.ctx.GSBaseUser
	}
	return &c.ctx.GSBaseUser, &c.ctx.GSBaseKernel
}

// Registers reads the registers of a vCPU.
func (g *Guest) Registers(n int) (x86.Registers, error) {
	c, err := g.context(n)
	if err != nil {
		return x86.Registers{}, err
	}
	return g.decode(c), nil
}

// decode takes the registers out of a vCPU's state.
func (g *Guest) decode(c *vcpu) x86.Registers {
	ctx := &c.ctx
	active, other := g.gsBases(c)
	r := x86.Registers{
		RAX: ctx.RAX, RBX: ctx.RBX, RCX: ctx.RCX, RDX: ctx.RDX,
		RSI: ctx.RSI, RDI: ctx.RDI, RBP: ctx.RBP, RSP: ctx.RSP,
		R8: ctx.R8, R9: ctx.R9, R10: ctx.R10, R11: ctx.R11,
		R12: ctx.R12, R13: ctx.R13, R14: ctx.R14, R15: ctx.R15,
		RIP: ctx.RIP, RFLAGS: ctx.RFLAGS,
		CS: ctx.CS, SS: ctx.SS, DS: ctx.DS, ES: ctx.ES, FS: ctx.FS, GS: ctx.GS,
		FSBase: ctx.FSBase, GSBase: *active, KernelGSBase: *other,
		CR0: ctx.ControlRegs[0], CR2: ctx.ControlRegs[2],
		CR3: ctx.ControlRegs[3], CR4: ctx.ControlRegs[4],
		DR0: ctx.DebugRegs[0], DR1: ctx.DebugRegs[1], DR2: ctx.DebugRegs[2], DR3: ctx.DebugRegs[3],
		DR6: ctx.DebugRegs[6], DR7: ctx.DebugRegs[7],
		FX:    ctx.FPU,
		Known: x86.KnownCR2 | x86.KnownHighGPRs | x86.KnownBases,
	}
	switch {
	case g.pv32:
		r.Known &^= x86.KnownHighGPRs | x86.KnownBases
	case !g.contextLosesR8toR15():
	case g.kind == xen.PV:
		r.Known &^= x86.KnownHighGPRs
	default:
		h := &c.hvm.R8toR15
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
	}
	xsave := g.xsave(c)
	xsave.Load(&r)
	if g.kind != xen.PV {
		if g.host.Quirks().SVMStaleCR2 && isAMD() {
			r.CR2 = 0
			r.Known &^= x86.KnownCR2
		}
		r.EFER = c.hvm.EFER
		r.CR8 = uint64(c.hvm.TPR >> 4)
		r.Known |= x86.KnownEFER | x86.KnownCR8
	}
	return r
}

// encode puts registers into a vCPU's state, as far as the hypervisor takes
// them there.
func (g *Guest) encode(c *vcpu, r *x86.Registers) {
	ctx := &c.ctx
	ctx.RAX, ctx.RBX, ctx.RCX, ctx.RDX = r.RAX, r.RBX, r.RCX, r.RDX
	ctx.RSI, ctx.RDI, ctx.RBP, ctx.RSP = r.RSI, r.RDI, r.RBP, r.RSP
	ctx.R8, ctx.R9, ctx.R10, ctx.R11 = r.R8, r.R9, r.R10, r.R11
	ctx.R12, ctx.R13, ctx.R14, ctx.R15 = r.R12, r.R13, r.R14, r.R15
	ctx.RIP, ctx.RFLAGS = r.RIP, r.RFLAGS
	if g.kind == xen.PV {
		ctx.CS, ctx.SS, ctx.DS, ctx.ES, ctx.FS, ctx.GS = r.CS, r.SS, r.DS, r.ES, r.FS, r.GS
		active, other := g.gsBases(c)
		ctx.FSBase, *active, *other = r.FSBase, r.GSBase, r.KernelGSBase
		// A vCPU that came in by SYSCALL would leave by SYSRET and take rip and
		// rflags from rcx and r11; IRET takes what we say.
		ctx.EntryVector &^= xen.EntryVectorSyscall
	} else {
		g.encodeSystem(c, r)
	}
	if r.FX != x86.FXSave(ctx.FPU) {
		ctx.FPU = r.FX
		ctx.Flags |= xen.VGCFI387Valid
	}
	d := &ctx.DebugRegs
	d[0], d[1], d[2], d[3], d[6], d[7] = r.DR0, r.DR1, r.DR2, r.DR3, r.DR6, r.DR7
	if g.pv32 {
		c.ctx32.Narrow(&c.ctx)
		c.ctx = c.ctx32.Widen()
	}
	// setvcpucontext resets what lies beyond SSE, so the whole state goes back
	// after it.
	c.ext.Data = bytes.Clone(c.ext.Data)
	xsave := g.xsave(c)
	xsave.Store(r)
}

// xsave gives a vCPU's XSAVE state.
func (g *Guest) xsave(c *vcpu) x86.XSave {
	return x86.XSave{
		Layout: &g.layout,
		XCR0:   x86.Feature(c.ext.XCR0()),
		Ever:   x86.Feature(c.ext.EverXCR0()),
		Area:   c.ext.Area(),
	}
}

// SetRegisters writes the registers of a vCPU and reads them back: all or,
// with an error, none. ErrReadOnly names one that is to change and cannot.
func (g *Guest) SetRegisters(n int, want x86.Registers) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	if want == g.decode(c) {
		return nil
	}
	if g.contextLosesR8toR15() && g.kind == xen.PV {
		return fmt.Errorf("vCPU %d: writing a register would zero r8 to r15: %w (fixed in Xen 4.21.2)", n, xen.ErrQuirk)
	}
	if err := g.checkSystem(c, &want); err != nil {
		return fmt.Errorf("vCPU %d: %w", n, err)
	}
	// What does not come out again as it went in cannot be written.
	next := *c
	g.encode(&next, &want)
	if got := g.decode(&next); got != want {
		return fmt.Errorf("vCPU %d: %s: %w", n, x86.Difference(&got, &want), ErrReadOnly)
	}

	before := *c
	before.known = xen.VCPUContext{} // to be written whatever comes of the next write
	if err := g.prepareSystem(n, &before, &next, &want); err != nil {
		return fmt.Errorf("vCPU %d: %w", n, err)
	}
	c.fetched = false
	if err := g.setState(n, &next); err != nil {
		return errors.Join(err, g.setState(n, &before))
	}
	got, err := g.Registers(n)
	if err != nil {
		return errors.Join(err, g.setState(n, &before))
	}
	if got != want {
		c.fetched = false
		return errors.Join(
			fmt.Errorf("vCPU %d: %s: the hypervisor did not take the value", n, x86.Difference(&got, &want)),
			g.setState(n, &before))
	}
	return nil
}

// setState writes a vCPU's state, as far as the hypervisor does not have it so.
func (g *Guest) setState(n int, c *vcpu) error {
	if g.pv32 {
		g.ledger.setExt(n, c.ext)
		if err := g.host.SetVCPUContext32(g.id, n, &c.ctx32); err != nil {
			return err
		}
		return g.setExt(n, c.ext)
	}
	ctx := c.ctx
	if c.parked != nil {
		var err error
		if ctx, err = g.sendBack(n, c); err != nil {
			return err
		}
	}
	if c.saved == nil && ctx == c.known && bytes.Equal(c.ext.Data, c.extKnown) {
		return nil
	}
	g.ledger.setExt(n, c.ext)
	done, err := g.setSystem(n, c)
	if err != nil {
		return err
	}
	if c.saved != nil {
		g.ledger.setExt(n, c.ext) // others may have been written
	}
	if !done && (c.saved != nil || ctx != c.known) {
		c.known = xen.VCPUContext{}
		if err := g.host.SetVCPUContext(g.id, n, &ctx); err != nil {
			return err
		}
	}
	// setvcpucontext has reset what lies beyond SSE.
	c.known = xen.VCPUContext{}
	if err := g.setExt(n, c.ext); err != nil {
		return err
	}
	c.known, c.extKnown = ctx, c.ext.Data
	return nil
}

// setExt gives a vCPU back what writing its context has reset, as the ledger has it.
func (g *Guest) setExt(n int, s xen.ExtState) error {
	if err := g.host.SetVCPUExtState(g.id, n, s); err != nil {
		return err
	}
	g.ledger.endExt()
	return nil
}

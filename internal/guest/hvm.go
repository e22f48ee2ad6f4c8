// This file writes those registers of HVM and PVH guests that setvcpucontext
// leaves alone: segment and control registers. They go in by the save state of
// the guest.

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// ErrInvalid says that a processor cannot have such a value in a register, at
// least not together with the values of others.
var ErrInvalid = errors.New("no processor takes this value")

// system is the registers that need the save state to be written.
type system struct {
	selectors                   [6]uint16
	fsBase, gsBase, otherGSBase uint64
	cr0, cr2, cr3, cr4, cr8     uint64
	efer                        uint64
}

func systemOf(r *x86.Registers) system {
	return system{
		selectors: [6]uint16{r.CS, r.DS, r.ES, r.FS, r.GS, r.SS},
		fsBase:    r.FSBase, gsBase: r.GSBase, otherGSBase: r.KernelGSBase,
		cr0: r.CR0, cr2: r.CR2, cr3: r.CR3, cr4: r.CR4, cr8: r.CR8,
		efer: r.EFER,
	}
}

// segmentNames are those of the selectors of system, which stand in it in the
// order of a xen.SavedCPU.
var segmentNames = [6]string{xen.SegCS: "cs", xen.SegDS: "ds", xen.SegES: "es", xen.SegFS: "fs", xen.SegGS: "gs", xen.SegSS: "ss"}

// encodeSystem puts those registers where decode takes them from.
func (g *Guest) encodeSystem(c *vcpu, r *x86.Registers) {
	ctx := &c.ctx
	ctx.CS, ctx.SS, ctx.DS, ctx.ES, ctx.FS, ctx.GS = r.CS, r.SS, r.DS, r.ES, r.FS, r.GS
	active, other := g.gsBases(c)
	ctx.FSBase, *active, *other = r.FSBase, r.GSBase, r.KernelGSBase
	ctx.ControlRegs[0], ctx.ControlRegs[3], ctx.ControlRegs[4] = r.CR0, r.CR3, r.CR4
	if r.Known&x86.KnownCR2 != 0 {
		ctx.ControlRegs[2] = r.CR2
	}
	c.hvm.EFER = r.EFER
	c.hvm.TPR = c.hvm.TPR&0xf | uint8(r.CR8)<<4
	c.hvm.R8toR15 = [8]uint64{r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
}

// contextLosesR8toR15 tells whether the general registers cannot go by
// setvcpucontext either.
func (g *Guest) contextLosesR8toR15() bool { return g.host.Quirks().ContextLosesR8toR15 && !g.pv32 }

// prepareSystem makes the save states that have a vCPU's registers before and
// after a change, if the change needs that.
func (g *Guest) prepareSystem(n int, before, after *vcpu, want *x86.Registers) error {
	old := g.decode(before)
	was, is := systemOf(&old), systemOf(want)
	if g.kind == xen.PV || was == is && !g.contextLosesR8toR15() {
		return nil
	}
	state, err := g.host.VCPUState(g.id, isAMD())
	if err != nil {
		return err
	}
	cpu, err := state.CPU(n)
	if err != nil {
		return err
	}
	if err := g.loadSegments(n, &cpu, &was, &is, want.RFLAGS); err != nil {
		return err
	}
	cpu.ShadowGS = is.otherGSBase
	cpu.CR0, cpu.CR3, cpu.CR4, cpu.EFER = is.cr0, is.cr3, is.cr4, is.efer
	if want.Known&x86.KnownCR2 != 0 {
		cpu.CR2 = is.cr2
	}
	cpu.RAX, cpu.RBX, cpu.RCX, cpu.RDX = want.RAX, want.RBX, want.RCX, want.RDX
	cpu.RSI, cpu.RDI, cpu.RBP, cpu.RSP = want.RSI, want.RDI, want.RBP, want.RSP
	cpu.R8toR15 = after.hvm.R8toR15
	cpu.RIP, cpu.RFLAGS = want.RIP, want.RFLAGS
	cpu.DR, cpu.DR6, cpu.DR7 = [4]uint64{want.DR0, want.DR1, want.DR2, want.DR3}, want.DR6, want.DR7
	if want.FX != old.FX {
		cpu.FPU = want.FX
		cpu.Flags |= xen.SavedFPUValid
	}
	before.saved, after.saved = state, state.Clone()
	after.saved.SetCPU(n, cpu)
	if was.cr8 != is.cr8 {
		before.saved.SetTPR(n, before.hvm.TPR)
		after.saved.SetTPR(n, after.hvm.TPR)
	}
	return nil
}

// setSystem loads a vCPU's save state, if it has one. done tells that this has
// set all that setvcpucontext would.
func (g *Guest) setSystem(n int, c *vcpu) (done bool, err error) {
	if c.saved == nil {
		return false, nil
	}
	if err := g.host.SetVCPUState(g.id, c.saved); err != nil {
		return false, fmt.Errorf("vCPU %d: %w", n, err)
	}
	return g.contextLosesR8toR15(), g.holdAgain(n)
}

// holdAgain takes off those vCPUs that are held, but for one: loading a save state
// has brought all of them up.
func (g *Guest) holdAgain(except int) error {
	for n := range g.vcpus {
		if n == except || !g.Held(n) {
			continue
		}
		c, err := g.context(n)
		if err != nil {
			return err
		}
		c.ctx.Flags &^= xen.VGCFOnline
		c.known = xen.VCPUContext{}
		if err := g.setState(n, c); err != nil {
			return err
		}
	}
	return nil
}

// checkSystem refuses control registers with which the processor would not enter
// an HVM or PVH guest: the hypervisor looks at each alone, and then kills the
// domain.
func (g *Guest) checkSystem(c *vcpu, want *x86.Registers) error {
	old := g.decode(c)
	was, is := systemOf(&old), systemOf(want)
	if g.kind == xen.PV || was == is {
		return nil
	}
	const nw, cd, lme = 1 << 29, 1 << 30, 1 << 8
	paging := is.cr0&x86.CR0PG != 0
	bad := func(name, why string) error { return fmt.Errorf("%s: %w: %s", name, ErrInvalid, why) }
	switch {
	case paging && is.cr0&x86.CR0PE == 0:
		return bad("cr0", "paging (PG) needs protection (PE)")
	case is.cr0&(nw|cd) == nw:
		return bad("cr0", "NW needs CD")
	case (is.efer&x86.EFERLMA != 0) != (is.efer&lme != 0 && paging):
		return bad("efer", "LMA is set if, and only if, LME and cr0's PG are")
	case is.efer&x86.EFERLMA != 0 && is.cr4&x86.CR4PAE == 0:
		return bad("cr4", "64-bit mode (efer's LMA) needs PAE")
	case is.cr8 > 15:
		return bad("cr8", "it has 4 bits")
	}
	if paging && (was.cr3 != is.cr3 || was.cr0 != is.cr0 || was.cr4 != is.cr4 || was.efer != is.efer) {
		top := x86.RootOf[uint64](x86.ModeOf(is.cr0, is.cr4, is.efer), is.cr3)
		if err := g.mem.hasTable(top); err != nil {
			return fmt.Errorf("cr3: %w: the guest has no memory there: %w", ErrInvalid, err)
		}
	}
	return nil
}

func (m *frames[F]) hasTable(r root) error {
	_, err := m.Table(F(r.Frame))
	return err
}

// loadSegments loads the segment registers that are to change, as the processor
// would: with what their descriptors say. The bases of FS and GS are registers of
// their own.
func (g *Guest) loadSegments(n int, cpu *xen.SavedCPU, was, is *system, rflags uint64) error {
	changed := false
	for i, selector := range is.selectors {
		if selector == was.selectors[i] {
			continue
		}
		changed = true
		if err := g.loadSegment(n, cpu, i, selector, is, rflags); err != nil {
			return fmt.Errorf("%s: %w", segmentNames[i], err)
		}
	}
	cpu.Bases[xen.SegFS], cpu.Bases[xen.SegGS] = is.fsBase, is.gsBase
	if !changed {
		return nil
	}
	switch cs, ss := cpu.Attributes[xen.SegCS], cpu.Attributes[xen.SegSS]; {
	case is.cr0&x86.CR0PE == 0:
	case rflags&x86.RFLAGSVM != 0:
		for i, selector := range is.selectors {
			if cpu.Bases[i] != uint64(selector)<<4 {
				return fmt.Errorf("%s_base: %w: in virtual-8086 mode it is 16 times the selector", segmentNames[i], ErrInvalid)
			}
		}
	case is.selectors[xen.SegCS]&3 != is.selectors[xen.SegSS]&3,
		ss>>5&3 != uint32(is.selectors[xen.SegSS]&3),
		cs&conforming == 0 && cs>>5&3 != uint32(is.selectors[xen.SegCS]&3):
		return fmt.Errorf("cs, ss: %w: they have to have the same privilege level, and so have to be written together", ErrInvalid)
	}
	return nil
}

// Bits of a segment's attributes (SDM vol. 3A, section 3.4.5).
const (
	accessed   = 1 << 0
	writable   = 1 << 1 // of data; of code: readable
	conforming = 1 << 2 // of code
	code       = 1 << 3
	noSystem   = 1 << 4
	present    = 1 << 7
	longCode   = 1 << 9
	big        = 1 << 10
	pages      = 1 << 11 // the limit counts pages
)

func (g *Guest) loadSegment(n int, cpu *xen.SavedCPU, i int, selector uint16, is *system, rflags uint64) error {
	ownBase := i == xen.SegFS || i == xen.SegGS
	cpu.Selectors[i] = uint32(selector)
	if is.cr0&x86.CR0PE == 0 || rflags&x86.RFLAGSVM != 0 {
		if !ownBase {
			cpu.Bases[i] = uint64(selector) << 4
		}
		return nil
	}
	long := is.efer&x86.EFERLMA != 0
	if selector&^3 == 0 {
		// No descriptor: the segment cannot be used, but in 64-bit mode, where
		// the stack needs none.
		if i == xen.SegCS || i == xen.SegSS && !(long && cpu.Attributes[xen.SegCS]&longCode != 0 && selector != 3) {
			return fmt.Errorf("%w: it may not be null here", ErrInvalid)
		}
		cpu.Attributes[i], cpu.Limits[i] = uint32(selector&3)<<5, 0
		if !ownBase {
			cpu.Bases[i] = 0
		}
		return nil
	}
	d, err := g.descriptor(n, cpu, selector)
	if err != nil {
		return err
	}
	attributes := uint32(d>>40&0xff | d>>52&0xf<<8)
	limit := uint32(d&0xffff | d>>48&0xf<<16)
	if attributes&pages != 0 {
		limit = limit<<12 | 0xfff
	}
	wrong := ""
	switch isCode := attributes&code != 0; {
	case attributes&noSystem == 0 || attributes&present == 0:
		wrong = "that of no present segment"
	case i == xen.SegCS && !isCode:
		wrong = "not that of code"
	case i == xen.SegCS && long && attributes&(longCode|big) == longCode|big:
		wrong = "of code of 64 and of 32 bits"
	case i == xen.SegSS && (isCode || attributes&writable == 0):
		wrong = "not that of data that can be written"
	case isCode && i != xen.SegCS && attributes&writable == 0:
		wrong = "of code that cannot be read"
	}
	if wrong != "" {
		return fmt.Errorf("%w: its descriptor %#016x is %s", ErrInvalid, d, wrong)
	}
	cpu.Attributes[i], cpu.Limits[i] = attributes|accessed, limit
	if !ownBase {
		cpu.Bases[i] = d>>16&0xff_ffff | d>>56<<24
	}
	return nil
}

// descriptor reads the descriptor that a selector names.
func (g *Guest) descriptor(n int, cpu *xen.SavedCPU, selector uint16) (uint64, error) {
	table, name := xen.SegGDTR, "GDT"
	if selector&4 != 0 {
		table, name = xen.SegLDTR, "LDT"
		if cpu.Attributes[table]&present == 0 {
			return 0, fmt.Errorf("%w: the guest has no LDT", ErrInvalid)
		}
	}
	if uint32(selector|7) > cpu.Limits[table] {
		return 0, fmt.Errorf("%w: selector %#x is beyond the end of the %s", ErrInvalid, selector, name)
	}
	var d [8]byte
	at := cpu.Bases[table] + uint64(selector&^7)
	if got, err := g.Read(n, at, d[:]); got < len(d) {
		return 0, fmt.Errorf("%w: its descriptor in the %s at %#x cannot be read: %w", ErrInvalid, name, at, errors.Join(err, ErrUnmapped))
	}
	return binary.LittleEndian.Uint64(d[:]), nil
}

// This file lends vCPUs debug registers, and keeps account of which are whose: the
// guest sets its own too while it runs.

package guest

import "gdbserver-xen/xen"

// debugRegs are a vCPU's debug registers but for DR6.
type debugRegs struct {
	addr [4]uint64 // DR0 to DR3
	dr7  uint64
}

func debugRegsOf(ctx *xen.VCPUContext) debugRegs {
	return debugRegs{[4]uint64(ctx.DebugRegs[:4]), ctx.DebugRegs[7]}
}

// dr7Rest is what of DR7 is about no single register (SDM vol. 3B, section 18.2.4).
const dr7Rest = ^uint64(0xffff_00ff)

// enableOf gives the bits of DR7 that switch DR0 to DR3 on.
func enableOf(i int) uint64 { return 3 << (2 * i) }

// partOf gives all that DR7 has of one of DR0 to DR3.
func partOf(i int) uint64 { return enableOf(i) | 0xf<<(16+4*i) }

// same tells whether one of DR0 to DR3 is the same in both, and does the same.
func (d *debugRegs) same(o *debugRegs, i int) bool {
	return d.addr[i] == o.addr[i] && (d.dr7^o.dr7)&partOf(i) == 0
}

// lent is the account of a vCPU's debug registers. What is there but was not set by
// us is the guest's.
type lent struct {
	own  debugRegs // the guest's
	set  debugRegs // what we have set in their place
	next debugRegs // what we are about to set, else the same
}

// adopt makes the guest's own what it has changed.
func (l *lent) adopt(now debugRegs) {
	for i := range now.addr {
		if now.same(&l.set, i) || now.same(&l.next, i) {
			continue
		}
		l.own.dr7 = l.own.dr7&^partOf(i) | now.dr7&partOf(i)
		// Linux switches breakpoints by DR7 alone, all at once. An address of ours
		// that is only off now is not the guest's.
		ours := now.addr[i] == l.set.addr[i] || now.addr[i] == l.next.addr[i]
		if !ours || now.dr7&enableOf(i) != 0 {
			l.own.addr[i] = now.addr[i]
		}
	}
	if (now.dr7^l.set.dr7)&dr7Rest != 0 && (now.dr7^l.next.dr7)&dr7Rest != 0 {
		l.own.dr7 = l.own.dr7&^dr7Rest | now.dr7&dr7Rest
	}
}

// ours tells which of DR0 to DR3 are on and ours, as bits.
// Preconditions: now was adopted.
func (l *lent) ours(now debugRegs) (bits uint64) {
	for i := range now.addr {
		if now.dr7&enableOf(i) != 0 && !now.same(&l.own, i) {
			bits |= 1 << i
		}
	}
	return bits
}

// lent gives the account of a vCPU's debug registers as they are now.
func (g *Guest) lent(n int, c *vcpu) lent {
	now := debugRegsOf(&c.ctx)
	if !g.ledger.has(n, flagDebug) {
		return lent{now, now, now}
	}
	l := g.ledger.lent(n)
	l.adopt(now)
	return l
}

// SetDebugRegs gives a vCPU the debug registers DR0 to DR3, of which dr7 says what
// they do, in place of its own. What it has set itself since the last time is its own
// from then on.
// Preconditions: the guest is paused.
func (g *Guest) SetDebugRegs(n int, addr [4]uint64, dr7 uint64) error {
	c, err := g.context(n)
	if err != nil {
		return err
	}
	l := g.lent(n, c)
	l.next = debugRegs{addr, dr7}
	g.ledger.setLent(n, l)
	r := g.decode(c)
	r.DR0, r.DR1, r.DR2, r.DR3, r.DR7 = addr[0], addr[1], addr[2], addr[3], dr7
	if err := g.SetRegisters(n, r); err != nil {
		return err
	}
	l.set = l.next
	g.ledger.setLent(n, l)
	return nil
}

// OwnDebugRegs gives the debug registers that a vCPU has itself, or would have
// without SetDebugRegs.
// Preconditions: the guest is paused.
func (g *Guest) OwnDebugRegs(n int) (addr [4]uint64, dr7 uint64, err error) {
	c, err := g.context(n)
	if err != nil {
		return addr, 0, err
	}
	l := g.lent(n, c)
	return l.own.addr, l.own.dr7, nil
}

// OurDebugRegs tells which of a vCPU's debug registers DR0 to DR3 are on and are not
// its own, as bits: those that DR6 has for them.
// Preconditions: the guest is paused.
func (g *Guest) OurDebugRegs(n int) (uint64, error) {
	c, err := g.context(n)
	if err != nil {
		return 0, err
	}
	l := g.lent(n, c)
	return l.ours(debugRegsOf(&c.ctx)), nil
}

// returnDebugRegs puts a vCPU's own debug registers into its context. DR6 is the
// guest's already, but for what debug registers of ours have left in it.
func (g *Guest) returnDebugRegs(n int, c *vcpu) {
	l := g.lent(n, c)
	d := &c.ctx.DebugRegs
	d[6] &^= l.ours(debugRegsOf(&c.ctx))
	copy(d[:4], l.own.addr[:])
	d[7] = l.own.dr7
}

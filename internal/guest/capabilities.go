// This file works out what can be done with a guest, by trying.

package guest

import (
	"fmt"
	"strings"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// A Capability is something that can be done with a guest, or cannot.
type Capability struct {
	Name   string // as "memory write"
	Can    bool
	Detail string // by what means, or why not
}

// The capabilities of a guest.
const (
	registersRead  = "registers read"
	registersWrite = "registers write"
	memoryRead     = "memory read"
	memoryWrite    = "memory write"
)

// Capabilities tries what can be read and written. It changes nothing: for the
// writes it only asks the hypervisor for the means.
// Preconditions: the guest is paused.
func (g *Guest) Capabilities() []Capability {
	n, c := g.first()
	if c == nil {
		const why = "no vCPU has state"
		return []Capability{
			{Name: registersRead, Detail: why},
			{Name: registersWrite, Detail: why},
			{Name: memoryRead, Detail: why},
			{Name: memoryWrite, Detail: why},
		}
	}
	return []Capability{
		g.canReadRegisters(c),
		g.canWriteRegisters(),
		g.canReadMemory(n, c),
		g.canWriteMemory(c),
	}
}

// first gives the first vCPU that has state, or nil.
// Preconditions: the guest is paused.
func (g *Guest) first() (int, *vcpu) {
	for n := range g.vcpus {
		if c, err := g.context(n); err == nil {
			return n, c
		}
	}
	return 0, nil
}

func (g *Guest) canReadRegisters(c *vcpu) Capability {
	r := Capability{Name: registersRead}
	have := []string{"general, segment, control, debug, x87, SSE"}
	var lack []string
	known := g.decode(c).Known
	for _, part := range []struct {
		name  string
		known x86.Known
		has   bool
	}{
		{"r8 to r15", x86.KnownHighGPRs, true},
		{"bases", x86.KnownBases, true},
		{"cr2", x86.KnownCR2, true},
		{"efer", x86.KnownEFER, true},
		{"cr8", x86.KnownCR8, true},
		{"AVX", x86.KnownAVX, g.features&x86.FeatureAVX != 0},
		{"AVX-512", x86.KnownAVX512, g.features&x86.FeatureAVX512 == x86.FeatureAVX512},
		{"pkru", x86.KnownPKRU, g.features&x86.FeaturePKRU != 0},
	} {
		switch {
		case known&part.known != 0:
			have = append(have, part.name)
		case part.has:
			lack = append(lack, part.name)
		}
	}
	r.Can = true
	r.Detail = strings.Join(have, ", ")
	if len(lack) > 0 {
		r.Detail += "; not known: " + strings.Join(lack, ", ")
	}
	return r
}

func (g *Guest) canWriteRegisters() Capability {
	r := Capability{Name: registersWrite}
	switch {
	case g.contextLosesR8toR15() && g.kind == xen.PV:
		r.Detail = "this release of Xen would zero r8 to r15 (fixed in 4.21.2)"
	case g.kind == xen.PV:
		r.Can = true
		r.Detail = "all that are known but cr0, cr2, cr3 and cr4, which Xen does not take"
	default:
		r.Can = true
		r.Detail = "all that are known"
	}
	return r
}

func (g *Guest) canReadMemory(n int, c *vcpu) Capability {
	r := Capability{Name: memoryRead}
	frames := "guest"
	if g.kind == xen.PV {
		frames = "machine"
	}
	means := fmt.Sprintf("%v page tables of %s frames", c.view.mode, frames)
	var b [1]byte
	if _, err := g.Read(n, c.ctx.RSP, b[:]); err != nil {
		if _, ipErr := g.Read(n, c.ctx.RIP, b[:]); ipErr != nil {
			r.Detail = fmt.Sprintf("%s; neither at rsp nor at rip: %v", means, err)
			return r
		}
	}
	r.Can, r.Detail = true, means
	return r
}

func (g *Guest) canWriteMemory(c *vcpu) Capability {
	r := Capability{Name: memoryWrite}
	if err := g.mem.writable(&c.view, c.ctx.RSP); err != nil {
		if ipErr := g.mem.writable(&c.view, c.ctx.RIP); ipErr != nil {
			r.Detail = err.Error()
			return r
		}
	}
	r.Can = true
	if g.kind == xen.PV {
		r.Detail = "all but live page tables and descriptor tables, which Xen protects"
	} else {
		r.Detail = "all of the guest's memory"
	}
	return r
}

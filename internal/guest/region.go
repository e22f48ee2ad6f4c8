// This file tells what a guest has mapped where.

package guest

import (
	"fmt"

	"gdbserver-xen/x86"
)

// Region gives the region of memory, as a vCPU sees it, that an address is in, by
// the guest's page tables. What they map need not be memory.
func (g *Guest) Region(vcpu int, addr uint64) (x86.Region, error) {
	v, err := g.view(vcpu)
	if err != nil {
		return x86.Region{}, err
	}
	r, err := g.mem.region(v, addr)
	if err != nil {
		return x86.Region{}, fmt.Errorf("vCPU %d: %w", vcpu, err)
	}
	return r, nil
}

func (m *frames[F]) region(v *view, addr uint64) (x86.Region, error) {
	if err := m.makeRoom(); err != nil {
		return x86.Region{}, err
	}
	root := func(addr uint64) x86.Root[F] {
		r := v.root(addr)
		return x86.Root[F]{Frame: F(r.Frame), Offset: r.Offset}
	}
	return x86.RegionAt(v.mode, root, addr, x86.Tables[F](m))
}

// This file tells a client what the guest has mapped where.

package debugger

import "gdbserver-xen/rsp"

var _ rsp.Mapper = &Target{}

// MemoryRegion gives the region of memory that an address is in.
func (t *Target) MemoryRegion(id rsp.ThreadID, addr uint64) (rsp.MemoryRegion, error) {
	r, err := t.guest.Region(t.vcpu(id), addr)
	if err != nil {
		return rsp.MemoryRegion{}, clientError(err)
	}
	return rsp.MemoryRegion{Start: r.Start, Last: r.Last, Mapped: r.Mapped, Writable: r.Writable, Executable: r.Execute}, nil
}

// This file keeps which frames of a domain the hypervisor was told of that they have
// been written.

package xentest

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// Modified tells whether the hypervisor was told that a frame has been written through a
// mapping.
func (d *Domain) Modified(frame uint64) bool {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.modified[frame]
}

// modifiedMemory is an operation of dm_op.
func (d *Domain) modifiedMemory(b, extents []byte) unix.Errno {
	le := binary.LittleEndian
	n := int(le.Uint32(b[8:]))
	if le.Uint32(b[12:]) != 0 || len(extents) != n*16 {
		return unix.EINVAL
	}
	for e := range slices.Chunk(extents, 16) {
		for f := range uint64(le.Uint32(e)) {
			d.modified[le.Uint64(e[8:])+f] = true
		}
	}
	return 0
}

// mmuUpdate is the hypercall mmu_update, for frames that are mapped for writing and
// words that are what they were.
func (c *conn) mmuUpdate(args [5]uint64) unix.Errno {
	if errno := c.x.enter(OpMMUUpdate); errno != 0 {
		return errno
	}
	d := c.x.domains[uint16(args[3])]
	switch {
	case d == nil:
		return unix.ESRCH
	case d.Kind != xen.PV, args[3]>>16 != uint64(d.ID)+1:
		return unix.EINVAL
	}
	updates, errno := c.at(args[0], int(args[1])*16)
	if errno != 0 {
		return errno
	}
	le := binary.LittleEndian
	for u := range slices.Chunk(updates, 16) {
		ptr := le.Uint64(u)
		f := d.frames[ptr/xen.PageSize]
		if f == nil || ptr%8 != 0 || f.writeErrno != 0 {
			return unix.EINVAL
		}
		word := d.frame(ptr / xen.PageSize)[ptr%xen.PageSize:]
		if le.Uint64(word) != le.Uint64(u[8:]) {
			c.x.t.Errorf("xentest: %v: mmu_update changes %#x", d, ptr)
		}
		d.modified[ptr/xen.PageSize] = true
	}
	return 0
}

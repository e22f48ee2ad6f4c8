// This file tells the hypervisor what was written through mappings, which it does
// not see: a live migration sends memory that has changed once more, as far as the
// hypervisor knows.

package xen

import (
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// modifiedSize is what describes a frame, of a PV domain or another, in bytes.
	modifiedSize = 16
	// modifiedMost is how many frames one call names at the most.
	modifiedMost = 256
)

// GuestFramesModified says that frames of an HVM or PVH domain were written. Those that
// the hypervisor does not take are left out: while it keeps a log of dirty frames, it
// refuses the highest of all.
func (h *Host) GuestFramesModified(domain DomID, frames []GFN) error {
	for some := range slices.Chunk(frames, modifiedMost) {
		err := h.guestFramesModified(domain, some)
		if errors.Is(err, unix.EINVAL) {
			err = nil // of which is not said, nor which were done
			for one := range slices.Chunk(some, 1) {
				if e := h.guestFramesModified(domain, one); !errors.Is(e, unix.EINVAL) {
					err = errors.Join(err, e)
				}
			}
		}
		if err != nil {
			return asDomainError(opError("XEN_DMOP_modified_memory", int(domain), err))
		}
	}
	return nil
}

func (h *Host) guestFramesModified(domain DomID, frames []GFN) error {
	// struct xen_dm_op: op u32 @0, nr_extents u32 @8, opaque u32 @12; 32 bytes. An
	// extent, in a buffer of their own: nr u32 @0, first_pfn u64 @8 (Xen public
	// header hvm/dm_op.h).
	const (
		modifiedMemory = 11
		size           = 32
	)
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(size + len(frames)*modifiedSize)
	clear(mem)
	le := binary.LittleEndian
	le.PutUint32(mem, modifiedMemory)
	le.PutUint32(mem[8:], uint32(len(frames)))
	for i, f := range frames {
		extent := mem[size+i*modifiedSize:]
		le.PutUint32(extent, 1)
		le.PutUint64(extent[8:], uint64(f))
	}
	h.putBuffers(addr, size, len(frames)*modifiedSize)
	_, err := h.call(hypercallDMOp, uint64(domain), 2, address(h.buffer, 0))
	return err
}

// putBuffers describes the buffers of a dm_op, which follow each other at addr.
// Preconditions: h.mu is held.
func (h *Host) putBuffers(addr uint64, sizes ...int) {
	// struct xen_dm_op_buf: address @0, size u64 @8 (Xen public header hvm/dm_op.h).
	le := binary.LittleEndian
	for i, size := range sizes {
		le.PutUint64(h.buffer[16*i:], addr)
		le.PutUint64(h.buffer[16*i+8:], uint64(size))
		addr += uint64(size)
	}
}

// MachineFramesModified says that frames of a PV domain were written, each at an
// offset. There is no call for that; what is done instead is to have the hypervisor
// write there what stands there. Frames that cannot be written any more are left out.
// A dom0 that is not PV has no way to say so, and this does nothing there.
// Preconditions: the domain is paused; len(offsets) == len(frames).
func (h *Host) MachineFramesModified(domain DomID, frames []MFN, offsets []int) error {
	for len(frames) > 0 {
		n := min(len(frames), modifiedMost)
		if err := h.machineFramesModified(domain, frames[:n], offsets[:n]); err != nil {
			return err
		}
		frames, offsets = frames[n:], offsets[n:]
	}
	return nil
}

func (h *Host) machineFramesModified(domain DomID, frames []MFN, offsets []int) (err error) {
	// While they are mapped for writing, they cannot become page tables, to which the
	// hypervisor would not write what stands there.
	m, err := h.MapMachineFrames(domain, frames, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	h.mu.Lock()
	defer h.mu.Unlock()
	// struct mmu_update: ptr u64 @0, val u64 @8; ptr is a machine address, whose low
	// bits say what to do (Xen public header xen.h).
	mem, addr := h.payload(len(frames) * modifiedSize)
	le := binary.LittleEndian
	count := 0
	for i, f := range frames {
		page, err := m.Page(i)
		if err != nil {
			continue
		}
		at := offsets[i] &^ 7
		update := mem[count*modifiedSize:]
		le.PutUint64(update, uint64(f)*PageSize+uint64(at)|mmuNormalUpdate)
		le.PutUint64(update[8:], le.Uint64(page[at:]))
		count++
	}
	if count == 0 {
		return nil
	}
	_, err = h.call(hypercallMMUUpdate, addr, uint64(count), 0, foreign(domain))
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return asDomainError(opError("mmu_update", int(domain), err))
}

// mmuNormalUpdate is a write of one word (MMU_NORMAL_PT_UPDATE).
const mmuNormalUpdate = 0

// foreign is how mmu_update names the domain whose memory is written, and whose
// frames are what is written.
func foreign(domain DomID) uint64 { return uint64(domain) | (uint64(domain)+1)<<16 }

// This file holds the calls that tell of written memory against Xen's public headers.

package xen

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGuestFramesModified(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		w, h := newWire(t, release)
		var want, got []GFN
		for f := range GFN(modifiedMost + 2) {
			want = append(want, f+7)
		}
		calls := 0
		w.other = func(op uint64, args [5]uint64) (int64, error) {
			calls++
			size := w.off("sizeof(struct xen_dm_op_buf)")
			if int(op) != w.off("__HYPERVISOR_dm_op") || args[0] != 5 || args[1] != 2 {
				t.Errorf("hypercall %d of domain %d with %d buffers", op, args[0], args[1])
			}
			bufs := w.at(args[2], 2*size)
			b := w.at(w.u64(bufs, "xen_dm_op_buf.h"), int(w.u64(bufs, "xen_dm_op_buf.size")))
			extents := w.at(w.u64(bufs[size:], "xen_dm_op_buf.h"), int(w.u64(bufs[size:], "xen_dm_op_buf.size")))
			each := w.off("sizeof(struct xen_dm_op_modified_memory_extent)")
			if len(b) != w.off("sizeof(struct xen_dm_op)") {
				t.Errorf("operation of %d bytes", len(b))
			}
			w.u32(b, "xen_dm_op.op", uint32(w.off("XEN_DMOP_modified_memory")))
			w.u32(b, "xen_dm_op.u.modified_memory.nr_extents", uint32(len(extents)/each))
			w.u32(b, "xen_dm_op.u.modified_memory.opaque", 0)
			for e := range slices.Chunk(extents, each) {
				w.u32(e, "xen_dm_op_modified_memory_extent.nr", 1)
				got = append(got, GFN(w.u64(e, "xen_dm_op_modified_memory_extent.first_pfn")))
			}
			return 0, nil
		}
		if err := h.GuestFramesModified(5, want); err != nil || !slices.Equal(got, want) || calls != 2 {
			t.Errorf("told of %d frames, want %d, in %d calls: %v", len(got), len(want), calls, err)
		}

		// One that is refused keeps nothing from the others.
		got = nil
		tell := w.other
		w.other = func(op uint64, args [5]uint64) (int64, error) {
			before := len(got)
			if r, err := tell(op, args); !slices.Contains(got[before:], 9) {
				return r, err
			}
			got = got[:before]
			return 0, unix.EINVAL
		}
		if err := h.GuestFramesModified(5, []GFN{8, 9, 10}); err != nil || !slices.Equal(got, []GFN{8, 10}) {
			t.Errorf("told of %v, %v", got, err)
		}
	})
}

func TestMachineFramesModified(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		w, h := newWire(t, release)
		mem := make([]byte, 3*PageSize)
		for i := range mem {
			mem[i] = byte(i * 7)
		}
		w.mapping = func(frames []uint64, errs []int32, write bool) []byte {
			if !write || len(frames) != 3 {
				t.Errorf("maps %#x, for writing: %v", frames, write)
			}
			errs[1] = -int32(unix.EBUSY) // a page table by now
			return mem
		}
		calls := 0
		w.other = func(op uint64, args [5]uint64) (int64, error) {
			calls++
			if int(op) != w.off("__HYPERVISOR_mmu_update") || args[1] != 2 || args[2] != 0 || args[3] != 6<<16|5 {
				t.Errorf("hypercall %d: %#x", op, args)
			}
			size := w.off("sizeof(struct mmu_update)")
			b := w.at(args[0], 2*size)
			for i, want := range []struct{ ptr, word int }{{0x100010, 0x10}, {0x300ff8, 2*PageSize + 0xff8}} {
				u := b[i*size:]
				value := w.u64(mem[want.word:], "mmu_update.ptr") // which is at 0
				if w.u64(u, "mmu_update.ptr") != uint64(want.ptr) || w.u64(u, "mmu_update.val") != value {
					t.Errorf("update %d: % x, want %#x at %#x", i, u[:size], value, want.ptr)
				}
			}
			return 0, nil
		}
		frames, offsets := []MFN{0x100, 0x200, 0x300}, []int{0x17, 0, 0xfff}
		if err := h.MachineFramesModified(5, frames, offsets); err != nil || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
		// Only a PV domain can say so.
		w.other = func(uint64, [5]uint64) (int64, error) { return 0, unix.ENOSYS }
		if err := h.MachineFramesModified(5, frames, offsets); err != nil {
			t.Error(err)
		}
	})
}

// This file holds the machine's memory as a file in memory, so that mappings of
// one frame are aliases of each other and an unmapped one faults.

package xentest

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// machine is the memory of the machine. Machine frame n is page n of the file.
type machine struct {
	fd    int
	all   unsafe.Pointer
	owned map[uint64]bool
	next  uint64
}

const machineBytes = machineFrames * xen.PageSize

func (m *machine) open() error {
	m.owned, m.next = map[uint64]bool{}, firstMachineFrame
	var err error
	if m.fd, err = unix.MemfdCreate("xentest", unix.MFD_CLOEXEC); err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(m.fd, machineBytes); err != nil {
		return errors.Join(err, unix.Close(m.fd))
	}
	m.all, err = unix.MmapPtr(m.fd, 0, nil, machineBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return errors.Join(err, unix.Close(m.fd))
	}
	return nil
}

func (m *machine) close() error {
	return errors.Join(unix.MunmapPtr(m.all, machineBytes), unix.Close(m.fd))
}

// frame gives a machine frame's memory.
func (m *machine) frame(n uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(m.all, n*xen.PageSize)), xen.PageSize)
}

// view maps machine frames next to each other. Those with an errno stay holes
// that fault.
func (m *machine) view(frames []uint64, errs []int32, write bool) ([]byte, error) {
	size := uintptr(len(frames) * xen.PageSize)
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	for i := 0; i < len(frames); {
		if errs[i] != 0 {
			i++
			continue
		}
		n := 1 // as many as follow each other in the file
		for i+n < len(frames) && errs[i+n] == 0 && frames[i+n] == frames[i]+uint64(n) {
			n++
		}
		_, err := unix.MmapPtr(m.fd, int64(frames[i]*xen.PageSize), unsafe.Add(base, i*xen.PageSize),
			uintptr(n*xen.PageSize), prot, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			return nil, errors.Join(err, unix.MunmapPtr(base, size))
		}
		i += n
	}
	return unsafe.Slice((*byte)(base), size), nil
}

// unmapAt unmaps what view gave.
func unmapAt(addr uintptr, size int) error {
	return unix.MunmapPtr(unsafe.Add(nil, addr), uintptr(size))
}

// addressOf gives where a slice's memory begins.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// contextBytes gives a vCPU context as the bytes of a struct vcpu_guest_context,
// itself, not a copy.
func contextBytes(c *xen.VCPUContext) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
}

// savedBytes gives a saved vCPU as the bytes of a struct hvm_hw_cpu, itself, not
// a copy.
func savedBytes(c *xen.SavedCPU) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
}

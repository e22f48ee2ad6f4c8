// This file has memory for what does not fit into a Transport's buffer.

package xen

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A roomy Transport has memory that the hypervisor can reach beside its Buffer.
type roomy interface {
	// Room gives at least n bytes, and what takes them back.
	Room(n int) (mem []byte, release func() error, err error)
}

// Room implements roomy.
func (p *privcmd) Room(n int) ([]byte, func() error, error) {
	n = (n + PageSize - 1) &^ (PageSize - 1)
	mem, _, err := hypercallMemory(n)
	if err != nil {
		return nil, nil, err
	}
	return mem, func() error { return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(n)) }, nil
}

// hypercallMemory gets memory that hypercalls can point to: the kernel's or,
// before Linux 4.18, locked.
func hypercallMemory(n int) (mem []byte, locked bool, err error) {
	if fd, err := unix.Open("/dev/xen/hypercall", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(fd)
		ptr, err := unix.MmapPtr(fd, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, false, fmt.Errorf("mmap /dev/xen/hypercall: %w", err)
		}
		return unsafe.Slice((*byte)(ptr), n), false, nil
	}
	ptr, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return nil, false, fmt.Errorf("mmap locked memory (raise `ulimit -l` if it is limited): %w", err)
	}
	mem = unsafe.Slice((*byte)(ptr), n)
	return mem, true, unix.Madvise(mem, unix.MADV_DONTFORK)
}

// This file is the Transport over the kernel's privcmd device (Linux uapi
// header xen/privcmd.h).

package xen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"structs"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl requests of privcmd: _IOC(_IOC_NONE, 'P', nr, size).
const (
	ioctlHypercall   = 0x00305000
	ioctlMmapBatchV2 = 0x00205004
)

// privcmdHypercall is analogous to struct privcmd_hypercall.
type privcmdHypercall struct {
	_   structs.HostLayout
	op  uint64
	arg [5]uint64
}

// privcmdMmapBatchV2 is analogous to struct privcmd_mmapbatch_v2.
type privcmdMmapBatchV2 struct {
	_    structs.HostLayout
	num  uint32
	dom  uint16
	_    uint16
	addr unsafe.Pointer
	arr  *uint64
	err  *int32
}

type privcmd struct {
	fd     int
	buffer []byte
	locked bool // buffer is anonymous memory, not the kernel's
}

// openPrivcmd opens the device, or says why this is no dom0 that has it.
func openPrivcmd() (*privcmd, error) {
	fd, err := openFirst("/dev/xen/privcmd", "/proc/xen/privcmd")
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w (%w)", ErrNotRoot, err)
	case !onXen():
		return nil, ErrNotXen
	default:
		return nil, fmt.Errorf("%w (%w)", ErrNoPrivcmd, err)
	}
	p := &privcmd{fd: fd}
	if p.buffer, p.locked, err = hypercallMemory(bufferSize); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("memory for hypercalls: %w", err)
	}
	return p, nil
}

// openFirst opens the first of several paths that exists.
func openFirst(paths ...string) (int, error) {
	var first error
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		err = &fs.PathError{Op: "open", Path: path, Err: err}
		if first == nil || errors.Is(first, fs.ErrNotExist) && !errors.Is(err, fs.ErrNotExist) {
			first = err
		}
	}
	return -1, first
}

// onXen tells whether the kernel says that it runs on Xen.
func onXen() bool {
	b, err := os.ReadFile("/sys/hypervisor/type")
	return err == nil && strings.TrimSpace(string(b)) == "xen"
}

func (p *privcmd) Buffer() []byte { return p.buffer }

func (p *privcmd) Hypercall(op uint64, args [5]uint64) (int64, error) {
	call := privcmdHypercall{op: op, arg: args}
	for try := 0; ; try++ {
		// Hypercalls are short and wait for nobody. To the scheduler each would be one
		// that may block, for which it wakes a thread that takes over from this one.
		r, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(p.fd), ioctlHypercall, uintptr(unsafe.Pointer(&call)))
		switch {
		case errno == 0:
			return int64(r), nil
		case errno == unix.EFAULT && p.locked && try < 10:
			// The kernel was moving the page. Touch it, and try again.
			time.Sleep(time.Millisecond)
			for i := 0; i < len(p.buffer); i += PageSize {
				p.buffer[i] |= 0
			}
		case errno == unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func (p *privcmd) Map(domain uint16, frames []uint64, errs []int32, write bool) ([]byte, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	size := len(frames) * PageSize
	// The first batch must cover a fresh area exactly, so each takes its own.
	ptr, err := unix.MmapPtr(p.fd, 0, nil, uintptr(size), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %d frames: %w", len(frames), err)
	}
	batch := privcmdMmapBatchV2{num: uint32(len(frames)), dom: domain, addr: ptr, arr: &frames[0], err: &errs[0]}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), ioctlMmapBatchV2, uintptr(unsafe.Pointer(&batch)))
	runtime.KeepAlive(frames)
	runtime.KeepAlive(errs)
	// ENOENT says that some frames are paged out, which their own errors say too.
	if errno != 0 && errno != unix.ENOENT {
		unix.MunmapPtr(ptr, uintptr(size))
		return nil, errno
	}
	return unsafe.Slice((*byte)(ptr), size), nil
}

func (p *privcmd) Unmap(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}

func (p *privcmd) Close() error {
	err := unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(p.buffer)), bufferSize)
	return errors.Join(err, unix.Close(p.fd))
}

// address gives the address of a byte of a transport's buffer.
func address(buffer []byte, offset int) uint64 {
	return uint64(uintptr(unsafe.Pointer(&buffer[offset])))
}

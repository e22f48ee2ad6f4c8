// This file makes the ioctls of the kernel's event channel device (Linux uapi
// header xen/evtchn.h).

package xen

import (
	"os"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl requests of the device: _IOC(_IOC_NONE, 'E', nr, size). Those that bind
// give the local port.
const (
	ioctlBindVIRQ        = 0x00044500
	ioctlBindInterdomain = 0x00084501
	ioctlBindUnbound     = 0x00044502
	ioctlNotify          = 0x00044504
)

// evtchnBindVIRQ is analogous to struct ioctl_evtchn_bind_virq.
type evtchnBindVIRQ struct {
	_    structs.HostLayout
	virq uint32
}

// evtchnBindInterdomain is analogous to struct ioctl_evtchn_bind_interdomain.
type evtchnBindInterdomain struct {
	_            structs.HostLayout
	remoteDomain uint32
	remotePort   uint32
}

// evtchnBindUnbound is analogous to struct ioctl_evtchn_bind_unbound_port.
type evtchnBindUnbound struct {
	_            structs.HostLayout
	remoteDomain uint32
}

// evtchnNotify is analogous to struct ioctl_evtchn_notify.
type evtchnNotify struct {
	_    structs.HostLayout
	port uint32
}

// evtchnArg is the argument of an ioctl.
type evtchnArg interface {
	evtchnBindVIRQ | evtchnBindInterdomain | evtchnBindUnbound | evtchnNotify
}

// evtchnIoctl makes an ioctl and gives its result.
func evtchnIoctl[A evtchnArg](e *EventChannels, request uintptr, arg A) (uint32, error) {
	c, err := e.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		r     uintptr
		errno unix.Errno
	)
	// Not Fd, which would take the file out of Go's poller.
	err = c.Control(func(fd uintptr) {
		r, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&arg)))
	})
	switch {
	case err != nil: // its own error for a closed file is not os.ErrClosed
		return 0, os.ErrClosed
	case errno != 0:
		return 0, errno
	}
	return uint32(r), nil
}

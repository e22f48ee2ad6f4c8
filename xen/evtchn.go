// This file holds event channels: how domains and the hypervisor signal each
// other (Linux uapi header xen/evtchn.h).

package xen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DomIDSelf stands for the domain that makes a call (Xen public header xen.h).
const DomIDSelf DomID = 0x7ff0

// VIRQ is a virtual interrupt: a signal of the hypervisor's own (Xen public
// header xen.h).
type VIRQ uint32

// VIRQDebugger says that a debugged vCPU has stopped. It does not come for
// breakpoints, and one may stand for several stops.
const VIRQDebugger VIRQ = 6

// Port is this domain's end of an event channel.
type Port uint32

// EventChannels is a set of event channels. Wait must be called by one goroutine
// at a time; the other methods may be called by any.
type EventChannels struct {
	file *os.File // /dev/xen/evtchn, non-blocking
}

// OpenEventChannels opens /dev/xen/evtchn. Its errors are ErrNotXen, ErrNotRoot
// and ErrNoEvtchn.
func OpenEventChannels() (*EventChannels, error) { return openEventChannels("/dev/xen/evtchn") }

func openEventChannels(path string) (*EventChannels, error) {
	// Non-blocking, the device joins Go's poller: the kernel's driver can be
	// polled.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		err = &fs.PathError{Op: "open", Path: path, Err: err}
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("%w (%w)", ErrNotRoot, err)
		case !onXen():
			return nil, ErrNotXen
		}
		return nil, fmt.Errorf("%w (%w)", ErrNoEvtchn, err)
	}
	return &EventChannels{os.NewFile(uintptr(fd), path)}, nil
}

// Close closes all channels, and ends a Wait.
func (e *EventChannels) Close() error { return e.file.Close() }

// BindVIRQ makes a channel on which a virtual interrupt arrives. Only one in a
// domain can have it: to a second the error wraps EEXIST.
func (e *EventChannels) BindVIRQ(v VIRQ) (Port, error) {
	p, err := evtchnIoctl(e, ioctlBindVIRQ, evtchnBindVIRQ{virq: uint32(v)})
	return Port(p), opError("IOCTL_EVTCHN_BIND_VIRQ", noDomain, err)
}

// BindInterdomain makes a channel to a port that another domain keeps for us.
func (e *EventChannels) BindInterdomain(domain DomID, remote Port) (Port, error) {
	p, err := evtchnIoctl(e, ioctlBindInterdomain, evtchnBindInterdomain{remoteDomain: uint32(domain), remotePort: uint32(remote)})
	return Port(p), opError("IOCTL_EVTCHN_BIND_INTERDOMAIN", int(domain), err)
}

// BindUnbound makes a channel that a domain can bind to.
func (e *EventChannels) BindUnbound(domain DomID) (Port, error) {
	p, err := evtchnIoctl(e, ioctlBindUnbound, evtchnBindUnbound{remoteDomain: uint32(domain)})
	return Port(p), opError("IOCTL_EVTCHN_BIND_UNBOUND_PORT", int(domain), err)
}

// Notify signals the other end of a channel.
func (e *EventChannels) Notify(p Port) error {
	_, err := evtchnIoctl(e, ioctlNotify, evtchnNotify{port: uint32(p)})
	return opError("IOCTL_EVTCHN_NOTIFY", noDomain, err)
}

// Wait waits for a signal and tells on which channel it came. The channel gives
// no further ones until Unmask.
func (e *EventChannels) Wait(ctx context.Context) (Port, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		e.file.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	var b [4]byte
	_, err := e.file.Read(b[:])
	if !stop() {
		<-interrupted
		e.file.SetReadDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return Port(binary.NativeEndian.Uint32(b[:])), nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, ctx.Err()
	}
	return 0, fmt.Errorf("wait for an event: %w", err)
}

// Unmask lets a channel signal again.
func (e *EventChannels) Unmask(p Port) error {
	if _, err := e.file.Write(binary.NativeEndian.AppendUint32(nil, uint32(p))); err != nil {
		return fmt.Errorf("unmask event port %d: %w", p, err)
	}
	return nil
}

// This file finds xenstored: its socket, where it runs in this domain, else the
// kernel's device, which passes messages on to wherever it runs. The device is
// that of Linux's drivers/xen/xenbus/xenbus_dev_frontend.c, 4.17 and later
// (before, it lost the req_id of requests).

package xenstore

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// Where xenstored is found, in the order in which it is looked for.
var (
	sockets = []string{"/run/xenstored/socket", "/var/run/xenstored/socket"}
	devices = []string{"/dev/xen/xenbus", "/proc/xen/xenbus"}
)

// Open connects to xenstored over the first of these that exists:
// /run/xenstored/socket, /var/run/xenstored/socket, /dev/xen/xenbus and
// /proc/xen/xenbus. A socket that exists and does not answer is an error: the
// device would lead to the same xenstored, and wait for it forever.
//
// The error has ErrNoXenstore or ErrPermission in its chain. All of them can
// usually be used by root only.
//
// The device has two ways of its own. Its read waits in the kernel, but it can be
// polled, so the Go runtime does that, and Close ends a read at once. (On a kernel
// where the poll fails Close returns all the same, but one thread and the open
// device stay until the next message.) And its write reports errors of a single
// request, so a failed write there fails that request only.
func Open() (*Client, error) { return open(sockets, devices) }

func open(sockets, devices []string) (*Client, error) {
	for _, path := range sockets {
		conn, err := net.Dial("unix", path)
		switch {
		case err == nil:
			return newClient(conn, false), nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, openError(path, err)
		}
	}
	for _, path := range devices {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		switch {
		case err == nil:
			return newClient(f, true), nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, openError(path, err)
		}
	}
	return nil, &OpError{Op: "open", Err: ErrNoXenstore}
}

// openError says why what stands at path does not lead to xenstored.
func openError(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &OpError{Op: "open", Path: path, Err: fmt.Errorf("%w (run as root): %w", ErrPermission, err)}
	}
	return &OpError{Op: "open", Path: path, Err: fmt.Errorf("%w: %w", ErrNoXenstore, err)}
}

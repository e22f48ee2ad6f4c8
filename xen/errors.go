// This file holds the package's errors: what can be wrong with the host, said
// so that the reader knows what to do, and OpError for failed calls.

package xen

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What can be wrong with the machine that Open runs on.
var (
	// ErrNotXen says that the kernel does not run on Xen.
	ErrNotXen = errors.New("this kernel does not run on Xen: boot the host with a Xen hypervisor, and run this in dom0")
	// ErrNotDom0 says that the kernel runs on Xen, but not as control domain.
	ErrNotDom0 = errors.New("this is not the control domain: run this in dom0")
	// ErrNotRoot says that a device may not be opened.
	ErrNotRoot = errors.New("no permission to use the devices under /dev/xen: run this as root")
	// ErrNoPrivcmd says that the device is missing.
	ErrNoPrivcmd = errors.New("there is no /dev/xen/privcmd: load the kernel's module for it with `modprobe xen-privcmd`")
	// ErrNoEvtchn says that the event channel device is missing.
	ErrNoEvtchn = errors.New("there is no /dev/xen/evtchn: load the kernel's module for it with `modprobe xen-evtchn`")
	// ErrVersion says that this Xen's interface version is not one we know.
	ErrVersion = errors.New("interface version of this Xen is not known: a newer gdbserver-xen may know it")
	// ErrDenied says that the hypervisor's security policy (XSM) refuses us.
	ErrDenied = errors.New("the hypervisor refuses control calls: its XSM or FLASK policy must allow them to this domain")
)

// What can be wrong with a call.
var (
	// ErrNoDomain says that no domain has this id.
	ErrNoDomain = errors.New("no such domain")
	// ErrNotPaused says that a domain's count of pauses is zero already.
	ErrNotPaused = errors.New("the domain is not paused")
	// ErrMostPauses says that a domain's count of pauses is as high as it goes.
	ErrMostPauses = errors.New("the domain is paused as often as can be")
	// ErrNoVCPU says that the domain has no such vCPU.
	ErrNoVCPU = errors.New("no such vCPU")
	// ErrVCPUNotPaused says that a vCPU's own count of pauses is zero already.
	ErrVCPUNotPaused = errors.New("the vCPU is not paused, or there is none")
	// ErrVCPUOffline says that the vCPU was never brought up: it has no state.
	ErrVCPUOffline = errors.New("the vCPU was never brought up")
	// ErrBadFrame says that a frame does not exist, belongs to another domain,
	// or is not memory.
	ErrBadFrame = errors.New("no such frame")
	// ErrFrameBusy says that a frame may not be mapped writable, because it is
	// in use as a page table or descriptor table.
	ErrFrameBusy = errors.New("frame is in use as a page table or descriptor table")
	// ErrFramePaged says that a frame is paged out, and now on its way in.
	ErrFramePaged = errors.New("frame is paged out")
	// ErrRingInUse says that another program listens to a domain's vm_events.
	ErrRingInUse = errors.New("another program listens to this domain's vm_events: only one can, so it must end first")
	// ErrRing says that a ring of vm_events holds what the hypervisor does not
	// put there.
	ErrRing = errors.New("ring of vm_events is corrupt")
	// ErrRingWaited says that vCPUs wait for a slot on a ring of vm_events, which
	// therefore cannot be removed.
	ErrRingWaited = errors.New("vCPUs wait for a slot on the ring of vm_events")
	// ErrQuirk says that this release of Xen has a fault that makes the call
	// unsafe.
	ErrQuirk = errors.New("this release of Xen gets it wrong")
)

// noDomain is what an OpError's Domain is where the operation has none.
const noDomain = -1

// An OpError is a failed operation on the hypervisor.
type OpError struct {
	Op     string // the operation, by its name in Xen's public headers
	Domain int    // the domain it was for; negative for none
	Err    error  // the errno, possibly joined with one of the sentinels
}

// Error gives "XEN_DOMCTL_pausedomain: domain 3: no such domain: ...".
func (e *OpError) Error() string {
	if e.Domain < 0 {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: domain %d: %v", e.Op, e.Domain, e.Err)
}

// Unwrap gives Err.
func (e *OpError) Unwrap() error { return e.Err }

// opError wraps err, or gives nil for nil.
func opError(op string, domain int, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Domain: domain, Err: err}
}

// errnoAs gives err joined with the sentinel that its errno stands for, by a
// table that the caller knows to hold for its operation.
func errnoAs(err error, table map[unix.Errno]error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		if sentinel, ok := table[errno]; ok {
			return fmt.Errorf("%w: %w", sentinel, errno)
		}
	}
	return err
}

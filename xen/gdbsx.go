// This file is about the calls of Xen's own gdbsx, which a hypervisor has if it
// was built with CONFIG_GDBSX: stopping a domain where a vCPU of it traps, and
// pausing single vCPUs (Xen public header domctl.h; Xen, arch/x86/domctl.c and
// arch/x86/gdbsx.c). gdbsx_guestmemio is left out on purpose: builds without
// CONFIG_GDBSX exist that it crashes.

package xen

import (
	"errors"

	"golang.org/x/sys/unix"
)

// HasGDBSX tells whether the hypervisor was built with CONFIG_GDBSX. It asks
// with a call that a hypervisor without it refuses, and with a vCPU that no
// domain has, so that nothing happens.
func (h *Host) HasGDBSX(domain DomID) bool {
	var u union
	u.putU32(0, ^uint32(0))
	err := h.domctl(domctlGDBSXUnpauseVCPU, domain, &u)
	// EBUSY: the domain is not paused; EINVAL: it has no such vCPU.
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL)
}

// SetDebugging makes the hypervisor stop a domain where one of its vCPUs takes
// an int3 or #DB, or no longer. Of a PV domain it stops those in kernel mode,
// and leaves others to the domain's kernel. The setting outlives its caller.
//
// Each stop adds one to the domain's count of pauses, and goes on behind the
// int3, or as #DB has left the vCPU. NextDebugEvent tells of each int3;
// VIRQDebugger comes for each #DB, unless an int3 of that vCPU has not been told
// yet.
//
// Preconditions: HasGDBSX. Others lose such traps, without a stop.
func (h *Host) SetDebugging(domain DomID, on bool) error {
	var u union
	if on {
		u[0] = 1
	}
	return h.domainCall(domctlSetDebugging, domain, &u)
}

// NextDebugEvent gives a vCPU that an int3 has stopped since SetDebugging, each
// stop once, or -1 if there is none more. It gives none of a domain that is not
// paused.
// Preconditions: HasGDBSX.
func (h *Host) NextDebugEvent(domain DomID) (vcpu int, err error) {
	// struct xen_domctl_gdbsx_domstatus: paused u8 @0, vcpu_id u32 @4, vcpu_ev
	// u32 @8, always the vector of int3.
	var u union
	if err := h.domainCall(domctlGDBSXDomStatus, domain, &u); err != nil {
		return -1, err
	}
	return int(int32(u.u32(4))), nil
}

// PauseVCPU adds one to a vCPU's own count of pauses: it stands still whatever
// becomes of the domain's. The domain must be paused, else that is ErrNotPaused.
// Preconditions: HasGDBSX.
func (h *Host) PauseVCPU(domain DomID, vcpu int) error {
	return h.gdbsxVCPU(domctlGDBSXPauseVCPU, domain, vcpu, ErrNoVCPU)
}

// UnpauseVCPU takes one from a vCPU's own count of pauses. If it is zero already,
// or there is no such vCPU, that is ErrVCPUNotPaused. The domain must be paused,
// else that is ErrNotPaused.
// Preconditions: HasGDBSX.
func (h *Host) UnpauseVCPU(domain DomID, vcpu int) error {
	return h.gdbsxVCPU(domctlGDBSXUnpauseVCPU, domain, vcpu, ErrVCPUNotPaused)
}

func (h *Host) gdbsxVCPU(op domctlOp, domain DomID, vcpu int, invalid error) error {
	var u union
	u.putU32(0, uint32(vcpu))
	return withVCPU(vcpu, h.domctl(op, domain, &u), map[unix.Errno]error{
		unix.ESRCH:  ErrNoDomain,
		unix.EBUSY:  ErrNotPaused,
		unix.EINVAL: invalid,
	})
}

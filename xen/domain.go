// This file is about domains: what they are, and pausing them.

package xen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// DomID is a domain's number.
type DomID uint16

// FirstReserved is the first of the domain numbers that are no domains:
// DOMID_SELF and on (Xen public header xen.h).
const FirstReserved DomID = 0x7ff0

// domctlOp is an operation of XEN_DOMCTL (Xen public header domctl.h).
type domctlOp uint32

const (
	domctlPauseDomain          domctlOp = 3
	domctlUnpauseDomain        domctlOp = 4
	domctlGetDomainInfo        domctlOp = 5
	domctlSetVCPUContext       domctlOp = 12
	domctlGetVCPUContext       domctlOp = 13
	domctlGetVCPUInfo          domctlOp = 14
	domctlSetDebugging         domctlOp = 18
	domctlGetHVMContext        domctlOp = 33
	domctlSetHVMContext        domctlOp = 34
	domctlGetAddressSize       domctlOp = 36
	domctlDebugOp              domctlOp = 54
	domctlGetHVMContextPartial domctlOp = 55
	domctlVMEventOp            domctlOp = 56
	domctlSetVCPUExtState      domctlOp = 62
	domctlGetVCPUExtState      domctlOp = 63
	domctlGDBSXPauseVCPU       domctlOp = 1001
	domctlMonitorOp            domctlOp = 77
	domctlGDBSXUnpauseVCPU     domctlOp = 1002
	domctlGDBSXDomStatus       domctlOp = 1003
)

var domctlNames = map[domctlOp]string{
	domctlPauseDomain:          "pausedomain",
	domctlUnpauseDomain:        "unpausedomain",
	domctlGetDomainInfo:        "getdomaininfo",
	domctlSetVCPUContext:       "setvcpucontext",
	domctlGetVCPUContext:       "getvcpucontext",
	domctlGetVCPUInfo:          "getvcpuinfo",
	domctlSetDebugging:         "setdebugging",
	domctlGetHVMContext:        "gethvmcontext",
	domctlSetHVMContext:        "sethvmcontext",
	domctlGetAddressSize:       "get_address_size",
	domctlDebugOp:              "debug_op",
	domctlGetHVMContextPartial: "gethvmcontext_partial",
	domctlVMEventOp:            "vm_event_op",
	domctlSetVCPUExtState:      "setvcpuextstate",
	domctlGetVCPUExtState:      "getvcpuextstate",
	domctlGDBSXPauseVCPU:       "gdbsx_pausevcpu",
	domctlMonitorOp:            "monitor_op",
	domctlGDBSXUnpauseVCPU:     "gdbsx_unpausevcpu",
	domctlGDBSXDomStatus:       "gdbsx_domstatus",
}

// String gives the operation's name in the public header.
func (op domctlOp) String() string {
	if name, ok := domctlNames[op]; ok {
		return "XEN_DOMCTL_" + name
	}
	return "XEN_DOMCTL_" + strconv.Itoa(int(op))
}

// Kind is how a domain is virtualized.
type Kind uint8

// The kinds of domain.
const (
	PV  Kind = iota // paravirtual: its page tables hold machine frames
	PVH             // hardware-virtualized, without emulated devices
	HVM             // hardware-virtualized, with a device model
)

// String gives the name that xl's configuration files use, in capitals.
func (k Kind) String() string {
	switch k {
	case PV:
		return "PV"
	case PVH:
		return "PVH"
	case HVM:
		return "HVM"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// ShutdownReason is why a domain shut down (Xen public header sched.h).
type ShutdownReason uint8

// The reasons to shut down.
const (
	ShutdownPoweroff  ShutdownReason = 0
	ShutdownReboot    ShutdownReason = 1
	ShutdownSuspend   ShutdownReason = 2
	ShutdownCrash     ShutdownReason = 3
	ShutdownWatchdog  ShutdownReason = 4
	ShutdownSoftReset ShutdownReason = 5
)

var shutdownNames = [...]string{"poweroff", "reboot", "suspend", "crash", "watchdog", "soft reset"}

// String names the reason, as "crash".
func (r ShutdownReason) String() string {
	if int(r) < len(shutdownNames) {
		return shutdownNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// DomainInfo is the state of a domain: struct xen_domctl_getdomaininfo.
type DomainInfo struct {
	ID              DomID
	Kind            Kind
	Dying           bool // being destroyed
	Shutdown        bool // stopped for ShutdownReason
	Paused          bool // by at least one controller's pause
	Blocked         bool
	Running         bool
	Debugged        bool // a debugger is attached through the hypervisor
	ShutdownReason  ShutdownReason
	TotalPages      uint64 // of memory that it has now
	MaxPages        uint64
	SharedInfoFrame uint64 // an MFN for PV, else a GFN
	CPUTime         time.Duration
	OnlineVCPUs     int
	VCPUs           int // highest vCPU number plus one
	UUID            [16]byte
}

// Bits of DomainInfo's flags (XEN_DOMINF_*).
const (
	dominfDying    = 1 << 0
	dominfHVM      = 1 << 1
	dominfShutdown = 1 << 2
	dominfPaused   = 1 << 3
	dominfBlocked  = 1 << 4
	dominfRunning  = 1 << 5
	dominfDebugged = 1 << 6
)

// emulatedDevices are the flags of those emulated devices that PVH domains do
// not have: all but the local APIC (XEN_X86_EMU_*, Xen public header
// arch-x86/xen.h), of which PCI pass-through may use some.
const emulatedDevices = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8

// decodeInfo reads a struct xen_domctl_getdomaininfo.
// Preconditions: len(b) >= layout.size.
func decodeInfo(layout infoLayout, b []byte) DomainInfo {
	le := binary.LittleEndian
	flags := le.Uint32(b[4:])
	d := DomainInfo{
		ID:              DomID(le.Uint16(b)),
		Dying:           flags&dominfDying != 0,
		Shutdown:        flags&dominfShutdown != 0,
		Paused:          flags&dominfPaused != 0,
		Blocked:         flags&dominfBlocked != 0,
		Running:         flags&dominfRunning != 0,
		Debugged:        flags&dominfDebugged != 0,
		TotalPages:      le.Uint64(b[8:]),
		MaxPages:        le.Uint64(b[16:]),
		SharedInfoFrame: le.Uint64(b[48:]),
		CPUTime:         time.Duration(le.Uint64(b[56:])),
		OnlineVCPUs:     int(le.Uint32(b[64:])),
		VCPUs:           int(le.Uint32(b[68:]) + 1), // 0xffffffff: none
		UUID:            [16]byte(b[76:92]),
	}
	if d.Shutdown {
		d.ShutdownReason = ShutdownReason(flags >> 16)
	}
	switch emulation := le.Uint32(b[layout.emulationFlags:]); {
	case flags&dominfHVM == 0:
		d.Kind = PV
	case emulation&emulatedDevices == 0:
		d.Kind = PVH
	default:
		d.Kind = HVM
	}
	return d
}

// domainErrors are what errnos mean for calls about a domain.
var domainErrors = map[unix.Errno]error{unix.ESRCH: ErrNoDomain}

// domainCall makes a domain control call on a domain that must exist.
func (h *Host) domainCall(op domctlOp, domain DomID, u *union) error {
	return asDomainError(h.domctl(op, domain, u))
}

// asDomainError adds ErrNoDomain to the error of a call about a domain.
func asDomainError(err error) error {
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, domainErrors)
	}
	return err
}

// DomainInfo gives the state of a domain, or ErrNoDomain.
func (h *Host) DomainInfo(domain DomID) (DomainInfo, error) {
	var u union
	if err := h.domainCall(domctlGetDomainInfo, domain, &u); err != nil {
		return DomainInfo{}, err
	}
	d := decodeInfo(h.info, u[:])
	// Up to 4.17 the answer is about the first domain with this id or a higher.
	if d.ID != domain {
		return DomainInfo{}, opError(domctlGetDomainInfo.String(), int(domain), ErrNoDomain)
	}
	return d, nil
}

// Domains gives the state of all domains, in order of their ids.
func (h *Host) Domains() ([]DomainInfo, error) {
	if h.version.Sysctl == 0 {
		return nil, opError(sysctlDomainInfoListName, noDomain, fmt.Errorf("hypervisor is built without sysctl: %w", errors.ErrUnsupported))
	}
	var all []DomainInfo
	for next := 0; next < int(FirstReserved); {
		some, err := h.domainInfoList(DomID(next), maxPayload/h.info.size)
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
		next = int(some[len(some)-1].ID) + 1
	}
	return all, nil
}

const (
	sysctlDomainInfoList     = 6
	sysctlDomainInfoListName = "XEN_SYSCTL_getdomaininfolist"
)

// domainInfoList gives the state of at most n domains, from an id on.
func (h *Host) domainInfoList(first DomID, n int) ([]DomainInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(n * h.info.size)
	var u union
	u.putU32(0, uint32(first))
	u.putU32(4, uint32(n))
	u.putU64(8, addr)
	if err := h.sysctlLocked(sysctlDomainInfoList, sysctlDomainInfoListName, &u); err != nil {
		return nil, err
	}
	got := min(int(u.u32(16)), n)
	infos := make([]DomainInfo, got)
	for i := range infos {
		infos[i] = decodeInfo(h.info, mem[i*h.info.size:])
	}
	return infos, nil
}

// MostPauses is as high as a domain's count of pauses goes (Xen 4.5 to 4.22,
// domain_pause_by_systemcontroller).
const MostPauses = 255

// Pause adds one to the domain's count of pauses and returns when none of its
// vCPUs runs any more. At MostPauses that is ErrMostPauses.
func (h *Host) Pause(domain DomID) error {
	err := h.domainCall(domctlPauseDomain, domain, new(union))
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, map[unix.Errno]error{unix.EOVERFLOW: ErrMostPauses})
	}
	return err
}

// Unpause takes one from the domain's count of pauses; at zero it runs. If it
// is zero already, that is ErrNotPaused.
func (h *Host) Unpause(domain DomID) error {
	err := h.domainCall(domctlUnpauseDomain, domain, new(union))
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, map[unix.Errno]error{unix.EINVAL: ErrNotPaused})
	}
	return err
}

// AddressSize gives the width of a PV domain in bits, 32 or 64.
func (h *Host) AddressSize(domain DomID) (int, error) {
	var u union
	err := h.domainCall(domctlGetAddressSize, domain, &u)
	return int(u.u32(0)), err
}

// MaxGPFN gives a domain's highest frame number: of a PV domain the highest
// pseudo-physical frame, of others the highest mapped GFN, with holes below.
func (h *Host) MaxGPFN(domain DomID) (uint64, error) {
	const memoryMaximumGPFN = 14 // XENMEM_maximum_gpfn (Xen public header memory.h)
	h.mu.Lock()
	defer h.mu.Unlock()
	binary.LittleEndian.PutUint64(h.buffer, uint64(domain)) // domid_t
	r, err := h.call(hypercallMemoryOp, memoryMaximumGPFN, address(h.buffer, 0))
	return uint64(r), asDomainError(opError("XENMEM_maximum_gpfn", int(domain), err))
}

// This file is about what an HVM or PVH domain's vCPUs report, and what can be
// injected into them.

package xen

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// MonitorEvent is a kind of event that a domain's vCPUs can be made to report
// on its ring (XEN_DOMCTL_MONITOR_EVENT_*, Xen public header domctl.h).
type MonitorEvent uint32

// The events that are used.
const (
	// MonitorSingleStep reports each instruction of a vCPU that SetSingleStep is
	// on for.
	MonitorSingleStep MonitorEvent = 2
	// MonitorBreakpoint reports int3, before it is delivered: RIP is its address.
	MonitorBreakpoint MonitorEvent = 3
	// MonitorDebug reports #DB, before it is delivered.
	MonitorDebug MonitorEvent = 5
)

// Operations of XEN_DOMCTL_monitor_op.
const (
	monitorOpEnable          = 0
	monitorOpDisable         = 1
	monitorOpGetCapabilities = 2
)

// CanMonitor tells which events a domain's vCPUs can report. Those of a PV
// domain can report none.
func (h *Host) CanMonitor(domain DomID) (func(MonitorEvent) bool, error) {
	var u union
	u.putU32(0, monitorOpGetCapabilities)
	if err := h.domainCall(domctlMonitorOp, domain, &u); err != nil {
		return nil, err
	}
	mask := u.u32(4)
	return func(e MonitorEvent) bool { return e < 32 && mask>>e&1 != 0 }, nil
}

// SetMonitor makes a domain's vCPUs report an event, or no longer, and pause at
// it until it is answered. Without a ring the hypervisor forgets all of it.
func (h *Host) SetMonitor(domain DomID, event MonitorEvent, on bool) error {
	err := h.setMonitor(domain, event, on)
	if on && errors.Is(err, unix.EEXIST) {
		// Somebody else's, perhaps without the pause.
		if err := h.setMonitor(domain, event, false); err != nil {
			return err
		}
		return h.setMonitor(domain, event, true)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (h *Host) setMonitor(domain DomID, event MonitorEvent, on bool) error {
	var u union
	u.putU32(0, monitorOpDisable)
	if on {
		u.putU32(0, monitorOpEnable)
	}
	u.putU32(4, uint32(event))
	if on && event == MonitorDebug {
		u[8] = 1 // sync; the other two always are
	}
	return h.domainCall(domctlMonitorOp, domain, &u)
}

// SetSingleStep makes a vCPU report each instruction that it has executed, or no
// longer. It needs a processor with a monitor trap flag: others give
// EOPNOTSUPP. Interrupts wait meanwhile.
func (h *Host) SetSingleStep(domain DomID, vcpu int, on bool) error {
	var u union
	if on {
		u.putU32(0, 1)
	}
	u.putU32(4, uint32(vcpu))
	return asSetError(vcpu, h.domctl(domctlDebugOp, domain, &u))
}

// EventType is how an exception comes about (X86_EVENTTYPE_* of Xen, numbered
// as in Intel's VM-entry interruption information).
type EventType uint8

// The types that are used.
const (
	HardwareException EventType = 3
	PrivilegedTrap    EventType = 5 // icebp's #DB
	SoftwareException EventType = 6 // int3, into
)

// Vectors of exceptions.
const (
	VectorDebug      uint8 = 1
	VectorBreakpoint uint8 = 3
	VectorPageFault  uint8 = 14
)

// Injection is an exception for a vCPU: struct xen_dm_op_inject_event, without
// an error code.
type Injection struct {
	Vector uint8
	Type   EventType
	Length uint8 // of the instruction that raised it, if it is one that does
}

// Inject makes an HVM or PVH vCPU take an exception when it runs next. Only one
// can wait; a second gives EBUSY.
func (h *Host) Inject(domain DomID, vcpu int, e Injection) error {
	// struct xen_dm_op: op u32 @0, vcpuid u32 @8, vector u8 @12, type u8 @13,
	// insn_len u8 @14, error_code u32 @16, cr2 u64 @24; 32 bytes (Xen public
	// header hvm/dm_op.h).
	const (
		injectEvent = 13
		size        = 32
		noErrorCode = ^uint32(0)
	)
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(size)
	clear(mem)
	le := binary.LittleEndian
	le.PutUint32(mem, injectEvent)
	le.PutUint32(mem[8:], uint32(vcpu))
	mem[12], mem[13], mem[14] = e.Vector, uint8(e.Type), e.Length
	le.PutUint32(mem[16:], noErrorCode)
	h.putBuffers(addr, size)
	_, err := h.call(hypercallDMOp, uint64(domain), 1, address(h.buffer, 0))
	return asSetError(vcpu, opError("XEN_DMOP_inject_event", int(domain), err))
}

// hvmParam gives a parameter of an HVM or PVH domain.
func (h *Host) hvmParam(domain DomID, index uint32, name string) (uint64, error) {
	// struct xen_hvm_param: domid u16 @0, index u32 @4, value u64 @8 (Xen public
	// header hvm/hvm_op.h).
	const getParam = 1
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.buffer[:16]
	clear(b)
	binary.LittleEndian.PutUint16(b, uint16(domain))
	binary.LittleEndian.PutUint32(b[4:], index)
	_, err := h.call(hypercallHVMOp, getParam, address(h.buffer, 0))
	return binary.LittleEndian.Uint64(b[8:]), asDomainError(opError("HVMOP_get_param "+name, int(domain), err))
}

// Operations of memory_op that change a domain's memory.
const (
	memoryDecreaseReservation = 1
	memoryPopulatePhysmap     = 6
)

// changeFrame gives a domain an empty page at a guest frame, or takes the page
// that is there away.
func (h *Host) changeFrame(domain DomID, f GFN, op uint64, name string) error {
	// struct xen_memory_reservation: extent_start @0, nr_extents u64 @8,
	// extent_order u32 @16, mem_flags u32 @20, domid u16 @24; 32 bytes (Xen
	// public header memory.h).
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(8)
	le := binary.LittleEndian
	le.PutUint64(mem, uint64(f))
	b := h.buffer[:32]
	clear(b)
	le.PutUint64(b, addr)
	le.PutUint64(b[8:], 1)
	le.PutUint16(b[24:], uint16(domain))
	done, err := h.call(hypercallMemoryOp, op, address(h.buffer, 0))
	if err == nil && done != 1 {
		err = fmt.Errorf("%v: refused", f)
	}
	return asDomainError(opError(name, int(domain), err))
}

func (h *Host) populate(domain DomID, f GFN) error {
	return h.changeFrame(domain, f, memoryPopulatePhysmap, "XENMEM_populate_physmap")
}

func (h *Host) depopulate(domain DomID, f GFN) error {
	return h.changeFrame(domain, f, memoryDecreaseReservation, "XENMEM_decrease_reservation")
}

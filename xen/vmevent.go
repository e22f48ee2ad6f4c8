// This file holds the ring on which the vCPUs of an HVM or PVH domain report
// events, and on which the answers let them go on (Xen public headers
// vm_event.h and io/ring.h).

package xen

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// EventReason is what a VMEvent is about (VM_EVENT_REASON_*).
type EventReason uint32

// The reasons that a monitor of package xen asks for.
const (
	ReasonBreakpoint EventReason = 6
	ReasonSingleStep EventReason = 7
	ReasonDebug      EventReason = 9
)

// A VMEvent is something that a vCPU reports: the used parts of a struct
// vm_event_st.
type VMEvent struct {
	VCPU   int
	Reason EventReason
	Paused bool // the vCPU is paused until the event is answered
	RIP    uint64
	RFLAGS uint64
	// Of ReasonBreakpoint and ReasonDebug: how to inject the exception that was
	// not delivered.
	Type   EventType
	Length uint8
}

// A ring is a page: req_prod u32 @0, req_event u32 @4, rsp_prod u32 @8,
// rsp_event u32 @12, slots @64. Requests and responses share the slots.
const (
	ringReqProd  = 0
	ringReqEvent = 4
	ringRspProd  = 8
	ringRspEvent = 12
	ringHeader   = 64
	// ringSlots is the largest power of two of records, of any known size, that
	// the page has room for.
	ringSlots = 8
)

// Offsets within a record that all versions share, and the flag of an event
// whose vCPU is paused.
const (
	eventVersion   = 0
	eventFlags     = 4
	eventReason    = 8
	eventVCPU      = 12
	eventLength    = 40
	eventType      = 44
	eventRFLAGS    = 184
	eventRIP       = 208
	eventRecord    = eventRIP + 8 // what is read
	flagVCPUPaused = 1 << 0
)

// Operations of XEN_DOMCTL_vm_event_op.
const (
	vmEventEnable     = 0
	vmEventDisable    = 1
	vmEventResume     = 2
	vmEventGetVersion = 3
	vmEventMonitor    = 2 // the mode
)

// paramMonitorRing is the parameter that holds the ring's frame.
const paramMonitorRing = 28

// A Ring is the monitor ring of a domain. Its methods must not be called from
// several goroutines at once.
//
// What it holds is not trusted: Next takes each record out before it looks at
// it. The hypervisor does trust it: it takes as many responses as rsp_prod
// says, four thousand million if need be, without a break. So the ring's frame
// is taken out of the guest's memory while it is in use. That is not done in a
// guest with more vCPUs than the ring has slots: there vCPUs may have to wait
// for a slot, and if this process died then, only a process that can map the
// frame could free them.
type Ring struct {
	host   *Host
	domain DomID
	frame  GFN
	vcpus  int
	port   Port
	hidden bool // the frame was taken out of the guest's memory

	mapping *Mapping
	records recordRing
}

// recordRing is the consumer's end of the ring within its page.
type recordRing struct {
	layout  eventLayout
	vcpus   int
	page    []byte
	reqCons uint32
	rspProd uint32
}

// OpenRing makes a domain's ring, on which nothing is reported before
// SetMonitor. vcpus is the number of the domain's vCPUs. If there is one
// already, that is ErrRingInUse.
// Preconditions: the domain is paused.
func (h *Host) OpenRing(domain DomID, vcpus int) (*Ring, error) {
	var u union
	if err := h.vmEvent(domain, vmEventGetVersion, &u); err != nil {
		return nil, err
	}
	if v := u.u32(8); v != h.event.version {
		return nil, opError(domctlVMEventOp.String(), int(domain), fmt.Errorf("vm_event interface %d: %w", v, ErrVersion))
	}
	r, err := h.ring(domain, vcpus)
	if err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Ring) open() error {
	h := r.host
	err := r.enable()
	if err != nil && !errors.Is(err, ErrRingInUse) && r.absent() {
		// Its last user has not put the frame back.
		if err := h.populate(r.domain, r.frame); err != nil {
			return err
		}
		err = r.enable()
	}
	if err != nil {
		return err
	}
	if err := r.mapFrame(); err != nil {
		return errors.Join(err, h.DisableRing(r.domain))
	}
	r.records.reset()
	if r.vcpus > ringSlots {
		return nil
	}
	if err := h.depopulate(r.domain, r.frame); err != nil {
		return errors.Join(err, r.Close())
	}
	r.hidden = true
	return nil
}

// enable asks for the ring and its event channel.
func (r *Ring) enable() error {
	var u union
	err := r.host.vmEvent(r.domain, vmEventEnable, &u)
	r.port = Port(u.u32(8))
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, map[unix.Errno]error{unix.EBUSY: ErrRingInUse})
	}
	return err
}

// absent tells whether the guest has no memory at the ring's frame.
func (r *Ring) absent() bool {
	m, err := r.host.MapGuestFrames(r.domain, []GFN{r.frame}, false)
	if err != nil {
		return false
	}
	defer m.Close()
	_, err = m.Page(0)
	return errors.Is(err, ErrBadFrame)
}

func (r *Ring) mapFrame() error {
	m, err := r.host.MapGuestFrames(r.domain, []GFN{r.frame}, true)
	if err != nil {
		return err
	}
	page, err := m.Page(0)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	r.mapping = m
	r.records = recordRing{layout: r.host.event, vcpus: r.vcpus, page: page}
	return nil
}

// Port gives the port that the domain keeps for the ring's event channel, which
// signals that there are events.
func (r *Ring) Port() Port { return r.port }

// Next takes the next event off the ring; without one it gives false. ErrRing
// says that the ring makes no sense: then it is to be closed.
func (r *Ring) Next() (VMEvent, bool, error) {
	e, ok, err := r.records.next()
	if err != nil {
		return e, ok, fmt.Errorf("domain %d: %w", r.domain, err)
	}
	return e, ok, nil
}

// Pending tells whether Next would give something.
func (r *Ring) Pending() bool {
	return counter(r.records.page, ringReqProd).Load() != r.records.reqCons
}

// Answer lets vCPUs that are paused by an event go on. One that is not is left
// alone. It can be used for vCPUs whose event was reported on an earlier ring.
// Preconditions: all events that are there have been taken; without one for
// each vCPU, the domain is paused.
func (r *Ring) Answer(vcpus ...int) error {
	for n, vcpu := range vcpus {
		if n > 0 && n%ringSlots == 0 {
			if err := r.host.resumeRing(r.domain); err != nil {
				return err
			}
		}
		r.records.respond(vcpu)
	}
	if len(vcpus) == 0 {
		return nil
	}
	return r.host.resumeRing(r.domain)
}

// Close ends the reporting and removes the ring. vCPUs that are paused by an
// event stay so: only an answer, also one on a later ring, lets them go on. After
// ErrRingWaited it is as before, but nothing more is reported.
func (r *Ring) Close() error {
	if r.mapping == nil {
		return nil
	}
	if err := r.host.DisableRing(r.domain); err != nil {
		return err
	}
	err := r.mapping.Close()
	r.mapping = nil
	if r.hidden {
		r.hidden = false
		if e := r.host.populate(r.domain, r.frame); e != nil {
			info, gone := r.host.DomainInfo(r.domain)
			if gone == nil && !info.Dying {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// DisableRing ends the reporting and removes the ring of a domain, whoever made
// it, if it has one. ErrRingWaited says that there is something to do first.
func (h *Host) DisableRing(domain DomID) error {
	err := h.vmEvent(domain, vmEventDisable, new(union))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ErrNoDomain) {
		return nil // there is none
	}
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, map[unix.Errno]error{unix.EBUSY: ErrRingWaited})
	}
	return err
}

// HasRing tells whether a domain has a monitor ring, whoever made it.
func (h *Host) HasRing(domain DomID) (bool, error) {
	err := h.resumeRing(domain)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// ring gives a domain's ring, before it is made or mapped.
func (h *Host) ring(domain DomID, vcpus int) (*Ring, error) {
	param, err := h.hvmParam(domain, paramMonitorRing, "HVM_PARAM_MONITOR_RING_PFN")
	if err != nil {
		return nil, err
	}
	return &Ring{host: h, domain: domain, frame: GFN(param), vcpus: vcpus}, nil
}

// AdoptRing gives the ring that a domain has, made by a process that has died.
// Its frame must not have been taken out of the guest's memory.
// Preconditions: the domain is paused.
func (h *Host) AdoptRing(domain DomID, vcpus int) (*Ring, error) {
	r, err := h.ring(domain, vcpus)
	if err != nil {
		return nil, err
	}
	if err := r.mapFrame(); err != nil {
		return nil, err
	}
	r.records.adopt()
	return r, nil
}

// resumeRing makes the hypervisor take the responses, of which there may be none.
func (h *Host) resumeRing(domain DomID) error { return h.vmEvent(domain, vmEventResume, new(union)) }

// vmEvent makes a call about the monitor ring.
func (h *Host) vmEvent(domain DomID, op uint32, u *union) error {
	u.putU32(0, op)
	u.putU32(4, vmEventMonitor)
	return h.domainCall(domctlVMEventOp, domain, u)
}

// reset empties the ring.
func (r *recordRing) reset() {
	clear(r.page)
	counter(r.page, ringReqEvent).Store(1)
	counter(r.page, ringRspEvent).Store(1)
	r.reqCons, r.rspProd = 0, 0
}

// adopt goes on where another consumer stopped.
func (r *recordRing) adopt() {
	r.rspProd = counter(r.page, ringRspProd).Load()
	r.reqCons = counter(r.page, ringReqProd).Load()
}

// slot gives the record that a counter stands for.
func (r *recordRing) slot(n uint32) []byte {
	at := ringHeader + int(n%ringSlots)*r.layout.size
	return r.page[at:][:r.layout.size]
}

// next takes the next event.
func (r *recordRing) next() (VMEvent, bool, error) {
	waiting := counter(r.page, ringReqProd).Load() - r.reqCons
	switch {
	case waiting == 0:
		return VMEvent{}, false, nil
	case waiting > ringSlots:
		return VMEvent{}, false, fmt.Errorf("%w: it says that it holds %d events", ErrRing, waiting)
	}
	// A copy, which does not change once it is checked.
	var record [eventRecord]byte
	copy(record[:], r.slot(r.reqCons))
	r.reqCons++
	// The next event is to be signalled.
	counter(r.page, ringReqEvent).Store(r.reqCons + 1)
	e, err := decodeEvent(record[:], r.layout.version, r.vcpus)
	return e, err == nil, err
}

// decodeEvent reads a record.
// Preconditions: len(b) >= eventRecord.
func decodeEvent(b []byte, version uint32, vcpus int) (VMEvent, error) {
	le := binary.LittleEndian
	if v := le.Uint32(b[eventVersion:]); v != version {
		return VMEvent{}, fmt.Errorf("%w: event of interface version %d", ErrRing, v)
	}
	vcpu := le.Uint32(b[eventVCPU:])
	if uint64(vcpu) >= uint64(vcpus) {
		return VMEvent{}, fmt.Errorf("%w: event of vCPU %d", ErrRing, vcpu)
	}
	e := VMEvent{
		VCPU:   int(vcpu),
		Reason: EventReason(le.Uint32(b[eventReason:])),
		Paused: le.Uint32(b[eventFlags:])&flagVCPUPaused != 0,
		RIP:    le.Uint64(b[eventRIP:]),
		RFLAGS: le.Uint64(b[eventRFLAGS:]),
	}
	if e.Reason == ReasonBreakpoint || e.Reason == ReasonDebug {
		const longest = 15 // of an instruction
		length := le.Uint32(b[eventLength:])
		if length > longest {
			return VMEvent{}, fmt.Errorf("%w: instruction of %d bytes", ErrRing, length)
		}
		e.Type, e.Length = EventType(b[eventType]), uint8(length)
	}
	return e, nil
}

// respond puts the answer for a vCPU.
func (r *recordRing) respond(vcpu int) {
	b := r.slot(r.rspProd)
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b[eventVersion:], r.layout.version)
	le.PutUint32(b[eventFlags:], flagVCPUPaused)
	le.PutUint32(b[eventVCPU:], uint32(vcpu))
	r.rspProd++
	counter(r.page, ringRspProd).Store(r.rspProd)
}

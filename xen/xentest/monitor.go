// This file makes the vCPUs of HVM and PVH domains report events on a ring, and
// take injected exceptions.

package xentest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// MonitorFrame is the guest frame that an HVM or PVH domain has for the ring. It
// has no memory at first.
const MonitorFrame = 0xfeff9

// ring is the hypervisor's end of a ring of vm_events.
type ring struct {
	page    []byte
	reqProd uint32
	rspCons uint32
}

// The bits of CanMonitor.
const (
	monitorsAMD   = 0x1f7b // Xen 4.17
	monitorsIntel = monitorsAMD | 1<<xen.MonitorSingleStep
)

// Report makes a vCPU report an event, as it does when it comes to an int3 or a
// #DB, and pauses it until the answer. It gives false if nobody wants to hear:
// then the exception is the guest's.
func (d *Domain) Report(n int, e xen.VMEvent) bool {
	d.x.t.Helper()
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	event := map[xen.EventReason]xen.MonitorEvent{
		xen.ReasonBreakpoint: xen.MonitorBreakpoint,
		xen.ReasonDebug:      xen.MonitorDebug,
		xen.ReasonSingleStep: xen.MonitorSingleStep,
	}[e.Reason]
	if d.ring == nil || !d.monitors[event] {
		return false
	}
	if d.vcpus[n].Waiting > 0 {
		d.x.t.Fatalf("xentest: vCPU %d reports an event while it waits for the answer of another", n)
	}
	const slots = 8
	if int32(d.ring.reqProd-d.ring.rspCons) >= slots { // less than none, if more was answered than asked
		d.x.t.Fatal("xentest: the ring is full")
	}
	d.vcpus[n].Waiting++
	le := binary.LittleEndian
	b := d.slot(d.ring.reqProd)
	clear(b)
	le.PutUint32(b, d.x.release.eventVersion)
	le.PutUint32(b[4:], 1) // paused
	le.PutUint32(b[8:], uint32(e.Reason))
	le.PutUint32(b[12:], uint32(n))
	le.PutUint32(b[40:], uint32(e.Length))
	b[44] = byte(e.Type)
	le.PutUint64(b[184:], d.vcpus[n].Context.RFLAGS)
	le.PutUint64(b[208:], d.vcpus[n].Context.RIP)
	d.ring.reqProd++
	d.ring.counter(0).Store(d.ring.reqProd)
	return true
}

func (d *Domain) slot(n uint32) []byte {
	size := d.x.release.eventSize
	return d.ring.page[64+int(n%8)*size:][:size]
}

// vmEvent is XEN_DOMCTL_vm_event_op.
func (c *conn) vmEvent(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	if le.Uint32(u) == 3 { // get the version
		le.PutUint32(u[8:], d.x.release.eventVersion)
		return 0
	}
	if le.Uint32(u[4:]) != 2 || d.Kind == xen.PV {
		return unix.ENOSYS
	}
	switch le.Uint32(u) {
	case 0: // enable
		switch {
		case d.ring != nil:
			return unix.EBUSY
		case d.frames[MonitorFrame] == nil:
			return unix.EINVAL
		}
		d.ring = &ring{page: d.frame(MonitorFrame)}
		le.PutUint32(u[8:], 42)
	case 1: // disable
		if d.ring == nil {
			return unix.EINVAL
		}
		d.monitors = nil
		if d.RingWaited {
			return unix.EBUSY
		}
		d.ring = nil
	case 2: // resume
		if d.ring == nil {
			return unix.ENODEV
		}
		d.takeResponses()
	default:
		return unix.ENOSYS
	}
	return 0
}

func (d *Domain) takeResponses() {
	le := binary.LittleEndian
	for ; d.ring.counter(8).Load() != d.ring.rspCons; d.ring.rspCons++ {
		b := d.slot(d.ring.rspCons)
		n := le.Uint32(b[12:])
		if le.Uint32(b) != d.x.release.eventVersion || uint64(n) >= uint64(len(d.vcpus)) {
			continue
		}
		if v := d.vcpus[n]; le.Uint32(b[4:])&1 != 0 && v.Waiting > 0 {
			v.Waiting--
		}
	}
}

// monitorOp is XEN_DOMCTL_monitor_op.
func (c *conn) monitorOp(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	can := uint32(0)
	switch {
	case d.Kind == xen.PV:
	case c.x.config.Intel:
		can = monitorsIntel
	default:
		can = monitorsAMD
	}
	event := le.Uint32(u[4:])
	switch op := le.Uint32(u); {
	case op == 2:
		le.PutUint32(u[4:], can)
	case op > 1:
		return unix.EOPNOTSUPP
	case event > 31:
		return unix.EINVAL
	case can>>event&1 == 0:
		return unix.EOPNOTSUPP
	case d.monitors[xen.MonitorEvent(event)] == (op == 0):
		return unix.EEXIST
	default:
		if op == 0 && xen.MonitorEvent(event) == xen.MonitorDebug && u[8] == 0 {
			c.x.misuse = append(c.x.misuse, "#DB is reported without the vCPU's being paused")
		}
		if d.monitors == nil {
			d.monitors = map[xen.MonitorEvent]bool{}
		}
		d.monitors[xen.MonitorEvent(event)] = op == 0
	}
	return 0
}

// debugOp is XEN_DOMCTL_debug_op.
func (c *conn) debugOp(d *Domain, u []byte) unix.Errno {
	v := d.vcpu(u[4:])
	switch {
	case v == nil, d.Kind == xen.PV:
		return unix.EINVAL
	case !c.x.config.Intel:
		return unix.EOPNOTSUPP
	}
	v.SingleStep = binary.LittleEndian.Uint32(u) == 1
	return 0
}

// hvmOp is the hypercall hvm_op.
func (c *conn) hvmOp(args [5]uint64) unix.Errno {
	if errno := c.x.enter(OpHVMGetParam); errno != 0 {
		return errno
	}
	le := binary.LittleEndian
	b, errno := c.at(args[1], 16)
	if errno != 0 {
		return errno
	}
	d := c.x.domains[le.Uint16(b)]
	switch {
	case args[0] != 1:
		return unix.ENOSYS
	case d == nil:
		return unix.ESRCH
	case d.Kind == xen.PV, le.Uint32(b[4:]) != 28:
		return unix.EINVAL
	}
	le.PutUint64(b[8:], MonitorFrame)
	return 0
}

// dmOp is the hypercall dm_op.
func (c *conn) dmOp(args [5]uint64) unix.Errno {
	le := binary.LittleEndian
	var bufs [2][]byte
	for i := range min(args[1], 2) {
		buf, errno := c.at(args[2]+16*i, 16)
		if errno != 0 {
			return errno
		}
		if bufs[i], errno = c.at(le.Uint64(buf), int(le.Uint64(buf[8:]))); errno != 0 {
			return errno
		}
	}
	b := bufs[0]
	if len(b) < 32 {
		return unix.EINVAL
	}
	ops := map[uint32]struct {
		op Op
		do func(d *Domain, b, more []byte) unix.Errno
	}{
		11: {OpModifiedMemory, (*Domain).modifiedMemory},
		13: {OpInjectEvent, (*Domain).injectEvent},
	}
	op, ok := ops[le.Uint32(b)]
	if !ok {
		return unix.EOPNOTSUPP
	}
	if errno := c.x.enter(op.op); errno != 0 {
		return errno
	}
	d := c.x.domains[uint16(args[0])]
	switch {
	case d == nil:
		return unix.ESRCH
	case d.Kind == xen.PV:
		return unix.EINVAL
	}
	return op.do(d, b, bufs[1])
}

func (d *Domain) injectEvent(b, _ []byte) unix.Errno {
	v := d.vcpu(b[8:])
	if v == nil {
		return unix.EINVAL
	}
	v.Injected = append(v.Injected, xen.Injection{Vector: b[12], Type: xen.EventType(b[13]), Length: b[14]})
	return 0
}

// changeFrame is the operations of memory_op that give and take memory.
func (c *conn) changeFrame(args [5]uint64) (int64, unix.Errno) {
	op := OpPopulate
	if args[0] == 1 {
		op = OpDecrease
	}
	if errno := c.x.enter(op); errno != 0 {
		return 0, errno
	}
	le := binary.LittleEndian
	b, errno := c.at(args[1], 32)
	if errno != 0 {
		return 0, errno
	}
	extent, errno := c.at(le.Uint64(b), 8)
	if errno != 0 {
		return 0, errno
	}
	d := c.x.domains[le.Uint16(b[24:])]
	if d == nil {
		return 0, unix.ESRCH
	}
	n := le.Uint64(extent)
	if le.Uint64(b[8:]) != 1 || (d.frames[n] == nil) == (op == OpDecrease) {
		return 0, 0
	}
	if op == OpDecrease {
		delete(d.frames, n)
	} else {
		d.frames[n] = &frame{machine: c.x.freeMachineFrame()}
	}
	return 1, 0
}

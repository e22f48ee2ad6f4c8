// This file holds the ring of vm_events, and the calls about it, against Xen's
// public headers, and the ring against what must not be on it.

package xen

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The calls about monitors put their arguments where the headers of each release
// have them.
func TestMonitorCallLayouts(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		w, h := newWire(t, release)
		le := binary.LittleEndian

		const mo = "xen_domctl.u.monitor_op."
		w.expect("monitor_op", func(b []byte) {
			w.u32(b, mo+"op", uint32(w.off("XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES")))
			le.PutUint32(b[w.off(mo+"event"):], 0x1f7b) // AMD's, Xen 4.17
		})
		can, err := h.CanMonitor(5)
		if err != nil || can(MonitorSingleStep) || !can(MonitorBreakpoint) || !can(MonitorDebug) || can(200) {
			t.Errorf("CanMonitor: %v", err)
		}
		for _, on := range []bool{true, false} {
			for _, e := range []MonitorEvent{MonitorSingleStep, MonitorBreakpoint, MonitorDebug} {
				w.expect("monitor_op", func(b []byte) {
					op := w.off("XEN_DOMCTL_MONITOR_OP_DISABLE")
					if on {
						op = w.off("XEN_DOMCTL_MONITOR_OP_ENABLE")
					}
					w.u32(b, mo+"op", uint32(op))
					w.u32(b, mo+"event", uint32(e))
					if sync := b[w.off(mo+"u.debug_exception.sync")] != 0; sync != (on && e == MonitorDebug) {
						t.Errorf("event %d, on %v: sync is %v", e, on, sync)
					}
				})
				if err := h.SetMonitor(5, e, on); err != nil {
					t.Error(err)
				}
			}
			w.expect("debug_op", func(b []byte) {
				op := w.off("XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF")
				if on {
					op = w.off("XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON")
				}
				w.u32(b, "xen_domctl.u.debug_op.op", uint32(op))
				w.u32(b, "xen_domctl.u.debug_op.vcpu", 3)
			})
			if err := h.SetSingleStep(5, 3, on); err != nil {
				t.Error(err)
			}
		}

		w.other = func(op uint64, args [5]uint64) (int64, error) {
			const in = "xen_dm_op.u.inject_event."
			buf := w.at(args[2], w.off("sizeof(struct xen_dm_op_buf)"))
			size := int(le.Uint64(buf[w.off("xen_dm_op_buf.size"):]))
			b := w.at(le.Uint64(buf[w.off("xen_dm_op_buf.h"):]), size)
			if int(op) != w.off("__HYPERVISOR_dm_op") || args[0] != 5 || args[1] != 1 || size != w.off("sizeof(struct xen_dm_op)") {
				t.Errorf("hypercall %d of domain %d with %d buffers, %d bytes", op, args[0], args[1], size)
			}
			w.u32(b, "xen_dm_op.op", uint32(w.off("XEN_DMOP_inject_event")))
			w.u32(b, in+"vcpuid", 3)
			w.u32(b, in+"error_code", ^uint32(0))
			got := Injection{b[w.off(in+"vector")], EventType(b[w.off(in+"type")]), b[w.off(in+"insn_len")]}
			if want := (Injection{VectorBreakpoint, SoftwareException, 1}); got != want || w.u64(b, in+"cr2") != 0 {
				t.Errorf("injects %+v, want %+v", got, want)
			}
			return 0, nil
		}
		if err := h.Inject(5, 3, Injection{VectorBreakpoint, SoftwareException, 1}); err != nil {
			t.Error(err)
		}

		w.other = func(op uint64, args [5]uint64) (int64, error) {
			b := w.at(args[1], w.off("sizeof(struct xen_hvm_param)"))
			if int(op) != w.off("__HYPERVISOR_hvm_op") || int(args[0]) != w.off("HVMOP_get_param") ||
				le.Uint16(b[w.off("xen_hvm_param.domid"):]) != 5 {
				t.Errorf("hypercall %d, %d of domain % x", op, args[0], b[:4])
			}
			w.u32(b, "xen_hvm_param.index", 28)
			le.PutUint64(b[w.off("xen_hvm_param.value"):], 0xfeff9)
			return 0, nil
		}
		if v, err := h.hvmParam(5, 28, "x"); err != nil || v != 0xfeff9 {
			t.Errorf("hvmParam gives %#x, %v", v, err)
		}

		for name, change := range map[string]func(DomID, GFN) error{
			"XENMEM_populate_physmap":     h.populate,
			"XENMEM_decrease_reservation": h.depopulate,
		} {
			const mr = "xen_memory_reservation."
			done := int64(1)
			w.other = func(op uint64, args [5]uint64) (int64, error) {
				b := w.at(args[1], w.off("sizeof(struct xen_memory_reservation)"))
				if int(op) != w.off("__HYPERVISOR_memory_op") || int(args[0]) != w.off(name) ||
					le.Uint16(b[w.off(mr+"domid"):]) != 5 || w.u64(b, mr+"nr_extents") != 1 {
					t.Errorf("%s: hypercall %d, %d: % x", name, op, args[0], b)
				}
				w.u32(b, mr+"extent_order", 0)
				w.u32(b, mr+"mem_flags", 0)
				if f := le.Uint64(w.at(w.u64(b, mr+"extent_start"), 8)); f != 0xfeff9 {
					t.Errorf("%s: frame %#x", name, f)
				}
				return done, nil
			}
			if err := change(5, 0xfeff9); err != nil {
				t.Error(err)
			}
			if done = 0; change(5, 0xfeff9) == nil {
				t.Errorf("%s: no error where nothing was done", name)
			}
		}

		const ve = "xen_domctl.u.vm_event_op."
		for op, call := range map[string]func() error{
			"XEN_VM_EVENT_DISABLE": func() error { return h.DisableRing(5) },
			"XEN_VM_EVENT_RESUME":  func() error { return h.resumeRing(5) },
			"XEN_VM_EVENT_ENABLE": func() error {
				r := &Ring{host: h, domain: 5}
				err := r.enable()
				if r.Port() != 77 {
					t.Errorf("port %d, want 77", r.Port())
				}
				return err
			},
		} {
			w.expect("vm_event_op", func(b []byte) {
				w.u32(b, ve+"op", uint32(w.off(op)))
				w.u32(b, ve+"mode", uint32(w.off("XEN_DOMCTL_VM_EVENT_OP_MONITOR")))
				le.PutUint32(b[w.off(ve+"u.enable.port"):], 77)
			})
			if err := call(); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		}
	})
}

// A listener of somebody else's is told from other failures.
func TestRingInUse(t *testing.T) {
	w, h := newWire(t, "4.17")
	w.domctl = func(cmd int, b []byte) unix.Errno {
		if b[16] == vmEventGetVersion {
			b[24] = 7
			return 0
		}
		return unix.EBUSY
	}
	w.other = func(uint64, [5]uint64) (int64, error) { return 0, nil }
	if _, err := h.OpenRing(5, 2); !errors.Is(err, ErrRingInUse) {
		t.Errorf("OpenRing gives %v, want ErrRingInUse", err)
	}
	if err := h.DisableRing(5); !errors.Is(err, ErrRingWaited) {
		t.Errorf("DisableRing gives %v, want ErrRingWaited", err)
	}
	for errno, want := range map[unix.Errno]bool{0: true, unix.ENODEV: false} {
		w.domctl = func(cmd int, b []byte) unix.Errno { return errno }
		if got, err := h.HasRing(5); got != want || err != nil {
			t.Errorf("%v: HasRing gives %v, %v", errno, got, err)
		}
	}
	w.domctl = func(cmd int, b []byte) unix.Errno { b[24] = 8; return 0 }
	if _, err := h.OpenRing(5, 2); !errors.Is(err, ErrVersion) {
		t.Errorf("OpenRing with a later interface gives %v, want ErrVersion", err)
	}
	w.domctl = func(cmd int, b []byte) unix.Errno { return unix.EINVAL }
	if err := h.DisableRing(5); err != nil {
		t.Errorf("DisableRing without a ring: %v", err)
	}
}

// putRequest puts a request on a ring as the hypervisor does.
func putRequest(r *recordRing, n uint32, e VMEvent) {
	le := binary.LittleEndian
	b := r.slot(n)
	clear(b)
	le.PutUint32(b[eventVersion:], r.layout.version)
	if e.Paused {
		b[eventFlags] = flagVCPUPaused
	}
	le.PutUint32(b[eventReason:], uint32(e.Reason))
	le.PutUint32(b[eventVCPU:], uint32(e.VCPU))
	le.PutUint32(b[eventLength:], uint32(e.Length))
	b[eventType] = byte(e.Type)
	le.PutUint64(b[eventRIP:], e.RIP)
	le.PutUint64(b[eventRFLAGS:], e.RFLAGS)
	counter(r.page, ringReqProd).Store(n + 1)
}

func TestRingRoundTrip(t *testing.T) {
	for _, layout := range []eventLayout{event384, event400} {
		r := &recordRing{layout: layout, vcpus: 4, page: make([]byte, PageSize)}
		r.reset()
		if e, ok, err := r.next(); ok || err != nil {
			t.Errorf("an empty ring gives %+v, %v", e, err)
		}
		for n := range uint32(20) {
			want := VMEvent{
				VCPU: int(n % 4), Reason: ReasonBreakpoint, Paused: true,
				RIP: 0xffffffff81000000 + uint64(n), RFLAGS: 0x246, Type: SoftwareException, Length: 1,
			}
			putRequest(r, n, want)
			got, ok, err := r.next()
			if diff := cmp.Diff(want, got); diff != "" || !ok || err != nil {
				t.Fatalf("event %d: %v (-want +got):\n%s", n, err, diff)
			}
			r.respond(got.VCPU)
			le := binary.LittleEndian
			b := r.slot(n)
			if le.Uint32(b) != layout.version || le.Uint32(b[4:]) != 1 || le.Uint32(b[12:]) != n%4 ||
				counter(r.page, ringRspProd).Load() != n+1 {
				t.Fatalf("response %d is % x", n, b[:16])
			}
		}
		again := &recordRing{layout: layout, vcpus: 4, page: r.page}
		again.adopt()
		if again.rspProd != 20 || again.reqCons != 20 {
			t.Errorf("adopted at %d, %d, want 20", again.reqCons, again.rspProd)
		}
	}
}

// What a guest could write there is refused, and reaches nothing beyond.
func TestRingHostile(t *testing.T) {
	good := VMEvent{VCPU: 1, Reason: ReasonDebug, Paused: true}
	for name, spoil := range map[string]func(r *recordRing){
		"too many":        func(r *recordRing) { counter(r.page, ringReqProd).Store(9) },
		"backwards":       func(r *recordRing) { counter(r.page, ringReqProd).Store(^uint32(0)) },
		"another version": func(r *recordRing) { r.slot(0)[eventVersion] = 5 },
		"no such vCPU":    func(r *recordRing) { r.slot(0)[eventVCPU] = 2 },
		"far vCPU":        func(r *recordRing) { r.slot(0)[eventVCPU+3] = 0x80 },
		"long":            func(r *recordRing) { r.slot(0)[eventLength] = 16 },
	} {
		r := &recordRing{layout: event400, vcpus: 2, page: make([]byte, PageSize)}
		r.reset()
		putRequest(r, 0, good)
		spoil(r)
		if e, ok, err := r.next(); ok || !errors.Is(err, ErrRing) {
			t.Errorf("%s: %+v, %v, %v, want ErrRing", name, e, ok, err)
		}
	}
}

func FuzzRing(f *testing.F) {
	page := make([]byte, PageSize)
	r := &recordRing{layout: event400, vcpus: 3, page: page}
	r.reset()
	for n := range uint32(3) {
		putRequest(r, n, VMEvent{VCPU: int(n), Reason: ReasonBreakpoint, Paused: true, Length: 1})
	}
	f.Add(page, uint8(3), true)
	f.Add([]byte{8}, uint8(1), false)
	f.Fuzz(func(t *testing.T, b []byte, vcpus uint8, late bool) {
		layout := event384
		if late {
			layout = event400
		}
		r := &recordRing{layout: layout, vcpus: int(vcpus), page: make([]byte, PageSize)}
		copy(r.page, b)
		for n := 0; ; n++ {
			if n > ringSlots {
				t.Fatal("more events than the ring has slots")
			}
			e, ok, err := r.next()
			if err != nil && !errors.Is(err, ErrRing) {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if e.VCPU < 0 || e.VCPU >= int(vcpus) || e.Length > 15 {
				t.Fatalf("event %+v of %d vCPUs", e, vcpus)
			}
			r.respond(e.VCPU)
		}
		r.adopt()
		for n := range 20 {
			r.respond(n)
		}
	})
}

// This file is the engine monitor: for HVM and PVH guests on any build of Xen.
//
// The hypervisor can report a vCPU's int3 and #DB, before the guest gets them, on
// a ring of vm_events. The vCPU is paused until the event is answered, so one
// that has stopped, and is to stay, is simply not answered.
//
// A processor with a monitor trap flag (Intel's) steps by it. Elsewhere a single
// step is RFLAGS.TF, which is kept from where the guest would find it. An
// instruction that the hypervisor may execute in the vCPU's place is stepped by an
// int3 behind it: RFLAGS.TF would bring the guest a #DB that no monitor is told of
// (__update_guest_eip in Xen's svm.c), and the monitor trap flag comes one
// instruction late. So is, without a monitor trap flag, one that goes to a handler
// of the kernel's and leaves the flags where that finds them.

package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// monitor is the Engine.
type monitor struct {
	g    *guest.Guest
	log  *slog.Logger
	host *xen.Host
	mtf  bool // the processor has a monitor trap flag

	ring     *xen.Ring          // nil until something can stop a vCPU
	channels *xen.EventChannels // nil where there are none: then the ring is polled
	waiting  []bool             // vCPUs that are paused by an event of theirs
	hops     []hop
	cut      []hop // by vCPU: what Finish is to go on with
	late     lateTraps
	detour   detour
	stops    []Stop    // since Resume
	resumed  time.Time // zero if no frames are mapped

	lookedAfter          time.Time    // when it was last looked whether a vCPU is at the guard
	guard                *guest.Plant // the jump in the handler of int3
	reported, unreported bool         // int3 is, or is not
}

// hop is a step under way.
type hop struct {
	on      bool
	insn    instruction
	from    uint64 // RIP
	rsp     uint64
	dr6     uint64
	guestTF bool // the guest has RFLAGS.TF set itself
	older   bool // when it began, a trap of a step before was still to come
	// cut says that it was called off in a handler of the guest's. RFLAGS.TF comes
	// back with what was interrupted.
	cut bool
	// One of these is how it is made.
	flag    bool         // RFLAGS.TF
	mtf     bool         // the monitor trap flag
	at      uint64       // where an int3 ends it
	landing *guest.Plant // that int3; nil also if a breakpoint is there
}

// detour is a vCPU on its way over the int3 that ends the step of another, or of
// something else on the same vCPU, while all others are held.
type detour struct {
	on      bool
	vcpu    int
	landing *guest.Plant
	held    []int
}

// newMonitor gives the engine for an HVM or PVH guest, or ErrUnavailable.
func newMonitor(g *guest.Guest, log *slog.Logger) (Engine, error) {
	e, err := makeMonitor(g, log)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func makeMonitor(g *guest.Guest, log *slog.Logger) (*monitor, error) {
	e := &monitor{
		g: g, log: log, host: g.Host(),
		waiting: make([]bool, g.NumVCPUs()),
		hops:    make([]hop, g.NumVCPUs()),
		cut:     make([]hop, g.NumVCPUs()),
		late:    newLateTraps(g),
	}
	can, err := e.host.CanMonitor(g.ID())
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: the hypervisor has no vm_events: %w", ErrUnavailable, err)
	case !can(xen.MonitorBreakpoint), !can(xen.MonitorDebug):
		return nil, fmt.Errorf("%w: the hypervisor cannot report the breakpoints of %v guests", ErrUnavailable, g.Kind())
	case e.host.Quirks().ContextLosesR8toR15:
		return nil, fmt.Errorf("%w: %w (fixed in Xen 4.21.2)", ErrUnavailable, xen.ErrQuirk)
	}
	e.mtf = can(xen.MonitorSingleStep)
	return e, nil
}

// adoptMonitor gives the engine for a guest that a killed process has left, to be
// closed.
// Preconditions: the guest is paused.
func adoptMonitor(g *guest.Guest, log *slog.Logger) (Engine, error) {
	e, err := makeMonitor(g, log)
	if err != nil {
		return nil, err
	}
	return e, e.adopt()
}

func (e *monitor) Name() string { return "monitor" }

// openChannels opens the event channels. Tests put another in its place.
var openChannels = xen.OpenEventChannels

// open makes the ring and has breakpoints and #DB reported on it.
// Preconditions: the guest is paused.
func (e *monitor) open() error {
	if e.ring != nil {
		return nil
	}
	// What is noted is removed if we are killed, so it has to be ours.
	has, err := e.host.HasRing(e.g.ID())
	if has {
		err = xen.ErrRingInUse
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	e.g.Ledger().SetEngine(numberMonitor)
	ring, err := e.host.OpenRing(e.g.ID(), e.g.NumVCPUs())
	if err != nil {
		if errors.Is(err, xen.ErrRingInUse) {
			e.g.Ledger().SetEngine(0)
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	e.ring = ring
	if e.channels, err = openChannels(); err == nil && e.channels != nil {
		_, err = e.channels.BindInterdomain(e.g.ID(), ring.Port())
	}
	if err == nil {
		err = e.monitors(true)
	}
	if err != nil {
		return errors.Join(err, e.shut())
	}
	return nil
}

// monitors has events reported, or no longer.
func (e *monitor) monitors(on bool) error {
	events := []xen.MonitorEvent{xen.MonitorBreakpoint, xen.MonitorDebug}
	if e.mtf {
		events = append(events, xen.MonitorSingleStep)
	}
	for _, event := range events {
		if err := e.host.SetMonitor(e.g.ID(), event, on); err != nil {
			return err
		}
	}
	return nil
}

// shut removes the ring. What is waiting then would wait for ever.
func (e *monitor) shut() error {
	err := e.monitors(false)
	if e.channels != nil {
		err = errors.Join(err, e.channels.Close())
		e.channels = nil
	}
	if err = errors.Join(err, e.ring.Close()); err == nil {
		e.ring = nil
		e.g.Ledger().SetEngine(0)
	}
	return err
}

// Resume implements Engine. A guest in which nothing can stop a vCPU is left
// alone.
func (e *monitor) Resume(motions []Motion) error {
	if e.g.Armed() || anyStep(motions) {
		if e.unreported {
			return fmt.Errorf("%w: %w", ErrUnavailable, ErrUnreported)
		}
		if err := e.open(); err != nil {
			return err
		}
		if err := e.plantGuard(); err != nil {
			return err
		}
	}
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return err
	}
	var answers []int
	for _, n := range vcpus {
		m := Stay
		if n < len(motions) {
			m = motions[n]
		}
		if err := e.set(n, m); err != nil {
			return fmt.Errorf("resume vCPU %d: %w", n, err)
		}
		if m != Stay && e.waiting[n] {
			answers = append(answers, n)
		}
	}
	if err := e.answer(answers...); err != nil {
		return err
	}
	return e.goOn()
}

// goOn lets the guest run.
func (e *monitor) goOn() error {
	e.resumed = time.Now()
	return e.g.ResumeBriefly()
}

// set makes a vCPU ready for a motion.
func (e *monitor) set(n int, m Motion) error {
	switch {
	case m == Stay && e.waiting[n]:
		return nil
	case m == Stay:
		return e.g.Hold(n)
	case m == Run:
		e.cut[n] = hop{}
	case m == Finish && e.cut[n].on:
		if err := e.goOnWith(n, e.cut[n]); err != nil {
			return err
		}
	default:
		if err := e.begin(n); err != nil {
			return err
		}
	}
	return e.g.Release(n)
}

// answer lets vCPUs go on that are paused by an event.
func (e *monitor) answer(vcpus ...int) error {
	for _, n := range vcpus {
		e.waiting[n] = false
	}
	if len(vcpus) == 0 {
		return nil
	}
	return e.ring.Answer(vcpus...)
}

// begin begins a step.
func (e *monitor) begin(n int) error {
	if e.hops[n].on { // the guest could not be resumed then
		if err := e.callOff(n); err != nil {
			return err
		}
	}
	r, err := e.g.Registers(n)
	if err != nil {
		return err
	}
	h := hop{
		on: true, from: r.RIP, rsp: r.RSP, dr6: r.DR6,
		guestTF: r.RFLAGS&x86.RFLAGSTF != 0, older: e.g.Ledger().Marked(n),
	}
	h.insn = e.instruction(n, &r)
	if e.mtf && h.insn.class != emulated {
		h.mtf = true
		e.hops[n] = h
		return e.host.SetSingleStep(e.g.ID(), n, true)
	}
	if h.at = e.next(n, h.insn, &r); h.at != 0 {
		if err = e.land(n, h); err == nil {
			return nil
		}
		e.log.Debug("step by RFLAGS.TF", "vcpu", n, "err", err)
	}
	h.flag, h.at = true, 0
	e.hops[n] = h
	return e.setTF(n)
}

// land plants the int3 that ends a step. What is planted there already ends it too.
func (e *monitor) land(n int, h hop) (err error) {
	h.landing, err = e.g.Plant(n, h.at, []byte{guest.Int3})
	if err == nil || errors.Is(err, guest.ErrPlanted) {
		e.hops[n] = h
		return nil
	}
	return err
}

// goOnWith goes on with a step that was cut short.
func (e *monitor) goOnWith(n int, h hop) error {
	e.cut[n] = hop{}
	if h.at != 0 {
		return e.land(n, h)
	}
	e.hops[n] = h
	e.g.SetStepping(n, true)
	if !h.older {
		e.g.SetFinishing(n)
	}
	return nil
}

// setTF makes a vCPU trap after an instruction.
func (e *monitor) setTF(n int) error {
	e.g.SetStepping(n, true)
	return e.g.Alter(n, func(ctx *xen.VCPUContext) {
		ctx.RFLAGS |= x86.RFLAGSTF
		ctx.DebugRegs[6] &^= DR6BS | DR6Breaks
	})
}

// instruction looks at the one that a vCPU is to execute.
func (e *monitor) instruction(n int, r *x86.Registers) instruction {
	var code [15]byte
	got, _ := e.g.Read(n, r.RIP, code[:])
	return decode(code[:got], r.EFER&x86.EFERLMA != 0)
}

// next gives where an instruction leads that is not to be stepped by RFLAGS.TF, 0
// for the others.
func (e *monitor) next(n int, i instruction, r *x86.Registers) uint64 {
	switch i.class {
	case emulated:
		return r.RIP + uint64(i.length)
	case sysret:
		return r.RCX
	case syscall:
		at, err := e.g.SyscallEntry(n)
		if err == nil {
			return at
		}
	case gated:
		at, err := e.g.Gate(n, i.vector)
		if err == nil {
			return at
		}
	}
	return 0
}

// arrived tells whether a vCPU has come to the int3 that ends its step by that
// step, and not in an interrupt's handler or another task.
func (e *monitor) arrived(n int, h *hop, r *x86.Registers) bool {
	switch h.insn.class {
	case syscall:
		return r.RCX == h.from+uint64(h.insn.length)
	case gated:
		var frame [8]byte
		got, err := e.g.Read(n, r.RSP, frame[:])
		return err == nil && got == len(frame) && binary.LittleEndian.Uint64(frame[:]) == h.from+uint64(h.insn.length)
	}
	return r.RSP == h.rsp
}

// domainCheck is how often a domain that reports nothing is looked for.
const domainCheck = 250 * time.Millisecond

// Wait implements Engine. What is the guest's own is dealt with here.
func (e *monitor) Wait(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.ring != nil && e.ring.Pending() {
			if err := e.gather(); err != nil {
				return err
			}
			if len(e.stops) > 0 {
				return nil
			}
			if err := e.goOn(); err != nil {
				return err
			}
			continue
		}
		limit := domainCheck
		if e.ring != nil {
			limit = pollMost // for what is planted is to go as soon as the domain shuts down
		}
		signalled, err := e.signal(ctx, limit)
		if err != nil {
			return err
		}
		if signalled {
			continue
		}
		if !e.resumed.IsZero() && time.Since(e.resumed) >= briefly {
			e.resumed = time.Time{}
			if err := e.g.ReleaseFrames(); err != nil {
				return err
			}
		}
		if err := e.ended(); err != nil {
			return err
		}
		if time.Since(e.lookedAfter) < briefly {
			continue
		}
		e.lookedAfter = time.Now()
		if there, err := e.atGuard(); err != nil {
			return err
		} else if there {
			if err := e.lookAtGuard(); err != nil {
				return err
			}
		}
	}
}

// ended tells how the domain has ended, if it has. One that is dying is gone: what is
// mapped of it keeps it from being so.
func (e *monitor) ended() error {
	info, err := e.g.Info()
	switch {
	case err == nil && info.Dying:
		return xen.ErrNoDomain
	case err == nil && info.Shutdown:
		return ErrShutDown
	}
	return err
}

// signal waits until the ring may have something, or for a while.
func (e *monitor) signal(ctx context.Context, limit time.Duration) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if e.ring != nil && e.channels == nil {
		limited, cancel = context.WithTimeout(limited, time.Millisecond)
		defer cancel()
	}
	if e.channels == nil {
		<-limited.Done()
		return false, nil
	}
	port, err := e.channels.Wait(limited)
	switch {
	case err == nil:
		return true, e.channels.Unmask(port)
	case limited.Err() != nil:
		return false, nil
	}
	return false, err
}

// gather pauses the guest and takes what is on the ring.
func (e *monitor) gather() error {
	if err := e.g.Pause(); err != nil {
		return err
	}
	for {
		event, ok, err := e.ring.Next()
		if err != nil || !ok {
			return err
		}
		n := event.VCPU
		if !event.Paused || e.waiting[n] {
			continue // none that was asked for
		}
		e.waiting[n] = true
		stop, stopped, err := e.take(event)
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", n, err)
		}
		if stopped {
			e.stops = append(e.stops, stop)
		} else if err := e.answer(n); err != nil {
			return err
		}
	}
}

// take finds out what an event is, and does what is to be done for the guest.
func (e *monitor) take(event xen.VMEvent) (stop Stop, stopped bool, err error) {
	n := event.VCPU
	r, err := e.g.Registers(n)
	if err != nil {
		return stop, false, err
	}
	e.log.Debug("event", "event", fmt.Sprintf("%+v", event), "rip", fmt.Sprintf("%#x", r.RIP), "rflags", fmt.Sprintf("%#x", r.RFLAGS), "dr6", fmt.Sprintf("%#x", r.DR6))
	switch event.Reason {
	case xen.ReasonBreakpoint:
		return e.takeInt3(event, &r)
	case xen.ReasonDebug:
		return e.takeDebug(event, &r)
	case xen.ReasonSingleStep:
		if !e.hops[n].mtf {
			return stop, false, e.host.SetSingleStep(e.g.ID(), n, false)
		}
		return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, true, e.finish(n, &r)
	}
	return stop, false, nil
}

func (e *monitor) takeInt3(event xen.VMEvent, r *x86.Registers) (stop Stop, stopped bool, err error) {
	n := event.VCPU
	e.reported = true
	if err := e.liftGuard(); err != nil {
		return stop, false, err
	}
	if e.detour.on && e.detour.vcpu == n {
		if err := e.endDetour(); err != nil {
			return stop, false, err
		}
	}
	p := e.g.PlantedAt(n, r.RIP)
	h := &e.hops[n]
	switch stepper := e.landingOf(p); {
	case p == nil:
		return stop, false, e.passInt3(event, r)
	case stepper < 0 && h.on && r.RIP == h.at && e.arrived(n, h, r):
		return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, true, e.finish(n, r)
	case stepper < 0:
		return Stop{VCPU: n, Trap: Breakpoint}, true, e.callOff(n)
	case stepper == n && e.arrived(n, h, r):
		return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, true, e.finish(n, r)
	default:
		return stop, false, e.beginDetour(n, stepper, r)
	}
}

// landingOf gives the vCPU whose step a planted int3 ends, or -1.
func (e *monitor) landingOf(p *guest.Plant) int {
	if p == nil {
		return -1
	}
	return slices.IndexFunc(e.hops, func(h hop) bool { return h.landing == p })
}

// passInt3 gives the guest an int3 of its own. If there is none any more, the
// guest or we have taken it away since: then the vCPU executes what is there now.
func (e *monitor) passInt3(event xen.VMEvent, r *x86.Registers) error {
	var b [1]byte
	if _, err := e.g.Read(event.VCPU, r.RIP, b[:]); err == nil && b[0] != guest.Int3 && event.Length <= 1 {
		return nil
	}
	return e.inject(event, xen.VectorBreakpoint)
}

// inject gives the guest the exception that an event has kept from it.
func (e *monitor) inject(event xen.VMEvent, vector uint8) error {
	return e.host.Inject(e.g.ID(), event.VCPU, xen.Injection{Vector: vector, Type: event.Type, Length: event.Length})
}

func (e *monitor) takeDebug(event xen.VMEvent, r *x86.Registers) (stop Stop, stopped bool, err error) {
	n := event.VCPU
	tf := r.RFLAGS&x86.RFLAGSTF != 0
	hardware := event.Type == xen.HardwareException
	if e.detour.on && e.detour.vcpu == n && tf && hardware {
		return stop, false, e.endDetour()
	}
	ours, err := e.g.OurDebugRegs(n)
	if err != nil {
		return stop, false, err
	}
	cause := r.DR6 & ours
	h := &e.hops[n]
	// DR6 says which debug registers have hit. On AMD's processors it says that
	// a step is done only if one is in use: Xen does not save it otherwise
	// (svm_save_dr). A breakpoint on execution comes before its instruction.
	before := cause != 0 && r.RIP == h.from
	switch {
	case !hardware:
	case h.on && h.flag && !before && (tf || h.insn.class == popsFlags):
		return Stop{VCPU: n, Trap: Debug, DR6: cause | DR6BS}, true, e.finish(n, r)
	case cause != 0:
		if err := e.callOff(n); err != nil {
			return stop, false, err
		}
		return Stop{VCPU: n, Trap: Debug, DR6: cause}, true, e.clearDR6(n, ours)
	case tf && e.late.of(n, r.RIP) >= 0:
		of := e.late.of(n, r.RIP)
		moved := e.hops[of].cut
		if moved { // here
			e.hops[of] = hop{}
			e.g.SetStepping(of, false)
		}
		if err := e.takeLate(n, of); err != nil || !moved {
			return stop, false, err
		}
		return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, true, nil
	}
	return stop, false, e.inject(event, xen.VectorDebug)
}

func (e *monitor) clearDR6(n int, ours uint64) error {
	return e.g.Alter(n, func(ctx *xen.VCPUContext) { ctx.DebugRegs[6] &^= DR6BS | ours })
}

// finish ends a step that is done.
func (e *monitor) finish(n int, r *x86.Registers) error {
	h := e.hops[n]
	e.hops[n] = hop{}
	switch {
	case h.mtf:
		return e.host.SetSingleStep(e.g.ID(), n, false)
	case h.flag:
		if h.cut && !h.older {
			e.late.forget(n)
		}
		if h.insn.class == pushesFlags && !h.guestTF {
			if err := clearPushedTF(e.g, n, r.RSP); err != nil {
				return err
			}
		}
		ours, err := e.g.OurDebugRegs(n)
		if err != nil {
			return err
		}
		err = e.g.Alter(n, func(ctx *xen.VCPUContext) {
			ctx.DebugRegs[6] = dr6After(h.dr6, ctx.DebugRegs[6], ours)
			if !h.guestTF && h.insn.class != popsFlags {
				ctx.RFLAGS &^= x86.RFLAGSTF
			}
		})
		if err != nil {
			return err
		}
		e.g.SetStepping(n, false)
	case h.landing != nil:
		return e.unplant(h.landing)
	}
	return nil
}

// callOff ends a step of a vCPU, if there is one, that is not done.
func (e *monitor) callOff(n int) error {
	h := e.hops[n]
	if !h.on && !e.g.Stepping(n) {
		return nil
	}
	e.hops[n] = hop{}
	switch {
	case h.mtf:
		return e.host.SetSingleStep(e.g.ID(), n, false)
	case h.at != 0:
		if r, err := e.g.Registers(n); err == nil && r.RIP != h.from {
			e.cutShort(n, h)
		}
		if h.landing == nil {
			return nil
		}
		return e.unplant(h.landing)
	}
	return e.clearTF(n, h)
}

// cutShort keeps a step for Finish.
func (e *monitor) cutShort(n int, h hop) {
	h.cut = true
	e.cut[n] = h
}

// isDown tells whether an error says that a vCPU is not up.
func isDown(err error) bool {
	return errors.Is(err, xen.ErrVCPUOffline) || errors.Is(err, xen.ErrNoVCPU)
}

// clearTF takes RFLAGS.TF from a vCPU that has not trapped by it.
func (e *monitor) clearTF(n int, h hop) error {
	if !e.g.Stepping(n) {
		return nil
	}
	r, err := e.g.Registers(n)
	switch away := r.RFLAGS&x86.RFLAGSTF == 0; {
	case isDown(err):
		err = nil // it will not come back to where it was
	case err != nil:
	case away && (h.on || e.g.SteppedAway(n)):
		// It is in a handler of the guest's, and will come out of it with TF: that
		// trap is not the guest's, and wanted only by Finish.
		from := h.from
		if h.insn.class == popsFlags {
			from = 0 // IRET, perhaps
		}
		e.late.expect(n, from)
		e.cutShort(n, h)
	case !away:
		if h.cut && !h.older {
			e.late.forget(n)
		}
		if !h.guestTF {
			// It may have trapped even so, where the event is another's or is lost.
			err = e.g.Alter(n, takeStep)
		}
	}
	if err == nil {
		e.g.SetStepping(n, false)
	}
	return err
}

// takeStep takes from a vCPU what makes it step, and what tells that it has.
func takeStep(ctx *xen.VCPUContext) {
	ctx.RFLAGS &^= x86.RFLAGSTF
	ctx.DebugRegs[6] &^= DR6BS
}

// unplant takes an int3 that ends a step away.
func (e *monitor) unplant(p *guest.Plant) error {
	if err := e.g.Unplant(p); err != nil && !errors.Is(err, guest.ErrRewritten) {
		return err
	}
	return nil
}

// clearLate takes RFLAGS.TF from a vCPU that has come out of the handler in which
// its step was called off, and not trapped yet.
func (e *monitor) clearLate(n int) error {
	if !e.g.Ledger().Marked(n) {
		return nil
	}
	r, err := e.g.Registers(n)
	switch {
	case isDown(err):
		e.late.forget(n)
		return nil
	case err != nil || r.RFLAGS&x86.RFLAGSTF == 0 || e.late.of(n, r.RIP) != n:
		return err
	}
	return e.takeLate(n, n)
}

// takeLate takes RFLAGS.TF from a vCPU that has it by a step, perhaps of another,
// that was called off.
func (e *monitor) takeLate(n, of int) error {
	e.g.SetStepping(n, true)
	e.late.forget(of)
	err := e.g.Alter(n, takeStep)
	if err == nil {
		e.g.SetStepping(n, false)
	}
	return err
}

// fixAnyPushedFlags takes RFLAGS.TF out of what PUSHF has pushed, after a step of which
// nothing is known but that it was, and perhaps is, under way.
func (e *monitor) fixAnyPushedFlags(n int) error {
	r, err := e.g.Registers(n)
	if err != nil || r.RFLAGS&x86.RFLAGSTF == 0 {
		return nil
	}
	var code [1]byte
	var flags [8]byte
	gotCode, _ := e.g.Read(n, r.RIP-1, code[:])
	gotFlags, _ := e.g.Read(n, r.RSP, flags[:])
	if gotCode < len(code) || gotFlags < len(flags) || decode(code[:], true).class != pushesFlags ||
		binary.LittleEndian.Uint64(flags[:]) != r.RFLAGS&^x86.RFLAGSRF {
		return nil
	}
	return clearPushedTF(e.g, n, r.RSP)
}

// beginDetour takes a vCPU over the int3 that ends the step of another, or its
// own, where that step has not come to it.
func (e *monitor) beginDetour(n, stepper int, r *x86.Registers) error {
	p := e.hops[stepper].landing
	i := e.instruction(n, r)
	if e.detour.on || i.class != ordinary || r.RFLAGS&x86.RFLAGSTF != 0 {
		e.log.Debug("step is called off: another comes to its end", "vcpu", stepper, "other", n)
		return e.callOff(stepper)
	}
	if err := e.g.Lift(p); err != nil {
		return e.callOff(stepper) // the guest has overwritten it
	}
	e.detour = detour{on: true, vcpu: n, landing: p}
	var err error
	if e.detour.held, err = e.holdOthers(n); err != nil {
		return err
	}
	return e.setTF(n)
}

// holdOthers holds all vCPUs that may run but one, and gives which.
func (e *monitor) holdOthers(n int) (held []int, err error) {
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return nil, err
	}
	for _, m := range vcpus {
		if m == n || e.waiting[m] || e.g.Held(m) {
			continue
		}
		if err := e.g.Hold(m); err != nil {
			return held, err
		}
		held = append(held, m)
	}
	return held, nil
}

// release ends holdOthers.
func (e *monitor) release(held []int) (err error) {
	for _, m := range held {
		err = errors.Join(err, e.g.Release(m))
	}
	return err
}

// endDetour ends the detour, done or not.
func (e *monitor) endDetour() error {
	d := e.detour
	if !d.on {
		return nil
	}
	e.detour = detour{}
	err := errors.Join(e.clearTF(d.vcpu, hop{}), e.release(d.held))
	if stepper := e.landingOf(d.landing); stepper >= 0 && e.g.Replant(d.landing) != nil {
		err = errors.Join(err, e.callOff(stepper))
	}
	return err
}

// Pause implements Engine.
func (e *monitor) Pause() ([]Stop, error) {
	if e.ring == nil {
		return nil, e.g.Pause()
	}
	if err := e.gather(); err != nil {
		return nil, err
	}
	trapped, err := e.trapped()
	if trapped {
		err = e.giveUp()
	}
	err = errors.Join(err, e.endDetour())
	for n := range e.hops {
		done, e2 := e.landed(n)
		if done {
			e.stops = append(e.stops, Stop{VCPU: n, Trap: Debug, DR6: DR6BS})
		}
		err = errors.Join(err, e2, e.callOff(n), e.clearLate(n))
		if done {
			e.cut[n] = hop{}
		}
	}
	stops := e.stops
	e.stops = nil
	slices.SortFunc(stops, func(a, b Stop) int { return cmp.Compare(a.VCPU, b.VCPU) })
	return stops, err
}

// landed tells whether a vCPU stands at the int3 that ends its step, and has only
// not executed that yet: it has blocked, as by HLT.
func (e *monitor) landed(n int) (bool, error) {
	h := &e.hops[n]
	if h.landing == nil || e.waiting[n] {
		return false, nil
	}
	r, err := e.g.Registers(n)
	if isDown(err) {
		return false, nil // what it was to execute has taken it down
	}
	return err == nil && r.RIP == h.landing.Addr() && e.arrived(n, h, &r), err
}

// Close implements Engine.
func (e *monitor) Close() error {
	err := e.close()
	if errors.Is(e.ended(), xen.ErrNoDomain) {
		if e.ring != nil {
			_ = e.shut() // as far as it goes: there is nobody to have it back
		}
		return nil
	}
	return err
}

func (e *monitor) close() error {
	if e.ring == nil {
		return e.g.Pause()
	}
	if err := e.g.Pause(); err != nil {
		return err
	}
	trapped, err := e.trapped()
	if trapped {
		err = e.takeUnreported()
	}
	if err != nil {
		return err
	}
	if _, err := e.Pause(); err != nil && !errors.Is(err, xen.ErrRing) {
		return err
	}
	err = e.g.Disarm()
	e.guard = nil
	// A vCPU that is in an interrupt handler of the guest's with a step to come
	// would otherwise bring the guest a trap that it knows nothing of. And those
	// that wait for a slot on the ring hold it open.
	for deadline := time.Now().Add(settleTime); err == nil && time.Now().Before(deadline); {
		if err = e.answer(e.stopped()...); err != nil {
			break
		}
		if !e.late.any() {
			err = e.shut()
			if !errors.Is(err, xen.ErrRingWaited) {
				break
			}
		}
		err = e.let(pollMost)
	}
	if e.ring != nil {
		err = errors.Join(err, e.answer(e.stopped()...), e.shut())
	}
	return err
}

// stopped gives the vCPUs that are paused by an event.
func (e *monitor) stopped() []int {
	var vcpus []int
	for n, waits := range e.waiting {
		if waits {
			vcpus = append(vcpus, n)
		}
	}
	return vcpus
}

// let lets all vCPUs run for a while.
// Preconditions: the guest is paused.
func (e *monitor) let(d time.Duration) error {
	for n := range e.hops {
		if err := e.g.Release(n); err != nil {
			return err
		}
	}
	if err := e.g.Resume(); err != nil {
		return err
	}
	time.Sleep(d)
	_, err := e.Pause()
	return err
}

// adopt takes over what another process has left: perhaps a ring, which only that
// process could map, and vCPUs paused by events that were on it. An int3 among
// them has not been executed yet, so that nothing of it is lost.
func (e *monitor) adopt() error {
	id := e.g.ID()
	all := make([]int, e.g.NumVCPUs())
	for n := range all {
		all[n] = n
	}
	err := e.host.DisableRing(id)
	if errors.Is(err, xen.ErrRingWaited) {
		err = e.drain(all)
	}
	if err != nil {
		return err
	}
	if err := e.open(); err != nil {
		return err
	}
	if err := e.ring.Answer(all...); err != nil {
		return err
	}
	for n := range all {
		if guarded := e.g.Ledger().Scratch(); guarded != 0 {
			err = errors.Join(err, e.sendBack(n, guarded))
		}
		if e.mtf {
			err = errors.Join(err, e.host.SetSingleStep(id, n, false))
		}
		if e.g.Stepping(n) {
			e.hops[n].cut = e.g.Finishing(n)
			err = errors.Join(err, e.fixAnyPushedFlags(n), e.callOff(n))
		}
	}
	return err
}

// drain lets those vCPUs have their turn on an abandoned ring that wait for it,
// so that it can be removed.
func (e *monitor) drain(all []int) error {
	ring, err := e.host.AdoptRing(e.g.ID(), len(all))
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); {
		// The failed attempt to remove it has turned these off.
		if err := e.monitors(true); err != nil {
			return err
		}
		if err := ring.Answer(all...); err != nil {
			return err
		}
		if err := e.g.Resume(); err != nil {
			return err
		}
		time.Sleep(pollMost)
		if err := e.g.Pause(); err != nil {
			return err
		}
		if err = ring.Close(); !errors.Is(err, xen.ErrRingWaited) {
			break
		}
	}
	return err
}

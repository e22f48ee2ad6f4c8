// This file is run control: what vCPUs do between a resumption and the stop
// reply. A resumption runs in legs. In most of them all vCPUs do what the client
// wants; in some, one vCPU steps off a breakpoint, or steps for the client, and
// the others are held. Between two legs the guest is paused.

package debugger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

const (
	// deathPoll is how often a running domain is asked whether it still lives.
	deathPoll = 100 * time.Millisecond
	// aloneBound is how long a vCPU may take for a step while the others are held.
	// One that waits for another, as for a lock or an answer, takes longer.
	aloneBound = 50 * time.Millisecond
	// togetherTime is how long the others then run.
	togetherTime = 20 * time.Millisecond
	// maxInstruction is the length of the longest instruction.
	maxInstruction = 15
)

// A motion is what a vCPU is to do until it stops.
type motion struct {
	engine.Motion
	ranged     bool // steps go on while RIP is in [start, end)
	start, end uint64
	begun      bool // its step has begun, and that at from
	from       place
}

// A hit is a stop to be told to the client.
type hit struct {
	vcpu  int
	of    *breakpoint // nil for a step
	addr  uint64      // of the breakpoint, or what was accessed
	cause rsp.BreakpointKind
}

// A place is where a vCPU stands: RSP tells two visits of an address apart.
type place struct{ rip, rsp uint64 }

// A leg is what vCPUs do now.
type leg struct {
	stepper int          // the vCPU that steps, the others being held; -1 for none
	lifted  *guest.Plant // what it steps off
	nested  bool         // that, in a handler that has cut the client's step short
	until   time.Time    // when to look whether it gets on; zero: never
}

// CanStep tells whether single vCPUs can be stepped.
func (t *Target) CanStep() bool { return t.noEngine == nil }

// Resume lets the guest run. Wait goes on with it.
func (t *Target) Resume(actions []rsp.Action) error {
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return clientError(err)
	}
	t.kernelFiles.resumed()
	clear(t.plan)
	for n := range t.plan {
		a := rsp.ActionFor(actions, t.thread(n))
		if a.Kind != rsp.Halt && !slices.Contains(vcpus, n) {
			a.Kind = rsp.Continue // it may come up
		}
		switch a.Kind {
		case rsp.Continue:
			t.plan[n].Motion = engine.Run
		case rsp.Step:
			t.plan[n].Motion = engine.Step
		case rsp.StepRange:
			t.plan[n] = motion{Motion: engine.Step, ranged: true, start: a.Start, end: a.End}
		}
	}
	select {
	case <-t.interrupt: // one that came after the last stop
	default:
	}
	t.alone = time.Time{}
	t.pending = slices.DeleteFunc(t.pending, func(h hit) bool {
		// A step that was done, of which the client does not want to know any more.
		return h.of == nil && t.plan[h.vcpu].Motion == engine.Run
	})
	if t.nextPending() >= 0 {
		return nil // Wait finds it
	}
	return clientError(t.start())
}

// nextPending gives the first hit that was not told and concerns a vCPU that is
// to go on, or -1.
func (t *Target) nextPending() int {
	t.pending = slices.DeleteFunc(t.pending, func(h hit) bool {
		// The client has moved it since.
		r, err := t.guest.Registers(h.vcpu)
		return err != nil || h.cause == rsp.SoftwareBreakpoint && r.RIP != h.addr
	})
	return slices.IndexFunc(t.pending, func(h hit) bool { return t.plan[h.vcpu].Motion != engine.Stay })
}

// takePending takes that hit out of those that were not told.
func (t *Target) takePending() (hit, bool) {
	i := t.nextPending()
	if i < 0 {
		return hit{}, false
	}
	h := t.pending[i]
	t.pending = slices.Delete(t.pending, i, i+1)
	return h, true
}

// downInStep says that a vCPU has gone down in a step for the client, which will not end.
type downInStep int

func (n downInStep) Error() string { return fmt.Sprintf("vCPU %d has gone down in its step", int(n)) }

// start begins the next leg.
// Preconditions: the guest is paused.
func (t *Target) start() error {
	if err := t.replant(); err != nil { // after a leg that has failed
		return err
	}
	t.leg = leg{stepper: -1}
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return err
	}
	motions := make([]engine.Motion, len(t.plan))
	for n := range motions {
		if _, up := slices.BinarySearch(vcpus, n); up {
			motions[n] = t.plan[n].Motion
		} else {
			t.past[n] = place{} // it will not go on from there
			if t.plan[n].Motion == engine.Step {
				return downInStep(n)
			}
		}
	}
	if t.slotsInUse() {
		if err := t.setDebugRegs(); err != nil { // for vCPUs that came up
			return err
		}
	}
	// Those that are on a breakpoint get off it first, one after the other; then
	// the client's steps, one after the other too. One that others run beside comes
	// last, for they would be at theirs again at once.
	sees := false
	for _, n := range vcpus {
		if motions[n] == engine.Stay || t.past[n] == (place{}) {
			continue
		}
		off, err := t.getOff(n)
		if err != nil {
			return err
		}
		if off == nil || motions[n] == engine.Run && t.skip(n) {
			continue
		}
		t.leg = leg{stepper: n, lifted: off}
		if sees, err = t.guest.SeesHeld(n); err != nil {
			return err
		}
		if !sees {
			break
		}
	}
	if n := slices.Index(motions, engine.Step); t.leg.stepper < 0 && n >= 0 {
		t.leg.stepper = n
		if sees, err = t.guest.SeesHeld(n); err != nil {
			return err
		}
	}
	if t.leg.stepper >= 0 && t.noEngine == nil {
		switch {
		case sees:
			t.letOthersRun(vcpus, motions)
		case t.together(time.Now()):
			return t.startTogether(motions)
		default:
			for n := range motions {
				if n != t.leg.stepper {
					motions[n] = engine.Stay
				}
			}
			t.leg.until = time.Now().Add(aloneBound)
		}
		if motions[t.leg.stepper], err = t.stepMotion(); err != nil {
			return err
		}
	} else {
		t.alone = time.Time{}
	}
	if t.leg.lifted != nil {
		if err := t.guest.Lift(t.leg.lifted); err != nil && !errors.Is(err, guest.ErrRewritten) {
			return err
		}
	}
	return t.engine.Resume(motions)
}

// stepMotion gives the motion of the vCPU that steps. A step for the client that
// was cut short is not begun anew in the handler that the vCPU is in.
func (t *Target) stepMotion() (engine.Motion, error) {
	m := &t.plan[t.leg.stepper]
	if m.Motion != engine.Step {
		return engine.Step, nil
	}
	r, err := t.guest.Registers(t.leg.stepper)
	if err != nil {
		return engine.Step, err
	}
	here := place{r.RIP, r.RSP}
	switch {
	case !m.begun:
		m.begun, m.from = true, here
		return engine.Step, nil
	case t.leg.lifted != nil && here != m.from:
		t.leg.nested = true
		return engine.Step, nil
	}
	return engine.Finish, nil
}

// together decides whether vCPUs that were held for a step should run for a
// while: those that the client wants to run.
func (t *Target) together(now time.Time) bool {
	if t.alone.IsZero() {
		t.alone = now
	}
	return now.Sub(t.alone) > aloneBound
}

// startTogether lets the others run beside the vCPU that steps, until it has. One
// that is to step off a breakpoint stands still meanwhile, for the others must
// not miss the breakpoint, and then tries again.
func (t *Target) startTogether(motions []engine.Motion) error {
	n := t.leg.stepper
	told := false
	for m := range motions {
		switch {
		case m == n:
		case motions[m] == engine.Step:
			motions[m] = engine.Stay // its turn comes
		case motions[m] == engine.Stay:
			motions[m] = engine.Run
			told = told || t.guest.Held(m)
		}
	}
	if told {
		t.print(fmt.Sprintf("vCPU %d could not finish its step alone, so that others ran too.\n", n))
	}
	if t.leg.lifted != nil {
		t.leg.lifted = nil
		motions[n] = engine.Stay
		t.leg.until = time.Now().Add(togetherTime)
	} else {
		var err error
		if motions[n], err = t.stepMotion(); err != nil {
			return err
		}
	}
	t.alone = time.Time{}
	return t.engine.Resume(motions)
}

// letOthersRun has no vCPU held beside one whose step would be another then: it may take
// that down, and power the domain off. They miss the breakpoint that it steps off, for a
// while.
func (t *Target) letOthersRun(vcpus []int, motions []engine.Motion) {
	told := false
	for _, n := range vcpus {
		if motions[n] == engine.Stay {
			motions[n], told = engine.Run, true
		}
	}
	if told {
		t.print(fmt.Sprintf("vCPU %d stepped over what minds whether others are online, so that they ran too.\n", t.leg.stepper))
	}
	t.alone = time.Time{}
	t.leg.until = time.Now().Add(togetherTime)
}

// getOff gives the planted int3 that a vCPU stands on and is to run over, or nil
// if it is somewhere else or the breakpoint is gone.
func (t *Target) getOff(n int) (*guest.Plant, error) {
	r, err := t.guest.Registers(n)
	if err != nil {
		return nil, err
	}
	if r.RIP != t.past[n].rip {
		// It was interrupted before it got off, and will come back.
		return nil, nil
	}
	if t.onHardwareBreakpoint(r.RIP) {
		// RFLAGS.RF lets one instruction pass (SDM vol. 3B, section 18.3.1.1).
		if err := t.guest.Alter(n, func(ctx *xen.VCPUContext) { ctx.RFLAGS |= x86.RFLAGSRF }); err != nil {
			return nil, err
		}
	}
	plant := t.guest.PlantedAt(n, r.RIP)
	if plant == nil {
		t.past[n] = place{}
	}
	return plant, nil
}

func (t *Target) onHardwareBreakpoint(addr uint64) bool {
	return slices.ContainsFunc(t.slots[:], func(s slot) bool {
		return s.of != nil && s.of.Kind == rsp.HardwareBreakpoint && s.addr == addr
	})
}

// Wait blocks until a vCPU stops for the client, the client interrupts the guest,
// or the guest ends, crashes or leaves.
func (t *Target) Wait(ctx context.Context) (rsp.StopReply, error) {
	if t.asked.Load() { // as the last stop came
		return t.leaveAsAsked(), nil
	}
	if t.guest.Paused() {
		if h, ok := t.takePending(); ok {
			return t.report(h), nil
		}
	}
	ctx, interrupted := t.withInterrupt(ctx)
	defer interrupted()
	for lookedAt := time.Now(); ; {
		err := t.waitLeg(ctx)
		cause := context.Cause(ctx) // asked once: an interrupt may come any time
		interrupt := cause == errInterrupt
		switch {
		case errors.Is(err, xen.ErrNoDomain):
			return t.ended(), nil
		case t.asked.Load():
			return t.leaveAsAsked(), nil
		case cause != nil && !interrupt:
			return rsp.StopReply{}, ctx.Err()
		case err == nil, interrupt, errors.Is(err, errLegOver):
			if reply, done, err := t.between(interrupt); done || err != nil {
				return reply, err
			}
		case errors.Is(err, engine.ErrShutDown):
			lookedAt = time.Time{}
		case !errors.Is(err, context.DeadlineExceeded):
			// The client takes the guest for stopped now.
			return rsp.StopReply{}, errors.Join(err, t.halt())
		}
		if time.Since(lookedAt) < deathPoll {
			continue
		}
		lookedAt = time.Now()
		if reply, done, err := t.look(); done || err != nil {
			return reply, err
		}
	}
}

var (
	errInterrupt = errors.New("interrupted")
	errLeaving   = errors.New("the domain is about to leave")
	errLegOver   = errors.New("the leg takes too long")
)

// withInterrupt gives a context that also ends with the client's interrupt, and with the
// guest's leaving.
func (t *Target) withInterrupt(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-t.interrupt:
			cancel(errInterrupt)
		case <-t.leaving:
			t.asked.Store(true)
			cancel(errLeaving)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// waitLeg waits until a vCPU has stopped. errLegOver says that the leg has lasted
// long enough, context.DeadlineExceeded that it is time to look after the domain.
func (t *Target) waitLeg(ctx context.Context) error {
	wait := deathPoll
	if !t.leg.until.IsZero() {
		wait = min(wait, time.Until(t.leg.until))
	}
	short, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := t.engine.Wait(short)
	if errors.Is(err, context.DeadlineExceeded) && !t.leg.until.IsZero() && !time.Now().Before(t.leg.until) {
		return errLegOver
	}
	return err
}

// halt pauses the guest at the end of a leg, and finds out what of its stops is to be
// reported.
func (t *Target) halt() error {
	stops, err := t.engine.Pause()
	if err != nil {
		return err
	}
	if err := t.replant(); err != nil {
		return err
	}
	for _, s := range stops {
		hits, err := t.sort(s)
		if err != nil {
			return err
		}
		t.pending = append(t.pending, hits...)
	}
	return nil
}

// replant plants again what a leg has lifted.
func (t *Target) replant() error {
	if t.leg.lifted == nil {
		return nil
	}
	if err := t.guest.Replant(t.leg.lifted); err != nil && !errors.Is(err, guest.ErrRewritten) {
		return err
	}
	return nil
}

// between halts the guest and, unless a stop is to be reported, begins the next leg.
func (t *Target) between(interrupted bool) (reply rsp.StopReply, done bool, err error) {
	switch err := t.halt(); {
	case errors.Is(err, xen.ErrNoDomain):
		return t.ended(), true, nil
	case err != nil:
		return reply, false, err
	}
	if h, ok := t.takePending(); ok {
		return t.report(h), true, nil
	}
	if interrupted {
		t.stop = t.stopped(signalINT)
		return t.stop, true, nil
	}
	err = t.start()
	if down := downInStep(0); errors.As(err, &down) {
		t.print(fmt.Sprintf("%v.\n", down))
		t.stop = t.stopped(0)
		return t.stop, true, nil
	}
	return reply, false, clientError(err)
}

// sort finds out what of a stop is for the client.
func (t *Target) sort(s engine.Stop) ([]hit, error) {
	r, err := t.guest.Registers(s.VCPU)
	if err != nil {
		return nil, err
	}
	if s.Trap == engine.Breakpoint {
		b := t.plantedBreakpoint(s.VCPU, r.RIP)
		// Where it has been judged already, it could not get off yet.
		here := place{r.RIP, r.RSP}
		again := t.past[s.VCPU] == here
		t.past[s.VCPU] = here
		if b == nil || again || !t.judge(s.VCPU, b) {
			return nil, nil
		}
		return []hit{{s.VCPU, b, r.RIP, rsp.SoftwareBreakpoint}}, nil
	}
	var hits []hit
	for i := range t.slots {
		if s.DR6&(1<<i) == 0 || t.slots[i].of == nil {
			continue
		}
		if h, ok := t.sortSlot(s.VCPU, &t.slots[i], place{r.RIP, r.RSP}); ok && len(hits) == 0 {
			hits = append(hits, h)
		}
	}
	if s.DR6&engine.DR6BS == 0 {
		return hits, nil
	}
	t.past[s.VCPU] = place{}
	if len(hits) > 0 {
		return hits, nil
	}
	return t.sortStep(s.VCPU, r.RIP), nil
}

// sortStep finds out whether a step that is done is for the client.
func (t *Target) sortStep(n int, rip uint64) []hit {
	m, stepper := &t.plan[n], t.leg.stepper
	switch {
	case n == stepper && t.leg.nested:
		return nil
	case n != stepper && m.Motion != engine.Step:
		// What was stepped has moved here.
		if stepper < 0 || t.plan[stepper].Motion != engine.Step {
			return nil
		}
		if m.Motion == engine.Stay { // of which the client expects nothing
			n = stepper
		}
	case m.Motion != engine.Step:
		return nil
	case m.ranged && rip >= m.start && rip < m.end && t.guest.PlantedAt(n, rip) == nil:
		m.begun = false
		return nil
	}
	return []hit{{vcpu: n}}
}

// sortSlot finds out whether a debug register that has fired is for the client.
func (t *Target) sortSlot(n int, s *slot, here place) (hit, bool) {
	switch s.of.Kind {
	case rsp.HardwareBreakpoint:
		again := t.past[n] == here
		t.past[n] = here
		if again {
			return hit{}, false
		}
	case rsp.ReadWatch:
		now := t.watched(n, s)
		written := !bytes.Equal(now, s.value)
		s.value = now
		if written {
			return hit{}, false
		}
	}
	return hit{n, s.of, s.addr, s.of.Kind}, t.judge(n, s.of)
}

// report makes the stop reply of a hit.
func (t *Target) report(h hit) rsp.StopReply {
	t.stop = rsp.StopReply{Signal: signalTRAP, Thread: t.thread(h.vcpu), Cause: h.cause, Expedite: expedited}
	switch h.cause {
	case rsp.Watch, rsp.ReadWatch, rsp.AccessWatch:
		t.stop.WatchAddr = h.addr
	}
	return t.stop
}

// look looks after a running domain: whether it is gone, or has crashed.
func (t *Target) look() (reply rsp.StopReply, done bool, err error) {
	info, err := t.guest.Info()
	blind := t.blind
	t.blind = err != nil
	switch {
	case errors.Is(err, xen.ErrNoDomain), err == nil && info.Dying:
		return t.ended(), true, nil
	case err != nil:
		if !blind {
			t.log.Warn("domain cannot be asked for its state", "err", err)
		}
		return reply, false, nil
	case !info.Shutdown && t.needDebugRegs():
		return t.between(false)
	case !info.Shutdown:
		return reply, false, nil
	}
	switch info.ShutdownReason {
	case xen.ShutdownCrash, xen.ShutdownWatchdog:
		t.log.Info("domain has crashed", "reason", info.ShutdownReason)
		if reply, done, err = t.between(true); done && reply.Signal == signalINT {
			t.stop.Signal = signalABRT
		}
		return t.stop, done, err
	default:
		// It powers off, reboots, or is being saved or migrated, with what is
		// planted in it if that is not taken out at once.
		return t.leave(fmt.Sprintf("The domain has shut down: %v.", info.ShutdownReason)), true, nil
	}
}

// needDebugRegs tells whether a vCPU has been up for a while that may not have the debug
// registers that are in use: it has none where it came up within the leg, and kernels
// clear them first.
func (t *Target) needDebugRegs() bool {
	if !t.slotsInUse() {
		t.lent, t.fresh = nil, nil
		return false
	}
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return false
	}
	seen, need := t.fresh, false
	t.fresh = nil
	t.lent = slices.DeleteFunc(t.lent, func(n int) bool { return !slices.Contains(vcpus, n) })
	for _, n := range vcpus {
		switch {
		case slices.Contains(t.lent, n):
		case slices.Contains(seen, n):
			t.lent, need = append(t.lent, n), true
		default:
			t.fresh = append(t.fresh, n)
		}
	}
	return need
}

// leaveAsAsked is leave for a toolstack that has asked for it.
func (t *Target) leaveAsAsked() rsp.StopReply {
	return t.leave("The domain is about to be saved or migrated, and has been given back for that.")
}

// leave gives the guest back, which is the end of it for the client.
func (t *Target) leave(why string) rsp.StopReply {
	if err := t.Detach(); err != nil {
		t.log.Error("give back a domain that leaves", "err", err)
	}
	t.print(why + "\n")
	return t.ended()
}

// skip does the work of the instruction that a vCPU stands on, if it is a simple
// one, so that the vCPU need not step off a breakpoint. It does so in the upper
// half of the address space only, where code is surely of 64 bits.
func (t *Target) skip(n int) bool {
	r, err := t.guest.Registers(n)
	if err != nil || int64(r.RIP) >= 0 || r.RFLAGS&x86.RFLAGSTF != 0 {
		return false
	}
	var code [maxInstruction]byte
	got, err := t.guest.Read(n, r.RIP, code[:])
	if err != nil {
		return false
	}
	push, ok := x86.Skip(&r, code[:got])
	if !ok {
		return false
	}
	if push != nil {
		if t.watching(n) {
			return false // they would not see it
		}
		if err := t.guest.Write(n, r.RSP, binary.LittleEndian.AppendUint64(nil, *push)); err != nil {
			return false
		}
	}
	err = t.guest.Alter(n, func(ctx *xen.VCPUContext) { ctx.RIP, ctx.RSP, ctx.RBP = r.RIP, r.RSP, r.RBP })
	if err != nil {
		return false
	}
	t.past[n] = place{}
	return true
}

// watching tells whether debug registers of a vCPU are in use, the client's or the guest's
// own.
func (t *Target) watching(n int) bool {
	const enabled = 0xff // L0 to G3 of DR7
	_, dr7, err := t.guest.OwnDebugRegs(n)
	return err != nil || dr7&enabled != 0 || t.slotsInUse()
}

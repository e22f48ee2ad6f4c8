// This file is the engine redirect: for PV guests on any build of Xen.
//
// A PV guest registers its trap handlers with the hypervisor, and setvcpucontext
// can change them. Vectors 1 and 3 are pointed at a parking spot: two jumps to
// themselves, in place of the first bytes of a handler that is never called. A
// vCPU that traps spins there, with events masked, and what it came from stands
// on its stack. It is sent back by the hypercall iret, made with a SYSCALL
// instruction of the guest's own, which restores what setvcpucontext cannot: the
// event mask and the mode. A single step is RFLAGS.TF in what iret restores.

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// redirect is the Engine.
type redirect struct {
	g       *guest.Guest
	log     *slog.Logger
	host    *xen.Host
	spots   []uint64 // where the parking spot could be
	syscall uint64   // a SYSCALL instruction
	spot    uint64   // the parking spot, 0 while there is none
	armed   []bool   // vCPUs whose traps lead to it
	resumed time.Time
	steps   []step
	cut     []step // by vCPU: what Finish is to go on with
	late    lateTraps
	dr6     []uint64        // by vCPU: as it was resumed with
	ctx     xen.VCPUContext // for polling

	lookedAfter time.Time // when the domain was last asked whether it has shut down

	// What differs where this is a part of the engine gdbsx.
	number uint32                                       // in the ledger
	pass   func(n int, vector uint8, hideTF bool) error // gives the guest a trap of its own
}

// step is a step under way.
type step struct {
	on      bool
	done    bool   // without the guest's running
	guestTF bool   // the guest has RFLAGS.TF set itself
	dr6     uint64 // as before the step
	from    uint64 // RIP
	older   bool   // when it began, a trap of a step before was still to come
	// cut says that it was called off in a handler of the guest's. RFLAGS.TF comes
	// back with what was interrupted.
	cut bool
}

// The polling of a running guest: often at first, when a stop is likely, and
// less and less.
const (
	pollFirst = 50 * time.Microsecond
	pollMost  = 2 * time.Millisecond
	// briefly is how long frames stay mapped while the guest runs.
	briefly = 50 * time.Millisecond
)

// newRedirect makes the engine for a guest. It changes nothing yet.
func newRedirect(g *guest.Guest, log *slog.Logger) (*redirect, error) {
	if g.Host().Quirks().ContextLosesR8toR15 {
		return nil, fmt.Errorf("%w: to redirect traps would zero r8 to r15: %w (fixed in Xen 4.21.2)", ErrUnavailable, xen.ErrQuirk)
	}
	e := makeRedirect(g, log)
	vcpus, err := g.VCPUs()
	if err != nil {
		return nil, err
	}
	if len(vcpus) == 0 {
		return nil, fmt.Errorf("%w: no vCPU is up", ErrUnavailable)
	}
	if e.spots = e.findSpots(vcpus[0]); len(e.spots) == 0 {
		return nil, fmt.Errorf("%w: the guest has registered no trap handlers yet, or there is no room near them", ErrUnavailable)
	}
	if e.syscall, err = e.findSyscall(vcpus); err != nil {
		return nil, err
	}
	return e, nil
}

func makeRedirect(g *guest.Guest, log *slog.Logger) *redirect {
	return &redirect{
		g: g, log: log, host: g.Host(),
		armed:  make([]bool, g.NumVCPUs()),
		steps:  make([]step, g.NumVCPUs()),
		cut:    make([]step, g.NumVCPUs()),
		late:   newLateTraps(g),
		dr6:    make([]uint64, g.NumVCPUs()),
		number: numberRedirect,
		pass:   func(n int, _ uint8, hideTF bool) error { return g.PassTrap(n, hideTF) },
	}
}

// adoptRedirect makes the engine for a guest in which another process had one.
func adoptRedirect(g *guest.Guest, log *slog.Logger) *redirect {
	e := makeRedirect(g, log)
	e.spot, e.syscall = g.Ledger().Parking()
	for n := range e.armed {
		e.armed[n] = true
	}
	return e
}

func (e *redirect) Name() string { return "redirect" }

// arm points the traps of all vCPUs that are up at the parking spot, which it
// chooses first if there is none, or the guest has overwritten it.
// Preconditions: the guest is paused.
func (e *redirect) arm() error {
	if e.spot == 0 || e.g.ParkingLost() {
		if err := e.park(); err != nil {
			return err
		}
	}
	for n := range e.armed {
		if e.armed[n] && e.g.Held(n) {
			continue // it cannot have registered others
		}
		err := e.g.RedirectTraps(n)
		if errors.Is(err, xen.ErrVCPUOffline) || errors.Is(err, xen.ErrNoVCPU) {
			e.armed[n] = false
			continue
		}
		if err != nil {
			return err
		}
		e.armed[n] = true
	}
	return nil
}

// unusedVectors are exceptions that no processor raises in 64-bit mode: a
// coprocessor segment overrun, and what is reserved (SDM vol. 3A, table 6-1).
var unusedVectors = []uint8{9, 15, 22, 23, 24, 25, 26, 27}

// park makes one of the places that will do the parking spot, in place of one that is
// lost.
func (e *redirect) park() error {
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return err
	}
	if e.spot != 0 {
		e.log.Debug("the parking spot is lost", "spot", fmt.Sprintf("%#x", e.spot))
		if err := e.g.LeaveParking(); err != nil {
			return err
		}
		clear(e.armed)
	}
	// The guest may have given up since what was found when the engine was chosen.
	if e.spots = e.findSpots(vcpus[0]); len(e.spots) == 0 {
		return fmt.Errorf("%w: there is no place for a parking spot any more", ErrUnavailable)
	}
	was, syscall := e.g.Ledger().Parking()
	var errs []error
	for _, spot := range e.spots {
		e.g.Ledger().SetEngine(e.number)
		// Noted before it is planted, so that Disarm leaves it to the end.
		e.g.SetParking(spot, e.syscall)
		if _, err = e.g.Plant(vcpus[0], spot, guest.ParkingBytes); err == nil {
			e.spot = spot
			e.log.Debug("parking", "spot", fmt.Sprintf("%#x", spot), "syscall", fmt.Sprintf("%#x", e.syscall))
			return nil
		}
		errs = append(errs, err)
		e.g.SetParking(was, syscall) // vCPUs may still be on their way back from there
	}
	return fmt.Errorf("%w: no place for a parking spot: %w", ErrUnavailable, errors.Join(errs...))
}

// findSpots gives addresses where the parking spot could be: handlers of unused
// vectors that serve no other vector, then padding near the handler of int3.
func (e *redirect) findSpots(n int) []uint64 {
	var list []uint64
	uses := map[uint64]int{}
	for v := range 256 {
		if t, err := e.g.Trap(n, uint8(v)); err == nil && t.Address != 0 {
			uses[t.Address]++
		}
	}
	for _, v := range unusedVectors {
		if t, err := e.g.Trap(n, v); err == nil && t.Address != 0 && uses[t.Address] == 1 {
			list = append(list, t.Address)
		}
	}
	if t, err := e.g.Trap(n, 3); err == nil && t.Address != 0 {
		page := t.Address &^ (xen.PageSize - 1)
		for _, p := range []uint64{page, page + xen.PageSize, page - xen.PageSize} {
			if at := e.padding(n, p); at != 0 {
				list = append(list, at)
			}
		}
	}
	return list
}

// padding gives a place in a page of text where a compiler has put int3 between
// functions, or 0.
func (e *redirect) padding(n int, page uint64) uint64 {
	const enough = 8
	mem := make([]byte, xen.PageSize)
	got, err := e.g.Read(n, page, mem)
	if err != nil {
		return 0
	}
	run := 0
	for i, b := range mem[:got] {
		if b != guest.Int3 {
			run = 0
			continue
		}
		if run++; run == enough {
			return page + uint64(i) - 5
		}
	}
	return 0
}

// searchPages is how far from a trap handler a SYSCALL instruction is looked
// for, in pages: 16 MB, the text of a large kernel.
const searchPages = 4096

// findSyscall finds a SYSCALL instruction in the guest's kernel, which has some,
// as it makes hypercalls with them. Where an idle vCPU stands is one right behind
// it. Any two such bytes will do, since what follows is never executed.
func (e *redirect) findSyscall(vcpus []int) (uint64, error) {
	n := vcpus[0]
	for _, v := range vcpus {
		r, err := e.g.Registers(v)
		if err == nil && int64(r.RIP) < 0 && e.isSyscall(v, r.RIP-2) {
			return r.RIP - 2, nil
		}
	}
	at, err := e.search(n, func(b []byte) bool { return b[0] == 0x0f && b[1] == 0x05 })
	if err != nil {
		return 0, fmt.Errorf("no SYSCALL instruction: %w", err)
	}
	return at, nil
}

// search looks for two bytes in the guest's kernel.
func (e *redirect) search(n int, want func(b []byte) bool) (uint64, error) {
	t, err := e.g.Trap(n, 3)
	if err != nil {
		return 0, err
	}
	home := t.Address &^ (xen.PageSize - 1)
	const chunk = 64 * xen.PageSize
	mem := make([]byte, chunk)
	for distance := uint64(0); distance < searchPages*xen.PageSize; distance += chunk {
		for _, at := range []uint64{home + distance, home - distance - chunk} {
			got, _ := e.g.Read(n, at, mem)
			for i := range max(got-1, 0) {
				if want(mem[i : i+2]) {
					return at + uint64(i), nil
				}
			}
		}
	}
	return 0, fmt.Errorf("%w: not within 16 MB of the guest's breakpoint handler at %#x", ErrUnavailable, t.Address)
}

func (e *redirect) isSyscall(n int, addr uint64) bool {
	var b [2]byte
	got, err := e.g.Read(n, addr, b[:])
	return err == nil && got == 2 && b == [2]byte{0x0f, 0x05}
}

// Resume implements Engine. A guest in which nothing can stop a vCPU is left
// alone.
func (e *redirect) Resume(motions []Motion) error {
	if err := e.prepare(motions); err != nil {
		return err
	}
	return e.start()
}

func (e *redirect) start() error {
	e.resumed = time.Now()
	if e.lone() >= 0 {
		return e.g.ResumeStep()
	}
	return e.g.ResumeBriefly()
}

// prepare makes all vCPUs ready for their motions.
func (e *redirect) prepare(motions []Motion) error {
	if e.spot != 0 || e.g.Armed() || anyStep(motions) {
		if err := e.arm(); err != nil {
			return err
		}
	}
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return err
	}
	for _, n := range vcpus {
		m := Stay
		if n < len(motions) {
			m = motions[n]
		}
		if err := e.set(n, m); err != nil {
			return fmt.Errorf("resume vCPU %d: %w", n, err)
		}
		if e.spot == 0 || m == Stay {
			continue
		}
		ctx, err := e.g.Context(n)
		if err != nil {
			return fmt.Errorf("resume vCPU %d: %w", n, err)
		}
		e.dr6[n] = ctx.DebugRegs[6]
	}
	return nil
}

// set makes a vCPU ready for a motion.
func (e *redirect) set(n int, m Motion) error {
	switch {
	case m == Stay:
		return e.g.Hold(n)
	case m == Run:
		e.cut[n] = step{}
	case m == Finish && e.cut[n].on:
		e.steps[n], e.cut[n] = e.cut[n], step{}
		e.g.SetStepping(n, true)
	default:
		done, err := e.enterKernel(n)
		if err == nil && !done {
			done, err = e.leaveKernel(n)
		}
		if err != nil {
			return err
		}
		if done {
			e.steps[n].done = true
			return e.g.Hold(n)
		}
		if err := e.begin(n); err != nil {
			return err
		}
	}
	return e.g.Release(n)
}

// begin begins a step.
func (e *redirect) begin(n int) error {
	if e.steps[n].on { // the guest could not be resumed then
		if err := e.endStep(n, false, func(*xen.VCPUContext) {}); err != nil {
			return err
		}
	}
	e.g.SetStepping(n, true)
	return e.g.Alter(n, func(ctx *xen.VCPUContext) {
		e.steps[n] = step{
			on: true, guestTF: ctx.RFLAGS&x86.RFLAGSTF != 0, dr6: ctx.DebugRegs[6], from: ctx.RIP,
			older: e.g.Ledger().Marked(n),
		}
		ctx.RFLAGS |= x86.RFLAGSTF
		ctx.DebugRegs[6] &^= DR6BS | DR6Breaks
	})
}

// Wait implements Engine.
func (e *redirect) Wait(ctx context.Context) error {
	if n := e.lone(); n >= 0 {
		if parked, err := e.stepDone(n); parked || err != nil {
			return err
		}
	}
	interval := pollFirst
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		parked, err := e.poll()
		if parked || err != nil {
			return err
		}
		timer.Reset(interval)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		interval = min(interval*5/4, pollMost)
		if err := e.releaseFrames(); err != nil {
			return err
		}
	}
}

// lone gives the vCPU that steps while all others are held, or -1.
func (e *redirect) lone() int {
	found := -1
	for n := range e.armed {
		switch {
		case !e.armed[n] || e.g.Held(n):
		case found >= 0 || !e.steps[n].on:
			return -1
		default:
			found = n
		}
	}
	return found
}

// stepDone pauses the guest to see whether its lone vCPU is parked, and lets it go on if
// not. A step takes less time than a hypercall, and to read the context of a vCPU that
// runs is to pause it, too: Pause need not do it again.
func (e *redirect) stepDone(n int) (parked bool, err error) {
	if err := e.g.Pause(); err != nil {
		return false, err
	}
	ctx, err := e.g.Context(n)
	if err == nil && e.atSpot(ctx) {
		return true, nil
	}
	if errors.Is(err, xen.ErrVCPUOffline) {
		err = nil
	}
	return false, errors.Join(err, e.g.ResumeStep())
}

// releaseFrames gives a guest that runs for longer its frames back.
func (e *redirect) releaseFrames() error {
	if time.Since(e.resumed) <= briefly {
		return nil
	}
	return e.g.ReleaseFrames()
}

// poll looks whether a vCPU of a running guest is parked. It also finds those
// that came up since, or have registered trap handlers anew.
func (e *redirect) poll() (bool, error) {
	if e.spot == 0 {
		return false, nil
	}
	for n := range e.armed {
		if e.steps[n].done {
			return true, nil
		}
		if e.armed[n] && e.g.Held(n) {
			continue
		}
		if e.steps[n].on { // it is likely to be parked
			if err := e.host.VCPUContext(e.g.ID(), n, &e.ctx); err == nil && e.atSpot(&e.ctx) {
				return true, nil
			}
		}
		info, err := e.host.VCPUInfo(e.g.ID(), n)
		switch {
		case errors.Is(err, xen.ErrNoVCPU):
			continue
		case err != nil:
			return false, err
		case !info.Online:
			e.armed[n] = false
			continue
		case !e.armed[n]:
			if err := e.welcome(n); err != nil {
				return false, err
			}
		case info.Blocked:
			continue // those that are parked spin
		}
		if err := e.host.VCPUContext(e.g.ID(), n, &e.ctx); err != nil {
			if errors.Is(err, xen.ErrVCPUOffline) {
				continue
			}
			return false, err
		}
		if e.atSpot(&e.ctx) {
			return true, nil
		}
		if !e.g.Redirected(&e.ctx) {
			if err := e.welcome(n); err != nil {
				return false, err
			}
		}
	}
	return false, e.checkShutdown()
}

// checkShutdown gives ErrShutDown once the domain has: what is saved or migrated is
// copied soon after.
func (e *redirect) checkShutdown() error {
	now := time.Now()
	if now.Sub(e.lookedAfter) < pollMost {
		return nil
	}
	e.lookedAfter = now
	info, err := e.host.DomainInfo(e.g.ID())
	if err == nil && info.Shutdown {
		err = ErrShutDown
	}
	return err
}

func (e *redirect) atSpot(ctx *xen.VCPUContext) bool {
	return ctx.RIP == guest.SpotOf(e.spot, 1) || ctx.RIP == guest.SpotOf(e.spot, 3)
}

// welcome redirects the traps of a vCPU that came up while the guest ran, or has
// registered others.
func (e *redirect) welcome(n int) error {
	if err := e.g.Pause(); err != nil {
		return err
	}
	err := e.g.RedirectTraps(n)
	e.armed[n] = err == nil
	if errors.Is(err, xen.ErrVCPUOffline) {
		err = nil
	}
	e.log.Debug("new trap handlers", "vcpu", n, "redirected", e.armed[n])
	return errors.Join(err, e.g.Resume())
}

// Pause implements Engine.
func (e *redirect) Pause() ([]Stop, error) {
	if err := e.g.Pause(); err != nil {
		return nil, err
	}
	if err := e.rejoin(); err != nil {
		return nil, err
	}
	if err := e.flush(); err != nil {
		return nil, err
	}
	var stops []Stop
	for n := range e.armed {
		if stop, done := e.takeDone(n); done {
			stops = append(stops, stop)
			continue
		}
		if !e.armed[n] || e.g.Held(n) && !e.g.Stepping(n) {
			continue
		}
		stop, stopped, err := e.collect(n)
		if err != nil {
			return stops, err
		}
		if stopped {
			stops = append(stops, stop)
		}
	}
	return stops, nil
}

// rejoin has those vCPUs looked at that have come up again since poll has seen them
// down: their traps still lead to the parking spot, and they may stand there.
// Preconditions: the guest is paused.
func (e *redirect) rejoin() error {
	if e.spot == 0 {
		return nil
	}
	for n := range e.armed {
		if e.armed[n] {
			continue
		}
		info, err := e.g.Scheduled(n)
		if isDown(err) || err == nil && !info.Online {
			continue
		}
		if err != nil {
			return err
		}
		ctx, err := e.g.Context(n)
		if err != nil {
			return err
		}
		e.armed[n] = e.g.Redirected(ctx) // if not, it has come up for the first time
	}
	return nil
}

// rejoinSteps has those vCPUs looked at that a step has taken down: they would come up
// again with RFLAGS.TF.
func (e *redirect) rejoinSteps() {
	for n := range e.armed {
		e.armed[n] = e.armed[n] || e.g.Stepping(n)
	}
}

// takeDone gives the stop of a step that was done without the guest's running.
func (e *redirect) takeDone(n int) (Stop, bool) {
	done := e.steps[n].done
	if done {
		e.steps[n] = step{}
	}
	return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, done
}

const (
	// flushTime is how long a vCPU may take to get to a CPU.
	flushTime = time.Second
	// flushRun is more than it needs there to take its trap.
	flushRun = 100 * time.Microsecond
	// flushTries is how often it may be paused before it has taken that.
	flushTries = 5
)

// flush lets traps come to the parking spot that the hypervisor owes a vCPU. A CPU
// delivers a trap only when it goes back to the guest, and pauses the vCPU before
// that if it is to (Xen, arch/x86/x86_64/entry.S, test_all_events, since 4.14 at
// least). No context tells of it, and it will lead to where the trap table pointed
// when it was raised, whatever that says by then.
// Preconditions: the guest is paused.
func (e *redirect) flush() error {
	if e.spot == 0 {
		return nil
	}
	for range flushTries {
		owed, err := e.owed()
		if err != nil || len(owed) == 0 {
			return err
		}
		e.log.Debug("a trap may be on its way", "vcpus", owed)
		if err := e.g.ResumeBriefly(); err != nil {
			return err
		}
		err = e.awaitRun(owed)
		if err = errors.Join(err, e.g.Pause()); err != nil {
			return err
		}
	}
	return nil
}

// owed gives the vCPUs that a trap may be on its way to, and for how long they
// have run.
func (e *redirect) owed() (map[int]time.Duration, error) {
	owed := map[int]time.Duration{}
	for n := range e.armed {
		if !e.armed[n] || e.g.Held(n) {
			continue
		}
		ctx, err := e.g.Context(n)
		if errors.Is(err, xen.ErrVCPUOffline) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !e.mayBeOwed(n, ctx) {
			continue
		}
		info, err := e.host.VCPUInfo(e.g.ID(), n)
		if err != nil {
			return nil, err
		}
		if info.Online && !info.Blocked {
			owed[n] = info.CPUTime
		}
	}
	return owed, nil
}

// mayBeOwed tells whether a vCPU looks as after a trap but is not parked: a bit
// was set in DR6, or it stands behind an int3.
func (e *redirect) mayBeOwed(n int, ctx *xen.VCPUContext) bool {
	if e.atSpot(ctx) {
		return false
	}
	if e.newInDR6(n, ctx) || e.g.PlantedAt(n, ctx.RIP-1) != nil {
		return true
	}
	var b [1]byte
	got, err := e.g.Read(n, ctx.RIP-1, b[:])
	return err == nil && got == 1 && b[0] == guest.Int3
}

// newInDR6 tells whether a trap has set a bit in a vCPU's DR6 since it was resumed.
func (e *redirect) newInDR6(n int, ctx *xen.VCPUContext) bool {
	return ctx.DebugRegs[6]&^e.dr6[n]&(DR6BS|DR6Breaks) != 0
}

// awaitRun waits until vCPUs of a running guest have been on a CPU, unless they
// need none, or the guest is kept from it.
func (e *redirect) awaitRun(ran map[int]time.Duration) error {
	info, err := e.g.Info()
	if err != nil || info.Paused || info.Shutdown {
		return err
	}
	deadline := time.Now().Add(flushTime)
	for n, before := range ran {
		for time.Now().Before(deadline) {
			info, err := e.host.VCPUInfo(e.g.ID(), n)
			if err != nil {
				return err
			}
			if info.CPUTime >= before+flushRun || info.Blocked || !info.Online {
				break
			}
			time.Sleep(pollFirst)
		}
	}
	return nil
}

// collect finds out whether a vCPU has stopped, and makes it ready to go on as if
// nothing had been there.
// Preconditions: the guest is paused.
func (e *redirect) collect(n int) (stop Stop, stopped bool, err error) {
	vector, err := e.g.ParkedBy(n)
	if errors.Is(err, xen.ErrVCPUOffline) {
		return stop, false, nil
	}
	if err != nil {
		return stop, false, err
	}
	switch vector {
	case 3:
		return e.collectInt3(n)
	case 1:
		return e.collectDebug(n)
	}
	if !e.g.Stepping(n) {
		return stop, false, nil
	}
	return stop, false, e.endStep(n, false, func(*xen.VCPUContext) {})
}

func (e *redirect) collectInt3(n int) (stop Stop, stopped bool, err error) {
	r, err := e.g.Registers(n)
	if err != nil {
		return stop, false, err
	}
	if e.g.PlantedAt(n, r.RIP-1) != nil {
		err := e.endStep(n, false, func(ctx *xen.VCPUContext) { ctx.RIP-- })
		return Stop{VCPU: n, Trap: Breakpoint}, err == nil, err
	}
	// The guest's own. A step has then come to the guest's handler, if it is not
	// still in the handler of what has cut it short.
	switch {
	case !e.g.Stepping(n):
		return stop, false, e.pass(n, 3, false)
	case e.steps[n].cut && r.RFLAGS&x86.RFLAGSTF == 0:
		e.cut[n] = e.steps[n]
		e.forgetStep(n)
		return stop, false, e.pass(n, 3, false)
	}
	err = e.pass(n, 3, !e.steps[n].guestTF)
	e.forgetStep(n)
	return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, err == nil, err
}

func (e *redirect) collectDebug(n int) (stop Stop, stopped bool, err error) {
	r, err := e.g.Registers(n)
	if err != nil {
		return stop, false, err
	}
	ours, err := e.g.OurDebugRegs(n)
	if err != nil {
		return stop, false, err
	}
	cause := r.DR6 & ours
	single := r.DR6&DR6BS != 0
	done := single && e.g.Stepping(n)
	if done {
		cause |= DR6BS
	}
	if cause == 0 {
		of := e.late.of(n, r.RIP)
		if !single || of < 0 {
			return stop, false, e.pass(n, 1, false)
		}
		if e.cut[of].on || e.steps[of].cut { // it has moved here
			cause = DR6BS
			e.forgetStep(of)
			e.cut[of] = step{}
		}
	}
	s := e.steps[n]
	switch {
	case s.on && !s.guestTF:
		e.fixPushedFlags(n, s.from, r.RIP, r.RSP)
	case !s.on && done: // by a process that was killed
		e.fixPushedFlags(n, r.RIP-1, r.RIP, r.RSP)
	}
	err = e.endStep(n, done, func(ctx *xen.VCPUContext) {
		if s.on {
			ctx.DebugRegs[6] = dr6After(s.dr6, ctx.DebugRegs[6], ours)
		} else {
			ctx.DebugRegs[6] &^= DR6BS | ours
		}
	})
	if err != nil {
		return stop, false, err
	}
	return Stop{VCPU: n, Trap: Debug, DR6: cause}, cause != 0, nil
}

// dr6After gives what the guest is to have in DR6 after a step: what it had before,
// and what debug registers of its own have set.
func dr6After(before, now, ours uint64) uint64 { return before | now&DR6Breaks&^ours }

// endStep ends a step of a vCPU that has stopped, done or not, and changes what
// else is to be changed. RFLAGS.TF goes if it is ours: a step of POPF that is done has
// taken it away. The ledger learns of it only when it is so.
func (e *redirect) endStep(n int, done bool, change func(ctx *xen.VCPUContext)) error {
	stepping, cut, late := e.g.Stepping(n), false, -1
	err := e.g.Alter(n, func(ctx *xen.VCPUContext) {
		change(ctx)
		tf := ctx.RFLAGS&x86.RFLAGSTF != 0
		switch {
		case stepping && !tf && !done && !e.steps[n].on && !e.g.SteppedAway(n):
		case stepping && !tf && !done:
			// It is in a handler of the guest's, and will come out of it with TF: that
			// trap is not the guest's, and wanted only by Finish.
			e.late.expect(n, e.steps[n].from)
			cut = true
		case stepping:
			if e.steps[n].cut && !e.steps[n].older {
				late = n
			}
			if !e.steps[n].guestTF {
				ctx.RFLAGS &^= x86.RFLAGSTF
			}
		case tf && !stepping:
			if late = e.late.of(n, ctx.RIP); late >= 0 {
				ctx.RFLAGS &^= x86.RFLAGSTF
			}
		}
	})
	if err != nil {
		return err
	}
	if cut {
		e.cut[n] = e.steps[n]
		e.cut[n].cut = true
	}
	if stepping {
		e.forgetStep(n)
	}
	if late >= 0 {
		e.late.forget(late)
	}
	return nil
}

func (e *redirect) forgetStep(n int) {
	e.steps[n] = step{}
	e.g.SetStepping(n, false)
}

// fixPushedFlags takes RFLAGS.TF out of what PUSHF has just pushed, while the
// vCPU was stepped.
func (e *redirect) fixPushedFlags(n int, from, rip, rsp uint64) {
	var code [1]byte
	if _, err := e.g.Read(n, from, code[:]); err != nil || code[0] != 0x9c || rip != from+1 {
		return
	}
	if err := clearPushedTF(e.g, n, rsp); err != nil {
		e.log.Warn("flags that were pushed in a step keep TF", "vcpu", n, "err", err)
	}
}

// settleTime is how long a vCPU that is in the middle of a step gets to finish
// it before the guest is given back.
const settleTime = 2 * time.Second

// Close implements Engine. The parking spot itself is guest.Detach's to take
// back, with the trap tables: no vCPU can be there any more.
func (e *redirect) Close() error {
	if e.spot == 0 {
		return nil
	}
	e.rejoinSteps()
	if _, err := e.Pause(); err != nil {
		return err
	}
	err := settle(e, e.g, e.late.any)
	if err == nil {
		e.spot = 0
	}
	return err
}

// settle takes back what stops a guest, and lets it run while a vCPU has a trap of
// ours to come: it would otherwise come to the guest, which knows nothing of it. None
// comes in a domain that has shut down.
// Preconditions: the guest is paused.
func settle(e Engine, g *guest.Guest, toCome func() bool) error {
	err := g.Disarm()
	for deadline := time.Now().Add(settleTime); err == nil && toCome() && time.Now().Before(deadline); {
		var info xen.DomainInfo
		if info, err = g.Info(); err != nil || info.Shutdown {
			break
		}
		if err = e.Resume(slices.Repeat([]Motion{Run}, g.NumVCPUs())); err != nil {
			break
		}
		time.Sleep(pollMost)
		_, err = e.Pause()
	}
	return err
}

// This file is the engine gdbsx: for PV guests on a hypervisor that was built with
// CONFIG_GDBSX.
//
// The hypervisor stops the whole domain where the guest's kernel takes an int3 or
// #DB, and tells which int3 it was. What user processes take, and what the
// hypervisor itself raises where it emulates an instruction, goes to the guest's
// trap handlers, and so to the parking spot of the engine redirect, which is part
// of this one.
//
// Each stop adds one to the domain's count of pauses, which cannot be read and is
// shared with the toolstack. So each is to be recognised: an int3 by what the
// hypervisor has noted, a #DB by what has come into DR6 since the guest was
// resumed.

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// gdbsx is the Engine.
type gdbsx struct {
	*redirect
	on   bool // debugging is on
	soft softINT

	unexplained int // how often it was seen paused since, with no stop that shows

	events *xen.EventChannels // nil where VIRQ_DEBUGGER cannot be had: then there is polling alone
}

// softINT is an INT instruction of the guest's.
type softINT struct {
	at     uint64
	vector uint8
}

// newGDBSX makes the engine for a guest. It changes nothing yet.
func newGDBSX(g *guest.Guest, log *slog.Logger) (*gdbsx, error) {
	switch {
	case !g.Host().HasGDBSX(g.ID()):
		return nil, fmt.Errorf("%w: the hypervisor was built without CONFIG_GDBSX", ErrUnavailable)
	case g.Host().Quirks().DebugStopsUnsure:
		return nil, fmt.Errorf("%w: before Xen 4.17, a hypervisor with CONFIG_GDBSX leaves the guest its traps, or does not tell which has stopped it: use the engine redirect", ErrUnavailable)
	case g.Kind() != xen.PV:
		return nil, fmt.Errorf("%w: the engine gdbsx is for PV guests", ErrUnavailable)
	}
	r, err := newRedirect(g, log)
	if err != nil {
		return nil, err
	}
	e := makeGDBSX(r)
	if e.soft, err = e.findINT(); err != nil {
		return nil, err
	}
	return e, nil
}

func makeGDBSX(r *redirect) *gdbsx {
	r.number = numberGDBSX
	r.g.HoldByPauses()
	e := &gdbsx{redirect: r}
	r.pass = e.giveTrap
	return e
}

// adoptGDBSX makes the engine for a guest in which another process had one. What
// that had counted is lost, and it may have been told of an int3 that it did not
// come to note.
// Preconditions: the guest is paused.
func adoptGDBSX(g *guest.Guest, log *slog.Logger) (*gdbsx, error) {
	e := makeGDBSX(adoptRedirect(g, log))
	e.on = true
	was := e.scratch()
	if err := e.takeInt3s(); err != nil {
		return nil, err
	}
	for n := range e.armed {
		ctx, err := e.g.Context(n)
		if err != nil {
			e.armed[n] = false
			continue
		}
		if !e.g.Ledger().Int3(n) && !(was.asking && ctx.Flags&xen.VGCFInKernel != 0) {
			continue
		}
		if err := e.backToInt3(n, ctx.RIP); err != nil {
			return nil, err
		}
		e.g.Ledger().SetInt3(n, false)
	}
	err := e.recount(func(count int) int {
		if was.counting { // so it was before there could be stops
			was.others = count - 1
		}
		return 1 + was.others
	})
	if err == nil {
		e.setScratch(scratch{others: was.others})
	}
	return e, err
}

// backToInt3 makes a vCPU at rip that an int3 right before has stopped execute
// that again, or what the guest has there by then. It does nothing if it has been
// done, or if there is none: int3 after int3 is padding between functions.
func (e *gdbsx) backToInt3(n int, rip uint64) error {
	var code [2]byte
	got, err := e.g.Read(n, rip-2, code[:])
	ours := e.g.PlantedAt(n, rip-1) != nil
	guests := err == nil && got == 2 && code[0] != guest.Int3 && code[1] == guest.Int3
	if e.g.PlantedAt(n, rip) != nil || !ours && !guests {
		return nil
	}
	return e.g.Alter(n, func(ctx *xen.VCPUContext) { ctx.RIP-- })
}

func (e *gdbsx) Name() string { return "gdbsx" }

// findINT finds an INT instruction in the guest's kernel: any two such bytes, as
// with SYSCALL.
func (e *gdbsx) findINT() (softINT, error) {
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return softINT{}, err
	}
	at, err := e.search(vcpus[0], func(b []byte) bool {
		return b[0] == 0xcd && e.g.SoftVector(vcpus[0], b[1])
	})
	if err != nil {
		return softINT{}, fmt.Errorf("%w: the guest's kernel has no INT instruction: %w", ErrUnavailable, err)
	}
	var b [2]byte
	if _, err := e.g.Read(vcpus[0], at, b[:]); err != nil {
		return softINT{}, err
	}
	return softINT{at, b[1]}, nil
}

// giveTrap gives the guest a trap of its own.
func (e *gdbsx) giveTrap(n int, vector uint8, hideTF bool) error {
	parked, err := e.g.ParkedBy(n)
	switch {
	case err != nil:
		return err
	case parked != 0:
		return e.g.PassTrap(n, hideTF)
	case hideTF:
		if err := e.g.Alter(n, func(ctx *xen.VCPUContext) { ctx.RFLAGS &^= x86.RFLAGSTF }); err != nil {
			return err
		}
	}
	return e.g.StartTrap(n, vector, e.soft.at, e.soft.vector)
}

// enable makes the hypervisor stop the guest at traps.
// Preconditions: the guest is paused.
func (e *gdbsx) enable() error {
	if e.on {
		return nil
	}
	e.setScratch(scratch{})
	e.g.Ledger().SetEngine(numberGDBSX)
	if e.g.Ledger().Others() {
		e.setScratch(scratch{counting: true})
		others := 0
		err := e.recount(func(count int) int {
			others = count - 1
			return count
		})
		if err != nil {
			return err
		}
		e.setScratch(scratch{others: others})
	}
	if err := e.host.SetDebugging(e.g.ID(), true); err != nil {
		return err
	}
	e.on = true
	var err error
	if e.events, err = xen.OpenEventChannels(); err != nil {
		e.log.Debug("no event channels", "err", err)
		return nil
	}
	if _, err := e.events.BindVIRQ(xen.VIRQDebugger); err != nil {
		e.log.Debug("no VIRQ_DEBUGGER", "err", err)
		err = e.events.Close()
		e.events = nil
		return err
	}
	return nil
}

// scratch is the ledger's number for the engine's own use.
type scratch struct {
	others   int  // pauses that others have made, as far as they were counted
	asking   bool // the hypervisor is being asked for an int3
	counting bool // they are being counted,
	extra    int  // by so many pauses more, of which the last may not have been made
}

const (
	scratchAsking   = 1 << 16
	scratchCounting = 1 << 17
	scratchExtra    = 32 // from this bit on
)

func (e *gdbsx) setScratch(s scratch) {
	v := uint64(uint16(s.others)) | uint64(s.extra)<<scratchExtra
	if s.asking {
		v |= scratchAsking
	}
	if s.counting {
		v |= scratchCounting
	}
	e.g.Ledger().SetScratch(v)
}

func (e *gdbsx) scratch() scratch {
	v := e.g.Ledger().Scratch()
	return scratch{int(uint16(v)), v&scratchAsking != 0, v&scratchCounting != 0, int(v >> scratchExtra)}
}

// recount finds out how often the domain is paused, and makes it what want gives. To
// that end it pauses the domain as often as can be: nothing of the guest may run, also
// if this process is killed. Of one that was, it counts the last pause as somebody
// else's: a guest that stays paused does less harm than one that runs against somebody's
// will.
// Preconditions: the guest is paused; want gives 1 or more.
func (e *gdbsx) recount(want func(count int) int) error {
	now := e.scratch()
	note := func() {
		if now.counting {
			e.setScratch(now)
		}
	}
	now.extra = max(now.extra-1, 0)
	for {
		now.extra++
		note()
		err := e.host.Pause(e.g.ID())
		if errors.Is(err, xen.ErrMostPauses) {
			break
		}
		if err != nil {
			return err
		}
	}
	now.extra--
	for keep := want(xen.MostPauses - now.extra); keep < xen.MostPauses; keep++ {
		if err := e.host.Unpause(e.g.ID()); err != nil {
			return err
		}
		now.extra = max(now.extra-1, 0)
		note()
	}
	return nil
}

// Resume implements Engine. A guest in which nothing can stop a vCPU is left
// alone.
func (e *gdbsx) Resume(motions []Motion) error {
	if e.on || e.g.Armed() || anyStep(motions) {
		if err := e.enable(); err != nil {
			return err
		}
	}
	if err := e.prepare(motions); err != nil {
		return err
	}
	if e.on {
		if err := e.noteDR6(); err != nil {
			return err
		}
	}
	e.unexplained = 0
	return e.start()
}

// noteDR6 notes what vCPUs have in DR6 before they run, so that a trap can be seen
// there. What the guest has there of traps of its own stays, for it may be about to
// look; what debug registers of ours have left goes.
func (e *gdbsx) noteDR6() error {
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return err
	}
	for _, n := range vcpus {
		if e.g.Held(n) {
			continue
		}
		r, err := e.g.Registers(n)
		if err != nil {
			return err
		}
		ours, err := e.g.OurDebugRegs(n)
		if err != nil {
			return err
		}
		if r.DR6&ours != 0 {
			r.DR6 &^= ours
			if err := e.g.Alter(n, func(ctx *xen.VCPUContext) { ctx.DebugRegs[6] = r.DR6 }); err != nil {
				return err
			}
		}
		e.dr6[n] = r.DR6
	}
	return nil
}

// Wait implements Engine.
func (e *gdbsx) Wait(ctx context.Context) error {
	if !e.on {
		return e.redirect.Wait(ctx)
	}
	for interval := pollFirst; ; interval = min(interval*5/4, pollMost) {
		stopped, err := e.look()
		if stopped || err != nil {
			return err
		}
		if err := errors.Join(e.sleep(ctx, interval), e.releaseFrames()); err != nil {
			return err
		}
	}
}

// look looks whether something has stopped in a running guest.
func (e *gdbsx) look() (bool, error) {
	info, err := e.g.Info()
	if err != nil {
		return false, err
	}
	others := e.scratch().others
	switch {
	case info.Paused:
		stopped, err := e.anyStop()
		if stopped || err != nil {
			return stopped, err
		}
		if others == 0 {
			e.unexplained++
		}
		if e.unexplained >= unexplainedMost {
			return true, nil // Pause finds out
		}
	case others > 0:
		e.setScratch(scratch{}) // they have let it go
	}
	return e.poll()
}

// unexplainedMost is how often a guest is seen paused, with no stop that shows,
// before its pauses are counted.
const unexplainedMost = 10

// sleep waits for an interval or VIRQ_DEBUGGER.
func (e *gdbsx) sleep(ctx context.Context, interval time.Duration) error {
	short, cancel := context.WithTimeout(ctx, interval)
	defer cancel()
	if e.events == nil {
		<-short.Done()
		return ctx.Err()
	}
	port, err := e.events.Wait(short)
	switch {
	case err == nil:
		return e.events.Unmask(port)
	case short.Err() != nil:
		return ctx.Err()
	}
	return err
}

// anyStop tells whether a trap has stopped a vCPU of a guest that is paused, but
// not by us.
func (e *gdbsx) anyStop() (bool, error) {
	if err := e.takeInt3s(); err != nil {
		return false, err
	}
	for n := range e.armed {
		if !e.armed[n] || e.g.Held(n) {
			continue
		}
		if e.g.Ledger().Int3(n) {
			return true, nil
		}
		if err := e.host.VCPUContext(e.g.ID(), n, &e.ctx); err != nil {
			continue
		}
		if e.debugged(n, &e.ctx) {
			return true, nil
		}
	}
	return false, nil
}

// takeInt3s asks the hypervisor which vCPUs an int3 has stopped. It forgets what
// it has told.
func (e *gdbsx) takeInt3s() error {
	s := e.scratch()
	defer func() {
		s.asking = false
		e.setScratch(s)
	}()
	for {
		s.asking = true
		e.setScratch(s)
		n, err := e.host.NextDebugEvent(e.g.ID())
		if n < 0 || n >= len(e.armed) || err != nil {
			return err
		}
		e.g.Ledger().SetInt3(n, true)
		e.armed[n] = true // perhaps it has only just come up
	}
}

// debugged tells whether a #DB has stopped a vCPU that no int3 has.
func (e *gdbsx) debugged(n int, ctx *xen.VCPUContext) bool {
	return !e.atSpot(ctx) && ctx.Flags&xen.VGCFInKernel != 0 && e.newInDR6(n, ctx)
}

// Pause implements Engine.
func (e *gdbsx) Pause() ([]Stop, error) {
	var debugged []bool
	if e.on && !e.g.Paused() {
		if err := e.g.Pause(); err != nil {
			return nil, err
		}
		err := e.rejoin()
		if err != nil {
			return nil, err
		}
		if debugged, err = e.takeStops(); err != nil {
			return nil, err
		}
	}
	if err := e.g.Pause(); err != nil {
		return nil, err
	}
	var stops []Stop
	for n := range e.armed {
		if stop, done := e.takeDone(n); done {
			stops = append(stops, stop)
			continue
		}
		if !e.armed[n] || e.g.Held(n) {
			continue
		}
		stop, stopped, err := e.collect(n, debugged != nil && debugged[n])
		if err != nil {
			return stops, err
		}
		if stopped {
			stops = append(stops, stop)
		}
	}
	return stops, nil
}

// takeStops finds out which vCPUs traps have stopped, and takes back the pauses
// that come with them.
// Preconditions: the guest is paused.
func (e *gdbsx) takeStops() (debugged []bool, err error) {
	if err := e.takeInt3s(); err != nil {
		return nil, err
	}
	debugged = make([]bool, len(e.armed))
	count := 0
	for n := range e.armed {
		if !e.armed[n] || e.g.Held(n) {
			continue
		}
		if e.g.Ledger().Int3(n) {
			count++
			continue
		}
		ctx, err := e.g.Context(n)
		if errors.Is(err, xen.ErrVCPUOffline) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if debugged[n] = e.debugged(n, ctx); debugged[n] {
			count++
		}
	}
	if count == 0 && e.unexplained >= unexplainedMost {
		return debugged, e.explain(debugged)
	}
	if count == 0 {
		return debugged, nil
	}
	for range count {
		if err := e.host.Unpause(e.g.ID()); err != nil && !errors.Is(err, xen.ErrNotPaused) {
			return nil, err
		}
	}
	info, err := e.g.Info()
	if err == nil && !info.Paused {
		e.log.Warn("somebody has unpaused the domain while a trap had stopped it")
		err = e.host.Pause(e.g.ID())
	}
	return debugged, err
}

// explain finds out why a guest is paused in which no stop shows, by counting its
// pauses: because a trap has set bits in DR6 that were set before, or because
// somebody else has paused it.
func (e *gdbsx) explain(debugged []bool) error {
	others := e.scratch().others
	err := e.recount(func(count int) int {
		more := max(count-1-others, 0)
		for n := range debugged {
			ctx, err := e.g.Context(n)
			if more == 0 || err != nil || !e.armed[n] || e.atSpot(ctx) || ctx.Flags&xen.VGCFInKernel == 0 || ctx.DebugRegs[6]&(DR6BS|DR6Breaks) == 0 {
				continue
			}
			debugged[n] = true
			more--
		}
		others += more
		return 1 + others
	})
	if err != nil {
		return err
	}
	e.setScratch(scratch{others: others})
	return nil
}

// collect finds out why a vCPU has stopped, if it has, and makes it ready to go on
// as if nothing had been there.
// Preconditions: the guest is paused.
func (e *gdbsx) collect(n int, debugged bool) (stop Stop, stopped bool, err error) {
	switch {
	case e.g.Ledger().Int3(n):
		stop, stopped, err = e.collectInt3(n)
		if err == nil {
			e.g.Ledger().SetInt3(n, false)
		}
		return stop, stopped, err
	case debugged:
		return e.collectDebug(n)
	case !e.g.Trapping(n):
		return e.redirect.collect(n)
	}
	vector, err := e.g.ParkedBy(n)
	if err != nil || vector == 0 {
		return e.redirect.collect(n)
	}
	// It has come to the guest's own handler.
	stepped := e.g.Stepping(n)
	err = e.g.FinishTrap(n, stepped && !e.steps[n].guestTF)
	if stepped {
		e.forgetStep(n)
	}
	return Stop{VCPU: n, Trap: Debug, DR6: DR6BS}, stepped && err == nil, err
}

// Close implements Engine.
func (e *gdbsx) Close() error {
	if !e.on {
		return e.redirect.Close()
	}
	e.rejoinSteps()
	if _, err := e.Pause(); err != nil {
		return err
	}
	err := settle(e, e.g, func() bool { return e.late.any() || e.trapping() })
	err = errors.Join(err, e.host.SetDebugging(e.g.ID(), false))
	if e.events != nil {
		err = errors.Join(err, e.events.Close())
		e.events = nil
	}
	if err == nil {
		e.on, e.spot = false, 0
	}
	return err
}

// trapping tells whether a vCPU is still to take a trap of the guest's own.
func (e *gdbsx) trapping() bool {
	for n := range e.armed {
		if e.g.Trapping(n) {
			return true
		}
	}
	return false
}

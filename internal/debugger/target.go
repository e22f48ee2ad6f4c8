// This file is the Target: what a client may ask of a guest.

package debugger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/xen"
)

// GDB's signal numbers (GDB manual, node "Stop Reply Packets").
const (
	signalINT  = 2
	signalTRAP = 5
	signalABRT = 6
)

// deathPoll is how often a running domain is asked whether it still lives.
const deathPoll = 100 * time.Millisecond

// A Target is a guest that a client debugs.
type Target struct {
	guest     *guest.Guest
	log       *slog.Logger
	layout    layout
	stop      rsp.StopReply
	interrupt chan struct{} // holds one request to stop
}

var (
	_ rsp.Target  = &Target{}
	_ rsp.Monitor = &Target{}
)

// New makes a Target of a guest that is attached to, and so paused. The Target
// owns the guest from then on: Detach gives it back.
func New(g *guest.Guest, log *slog.Logger) *Target {
	t := &Target{guest: g, log: log.With("layer", "debugger"), layout: newLayout(g.Features()), interrupt: make(chan struct{}, 1)}
	t.stop = t.stopped(signalTRAP)
	return t
}

// Description gives the registers.
func (t *Target) Description() *rsp.Description { return t.layout.description }

// thread gives the thread of a vCPU.
func (t *Target) thread(vcpu int) rsp.ThreadID {
	return rsp.ThreadID{PID: int(t.guest.ID()), TID: vcpu + 1}
}

// vcpu gives the vCPU of a thread, taking the one that stopped for any.
func (t *Target) vcpu(id rsp.ThreadID) int {
	if id.TID <= 0 {
		id = t.stop.Thread
	}
	return id.TID - 1
}

// Threads gives the vCPUs that are up.
func (t *Target) Threads() ([]rsp.Thread, error) {
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return nil, clientError(err)
	}
	threads := make([]rsp.Thread, 0, len(vcpus))
	for _, n := range vcpus {
		threads = append(threads, rsp.Thread{
			ID:   t.thread(n),
			Name: fmt.Sprintf("vCPU %d", n),
			Core: n,
			Info: t.describe(n),
		})
	}
	return threads, nil
}

// describe tells how a vCPU stands, as "kernel mode, blocked".
func (t *Target) describe(n int) string {
	state, err := t.guest.State(n)
	switch {
	case errors.Is(err, guest.ErrNotPaused):
		return "running"
	case err != nil:
		return err.Error()
	}
	var words []string
	if state.UserMode {
		words = append(words, "user mode")
	} else {
		words = append(words, "kernel mode")
	}
	switch {
	case !state.Online:
		words = append(words, "offline")
	case state.Blocked:
		words = append(words, "blocked")
	}
	return strings.Join(words, ", ")
}

// ReadRegisters reads the registers of a vCPU.
func (t *Target) ReadRegisters(id rsp.ThreadID, regs *rsp.Registers) error {
	r, err := t.guest.Registers(t.vcpu(id))
	if err != nil {
		return clientError(err)
	}
	t.layout.toClient(&r, regs)
	return nil
}

// WriteRegisters writes registers of a vCPU, all or none.
func (t *Target) WriteRegisters(id rsp.ThreadID, regs *rsp.Registers) error {
	n := t.vcpu(id)
	r, err := t.guest.Registers(n)
	if err != nil {
		return clientError(err)
	}
	if name := t.layout.fromClient(regs, &r); name != "" {
		return fmt.Errorf("vCPU %d: %s: %w: its value cannot be known", n, name, rsp.ErrNotSupported)
	}
	return clientError(t.guest.SetRegisters(n, r))
}

// ReadMemory reads memory as a vCPU sees it.
func (t *Target) ReadMemory(id rsp.ThreadID, addr uint64, p []byte) (int, error) {
	n, err := t.guest.Read(t.vcpu(id), addr, p)
	return n, clientError(err)
}

// WriteMemory writes memory as a vCPU sees it, all or nothing.
func (t *Target) WriteMemory(id rsp.ThreadID, addr uint64, p []byte) error {
	return clientError(t.guest.Write(t.vcpu(id), addr, p))
}

// Stop gives the last stop.
func (t *Target) Stop() rsp.StopReply { return t.stop }

// Resume lets the guest run, all of it: one vCPU alone cannot.
func (t *Target) Resume(actions []rsp.Action) error {
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return clientError(err)
	}
	for _, n := range vcpus {
		id := t.thread(n)
		i := slices.IndexFunc(actions, func(a rsp.Action) bool { return a.Thread.TID <= 0 || a.Thread.TID == id.TID })
		switch {
		case i < 0 || actions[i].Kind == rsp.Halt:
			return fmt.Errorf("%w: vCPU %d cannot stand still while others run", rsp.ErrNotSupported, n)
		case actions[i].Kind == rsp.Step:
			return fmt.Errorf("%w: vCPU %d cannot be stepped", rsp.ErrNotSupported, n)
		}
	}
	select {
	case <-t.interrupt: // one that came after the last stop
	default:
	}
	return clientError(t.guest.Resume())
}

// Wait blocks until the client interrupts the guest, or the guest ends or
// crashes.
func (t *Target) Wait(ctx context.Context) (rsp.StopReply, error) {
	poll := time.NewTicker(deathPoll)
	defer poll.Stop()
	for {
		signal := 0
		select {
		case <-ctx.Done():
			return rsp.StopReply{}, ctx.Err()
		case <-t.interrupt:
			signal = signalINT
		case <-poll.C:
			info, err := t.guest.Info()
			switch {
			case errors.Is(err, xen.ErrNoDomain), err == nil && info.Dying:
				return t.ended(), nil
			case err != nil:
				t.log.Warn("domain cannot be asked for its state", "err", err)
			case info.Shutdown && (info.ShutdownReason == xen.ShutdownCrash || info.ShutdownReason == xen.ShutdownWatchdog):
				t.log.Info("domain has crashed", "reason", info.ShutdownReason)
				signal = signalABRT
			}
		}
		if signal == 0 {
			continue
		}
		switch err := t.guest.Pause(); {
		case errors.Is(err, xen.ErrNoDomain):
			return t.ended(), nil
		case err != nil:
			return rsp.StopReply{}, err
		}
		t.stop = t.stopped(signal)
		return t.stop, nil
	}
}

// Interrupt makes Wait pause the guest.
func (t *Target) Interrupt() error {
	select {
	case t.interrupt <- struct{}{}:
	default: // one is on its way
	}
	return nil
}

// Detach gives the guest back as it was found.
func (t *Target) Detach() error { return t.guest.Detach() }

// stopped gives the stop reply for a guest that was just paused. It names the
// first vCPU that had something to do, for it is more telling than an idle one.
func (t *Target) stopped(signal int) rsp.StopReply {
	stop := rsp.StopReply{Signal: signal, Thread: t.thread(0), Expedite: expedited}
	vcpus, err := t.guest.VCPUs()
	if err != nil || len(vcpus) == 0 {
		return stop
	}
	stop.Thread = t.thread(vcpus[0])
	for _, n := range vcpus {
		if state, err := t.guest.State(n); err == nil && state.Online && !state.Blocked {
			stop.Thread = t.thread(n)
			break
		}
	}
	return stop
}

// ended gives the stop reply for a domain that is gone.
func (t *Target) ended() rsp.StopReply {
	t.stop = rsp.StopReply{Reason: rsp.StopExited, Thread: t.stop.Thread}
	return t.stop
}

// expedited are the registers that a client asks for first: rbp, rsp and rip, by
// their numbers, which are the same in every description.
var expedited = func() []int {
	var list []int
	for i, r := range coreRegisters {
		if slices.Contains([]string{"rbp", "rsp", "rip"}, r.Name) {
			list = append(list, i)
		}
	}
	return list
}()

// sentinels are this project's errors in the protocol's terms.
var sentinels = []struct{ from, to error }{
	{guest.ErrUnmapped, rsp.ErrUnmapped},
	{guest.ErrNotPaused, rsp.ErrRunning},
	{guest.ErrReadOnly, rsp.ErrNotSupported},
	{xen.ErrQuirk, rsp.ErrNotSupported},
	{xen.ErrNoVCPU, rsp.ErrNoThread},
	{xen.ErrVCPUOffline, rsp.ErrNoThread},
	{xen.ErrNoDomain, rsp.ErrNoThread},
}

// clientError adds the sentinel that the server looks for.
func clientError(err error) error {
	for _, s := range sentinels {
		if errors.Is(err, s.from) {
			return fmt.Errorf("%w: %w", s.to, err)
		}
	}
	return err
}

// This file is the Target: what a client may ask of a guest.

package debugger

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// GDB's signal numbers (GDB manual, node "Stop Reply Packets").
const (
	signalINT  = 2
	signalTRAP = 5
	signalABRT = 6
)

// A Target is a guest that a client debugs.
type Target struct {
	guest       *guest.Guest
	engine      engine.Engine
	noEngine    error // why it can only pause and continue; nil if it can do all
	log         *slog.Logger
	layout      layout
	registers   x86.Registers // of ReadRegisters, not to be made anew for each
	threads     []rsp.Thread  // of all vCPUs,
	up          []int         // those that were up,
	listed      []rsp.Thread  // and their threads
	kernel      *linux.Kernel // of a Linux guest, once it was asked for
	kernelFiles               // made of it
	names       func(domains []xen.DomainInfo) (map[xen.DomID]string, error)
	stop        rsp.StopReply
	interrupt   chan struct{} // holds one request to stop
	leaving     <-chan struct{}
	asked       atomic.Bool  // to leave, whether or not there has been time for it
	print       func(string) // on the client's console

	breakpoints map[rsp.Place]*breakpoint
	slots       [debugSlots]slot
	lent, fresh []int     // vCPUs that have what slots asks for, and that came up since
	pending     []hit     // hits that the client has not been told of
	hits, kept  int       // of breakpoints, and those of them that were none for the client
	past        []place   // by vCPU: the breakpoint that it is to run over, if any
	plan        []motion  // what each vCPU is to do
	leg         leg       // what they do now
	alone       time.Time // since when vCPUs have been held for a step; zero if none is
	blind       bool      // the running domain could not be asked for its state
}

var (
	_ rsp.Target       = &Target{}
	_ rsp.Monitor      = &Target{}
	_ rsp.Stepper      = &Target{}
	_ rsp.Breakpointer = &Target{}
	_ rsp.Watcher      = &Target{}
	_ rsp.Talker       = &Target{}
	_ rsp.Informer     = &Target{}
	_ rsp.FileServer   = &Target{}
	_ rsp.Librarian    = &Target{}
	_ rsp.Relocator    = &Target{}
	_ rsp.Describer    = &Target{}
)

// Config is how to debug a guest.
type Config struct {
	// Engine is what stops and steps the guest: a name that engine.Choose knows,
	// or empty for the best that there is.
	Engine string
	Log    *slog.Logger
	// Names gives the names of domains, of those that have one. nil: none have.
	Names func(domains []xen.DomainInfo) (map[xen.DomID]string, error)
	// Leaving has a token when the domain is about to be saved or migrated. nil: there
	// is no word of that.
	Leaving <-chan struct{}
}

// New makes a Target of a guest that is attached to, and so paused. The Target
// owns the guest from then on: Detach gives it back. An engine that was asked for
// and cannot be had is an error.
func New(g *guest.Guest, c Config) (*Target, error) {
	t := &Target{
		guest:       g,
		log:         c.Log.With("layer", "debugger"),
		layout:      newLayout(g.Features()),
		names:       c.Names,
		interrupt:   make(chan struct{}, 1),
		leaving:     c.Leaving,
		print:       func(string) {},
		breakpoints: map[rsp.Place]*breakpoint{},
		past:        make([]place, g.NumVCPUs()),
		plan:        make([]motion, g.NumVCPUs()),
	}
	for n := range g.NumVCPUs() {
		t.threads = append(t.threads, rsp.Thread{ID: t.thread(n), Name: fmt.Sprintf("vCPU %d", n), Core: n})
	}
	t.kernelFiles = kernelFiles{log: t.log, find: t.linux}
	t.engine, t.noEngine = engine.Choose(g, c.Engine, t.log)
	if t.noEngine != nil {
		if c.Engine != "" {
			return nil, t.noEngine
		}
		t.engine = engine.Plain(g, t.noEngine)
	}
	t.stop = t.stopped(signalTRAP)
	return t, nil
}

// SetConsole says where text for the user goes.
func (t *Target) SetConsole(print func(string)) { t.print = print }

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

// Threads gives the vCPUs that are up. The server asks at each packet that names a
// thread, and may keep the list: it is made anew when it is another.
func (t *Target) Threads() (_ []rsp.Thread, err error) {
	if t.up, err = t.guest.AppendVCPUs(t.up[:0]); err != nil {
		return nil, clientError(err)
	}
	if !slices.EqualFunc(t.listed, t.up, func(th rsp.Thread, n int) bool { return th.Core == n }) {
		t.listed = make([]rsp.Thread, 0, len(t.up))
		for _, n := range t.up {
			t.listed = append(t.listed, t.threads[n])
		}
	}
	return t.listed, nil
}

// Describe tells how a vCPU stands, as "kernel mode, blocked".
func (t *Target) Describe(id rsp.ThreadID) string {
	state, err := t.guest.State(t.vcpu(id))
	switch {
	case errors.Is(err, guest.ErrNotPaused):
		return "running"
	case err != nil:
		return err.Error()
	}
	return stateText(state)
}

// stateText tells how a vCPU of a paused guest stands.
func stateText(s guest.State) string {
	text := "kernel mode"
	if s.UserMode {
		text = "user mode"
	}
	switch {
	case !s.Online:
		text += ", offline"
	case s.Blocked:
		text += ", blocked"
	}
	return text
}

// ReadRegisters reads the registers of a vCPU.
func (t *Target) ReadRegisters(id rsp.ThreadID, regs *rsp.Registers) (err error) {
	if t.registers, err = t.guest.Registers(t.vcpu(id)); err != nil {
		return clientError(err)
	}
	t.layout.toClient(&t.registers, regs)
	return nil
}

// WriteRegisters writes registers of a vCPU, all or none.
func (t *Target) WriteRegisters(id rsp.ThreadID, regs *rsp.Registers) error {
	n := t.vcpu(id)
	r, err := t.guest.Registers(n)
	if err != nil {
		return clientError(err)
	}
	before := r.RIP
	if name := t.layout.fromClient(regs, &r); name != "" {
		return fmt.Errorf("vCPU %d: %s: %w: its value cannot be known", n, name, rsp.ErrNotSupported)
	}
	if err := t.guest.SetRegisters(n, r); err != nil {
		return clientError(err)
	}
	if r.RIP != before {
		t.past[n] = place{}
	}
	return nil
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

// Interrupt makes Wait pause the guest.
func (t *Target) Interrupt() error {
	select {
	case t.interrupt <- struct{}{}:
	default: // one is on its way
	}
	return nil
}

// Detach gives the guest back as it was found.
func (t *Target) Detach() error {
	err := t.engine.Close()
	if err != nil && !errors.Is(err, xen.ErrNoDomain) {
		return errors.Join(err, t.guest.LeaveToOthers())
	}
	return t.guest.Detach()
}

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
		if info, err := t.guest.Scheduled(n); err == nil && info.Online && !info.Blocked {
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
	{engine.ErrUnavailable, rsp.ErrNotSupported},
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

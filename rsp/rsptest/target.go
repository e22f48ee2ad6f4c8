// Package rsptest helps to test what speaks the GDB Remote Serial Protocol: a
// fake target to put behind a server, a scripted client to put before one, and
// transcripts of real clients to replay.
package rsptest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"gdbserver-xen/rsp"
)

// A Region is memory that is there. What no region covers is unmapped.
type Region struct {
	Addr uint64
	Data []byte
}

// end returns the last address.
func (r *Region) end() uint64 { return r.Addr + uint64(len(r.Data)) - 1 }

// A Target is a fake debuggee. Set its fields before it is served. It notes
// breaches of the rsp.Target contract, which Misuse returns.
type Target struct {
	// Memory is in order of address, without overlap. Adjacent regions read as
	// one.
	Memory []Region
	// Stops are the stops that resuming leads to, in order. When there are no
	// more the target runs until it is interrupted.
	Stops []rsp.StopReply
	// Fail makes the methods of these names fail.
	Fail map[string]error
	// NoStep makes the target unable to step.
	NoStep bool
	// Says is text for the console: of the first resumption, the second, and so
	// on.
	Says []string
	// Commands are the monitor commands. The target's own are the fallback:
	// each line is printed back; "fail" fails; "wait" waits for its context.
	Commands func(ctx context.Context, line string, out func(string)) error

	desc    *rsp.Description
	threads []rsp.Thread
	regs    []*rsp.Registers // by thread
	program bool             // there is one to execute

	busy        atomic.Bool
	interrupted chan struct{}

	mu       sync.Mutex
	stop     rsp.StopReply
	running  bool
	detached bool
	actions  []rsp.Action // of the last resumption
	resumed  [][]rsp.Action
	misuse   []string
	print    func(string)

	breakpoints map[rsp.Place]rsp.Breakpoint
}

var (
	_ rsp.Target       = (*Target)(nil)
	_ rsp.Stepper      = (*Target)(nil)
	_ rsp.Breakpointer = (*Target)(nil)
	_ rsp.Watcher      = (*Target)(nil)
	_ rsp.Talker       = (*Target)(nil)
	_ rsp.Monitor      = (*Target)(nil)
	_ rsp.Describer    = (*Target)(nil)
)

// Addresses in the memory of NewTarget.
const (
	Low   = 0x1000             // two pages, then a hole
	Text  = 0xffffffff81000000 // two pages
	Stack = 0xffffc90000004000 // one page
	Top   = 0xfffffffffffff000 // the last page of the address space
)

// NewTarget returns a stopped target with n threads of process 1 and the
// registers of Description, whose values depend on the thread: rax is
// 0x1000000000000001 in thread 1, rbx 0x1000000000000002, rax in thread 2
// 0x2000000000000001. x87 and SSE registers are unknown in all but the first
// thread. Byte i of a region is i*7 + i>>8. A step moves rip by one byte.
func NewTarget(n int) *Target {
	t := &Target{
		Memory: []Region{
			{Low, pattern(0x2000)},
			{Stack, pattern(0x1000)},
			{Text, pattern(0x2000)},
			{Top, pattern(0x1000)},
		},
		Fail:        make(map[string]error),
		breakpoints: make(map[rsp.Place]rsp.Breakpoint),
		desc:        Description(),
		interrupted: make(chan struct{}, 1),
		stop:        rsp.StopReply{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 1}},
	}
	for i := range n {
		t.threads = append(t.threads, rsp.Thread{
			ID:   rsp.ThreadID{PID: 1, TID: i + 1},
			Name: fmt.Sprintf("vCPU %d", i),
			Core: i,
		})
		t.regs = append(t.regs, sampleRegisters(t.desc, i))
	}
	return t
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func sampleRegisters(d *rsp.Description, thread int) *rsp.Registers {
	r := rsp.NewRegisters(d)
	for i := range r.Len() {
		switch r.Size(i) {
		case 8:
			r.SetUint(i, uint64(thread+1)<<60+uint64(i)+1)
		case 4:
			r.SetUint(i, uint64(i))
		default:
			if thread == 0 {
				r.SetUint(i, uint64(i))
			}
		}
	}
	for name, value := range map[string]uint64{
		"rip": Text + 0x100 + 0x10*uint64(thread), "rsp": Stack + 0xf00, "rbp": Stack + 0xf40,
		"eflags": 0x246, "cs": 0x10, "ss": 0x18, "cr0": 0x80050033, "cr4": 0x660, "efer": 0xd01,
		"fctrl": 0x37f, "mxcsr": 0x1f80,
	} {
		i, _ := r.Index(name)
		r.SetUint(i, value)
	}
	return r
}

// Misuse returns what the server did against the contract of rsp.Target.
func (t *Target) Misuse() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.misuse
}

// Detached reports whether the target was given back.
func (t *Target) Detached() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.detached
}

// Running reports whether the target runs.
func (t *Target) Running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running
}

// Resumed returns the actions of each resumption.
func (t *Target) Resumed() [][]rsp.Action {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.resumed
}

// Registers returns the registers of a thread, from 1, for tests to look at and
// to change while the target is not served.
func (t *Target) Registers(tid int) *rsp.Registers { return t.regs[tid-1] }

// Clone returns a copy of the memory.
func (t *Target) Clone() []Region {
	var m []Region
	for _, r := range t.Memory {
		m = append(m, Region{r.Addr, bytes.Clone(r.Data)})
	}
	return m
}

// enter checks that a call is allowed, and fails it if the test wants that.
func (t *Target) enter(method string, stopped bool) error {
	if !t.busy.CompareAndSwap(false, true) {
		t.complain(method + " during another call")
	}
	t.mu.Lock()
	running, detached := t.running, t.detached
	t.mu.Unlock()
	if detached {
		t.complain(method + " after Detach")
	}
	if stopped && running {
		t.complain(method + " of a running target")
	}
	return t.Fail[method]
}

func (t *Target) leave() { t.busy.Store(false) }

func (t *Target) complain(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.misuse = append(t.misuse, what)
}

// Description implements rsp.Target.
func (t *Target) Description() *rsp.Description { return t.desc }

// Threads implements rsp.Target.
func (t *Target) Threads() ([]rsp.Thread, error) {
	err := t.enter("Threads", false)
	defer t.leave()
	return t.threads, err
}

// Describe says that a thread is in its kernel.
func (t *Target) Describe(rsp.ThreadID) string { return "kernel mode" }

func (t *Target) registers(id rsp.ThreadID, regs *rsp.Registers) (*rsp.Registers, error) {
	if regs.Len() != t.regs[0].Len() {
		t.complain("registers of another description")
	}
	for i := range t.threads {
		if t.threads[i].ID == id {
			return t.regs[i], nil
		}
	}
	return nil, rsp.ErrNoThread
}

// ReadRegisters implements rsp.Target.
func (t *Target) ReadRegisters(id rsp.ThreadID, regs *rsp.Registers) error {
	defer t.leave()
	if err := t.enter("ReadRegisters", true); err != nil {
		return err
	}
	r, err := t.registers(id, regs)
	if err != nil {
		return err
	}
	regs.CopyFrom(r)
	return nil
}

// WriteRegisters implements rsp.Target.
func (t *Target) WriteRegisters(id rsp.ThreadID, regs *rsp.Registers) error {
	defer t.leave()
	if err := t.enter("WriteRegisters", true); err != nil {
		return err
	}
	r, err := t.registers(id, regs)
	if err != nil {
		return err
	}
	r.CopyFrom(regs)
	return nil
}

// find returns the bytes at addr up to the end of their region.
func (t *Target) find(addr uint64) []byte {
	for i := range t.Memory {
		if r := &t.Memory[i]; addr >= r.Addr && addr <= r.end() {
			return r.Data[addr-r.Addr:]
		}
	}
	return nil
}

// ReadMemory implements rsp.Target.
func (t *Target) ReadMemory(_ rsp.ThreadID, addr uint64, p []byte) (int, error) {
	defer t.leave()
	if err := t.enter("ReadMemory", true); err != nil {
		return 0, err
	}
	if len(p) > 0 && addr+uint64(len(p))-1 < addr {
		t.complain("read past the end of the address space")
	}
	n := t.read(addr, p)
	if n == 0 && len(p) > 0 {
		return 0, fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr)
	}
	return n, nil
}

// read reads up to the first byte that is not there.
func (t *Target) read(addr uint64, p []byte) int {
	n := 0
	for n < len(p) {
		data := t.find(addr + uint64(n))
		if data == nil {
			break
		}
		n += copy(p[n:], data)
	}
	return n
}

// WriteMemory implements rsp.Target.
func (t *Target) WriteMemory(_ rsp.ThreadID, addr uint64, p []byte) error {
	defer t.leave()
	if err := t.enter("WriteMemory", true); err != nil {
		return err
	}
	if len(p) == 0 || addr+uint64(len(p))-1 < addr {
		t.complain("write of nothing or past the end of the address space")
		return rsp.ErrUnmapped
	}
	for n := 0; n < len(p); {
		data := t.find(addr + uint64(n))
		if data == nil {
			return fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr+uint64(n))
		}
		n += len(data)
	}
	for n := 0; n < len(p); {
		n += copy(t.find(addr+uint64(n)), p[n:])
	}
	return nil
}

// Stop implements rsp.Target.
func (t *Target) Stop() rsp.StopReply {
	t.enter("Stop", true)
	defer t.leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stop
}

// Resume implements rsp.Target.
func (t *Target) Resume(actions []rsp.Action) error {
	defer t.leave()
	if err := t.enter("Resume", true); err != nil {
		return err
	}
	t.checkActions(actions)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.actions = actions
	for i, th := range t.threads {
		if !t.program && rsp.ActionFor(actions, th.ID).Kind == rsp.Step {
			rip, _ := t.regs[i].Index("rip")
			pc, _ := t.regs[i].Uint(rip)
			t.regs[i].SetUint(rip, pc+1)
		}
	}
	t.resumed = append(t.resumed, actions)
	t.running = true
	select {
	case <-t.interrupted:
	default:
	}
	return nil
}

// checkActions checks what a target may be asked to do.
func (t *Target) checkActions(actions []rsp.Action) {
	for _, a := range actions {
		steps := a.Kind == rsp.Step || a.Kind == rsp.StepRange
		if steps && t.NoStep {
			t.complain("step of a target that cannot")
		}
		if a.Kind == rsp.StepRange && a.Start >= a.End || a.Kind != rsp.StepRange && (a.Start != 0 || a.End != 0) {
			t.complain(fmt.Sprintf("%c from %#x to %#x", a.Kind, a.Start, a.End))
		}
		if a.Thread.TID != -1 && !t.has(a.Thread) {
			t.complain(fmt.Sprintf("action for thread %d.%d", a.Thread.PID, a.Thread.TID))
		}
	}
	for _, th := range t.threads {
		if rsp.ActionFor(actions, th.ID).Kind != rsp.Halt {
			return
		}
	}
	t.complain("Resume of nothing")
}

func (t *Target) has(id rsp.ThreadID) bool {
	return slices.ContainsFunc(t.threads, func(th rsp.Thread) bool { return th.ID == id })
}

// Wait implements rsp.Target.
func (t *Target) Wait(ctx context.Context) (rsp.StopReply, error) {
	defer t.leave()
	if err := t.enter("Wait", false); err != nil {
		return rsp.StopReply{}, err
	}
	t.mu.Lock()
	if !t.running {
		t.misuse = append(t.misuse, "Wait for a stopped target")
	}
	t.mu.Unlock()
	stop, err := t.next(ctx)
	if err != nil {
		return stop, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running, t.stop = false, stop
	return t.stop, nil
}

// next lets the target run to its next stop.
func (t *Target) next(ctx context.Context) (rsp.StopReply, error) {
	if len(t.Says) > 0 {
		t.Say(t.Says[0])
		t.Says = t.Says[1:]
	}
	if t.program {
		return t.execute(ctx)
	}
	if len(t.Stops) > 0 {
		stop := t.Stops[0]
		t.Stops = t.Stops[1:]
		return stop, nil
	}
	select {
	case <-t.interrupted:
		return rsp.StopReply{Signal: 2, Thread: t.threads[0].ID}, nil
	case <-ctx.Done():
		return rsp.StopReply{}, ctx.Err()
	}
}

// Interrupt implements rsp.Target.
func (t *Target) Interrupt() error {
	if err := t.Fail["Interrupt"]; err != nil {
		return err
	}
	select {
	case t.interrupted <- struct{}{}:
	default:
	}
	return nil
}

// Detach implements rsp.Target.
func (t *Target) Detach() error {
	defer t.leave()
	if err := t.enter("Detach", false); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detached, t.running = true, false
	return nil
}

// CanStep implements rsp.Stepper.
func (t *Target) CanStep() bool { return !t.NoStep }

// Watchpoints implements rsp.Watcher.
func (t *Target) Watchpoints() int { return 4 }

// SetConsole implements rsp.Talker.
func (t *Target) SetConsole(print func(string)) {
	t.enter("SetConsole", true)
	defer t.leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.print = print
}

// Say prints on the client's console.
func (t *Target) Say(text string) {
	t.mu.Lock()
	print := t.print
	t.mu.Unlock()
	if print == nil {
		t.complain("no console")
		return
	}
	print(text)
}

// InsertBreakpoint implements rsp.Breakpointer. There are as many watchpoints
// and hardware breakpoints as Watchpoints says.
func (t *Target) InsertBreakpoint(b rsp.Breakpoint) error {
	defer t.leave()
	if err := t.enter("InsertBreakpoint", true); err != nil {
		return err
	}
	t.checkBreakpoint(b)
	hardware := 0
	for place := range t.breakpoints {
		if place.Kind != rsp.SoftwareBreakpoint && place != b.Place() {
			hardware++
		}
	}
	switch {
	case b.Kind == rsp.SoftwareBreakpoint && t.find(b.Addr) == nil:
		return fmt.Errorf("%w: %#x", rsp.ErrUnmapped, b.Addr)
	case b.Kind != rsp.SoftwareBreakpoint && hardware == t.Watchpoints():
		return fmt.Errorf("%w: a %s at %#x: all %d debug registers are in use", rsp.ErrNotSupported, b.Kind, b.Addr, hardware)
	}
	t.breakpoints[b.Place()] = b
	return nil
}

// RemoveBreakpoint implements rsp.Breakpointer.
func (t *Target) RemoveBreakpoint(b rsp.Breakpoint) error {
	defer t.leave()
	if err := t.enter("RemoveBreakpoint", true); err != nil {
		return err
	}
	t.checkBreakpoint(b)
	delete(t.breakpoints, b.Place())
	return nil
}

// checkBreakpoint checks what a target may be asked to insert or remove.
func (t *Target) checkBreakpoint(b rsp.Breakpoint) {
	watch := b.Kind >= rsp.Watch
	if b.Kind < rsp.SoftwareBreakpoint || b.Kind > rsp.AccessWatch || b.Size < 1 || b.Addr+uint64(b.Size)-1 < b.Addr ||
		!t.has(b.Thread) || watch && len(b.Conditions)+len(b.Commands) > 0 {
		t.complain(fmt.Sprintf("%s of %d bytes: %+v", b.Kind, b.Size, b))
	}
}

// Breakpoints returns the breakpoints that are inserted, in order of kind and
// address.
func (t *Target) Breakpoints() []rsp.Breakpoint {
	return slices.SortedFunc(maps.Values(t.breakpoints), func(a, b rsp.Breakpoint) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Size, b.Size))
	})
}

// Monitor implements rsp.Monitor.
func (t *Target) Monitor(ctx context.Context, line string, out func(string)) error {
	defer t.leave()
	if err := t.enter("Monitor", true); err != nil {
		return err
	}
	if t.Commands != nil {
		return t.Commands(ctx, line, out)
	}
	switch line {
	case "fail":
		return fmt.Errorf("command failed")
	case "wait":
		<-ctx.Done()
		return ctx.Err()
	}
	out(line + "\n")
	return nil
}

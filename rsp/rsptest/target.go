// Package rsptest helps to test what speaks the GDB Remote Serial Protocol: a
// fake target to put behind a server, a scripted client to put before one, and
// transcripts of real clients to replay.
package rsptest

import (
	"bytes"
	"context"
	"fmt"
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
	// Commands are the monitor commands. The target's own are the fallback:
	// each line is printed back; "fail" fails; "wait" waits for its context.
	Commands func(ctx context.Context, line string, out func(string)) error

	desc    *rsp.Description
	threads []rsp.Thread
	regs    []*rsp.Registers // by thread

	busy        atomic.Bool
	interrupted chan struct{}

	mu       sync.Mutex
	stop     rsp.StopReply
	running  bool
	detached bool
	resumed  [][]rsp.Action
	misuse   []string
}

var (
	_ rsp.Target  = (*Target)(nil)
	_ rsp.Stepper = (*Target)(nil)
	_ rsp.Monitor = (*Target)(nil)
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
		desc:        Description(),
		interrupted: make(chan struct{}, 1),
		stop:        rsp.StopReply{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 1}},
	}
	for i := range n {
		t.threads = append(t.threads, rsp.Thread{
			ID:   rsp.ThreadID{PID: 1, TID: i + 1},
			Name: fmt.Sprintf("vCPU %d", i),
			Core: i,
			Info: "kernel mode",
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
	n := 0
	for n < len(p) {
		data := t.find(addr + uint64(n))
		if data == nil {
			break
		}
		n += copy(p[n:], data)
	}
	if n == 0 && len(p) > 0 {
		return 0, fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr)
	}
	return n, nil
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
	if len(actions) == 0 {
		t.complain("Resume without actions")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range actions {
		if a.Kind != rsp.Step {
			continue
		}
		if t.NoStep {
			t.misuse = append(t.misuse, "step of a target that cannot")
		}
		for i, th := range t.threads {
			if th.ID == a.Thread {
				rip, _ := t.regs[i].Index("rip")
				pc, _ := t.regs[i].Uint(rip)
				t.regs[i].SetUint(rip, pc+1)
			}
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
	var next *rsp.StopReply
	if len(t.Stops) > 0 {
		next, t.Stops = &t.Stops[0], t.Stops[1:]
	}
	t.mu.Unlock()
	if next == nil {
		select {
		case <-t.interrupted:
			next = &rsp.StopReply{Signal: 2, Thread: t.threads[0].ID}
		case <-ctx.Done():
			return rsp.StopReply{}, ctx.Err()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running, t.stop = false, *next
	return t.stop, nil
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

// This file is run control: resuming, waiting, interrupting, stop replies, and
// letting go of the target (GDB manual, nodes "Packets", "Stop Reply Packets"
// and "Interrupts").

package rsp

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// A stopped target's news, or why there is none.
type stop struct {
	reply StopReply
	err   error
}

// queryStop handles ?.
func (s *session) queryStop(*arguments) error {
	s.appendStop(s.target.Stop())
	return nil
}

// threadStop handles qThreadStopInfo.
func (s *session) threadStop(a *arguments) error {
	id, err := s.resolve(a.thread)
	if err != nil {
		return err
	}
	reply := s.target.Stop()
	if reply.Reason == StopSignal && reply.Thread != id {
		reply = StopReply{Thread: id, Expedite: reply.Expedite}
	}
	general, last := s.general, s.stopThread
	s.appendStop(reply)
	s.general, s.stopThread = general, last
	return nil
}

// appendStop makes a stop reply of a stop. Clients take the thread in it for
// selected from then on, so it is.
func (s *session) appendStop(r StopReply) {
	if r.Reason != StopSignal {
		c := byte('W')
		if r.Reason == StopKilled {
			c = 'X'
		}
		s.out = appendHexByte(append(s.out, c), byte(r.Signal))
		if s.multiprocess {
			s.out = strconv.AppendInt(append(s.out, ";process:"...), int64(r.Thread.PID), 16)
		}
		return
	}
	s.out = appendHexByte(append(s.out, 'T'), byte(r.Signal))
	s.appendCause(&r)
	if r.Thread == (ThreadID{}) {
		return
	}
	s.general, s.stopThread = r.Thread, r.Thread
	s.out = s.appendThreadID(append(s.out, "thread:"...), r.Thread)
	s.out = append(s.out, ';')
	if s.listThreads {
		s.appendThreadList(r.Thread)
	}
	if len(r.Expedite) == 0 {
		return
	}
	s.regs.Clear()
	if err := s.target.ReadRegisters(r.Thread, s.regs); err != nil {
		return // the client asks for them and gets the error then
	}
	for _, i := range r.Expedite {
		if i < 0 || i >= s.regs.Len() || !s.regs.Known(i) {
			continue
		}
		s.out = strconv.AppendInt(s.out, int64(i), 16)
		s.out = s.regs.appendHex(append(s.out, ':'), i)
		s.out = append(s.out, ';')
	}
}

// appendCause appends what has stopped the thread: gdb is told of a breakpoint
// if it has said that it wants to be, lldb always, and of a step that is done.
func (s *session) appendCause(r *StopReply) {
	reason := ""
	switch {
	case r.Cause == SoftwareBreakpoint || r.Cause == HardwareBreakpoint:
		reason = "breakpoint"
		switch {
		case r.Cause == SoftwareBreakpoint && s.swbreak:
			s.out = append(s.out, "swbreak:;"...)
		case r.Cause == HardwareBreakpoint && s.hwbreak:
			s.out = append(s.out, "hwbreak:;"...)
		}
	case r.Cause.watches():
		reason = "watchpoint"
		switch r.Cause {
		case ReadWatch:
			s.out = append(s.out, 'r')
		case AccessWatch:
			s.out = append(s.out, 'a')
		}
		s.out = strconv.AppendUint(append(s.out, "watch:"...), r.WatchAddr, 16)
		s.out = append(s.out, ';')
	case r.Signal == signalTrap && len(s.actions) > 0:
		if k := ActionFor(s.actions, r.Thread).Kind; k == Step || k == StepRange {
			reason = "trace"
		}
	}
	if s.dialect == lldb && reason != "" {
		s.out = append(append(append(s.out, "reason:"...), reason...), ';')
	}
}

// signalTrap is GDB's number of SIGTRAP.
const signalTrap = 5

// appendThreadList appends what lldb wants beside: the stopped thread's name,
// all thread ids, and where each thread is.
func (s *session) appendThreadList(stopped ThreadID) {
	threads, err := s.target.Threads()
	if err != nil {
		return
	}
	for _, t := range threads {
		if t.ID == stopped && t.Name != "" {
			s.out = appendHexString(append(s.out, "hexname:"...), t.Name)
			s.out = append(s.out, ';')
		}
	}
	s.out = append(s.out, "threads:"...)
	for i, t := range threads {
		if i > 0 {
			s.out = append(s.out, ',')
		}
		s.out = s.appendThreadID(s.out, t.ID)
	}
	s.out = append(s.out, ';')
	if s.pc < 0 {
		return
	}
	mark := len(s.out)
	s.out = append(s.out, "thread-pcs:"...)
	for i, t := range threads {
		s.regs.Clear()
		err := s.target.ReadRegisters(t.ID, s.regs)
		pc, known := s.regs.Uint(s.pc)
		if err != nil || !known {
			s.out = s.out[:mark] // all or none: the list has no gaps
			return
		}
		if i > 0 {
			s.out = append(s.out, ',')
		}
		s.out = strconv.AppendUint(s.out, pc, 16)
	}
	s.out = append(s.out, ';')
}

// queryActions handles vCont?. gdb uses vCont only if C is there beside c; lldb
// only if s and S are there too.
func (s *session) queryActions(*arguments) error {
	s.out = append(s.out, "vCont;c;C;t"...)
	if s.canStep() {
		s.out = append(s.out, ";s;S;r"...)
	}
	return nil
}

func (s *session) canStep() bool {
	stepper, ok := s.target.(Stepper)
	return ok && stepper.CanStep()
}

// resumeActions handles vCont.
func (s *session) resumeActions(a *arguments) error {
	var actions []Action
	for rest := a.data; ; rest = rest[1:] {
		var (
			act Action
			err error
		)
		act, rest, err = s.parseAction(rest)
		if err != nil {
			return err
		}
		actions = append(actions, act)
		if len(rest) == 0 {
			break
		}
		if rest[0] != ';' {
			return fmt.Errorf("%w: actions of vCont", errMalformed)
		}
	}
	return s.resume(actions)
}

// parseAction reads one action of vCont.
func (s *session) parseAction(p []byte) (act Action, rest []byte, err error) {
	if len(p) == 0 {
		return act, p, fmt.Errorf("%w: vCont without an action", errMalformed)
	}
	kind, rest := p[0], p[1:]
	ok := true
	switch kind {
	case 'c', 's', 't':
		act.Kind = ActionKind(kind)
	case 'C', 'S':
		act.Kind = ActionKind(kind - 'A' + 'a')
		var signal uint64
		signal, rest, ok = parseNumber(rest)
		ok = ok && signal <= 0xff
		act.Signal = int(signal)
	case 'r':
		act, rest, ok = parseRange(rest)
	default:
		return act, rest, fmt.Errorf("%w: vCont action %c", ErrNotSupported, kind)
	}
	act.Thread = ThreadID{allThreads, allThreads}
	if ok && len(rest) > 0 && rest[0] == ':' {
		act.Thread, rest, ok = parseThreadID(rest[1:])
	}
	if !ok {
		return act, rest, fmt.Errorf("%w: vCont action %c", errMalformed, kind)
	}
	id, err := s.resolve(act.Thread)
	if act.Thread.TID != allThreads {
		act.Thread = id
	}
	return act, rest, err
}

// parseRange reads the rest of a vCont action r: the range to step in. An empty
// one makes it a step.
func parseRange(p []byte) (act Action, rest []byte, ok bool) {
	start, rest, ok := parseNumber(p)
	if !ok || len(rest) == 0 || rest[0] != ',' {
		return act, p, false
	}
	end, rest, ok := parseNumber(rest[1:])
	switch {
	case !ok || start > end:
		return act, p, false
	case start == end:
		act.Kind = Step
	default:
		act.Kind, act.Start, act.End = StepRange, start, end
	}
	return act, rest, true
}

// resumeAt handles c and s, and C and S with a signal before the address.
func (s *session) resumeAt(a *arguments) error {
	act := Action{Kind: Continue, Thread: ThreadID{allThreads, allThreads}}
	addr, hasAddr := a.num[0], a.nums > 0
	switch a.name {
	case 'C', 'S':
		if a.num[0] > 0xff {
			return fmt.Errorf("%w: signal number", errMalformed)
		}
		act.Signal = int(a.num[0])
		addr, hasAddr = a.num[1], a.nums > 1
	}
	if a.name == 's' || a.name == 'S' {
		act.Kind = Step
	}
	if act.Kind == Step && !s.canStep() {
		return errNoStep
	}
	chosen := s.resumed.TID > 0
	switch {
	case chosen:
		act.Thread = s.resumed
	case act.Kind == Step || act.Signal != 0:
		act.Thread = s.general
	}
	if hasAddr {
		if err := s.setPC(addr); err != nil {
			return err
		}
	}
	actions := []Action{act}
	if !chosen && act.Thread.TID != allThreads {
		actions = append(actions, Action{Kind: Continue, Thread: ThreadID{allThreads, allThreads}})
	}
	return s.resume(actions)
}

// setPC moves the thread that is about to be resumed.
func (s *session) setPC(addr uint64) error {
	if s.pc < 0 {
		return fmt.Errorf("%w: resume at an address: no register is the program counter", ErrNotSupported)
	}
	id := s.general
	if s.resumed.TID > 0 {
		id = s.resumed
	}
	s.regs.Clear()
	s.regs.SetUint(s.pc, addr)
	return s.target.WriteRegisters(id, s.regs)
}

var errNoStep = fmt.Errorf("%w: single-stepping this target", ErrNotSupported)

// resume lets the target run and waits for it beside the main loop.
func (s *session) resume(actions []Action) error {
	for _, a := range actions {
		if (a.Kind == Step || a.Kind == StepRange) && !s.canStep() {
			return errNoStep
		}
	}
	if err := s.refusal(); err != nil {
		return err
	}
	moves, err := s.moves(actions)
	if err != nil {
		return err
	}
	if !moves { // so it has stopped already
		reply := s.target.Stop()
		if reply.Reason == StopSignal {
			reply = StopReply{Thread: reply.Thread, Expedite: reply.Expedite}
		}
		s.appendStop(reply)
		return nil
	}
	if err := s.target.Resume(actions); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.running, s.actions, s.cancelWait = true, actions, cancel
	s.flushTalk()
	s.waits <- ctx
	return errNoReply
}

// wait waits for the target after each resumption, in one goroutine: the stack of a
// new one would have to grow each time.
func (s *session) wait() {
	for ctx := range s.waits {
		reply, err := s.target.Wait(ctx)
		s.stops <- stop{reply, err}
	}
}

// moves reports whether the actions let any thread run.
func (s *session) moves(actions []Action) (bool, error) {
	halts := func(a Action) bool { return a.Kind == Halt }
	if !slices.ContainsFunc(actions, halts) {
		return true, nil // whatever threads there are
	}
	threads, err := s.target.Threads()
	return slices.ContainsFunc(threads, func(t Thread) bool { return !halts(ActionFor(actions, t.ID)) }), err
}

// stopped sends the stop reply that a resumption was owed.
func (s *session) stopped(st stop) {
	s.flushTalk()
	s.running = false
	s.cancelWait()
	s.out = s.out[:0]
	if st.err != nil {
		s.replyError(&waitFailed, fmt.Errorf("wait for a stop: %w", st.err))
	} else {
		s.appendStop(st.reply)
	}
	s.send()
}

// waitFailed stands for the packet that a failed wait answers.
var waitFailed = command{name: "vCont", resumes: true, textErrors: true}

// abandonWait ends a wait. It leaves the target as it is, running or not.
func (s *session) abandonWait() {
	if s.running {
		s.cancelWait()
		<-s.stops
		s.running = false
	}
}

// interrupt asks a running target to stop. A stopped one needs no asking: the
// client's interrupt and the stop crossed on the wire.
func (s *session) interrupt() error {
	if !s.running {
		return nil
	}
	return s.target.Interrupt()
}

// interruptPacket handles vCtrlC.
func (s *session) interruptPacket(*arguments) error {
	if err := s.interrupt(); err != nil {
		return err
	}
	return s.ok()
}

// detach handles D and vKill: a debuggee is never killed, only let go. The
// process is checked if the target stands still, so that it can be asked.
func (s *session) detach(a *arguments) error {
	if a.nums > 0 && !s.running {
		pid := int(min(a.num[0], 1<<31-1))
		if _, err := s.resolve(ThreadID{pid, allThreads}); err != nil {
			return err
		}
	}
	if err := s.release(); err != nil {
		return err
	}
	return s.ok()
}

// kill handles k, which has no reply.
func (s *session) kill(*arguments) error {
	s.release()
	return errNoReply
}

// release gives the target back and ends the session, well or not.
func (s *session) release() error {
	s.abandonWait()
	s.over = true
	if err := s.target.Detach(); err != nil {
		s.err = fmt.Errorf("detach: %w", err)
	}
	return s.err
}

// This file is breakpoints and watchpoints: the packets Z and z, their
// conditions and commands (GDB manual, node "Packets").

package rsp

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"gdbserver-xen/rsp/agent"
)

// watches reports whether the kind is one of access to memory.
func (k BreakpointKind) watches() bool { return k == Watch || k == ReadWatch || k == AccessWatch }

// String returns how errors call the kind.
func (k BreakpointKind) String() string {
	switch k {
	case SoftwareBreakpoint:
		return "software breakpoint"
	case HardwareBreakpoint:
		return "hardware breakpoint"
	case Watch:
		return "write watchpoint"
	case ReadWatch:
		return "read watchpoint"
	case AccessWatch:
		return "access watchpoint"
	}
	return "no breakpoint"
}

// A Place is what tells breakpoints apart.
type Place struct {
	Kind BreakpointKind
	Addr uint64
	Size int
}

// Place returns the breakpoint's place.
func (b *Breakpoint) Place() Place { return Place{b.Kind, b.Addr, b.Size} }

// Hit evaluates the conditions of a breakpoint that a thread, the machine, has
// hit, and runs its commands if they are to be run. It reports whether the
// target stops. It does also if something goes wrong, which the error tells.
// Commands print by print.
func (b *Breakpoint) Hit(m agent.Machine, print func(text string)) (stop bool, err error) {
	met := len(b.Conditions) == 0
	for _, e := range b.Conditions {
		value, err := e.Eval(m, print)
		if err != nil {
			return true, fmt.Errorf("condition of the %s at %#x: %w", b.Kind, b.Addr, err)
		}
		met = met || value != 0
	}
	if !met {
		return false, nil
	}
	for _, e := range b.Commands {
		if _, err := e.Eval(m, print); err != nil {
			return true, fmt.Errorf("commands of the %s at %#x: %w", b.Kind, b.Addr, err)
		}
	}
	return len(b.Commands) == 0, nil
}

// insertBreakpoint handles Z.
func (s *session) insertBreakpoint(a *arguments) error {
	target, ok := s.target.(Breakpointer)
	if !ok || !knownKind(a.op) {
		return nil // the empty reply
	}
	b, err := s.parseBreakpoint(a)
	if err == nil {
		err = target.InsertBreakpoint(b)
	}
	delete(s.refused, b.Place())
	switch {
	case s.dialect == gdb && errors.Is(err, ErrNotSupported):
		s.refused[b.Place()] = err
	case err != nil:
		return err
	}
	return s.ok()
}

// refusal returns why the target must not be resumed: a breakpoint that gdb
// believes to be there is not. gdb has no ear for the error of a Z packet, and
// says "Cannot access memory" or "You may have requested too many" whatever it
// is. It inserts breakpoints just before it resumes, and the error of that gets
// to the user. So a breakpoint that cannot be had is accepted, and nothing
// resumes until it is removed, which gdb does then.
func (s *session) refusal() error {
	var err error
	first := Place{}
	for place, reason := range s.refused {
		if err == nil || place.Addr < first.Addr || place.Addr == first.Addr && place.Kind < first.Kind {
			first, err = place, reason
		}
	}
	return err
}

// removeBreakpoint handles z.
func (s *session) removeBreakpoint(a *arguments) error {
	target, ok := s.target.(Breakpointer)
	if !ok || !knownKind(a.op) {
		return nil
	}
	b, err := s.parseBreakpoint(a)
	if err == nil {
		delete(s.refused, b.Place())
		err = target.RemoveBreakpoint(b)
	}
	if err != nil {
		return err
	}
	return s.ok()
}

func knownKind(op byte) bool { return '0' <= op && op <= '4' }

// parseBreakpoint reads the arguments of Z and z.
func (s *session) parseBreakpoint(a *arguments) (Breakpoint, error) {
	b := Breakpoint{Kind: BreakpointKind(a.op), Thread: s.general, Addr: a.num[0]}
	size := a.num[1]
	if size == 0 && !b.Kind.watches() {
		size = 1 // a client that leaves the instruction to us
	}
	if size == 0 || size > math.MaxInt32 || b.Addr > math.MaxUint64-(size-1) {
		return b, fmt.Errorf("%w: %s of %d bytes at %#x", errMalformed, b.Kind, size, b.Addr)
	}
	b.Size = int(size)
	if b.Kind.watches() && len(a.data) > 0 {
		return b, fmt.Errorf("%w: %s with conditions", errMalformed, b.Kind)
	}
	conditions, commands, hasCommands := bytes.Cut(a.data, []byte("cmds:"))
	conditions = bytes.TrimSuffix(conditions, []byte{';'})
	var err error
	if b.Conditions, err = parseExpressions(conditions); err != nil || !hasCommands {
		return b, err
	}
	// Whether they are to be run when the client is gone, too: none are.
	_, rest, ok := parseNumber(commands)
	if !ok || len(rest) == 0 || rest[0] != ',' {
		return b, fmt.Errorf("%w: commands of a breakpoint", errMalformed)
	}
	b.Commands, err = parseExpressions(rest[1:])
	return b, err
}

// parseExpressions reads a list of agent expressions: X, the length, a comma and
// that many bytes in hex, for each.
func parseExpressions(p []byte) ([]agent.Expr, error) {
	var list []agent.Expr
	for len(p) > 0 {
		if p[0] != 'X' {
			return nil, fmt.Errorf("%w: list of agent expressions", errMalformed)
		}
		n, rest, ok := parseNumber(p[1:])
		if !ok || len(rest) == 0 || rest[0] != ',' || n > uint64(len(rest)-1)/2 {
			return nil, fmt.Errorf("%w: length of an agent expression", errMalformed)
		}
		digits := rest[1 : 1+2*n]
		code, ok := appendDecoded(nil, digits)
		if !ok {
			return nil, fmt.Errorf("%w: agent expression is not hexadecimal", errMalformed)
		}
		e, err := agent.Parse(code)
		switch {
		case errors.Is(err, agent.ErrUnsupported):
			return nil, fmt.Errorf("%w: %w", ErrNotSupported, err)
		case err != nil:
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
		list = append(list, e)
		p = rest[1+2*n:]
	}
	return list, nil
}

// watchpointSupport handles qWatchpointSupportInfo.
func (s *session) watchpointSupport(*arguments) error {
	if w, ok := s.target.(Watcher); ok {
		s.out = fmt.Appendf(s.out, "num:%d;", w.Watchpoints())
	}
	return nil
}

// This file is what a server needs of the thing it serves: threads, registers,
// memory, run control. A Target implements the small interface Target and, for
// each protocol extension that it supports, one of the optional interfaces
// below it, which the server finds by type assertion.

package rsp

import (
	"context"
	"errors"

	"gdbserver-xen/rsp/agent"
)

// Errors that a Target returns, wrapped or not, for the server to turn into a
// reply that the client understands.
var (
	// ErrNotSupported says that the target cannot do this now, for the reason
	// in the wrapping error.
	ErrNotSupported = errors.New("not supported")
	// ErrNoThread says that a thread does not exist.
	ErrNoThread = errors.New("no such thread")
	// ErrUnmapped says that the first byte of a memory access cannot be had.
	ErrUnmapped = errors.New("memory is not mapped")
	// ErrRunning says that the target must be stopped first.
	ErrRunning = errors.New("target is running")
)

// ThreadID names a thread by process and thread number, both from 1. In a
// request, 0 stands for any and -1 for all (GDB manual, node "Packets",
// thread-id syntax).
type ThreadID struct{ PID, TID int }

// A Thread is one row of the thread list.
type Thread struct {
	ID   ThreadID
	Name string // short, as "vCPU 0"
	Core int    // number of the virtual CPU
}

// A Target is an inferior. Its methods are called one at a time, not always from
// the same goroutine; only Interrupt may be called while Wait blocks.
type Target interface {
	// Description gives the registers. It does not change during a session.
	Description() *Description
	// Threads gives all threads, in order.
	Threads() ([]Thread, error)
	// ReadRegisters fills regs with the registers of a thread. Registers whose
	// value cannot be known are left unknown.
	ReadRegisters(id ThreadID, regs *Registers) error
	// WriteRegisters writes those registers of regs that are known. Registers
	// that already have the value are not written. Nothing is written if one of
	// them cannot be.
	WriteRegisters(id ThreadID, regs *Registers) error
	// ReadMemory reads len(p) bytes at a virtual address as the thread sees it.
	// It returns how many bytes stand before the first one that cannot be read;
	// an error, wrapping ErrUnmapped where nothing is mapped, only if that is
	// none.
	ReadMemory(id ThreadID, addr uint64, p []byte) (int, error)
	// WriteMemory writes all of p or, with an error, nothing.
	WriteMemory(id ThreadID, addr uint64, p []byte) error
	// Stop gives the state that `?` asks for. Preconditions: the target is
	// stopped.
	Stop() StopReply
	// Resume lets the target run; each thread does what the first action that
	// covers it says, and stands still if none does (ActionFor). With an error
	// all of it stands still. Preconditions: the target is stopped; some thread
	// does not stand still; CanStep if an action is a step.
	Resume(actions []Action) error
	// Wait blocks until the target stops or ctx ends, which leaves it running. So
	// may any other error, which the client is told; then the other methods are
	// called, and may say ErrRunning.
	Wait(ctx context.Context) (StopReply, error)
	// Interrupt asks a running target to stop; Wait then returns, also if it is
	// called only later. A target that has stopped meanwhile stays as it is, and
	// must not be stopped by it when it is resumed next.
	Interrupt() error
	// Detach gives the target back as it was found. Nothing may be called after.
	Detach() error
}

// ActionKind is what a thread does when the target resumes.
type ActionKind byte

// The actions of vCont (GDB manual, node "Packets").
const (
	Continue ActionKind = 'c'
	Step     ActionKind = 's'
	// StepRange steps until the thread is outside [Start, End), or stops for
	// another reason. It may stop sooner, after any step; it executes one
	// instruction at least.
	StepRange ActionKind = 'r'
	Halt      ActionKind = 't'
)

// An Action applies to one thread or, with TID -1, to all of the process, or of
// every process if PID is -1 too. A single thread is one that Threads has listed.
type Action struct {
	Kind       ActionKind
	Thread     ThreadID
	Signal     int    // of C and S; 0 for none
	Start, End uint64 // of StepRange
}

// Covers reports whether the action is for a thread.
func (a *Action) Covers(id ThreadID) bool {
	return (a.Thread.PID <= 0 || a.Thread.PID == id.PID) && (a.Thread.TID <= 0 || a.Thread.TID == id.TID)
}

// ActionFor returns what a thread does: the first action that covers it, or
// Halt if none does.
func ActionFor(actions []Action, id ThreadID) Action {
	for _, a := range actions {
		if a.Covers(id) {
			return a
		}
	}
	return Action{Kind: Halt, Thread: id}
}

// StopReason is what a stop reply says beside the signal.
type StopReason byte

// The kinds of stop (GDB manual, node "Stop Reply Packets").
const (
	StopSignal StopReason = iota // Tnn: Signal, in Thread
	StopExited                   // W: the inferior ended, Signal is the exit code
	StopKilled                   // X: the inferior was killed by Signal
)

// A StopReply tells why the target stands still.
type StopReply struct {
	Reason StopReason
	Signal int // GDB's signal number: 2 SIGINT, 5 SIGTRAP
	Thread ThreadID
	// Cause is the kind of the breakpoint that Thread has hit, or NoBreakpoint.
	// At a SoftwareBreakpoint the program counter is its address.
	Cause BreakpointKind
	// WatchAddr is what was accessed, if Cause is a kind of watchpoint: an
	// address inside of it.
	WatchAddr uint64
	// Expedite lists registers, as indices into the description, to send along.
	Expedite []int
}

// A Describer is a Target that says how its threads stand, for people.
type Describer interface {
	// Describe gives free text, as "kernel mode, blocked".
	Describe(id ThreadID) string
}

// A Stepper is a Target that can step single threads; others refuse s, S and r.
type Stepper interface{ CanStep() bool }

// BreakpointKind is a kind of breakpoint, as the packets Z and z number them.
type BreakpointKind byte

// The kinds of breakpoint (GDB manual, node "Packets").
const (
	NoBreakpoint       BreakpointKind = 0
	SoftwareBreakpoint BreakpointKind = '0'
	HardwareBreakpoint BreakpointKind = '1'
	Watch              BreakpointKind = '2' // a write
	ReadWatch          BreakpointKind = '3' // a read
	AccessWatch        BreakpointKind = '4' // either
)

// A Breakpoint is where, or at what access to memory, the target stops. A thread
// stops before the instruction at a breakpoint, and after an access. It hits a
// breakpoint also when it is resumed there: a client removes the breakpoint and
// lets that thread step before it resumes the others.
type Breakpoint struct {
	Kind BreakpointKind
	// Thread is one whose address space has Addr: that of Hg. Every thread that
	// comes to the breakpoint hits it.
	Thread ThreadID
	Addr   uint64
	// Size is that of the instruction to plant, 1 for int3, or of the memory to
	// watch.
	Size int
	// A hit stops the target if one of the conditions is not zero, or cannot be
	// evaluated, or there are none.
	Conditions []agent.Expr
	// Commands are run when a hit would stop the target, which then goes on
	// (dprintf). None: it stops.
	Commands []agent.Expr
}

// A Breakpointer is a Target that can stop by itself. The others get an empty
// reply to Z and z, upon which a client writes breakpoints into memory itself.
type Breakpointer interface {
	// InsertBreakpoint inserts a breakpoint. If there is one of the same kind,
	// address and size, only its conditions and commands are replaced. The user
	// of a gdb gets to read the error if it wraps ErrNotSupported, and what gdb
	// makes of it if it does not: that memory cannot be accessed, or that there
	// are too many. Preconditions: the target is stopped.
	InsertBreakpoint(b Breakpoint) error
	// RemoveBreakpoint removes the breakpoint of the same kind, address and
	// size. That there is none is no error. Preconditions: the target is
	// stopped.
	RemoveBreakpoint(b Breakpoint) error
}

// A Watcher is a Breakpointer that knows how many hardware breakpoints and
// watchpoints there can be at once.
type Watcher interface{ Watchpoints() int }

// A Talker is a Target that has something to say to the user while it runs:
// output of breakpoint commands, or how a resumption differed from what was
// asked for.
type Talker interface {
	// SetConsole is called when a client is to be served, before any other
	// method but Description, with what prints text on that client's console.
	// The function may be called at any time, from any goroutine, and does not
	// wait. Text said while the target stands still goes out with the next
	// resumption, since the protocol allows it only then; text said before Wait
	// returns stands before the stop reply.
	SetConsole(print func(text string))
}

// A Monitor answers the client's monitor commands (qRcmd).
type Monitor interface {
	// Monitor runs a command line and writes what it prints. An error is
	// printed too.
	Monitor(ctx context.Context, line string, out func(string)) error
}

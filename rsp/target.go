// This file is what a server needs of the thing it serves: threads, registers,
// memory, run control. A Target implements the small interface Target and, for
// each protocol extension that it supports, one of the optional interfaces
// below it, which the server finds by type assertion.

package rsp

import (
	"context"
	"errors"
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
	Info string // free text, as "kernel mode, running"
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
	// covers it says. Preconditions: the target is stopped.
	Resume(actions []Action) error
	// Wait blocks until the target stops or ctx ends, which leaves it running. So
	// may any other error, which the client is told; then the other methods are
	// called, and may say ErrRunning.
	Wait(ctx context.Context) (StopReply, error)
	// Interrupt asks a running target to stop; Wait then returns.
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
	Halt     ActionKind = 't'
)

// An Action applies to one thread or, with TID -1, to all of the process, or of
// every process if PID is -1 too. A single thread is one that Threads has listed.
type Action struct {
	Kind   ActionKind
	Thread ThreadID
	Signal int // of C and S; 0 for none
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
	// Expedite lists registers, as indices into the description, to send along.
	Expedite []int
}

// A Stepper is a Target that can step single threads; others refuse s and S.
type Stepper interface{ CanStep() bool }

// A Monitor answers the client's monitor commands (qRcmd).
type Monitor interface {
	// Monitor runs a command line and writes what it prints. An error is
	// printed too.
	Monitor(ctx context.Context, line string, out func(string)) error
}

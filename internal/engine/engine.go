// Package engine stops and steps guests. There are several ways to do so; which
// of them a guest has depends on its kind and on how the hypervisor was built.
// An engine knows vCPUs and traps, and nothing of debuggers: where breakpoints
// are is the guest's to know (guest.Plant), why they are there is nobody's here.
//
// Traps that are the guest's own (an int3 that was not planted, a #DB that
// neither a step nor a debug register of ours has caused) are handed to the
// guest and never reported.
package engine

import (
	"context"
	"errors"
	"slices"
)

// A Motion is what a vCPU does when the guest goes on.
type Motion uint8

// The motions.
const (
	Stay Motion = iota // stands still
	Run
	Step // executes one instruction
	// Finish goes on with a step that an interrupt has cut short: Pause has found
	// the vCPU in a handler of the guest's, which it will come back from. Where
	// there is none, it is Step.
	Finish
)

// anyStep tells whether a vCPU is to step.
func anyStep(motions []Motion) bool {
	return slices.Contains(motions, Step) || slices.Contains(motions, Finish)
}

// A Trap is why a vCPU has stopped.
type Trap uint8

// The traps.
const (
	Breakpoint Trap = iota // it came to a planted int3; RIP is the int3's address
	Debug                  // #DB: a step is done, or a debug register has fired
)

// A Stop is a vCPU that has stopped.
type Stop struct {
	VCPU int
	Trap Trap
	// DR6 tells of a Debug what it was: DR6BS for a step, bits 0 to 3 for debug
	// registers 0 to 3.
	DR6 uint64
}

// Bits of a Stop's DR6 (SDM vol. 3B, section 18.2.3).
const (
	DR6BS     = 1 << 14 // a single step
	DR6Breaks = 0xf     // debug registers 0 to 3
)

// An Engine lets a guest run and finds out which vCPUs have stopped. Its methods
// must not be called from several goroutines at once.
type Engine interface {
	// Name is what the engine is called on the command line.
	Name() string
	// Resume lets the guest go on; motions[n] is what vCPU n does, Stay for those
	// that it does not have.
	// Preconditions: the guest is paused.
	Resume(motions []Motion) error
	// Wait returns nil when a vCPU has stopped, or ctx's error. The guest may
	// still run. xen.ErrNoDomain says that it is gone, ErrShutDown that it has
	// ended in some way that DomainInfo tells.
	Wait(ctx context.Context) error
	// Pause pauses the guest and gives what has stopped since Resume, each vCPU
	// once, in order. That may be none. A step that is not done is called off. One
	// that is being finished may end on another vCPU, where what was interrupted
	// has moved to.
	Pause() ([]Stop, error)
	// Close gives the guest back what the engine and its users have changed, and
	// leaves it paused, from whatever state.
	Close() error
}

// ErrUnavailable says that a guest cannot be stopped and stepped this way.
var ErrUnavailable = errors.New("breakpoints and steps are not available")

// ErrShutDown says that a domain does not run any more: it has crashed, or powers
// off, reboots, or is being saved or migrated.
var ErrShutDown = errors.New("the domain has shut down")

// This file defines the two kinds of frame number. They are different types, so
// that code which takes one for the other does not compile: the fault that made
// the gdbserver-xen of 2006 blind to 64-bit paravirtual guests.

package xen

import "fmt"

// PageShift and PageSize describe a frame: 4096 bytes.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
)

// MFN is a machine frame number: what the page tables of a PV guest hold, and
// what a foreign mapping of a PV guest takes.
type MFN uint64

// GFN is a guest frame number of an auto-translated guest (HVM or PVH): what
// its page tables hold, and what a foreign mapping of it takes. The hypervisor
// translates it to a machine frame.
type GFN uint64

// Frame is either kind of frame number.
type Frame interface{ MFN | GFN }

// String gives the frame as "mfn 0x1234".
func (f MFN) String() string { return fmt.Sprintf("mfn %#x", uint64(f)) }

// String gives the frame as "gfn 0x1234".
func (f GFN) String() string { return fmt.Sprintf("gfn %#x", uint64(f)) }

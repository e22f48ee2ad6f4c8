// This file gives domains their frames of memory.

package xentest

import (
	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

const (
	// machineFrames is how many frames the machine has: 1 GB, of which only
	// what is touched takes memory.
	machineFrames = 1 << 18
	// firstMachineFrame is the first that is given out unasked.
	firstMachineFrame = 0x8000
	// firstGuestFrame is the first guest frame that is given out unasked.
	firstGuestFrame = 0x100
)

// frame is a frame of a domain.
type frame struct {
	machine    uint64
	readErrno  unix.Errno // what a mapping for reading gets
	writeErrno unix.Errno // what a mapping for writing gets
	asks       int        // until it is paged in
}

// Alloc gives the domain an empty frame. Its number is of the kind that the
// domain's page tables hold: a machine frame of a PV domain, else a guest frame.
func (d *Domain) Alloc() uint64 {
	d.x.t.Helper()
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.alloc()
}

func (d *Domain) alloc() uint64 {
	if d.Kind == xen.PV {
		m := d.x.freeMachineFrame()
		d.frames[m] = &frame{machine: m}
		return m
	}
	for d.frames[d.next] != nil {
		d.next++
	}
	n := d.next
	d.frames[n] = &frame{machine: d.x.freeMachineFrame()}
	d.next++
	return n
}

// AllocAt gives the domain the frame of this number, empty. Machine frames go up
// to 0x3ffff.
func (d *Domain) AllocAt(n uint64) {
	d.x.t.Helper()
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	if d.frames[n] != nil {
		d.x.t.Fatalf("xentest: %v has frame %#x", d, n)
	}
	m := n
	switch {
	case d.Kind != xen.PV:
		m = d.x.freeMachineFrame()
	case n >= machineFrames || d.x.machine.owned[n]:
		d.x.t.Fatalf("xentest: machine frame %#x is not free", n)
	}
	d.x.machine.owned[m] = true
	d.frames[n] = &frame{machine: m}
}

// freeMachineFrame takes a machine frame.
// Preconditions: x.mu is held.
func (x *Hypervisor) freeMachineFrame() uint64 {
	for ; x.machine.next < machineFrames; x.machine.next++ {
		if !x.machine.owned[x.machine.next] {
			x.machine.owned[x.machine.next] = true
			return x.machine.next
		}
	}
	x.t.Fatal("xentest: the machine has no more memory")
	return 0
}

// Free takes a frame from the domain: a hole, whose mapping fails with EINVAL.
func (d *Domain) Free(n uint64) {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	delete(d.frames, n)
}

// Frame gives the memory of a frame of the domain, to read and to write, as the
// guest itself does.
func (d *Domain) Frame(n uint64) []byte {
	d.x.t.Helper()
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.frame(n)
}

func (d *Domain) frame(n uint64) []byte {
	d.x.t.Helper()
	f := d.frames[n]
	if f == nil {
		d.x.t.Fatalf("xentest: %v has no frame %#x", d, n)
	}
	return d.x.machine.frame(f.machine)
}

// FailMapping makes mappings of a frame fail: those for reading and writing with
// ENOENT (paged out) and the like, those for writing only with EBUSY (in use as
// a page table). An errno of 0 takes it back.
func (d *Domain) FailMapping(n uint64, errno unix.Errno) {
	d.x.t.Helper()
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	f := d.frames[n]
	if f == nil {
		d.x.t.Fatalf("xentest: %v has no frame %#x", d, n)
	}
	f.readErrno, f.writeErrno = errno, errno
	if errno == unix.EBUSY {
		f.readErrno = 0
	}
}

// PageOut makes a frame one that is paged out until it has been asked for n times.
func (d *Domain) PageOut(frame uint64, n int) {
	d.FailMapping(frame, unix.ENOENT)
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	d.frames[frame].asks = n
}

// mapErrno tells what becomes of a mapping of a frame, and where it is.
func (d *Domain) mapErrno(n uint64, write bool) (machine uint64, errno unix.Errno) {
	f := d.frames[n]
	switch {
	case f == nil:
		return 0, unix.EINVAL
	case f.asks > 0:
		if f.asks--; f.asks == 0 {
			f.readErrno, f.writeErrno = 0, 0
		}
		return 0, unix.ENOENT
	case write:
		return f.machine, f.writeErrno
	default:
		return f.machine, f.readErrno
	}
}

// This file prints stacks without a client: by what a Linux guest says of itself.

package debugger

import (
	"fmt"
	"io"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/x86"
)

// Backtraces prints the stacks of all vCPUs of a Linux guest.
// Preconditions: the guest is paused, and is so after.
func Backtraces(w io.Writer, g *guest.Guest) error { return makeReport(w, g, writeBacktraces) }

// TaskBacktraces prints the stacks of all tasks of a Linux guest that do not run.
// Preconditions: the guest is paused, and is so after.
func TaskBacktraces(w io.Writer, g *guest.Guest) error { return makeReport(w, g, writeTaskBacktraces) }

// beginBacktraces prints which kernel it is, and has its modules read.
func beginBacktraces(w io.Writer, k *linux.Kernel, mem linux.Memory) {
	fmt.Fprintln(w, k.Banner)
	if _, err := k.Modules(mem); err != nil {
		fmt.Fprintf(w, "functions of modules are not known: %v\n", err)
	}
}

// writeBacktraces prints the stacks of all vCPUs.
func writeBacktraces(w io.Writer, g *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	beginBacktraces(w, k, mem)
	return eachVCPU(g, func(n int, state guest.State, r x86.Registers) error {
		mem, err := g.Reader(n)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\nvCPU %d, %s:\n", n, stateText(state))
		frames := []linux.Frame{{RIP: r.RIP, UserMode: true}}
		if !state.UserMode {
			frames, err = k.Unwind(mem, linux.Registers{
				RIP: r.RIP, RSP: r.RSP, RBP: r.RBP, RDX: r.RDX, RDI: r.RDI, R10: r.R10, R13: r.R13,
			})
		}
		writeStack(w, k, frames, err)
		return nil
	})
}

// writeTaskBacktraces prints the stacks of all tasks, but of those that run.
func writeTaskBacktraces(w io.Writer, _ *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	beginBacktraces(w, k, mem)
	tasks, err := k.Tasks(mem)
	for _, t := range tasks {
		fmt.Fprintf(w, "\ntask %d %s, state %c, CPU %d:\n", t.ID, t.Title(), t.State, t.CPU)
		frames, err := k.Stack(mem, t)
		writeStack(w, k, frames, err)
	}
	return err
}

// writeStack prints frames, and why they are not all.
func writeStack(w io.Writer, k *linux.Kernel, frames []linux.Frame, err error) {
	for i, f := range frames {
		writeFrame(w, k, i, f)
	}
	if err != nil {
		fmt.Fprintf(w, "    %v\n", err)
	}
}

// eachVCPU does something with each vCPU that is up, how it is scheduled and its
// registers.
func eachVCPU(g *guest.Guest, do func(n int, state guest.State, r x86.Registers) error) error {
	vcpus, err := g.VCPUs()
	if err != nil {
		return err
	}
	for _, n := range vcpus {
		state, err := g.State(n)
		if err != nil {
			return err
		}
		r, err := g.Registers(n)
		if err != nil {
			return err
		}
		if err := do(n, state, r); err != nil {
			return err
		}
	}
	return nil
}

// writeFrame prints a frame, and before it what has led from it to the one above.
func writeFrame(w io.Writer, k *linux.Kernel, i int, f linux.Frame) {
	switch {
	case f.UserMode:
		fmt.Fprintln(w, "    --- user mode ---")
	case f.Interrupted:
		fmt.Fprintln(w, "    --- interrupt or exception ---")
	}
	fmt.Fprintf(w, "#%-3d 0x%016x", i, f.RIP)
	if place, ok := k.Place(f); ok {
		fmt.Fprintf(w, " %s", place)
	}
	fmt.Fprintln(w)
}

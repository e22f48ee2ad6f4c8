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
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func Backtraces(w io.Writer, g *guest.Guest) error { return makeReport(w, g, stackReport) }

// TaskBacktraces prints the stacks of all tasks of a Linux guest that do not run.
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func TaskBacktraces(w io.Writer, g *guest.Guest) error { return makeReport(w, g, sleeperReport) }

// A stack is what frames there are, of what, and why they are not all.
type stack struct {
	of     string
	frames []linux.Frame
	err    error
}

// mostFrames bounds the stacks of all tasks: how long the guest is paused for them, and
// what is kept of them. A task that sleeps has about ten frames.
const mostFrames = 1 << 19

// writeStacks makes what prints stacks, before them which kernel it is, and how many
// are left out.
func writeStacks(s source, stacks []stack, left int, err error) func(w io.Writer) error {
	return func(w io.Writer) error {
		fmt.Fprintln(w, s.k.Banner)
		if s.noModules != nil {
			fmt.Fprintf(w, "functions of modules are not known: %v\n", s.noModules)
		}
		for _, one := range stacks {
			fmt.Fprintf(w, "\n%s:\n", one.of)
			for i, f := range one.frames {
				if err := writeFrame(w, s.k, i, f); err != nil {
					return err
				}
			}
			if one.err != nil {
				fmt.Fprintf(w, "    %v\n", one.err)
			}
		}
		if left > 0 {
			fmt.Fprintf(w, "\nThe stacks of %d more tasks are left out: those before have %d frames or more.\n", left, mostFrames)
		}
		return err
	}
}

// readBacktraces reads the stacks of all vCPUs.
func readBacktraces(s source) func(w io.Writer) error {
	var stacks []stack
	err := eachVCPU(s.g, func(n int, state guest.State, r x86.Registers) error {
		mem, err := s.g.Reader(n)
		if err != nil {
			return err
		}
		one := stack{of: fmt.Sprintf("vCPU %d, %s", n, stateText(state)), frames: []linux.Frame{{RIP: r.RIP, UserMode: true}}}
		if !state.UserMode {
			one.frames, one.err = s.k.Unwind(mem, linux.Registers{
				RIP: r.RIP, RSP: r.RSP, RBP: r.RBP, RDX: r.RDX, RDI: r.RDI, R10: r.R10, R13: r.R13,
			})
		}
		stacks = append(stacks, one)
		return nil
	})
	return writeStacks(s, stacks, 0, err)
}

// readTaskBacktraces reads the stacks of all tasks, but of those that run.
func readTaskBacktraces(s source) func(w io.Writer) error {
	var stacks []stack
	tasks, err := s.k.Tasks(s.mem)
	frames, left := 0, 0
	for i, t := range tasks {
		if frames >= mostFrames {
			left = len(tasks) - i
			break
		}
		one := stack{of: fmt.Sprintf("task %d %s, state %c, CPU %d", t.ID, t.Title(), t.State, t.CPU)}
		one.frames, one.err = s.k.Stack(s.mem, t)
		stacks, frames = append(stacks, one), frames+len(one.frames)
	}
	return writeStacks(s, stacks, left, err)
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
func writeFrame(w io.Writer, k *linux.Kernel, i int, f linux.Frame) error {
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
	_, err := fmt.Fprintln(w)
	return err
}

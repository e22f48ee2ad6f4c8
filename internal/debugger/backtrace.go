// This file prints stacks without a client: by what a Linux guest says of itself.

package debugger

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/xen"
)

// Backtraces prints the stacks of all vCPUs of a Linux guest. The guest runs while
// its kernel's tables are read, and is paused only while the stacks are.
// Preconditions: the guest is paused, and is so after.
func Backtraces(w io.Writer, g *guest.Guest) error {
	places, err := findPlaces(g)
	if err != nil {
		return err
	}
	if err := g.Resume(); err != nil {
		return err
	}
	k, err := lookFor(places)
	// Translations of a guest that runs are none of one that is paused.
	if err := errors.Join(g.ReleaseFrames(), g.Pause()); err != nil {
		return err
	}
	if err != nil || outlived(places) {
		if k, err = findKernel(g); err != nil {
			return err
		}
	}
	return writeBacktraces(w, g, k)
}

// outlived tells whether page tables that served to find a kernel are no more.
func outlived(places []kernelPlace) bool {
	return slices.ContainsFunc(places, func(p kernelPlace) bool {
		gone, err := p.mem.Outlived()
		return gone || err != nil
	})
}

// A kernelPlace is an address in a kernel, and memory as a vCPU sees it.
type kernelPlace struct {
	addr uint64
	mem  *guest.Reader
}

// findPlaces gives the handlers of page faults, which are in the kernel. A vCPU in
// user mode may see no more of that than its entry.
func findPlaces(g *guest.Guest) ([]kernelPlace, error) {
	vcpus, err := g.VCPUs()
	if err != nil {
		return nil, err
	}
	var places []kernelPlace
	for _, n := range vcpus {
		addr, err := g.Handler(n, xen.VectorPageFault)
		if err != nil {
			continue
		}
		if mem, err := g.Reader(n); err == nil {
			places = append(places, kernelPlace{addr, mem})
		}
	}
	return places, nil
}

// lookFor looks for the kernel at places.
func lookFor(places []kernelPlace) (k *linux.Kernel, err error) {
	for _, p := range places {
		if k, err = linux.Find(p.mem, p.addr); err == nil {
			return k, nil
		}
	}
	return nil, cmp.Or(err, linux.ErrNotLinux)
}

// findKernel looks for the kernel of a guest that is paused.
func findKernel(g *guest.Guest) (*linux.Kernel, error) {
	places, err := findPlaces(g)
	if err != nil {
		return nil, err
	}
	return lookFor(places)
}

// writeBacktraces prints the stacks of all vCPUs.
func writeBacktraces(w io.Writer, g *guest.Guest, k *linux.Kernel) error {
	vcpus, err := g.VCPUs()
	if err != nil {
		return err
	}
	fmt.Fprintln(w, k.Banner)
	for _, n := range vcpus {
		state, err := g.State(n)
		if err != nil {
			return err
		}
		r, err := g.Registers(n)
		if err != nil {
			return err
		}
		mem, err := g.Reader(n)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\nvCPU %d, %s:\n", n, stateWord(state))
		frames := []linux.Frame{{RIP: r.RIP, UserMode: true}}
		if !state.UserMode {
			frames, err = k.Unwind(mem, linux.Registers{
				RIP: r.RIP, RSP: r.RSP, RBP: r.RBP, RDX: r.RDX, RDI: r.RDI, R10: r.R10, R13: r.R13,
			})
		}
		for i, f := range frames {
			writeFrame(w, k, i, f)
		}
		if err != nil {
			fmt.Fprintf(w, "    %v\n", err)
		}
	}
	return nil
}

// stateWord says how a vCPU is scheduled.
func stateWord(s guest.State) string {
	switch {
	case s.Blocked:
		return "blocked"
	case s.Online:
		return "running"
	}
	return "offline"
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
	if name, offset, ok := k.Function(f.Place()); ok && !f.UserMode {
		fmt.Fprintf(w, " %s+%#x", name, offset+f.RIP-f.Place())
	}
	fmt.Fprintln(w)
}

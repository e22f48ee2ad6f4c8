// This file finds a guest's kernel, and prints what that says of itself: its log,
// its tasks and its modules. Neither a client nor a symbol file is needed.

package debugger

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/xen"
)

// A report prints what a kernel says of itself, or of the guest that it runs in.
type report func(w io.Writer, g *guest.Guest, k *linux.Kernel, mem linux.Memory) error

// KernelLog prints the kernel's log.
// Preconditions: the guest is paused, and is so after.
func KernelLog(w io.Writer, g *guest.Guest) error { return makeReport(w, g, writeLog) }

// Tasks prints the kernel's tasks.
// Preconditions: the guest is paused, and is so after.
func Tasks(w io.Writer, g *guest.Guest) error { return makeReport(w, g, writeTasks) }

// Modules prints the kernel's modules.
// Preconditions: the guest is paused, and is so after.
func Modules(w io.Writer, g *guest.Guest) error { return makeReport(w, g, writeModules) }

// makeReport finds the guest's kernel, and prints a report. The guest runs while
// the kernel's tables are read, and is paused only for the rest.
func makeReport(w io.Writer, g *guest.Guest, write report) error {
	k, mem, err := findWhileRunning(g)
	if err != nil {
		return err
	}
	return write(w, g, k, mem)
}

// findWhileRunning looks for the kernel of a guest that it lets run meanwhile.
func findWhileRunning(g *guest.Guest) (*linux.Kernel, linux.Memory, error) {
	places, err := findPlaces(g)
	if err != nil {
		return nil, nil, err
	}
	if err := g.Resume(); err != nil {
		return nil, nil, err
	}
	k, _, err := lookFor(places)
	// Translations of a guest that runs are none of one that is paused.
	if err := errors.Join(g.ReleaseFrames(), g.Pause()); err != nil {
		return nil, nil, err
	}
	if err == nil && !outlived(places) {
		if mem := memoryOf(g, k); mem != nil {
			return k, mem, nil
		}
	}
	return findKernel(g)
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

// lookFor looks for the kernel at places, and has it read what it says of its
// structures, which does not change. Without that it can tell less, and says so
// when it is asked.
func lookFor(places []kernelPlace) (k *linux.Kernel, mem linux.Memory, err error) {
	for _, p := range places {
		if k, err = linux.Find(p.mem, p.addr); err == nil {
			k.ReadTypes(p.mem)
			return k, p.mem, nil
		}
		if errors.Is(err, linux.ErrNoKallsyms) {
			break // other vCPUs see the same, and to look at it takes time
		}
	}
	return nil, nil, cmp.Or(err, linux.ErrNotLinux)
}

// findKernel looks for the kernel of a guest that is paused.
func findKernel(g *guest.Guest) (*linux.Kernel, linux.Memory, error) {
	places, err := findPlaces(g)
	if err != nil {
		return nil, nil, err
	}
	return lookFor(places)
}

// memoryOf gives memory in which a kernel is that was found before, or nil if no
// vCPU sees it.
// Preconditions: the guest is paused.
func memoryOf(g *guest.Guest, k *linux.Kernel) linux.Memory {
	vcpus, _ := g.VCPUs()
	for _, n := range vcpus {
		if mem, err := g.Reader(n); err == nil && k.Sees(mem) {
			return mem
		}
	}
	return nil
}

// linux gives the guest's kernel, which is looked for once.
func (t *Target) linux() (*linux.Kernel, linux.Memory, error) {
	if t.kernel != nil {
		if mem := memoryOf(t.guest, t.kernel); mem != nil {
			return t.kernel, mem, nil
		}
	}
	k, mem, err := findKernel(t.guest)
	if err == nil {
		t.kernel = k
	}
	return k, mem, err
}

// monitorReport makes a monitor command of a report.
func monitorReport(write report) func(t *Target, out func(string)) error {
	return func(t *Target, out func(string)) error {
		k, mem, err := t.linux()
		if err != nil {
			return err
		}
		return write(writerFunc(out), t.guest, k, mem)
	}
}

// writeLog prints the kernel's log, as dmesg does.
func writeLog(w io.Writer, _ *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	records, err := k.Log(mem)
	return errors.Join(linux.WriteLog(w, records), err)
}

// writeTasks prints the kernel's tasks, a line for each.
func writeTasks(w io.Writer, _ *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	tasks, err := k.Tasks(mem)
	if len(tasks) > 0 {
		fmt.Fprintln(w, "    PID     TID    PPID S CPU COMMAND")
	}
	for _, t := range tasks {
		fmt.Fprintf(w, "%7d %7d %7d %c %3d %s\n", t.Process, t.ID, t.Parent, t.State, t.CPU, t.Title())
	}
	return err
}

// writeModules prints the kernel's modules, as lsmod does. Of those that are not
// live it adds what they are.
func writeModules(w io.Writer, _ *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	modules, err := k.Modules(mem)
	if err == nil || len(modules) > 0 {
		fmt.Fprintln(w, "Module                  Size  Used by")
	}
	for _, m := range modules {
		line := fmt.Sprintf("%-19s %8d  %d %s", m.Name, m.Size, m.Uses, strings.Join(m.UsedBy, ","))
		if m.State != linux.ModuleLive {
			line += " (" + m.State + ")"
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	return err
}

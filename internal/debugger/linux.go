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

// A source is what reports are made of: a guest and, if it is a Linux, its kernel.
type source struct {
	g         *guest.Guest
	k         *linux.Kernel // nil: none was found
	mem       *guest.Reader // what that is in
	noModules error         // why functions of modules are not known; nil: they are, if they were asked for
	ran       bool          // the guest ran while its modules were read
}

// A report tells what a kernel says of itself, or of the guest that it runs in.
type report struct {
	names    bool // of functions, those of modules too
	anyGuest bool // of one that is no Linux, too
	// read reads what it takes, and gives what prints that. The guest is paused for the
	// one, and may run for the other.
	read func(s source) (write func(w io.Writer) error)
}

var (
	logReport     = report{read: readLog}
	taskReport    = report{read: readTasks}
	moduleReport  = report{read: readModules}
	stackReport   = report{names: true, read: readBacktraces}
	sleeperReport = report{names: true, read: readTaskBacktraces}
	stateReport   = report{names: true, anyGuest: true, read: readRegisters}
)

// KernelLog prints the kernel's log.
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func KernelLog(w io.Writer, g *guest.Guest) error { return makeReport(w, g, logReport) }

// Tasks prints the kernel's tasks.
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func Tasks(w io.Writer, g *guest.Guest) error { return makeReport(w, g, taskReport) }

// Modules prints the kernel's modules.
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func Modules(w io.Writer, g *guest.Guest) error { return makeReport(w, g, moduleReport) }

// makeReport finds the guest's kernel, and prints a report. The guest runs while the
// tables of the kernel and its modules are read, and while the report is printed, and
// is paused only in between.
func makeReport(w io.Writer, g *guest.Guest, r report) error {
	s, err := findWhileRunning(g, r.names)
	if err != nil && (!r.anyGuest || !g.Paused()) {
		return err
	}
	write := r.read(s)
	if err := g.Resume(); err != nil {
		return err
	}
	same := s.holds()
	if err := g.ReleaseFrames(); err != nil {
		return err
	}
	if same {
		return write(w)
	}
	// What was read by has ended, or modules have come or gone: then once more, with all
	// read of a guest that stands still.
	if err := g.Pause(); err != nil {
		return err
	}
	now, err := findAgain(g, s.k)
	if err == nil && (now.k != s.k || !s.k.SameModules(now.mem)) {
		now.noModules = now.k.ReadModules(now.mem)
		write = r.read(now)
	}
	if err := errors.Join(err, g.Resume()); err != nil {
		return err
	}
	return write(w)
}

// holds tells whether what was read of the modules while the guest ran is still so.
// The guest may run.
func (s *source) holds() bool {
	return !s.ran || s.k.SameModules(s.mem) && !outlived(s.mem)
}

// mostAttempts is how often a kernel is looked for while the guest runs. Each takes a
// process that lives for so long, or an idle vCPU.
const mostAttempts = 3

// findWhileRunning looks for the kernel of a guest that it lets run meanwhile, and reads
// its modules' tables if their names are wanted. A guest that does not bear that has them
// read while it is paused.
// Preconditions: the guest is paused, and is so after if there is no error but that no
// kernel was found.
func findWhileRunning(g *guest.Guest, names bool) (source, error) {
	for range mostAttempts {
		places, err := findPlaces(g)
		if err != nil {
			return source{g: g}, err
		}
		if err := g.Resume(); err != nil {
			return source{g: g}, err
		}
		s := source{g: g, ran: names}
		k, mem, noKernel := lookFor(places)
		sound := false
		if noKernel == nil {
			if names {
				s.noModules = k.ReadModules(mem)
			}
			sound = !outlived(mem)
		} else {
			sound = !slices.ContainsFunc(places, func(p kernelPlace) bool { return outlived(p.mem) })
		}
		// Translations of a guest that runs are none of one that is paused.
		if err := errors.Join(g.ReleaseFrames(), g.Pause()); err != nil {
			return source{g: g}, err
		}
		switch {
		case sound && errors.Is(noKernel, linux.ErrNoKallsyms):
			return source{g: g}, noKernel
		case !sound || noKernel != nil:
			continue
		}
		if s.k, s.mem = k, memoryOf(g, k); s.mem == nil {
			continue // all vCPUs are in user mode, where some kernels are not mapped
		}
		if s.noModules != nil { // as they were changing, or for a reason that takes no reading
			s.noModules, s.ran = k.ReadModules(s.mem), false
		}
		return s, nil
	}
	s, err := findKernel(g)
	if err == nil && names {
		s.noModules = s.k.ReadModules(s.mem)
	}
	return s, err
}

// outlived tells whether page tables that memory was read by are no more.
func outlived(mem *guest.Reader) bool {
	gone, err := mem.Outlived()
	return gone || err != nil
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
func lookFor(places []kernelPlace) (k *linux.Kernel, mem *guest.Reader, err error) {
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
func findKernel(g *guest.Guest) (source, error) {
	s := source{g: g}
	places, err := findPlaces(g)
	if err == nil {
		s.k, s.mem, err = lookFor(places)
	}
	return s, err
}

// findAgain is findKernel where a kernel was found before, or nil for none.
func findAgain(g *guest.Guest, k *linux.Kernel) (source, error) {
	if k != nil {
		if mem := memoryOf(g, k); mem != nil {
			return source{g: g, k: k, mem: mem}, nil
		}
	}
	return findKernel(g)
}

// memoryOf gives memory in which a kernel is that was found before, or nil if no
// vCPU sees it.
// Preconditions: the guest is paused.
func memoryOf(g *guest.Guest, k *linux.Kernel) *guest.Reader {
	vcpus, _ := g.VCPUs()
	for _, n := range vcpus {
		if mem, err := g.Reader(n); err == nil && k.Sees(mem) {
			return mem
		}
	}
	return nil
}

// source finds the guest's kernel, which is looked for once.
func (t *Target) source() (source, error) {
	s, err := findAgain(t.guest, t.kernel)
	if err == nil {
		t.kernel = s.k
	}
	return s, err
}

// linux gives the guest's kernel, and what that is in.
func (t *Target) linux() (*linux.Kernel, linux.Memory, error) {
	s, err := t.source()
	if err != nil {
		return nil, nil, err
	}
	return s.k, s.mem, nil
}

// monitorReport makes a monitor command of a report.
func monitorReport(r report) func(t *Target, w io.Writer) error {
	return func(t *Target, w io.Writer) error {
		s, err := t.source()
		switch {
		case err == nil && r.names:
			_, s.noModules = s.k.Modules(s.mem)
		case err != nil && !r.anyGuest:
			return err
		}
		return r.read(s)(w)
	}
}

// readLog reads the kernel's log, which is printed as dmesg does.
func readLog(s source) func(w io.Writer) error {
	records, err := s.k.Log(s.mem)
	return func(w io.Writer) error { return errors.Join(linux.WriteLog(w, records), err) }
}

// readTasks reads the kernel's tasks, which are printed a line for each.
func readTasks(s source) func(w io.Writer) error {
	tasks, err := s.k.Tasks(s.mem)
	return func(w io.Writer) error {
		if len(tasks) > 0 {
			fmt.Fprintln(w, "    PID     TID    PPID S CPU COMMAND")
		}
		for _, t := range tasks {
			fmt.Fprintf(w, "%7d %7d %7d %c %3d %s\n", t.Process, t.ID, t.Parent, t.State, t.CPU, t.Title())
		}
		return err
	}
}

// readModules reads the kernel's modules, which are printed as lsmod does. Of those that
// are not live it adds what they are.
func readModules(s source) func(w io.Writer) error {
	modules, err := s.k.Modules(s.mem)
	return func(w io.Writer) error {
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
}

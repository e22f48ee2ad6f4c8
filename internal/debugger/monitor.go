// This file answers the client's monitor commands.

package debugger

import (
	"cmp"
	"context"
	"fmt"
	"strings"
)

// monitorCommands are the commands, in the order in which help lists them.
var monitorCommands []monitorCommand

type monitorCommand struct {
	name, doc string
	run       func(t *Target, out func(string)) error
}

func init() {
	monitorCommands = []monitorCommand{
		{"help", "list the commands", func(t *Target, out func(string)) error {
			for _, c := range monitorCommands {
				out(fmt.Sprintf("%-8s %s\n", c.name, c.doc))
			}
			return nil
		}},
		{"caps", "tell what can be done with this guest, and why not", func(t *Target, out func(string)) error {
			cs := append(capabilities(t.guest, t.engine, t.noEngine), kernelCapabilities(t.known())...)
			return WriteCapabilities(writerFunc(out), cs)
		}},
		{"bt", "print the stacks of all vCPUs, by what a Linux guest says of itself", monitorReport(stackReport)},
		{"bt tasks", "print the stacks of a Linux guest's tasks that do not run", monitorReport(sleeperReport)},
		{"dmesg", "print the log of a Linux guest's kernel", monitorReport(logReport)},
		{"ps", "list the tasks of a Linux guest", monitorReport(taskReport)},
		{"lsmod", "list the modules of a Linux guest's kernel", monitorReport(moduleReport)},
		{"regs", "print the registers of all vCPUs", monitorReport(stateReport)},
		{"stats", "count what the server has asked of the hypervisor, and hits of breakpoints", func(t *Target, out func(string)) error {
			s := t.guest.Stats()
			out(fmt.Sprintf("hypercalls %d\nmappings   %d\nframes     %d\nhits       %d, %d of them not told: a condition was false, or commands were run\n",
				s.Hypercalls, s.Mappings, s.Frames, t.hits, t.kept))
			return nil
		}},
	}
}

// writerFunc makes the output of a monitor command an io.Writer.
type writerFunc func(string)

func (f writerFunc) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}

// Monitor runs a monitor command.
func (t *Target) Monitor(_ context.Context, line string, out func(string)) error {
	name := cmp.Or(strings.Join(strings.Fields(line), " "), "help")
	for _, c := range monitorCommands {
		if c.name == name {
			return c.run(t, out)
		}
	}
	return fmt.Errorf("no monitor command %q: `monitor help` lists them", line)
}

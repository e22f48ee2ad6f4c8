// This file answers the client's monitor commands.

package debugger

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
)

// monitorCommands are the commands, in the order in which help lists them.
var monitorCommands []monitorCommand

type monitorCommand struct {
	name, doc string
	run       func(t *Target, w io.Writer) error
}

func init() {
	monitorCommands = []monitorCommand{
		{"help", "list the commands", func(_ *Target, w io.Writer) error {
			for _, c := range monitorCommands {
				fmt.Fprintf(w, "%-8s %s\n", c.name, c.doc)
			}
			return nil
		}},
		{"caps", "tell what can be done with this guest, and why not", func(t *Target, w io.Writer) error {
			cs := append(capabilities(t.guest, t.engine, t.noEngine), kernelCapabilities(t.known())...)
			return WriteCapabilities(w, cs)
		}},
		{"bt", "print the stacks of all vCPUs, by what a Linux guest says of itself", monitorReport(stackReport)},
		{"bt tasks", "print the stacks of a Linux guest's tasks that do not run", monitorReport(sleeperReport)},
		{"dmesg", "print the log of a Linux guest's kernel", monitorReport(logReport)},
		{"ps", "list the tasks of a Linux guest", monitorReport(taskReport)},
		{"lsmod", "list the modules of a Linux guest's kernel", monitorReport(moduleReport)},
		{"regs", "print the registers of all vCPUs", monitorReport(stateReport)},
		{"stats", "count what the server has asked of the hypervisor, and hits of breakpoints", func(t *Target, w io.Writer) error {
			s := t.guest.Stats()
			_, err := fmt.Fprintf(w, "hypercalls %d\nmappings   %d\nframes     %d\nhits       %d, %d of them not told: a condition was false, or commands were run\n",
				s.Hypercalls, s.Mappings, s.Frames, t.hits, t.kept)
			return err
		}},
	}
}

// consoleSize is how much text of a command goes to the client at once: each piece is
// a packet, and commands print a line or less at a time.
const consoleSize = 8 << 10

// A console is the client's, for a command.
type console struct {
	ctx   context.Context // ends when the client has enough
	print func(string)
}

func (c console) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, fmt.Errorf("interrupted: %w", err)
	}
	c.print(string(p))
	return len(p), nil
}

// Monitor runs a monitor command. What it has printed before an error, the client has
// before that.
func (t *Target) Monitor(ctx context.Context, line string, out func(string)) error {
	name := cmp.Or(strings.Join(strings.Fields(line), " "), "help")
	for _, c := range monitorCommands {
		if c.name == name {
			w := bufio.NewWriterSize(console{ctx, out}, consoleSize)
			err := c.run(t, w)
			if lost := w.Flush(); lost != nil {
				return lost
			}
			return err
		}
	}
	return fmt.Errorf("no monitor command %q: `monitor help` lists them", line)
}

// This file is the commands that print what a guest says of itself: dmesg, ps and
// lsmod of a Linux guest, bt, and regs of any.

package main

import (
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/debugger"
	"gdbserver-xen/internal/guest"
)

// howLong says what these commands do to a domain.
const howLong = `The domain runs while the tables of its kernel and modules are read, is paused only
while the rest is, and runs again before anything is printed. If it does not let
them be read so, as modules come or go meanwhile, it is paused for them too.
Nothing in it is changed.`

func newBacktrace() *cobra.Command {
	var tasks bool
	cmd := newReport("bt", "print the stacks of a Linux domain's vCPUs or tasks", func(w io.Writer, g *guest.Guest) error {
		if tasks {
			return debugger.TaskBacktraces(w, g)
		}
		return debugger.Backtraces(w, g)
	},
		`Print the stack of each vCPU of a domain, given by number or name, with the names
of functions. No debugger and no symbol file is needed: the names, and how to
follow a stack, are in the memory of a Linux guest (kallsyms and ORC, which the
kernels of distributions have), also those of its modules, if the kernel
describes its structures (BTF).

With --tasks print the stack of each task that does not run, as /proc/PID/stack in
the guest has it: where it sleeps, or waits for a CPU. This needs BTF too.

`+howLong)
	cmd.Use = "bt [--tasks] DOMAIN"
	cmd.Example = "  gdbserver-xen bt mydomain\n  gdbserver-xen bt --tasks mydomain"
	cmd.Flags().BoolVar(&tasks, "tasks", false, "print the stacks of tasks that do not run, not of vCPUs")
	return cmd
}

func newDmesg() *cobra.Command {
	return newReport("dmesg", "print the log of a Linux domain's kernel", debugger.KernelLog,
		`Print the kernel's log of a domain, given by number or name, as dmesg does in it,
also when it hangs or has crashed. Where the log is stands in the memory of a
Linux guest (kallsyms and VMCOREINFO or BTF).

`+howLong)
}

func newPS() *cobra.Command {
	return newReport("ps", "list the tasks of a Linux domain", debugger.Tasks,
		`List the tasks of a domain, given by number or name: process, thread, parent,
state as ps shows it, CPU and name, which is in brackets if the task is the
kernel's own. The kernel has to describe its structures (BTF,
CONFIG_DEBUG_INFO_BTF), as those of distributions do since Linux 5.10 or so.

`+howLong)
}

func newLsmod() *cobra.Command {
	return newReport("lsmod", "list the modules of a Linux domain's kernel", debugger.Modules,
		`List the modules of a domain's kernel, given by number or name: name, size, how
many things use it and which modules, as lsmod does, and the state of those that
are just being loaded or unloaded. The kernel has to describe its structures
(BTF, CONFIG_DEBUG_INFO_BTF), as those of distributions do since Linux 5.10 or so.

`+howLong)
}

func newRegs() *cobra.Command {
	return newReport("regs", "print the registers of a domain's vCPUs", debugger.Registers,
		`Print the registers of each vCPU of a domain, given by number or name: general,
segment, control and debug registers, with their flags by name. Dashes stand for
what the hypervisor does not tell. If the guest is a Linux, the function that the
vCPU is in stands behind rip.

`+howLong)
}

// newReport makes a command that prints something of a domain.
func newReport(name, short string, print func(w io.Writer, g *guest.Guest) error, long string) *cobra.Command {
	return &cobra.Command{
		Use:                   name + " DOMAIN",
		Short:                 short,
		Long:                  long,
		Example:               "  gdbserver-xen " + name + " mydomain",
		DisableFlagsInUseLine: true,
		Args:                  oneDomain,
		ValidArgsFunction:     completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			return printOf(cmd, args[0], func(w io.Writer, g *guest.Guest, _ *slog.Logger) error { return print(w, g) })
		},
	}
}

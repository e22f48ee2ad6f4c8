// This file is the command bt: the stacks of a domain's vCPUs.

package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/debugger"
	"gdbserver-xen/internal/guest"
)

func newBacktrace() *cobra.Command {
	return &cobra.Command{
		Use:   "bt DOMAIN",
		Short: "print the stacks of a Linux domain's vCPUs",
		Long: `Print the stack of each vCPU of a domain, given by number or name, with the names
of functions. No debugger and no symbol file is needed: the names, and how to
follow a stack, are in the memory of a Linux guest (kallsyms and ORC, which the
kernels of distributions have). Functions of modules have no names yet, and a
stack ends where it comes to one.

The domain runs while its kernel's tables are read, and is paused for the
milliseconds that it takes to read the stacks. Nothing in it is changed.`,
		Example:               "gdbserver-xen bt mydomain",
		DisableFlagsInUseLine: true,
		Args:                  oneDomain,
		ValidArgsFunction:     completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withDomain(cmd, args[0], func(g *guest.Guest, _ *slog.Logger) error {
				return debugger.Backtraces(cmd.OutOrStdout(), g)
			})
		},
	}
}

// Command xenlab boots real Xen in QEMU, for a look around and for the
// project's demonstration. Package lab does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gdbserver-xen/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "xenlab",
		Short:         "boot real Xen in QEMU",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(upCommand(), demoCommand(), benchCommand(), shellCommand(), consoleCommand(), prepareCommand())
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "xenlab:", err)
		os.Exit(1)
	}
}

// An exitCode ends the command with that code and no further words.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// hostFlags are the flags of commands that start a host.
type hostFlags struct {
	cfg      lab.Config
	guest    lab.GuestConfig
	kind     string
	server   string
	consoles bool
}

func (f *hostFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.cfg.Release, "xen", lab.DefaultRelease, "`release` of Xen")
	flags.BoolVar(&f.cfg.GDBSX, "gdbsx", false, "boot a hypervisor with CONFIG_GDBSX, which is built first")
	flags.StringVar(&f.cfg.CPU, "cpu", lab.DefaultCPU, "QEMU's CPU `model`")
	flags.StringVar(&f.kind, "kind", string(lab.PV), "`kind` of the guest: pv, pvh or hvm")
	flags.IntVar(&f.guest.VCPUs, "vcpus", 2, "the guest's `number` of vCPUs")
	flags.StringVar(&f.guest.Cmdline, "cmdline", "", "`words` to add to the guest's kernel command line")
	flags.StringVar(&f.server, "server", "bin/gdbserver-xen", "`path` of the server to copy into dom0")
	flags.BoolVar(&f.consoles, "consoles", false, "show all consoles")
}

func (f *hostFlags) configs() (lab.Config, lab.GuestConfig) {
	f.cfg.Progress = os.Stderr
	if f.consoles {
		f.cfg.Log = os.Stderr
	}
	f.guest.Name = "guest"
	f.guest.Kind = lab.Kind(f.kind)
	return f.cfg, f.guest
}

func prepareCommand() *cobra.Command {
	cfg := lab.Config{Progress: os.Stderr}
	cmd := &cobra.Command{
		Use:   "prepare",
		Short: "download and build what a host needs, without starting one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Prepare(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.Release, "xen", lab.DefaultRelease, "`release` of Xen")
	cmd.Flags().BoolVar(&cfg.GDBSX, "gdbsx", false, "build a hypervisor with CONFIG_GDBSX too")
	return cmd
}

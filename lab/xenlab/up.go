package main

// xenlab up: a host with a guest, until Ctrl-C.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"gdbserver-xen/lab"
)

const (
	serverInDom0 = "/usr/bin/gdbserver-xen"
	serverPort   = 9000
)

func upCommand() *cobra.Command {
	var f hostFlags
	var symbols bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "leave a host with one guest up until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			err := up(ctx, &f, symbols)
			if ctx.Err() != nil {
				fmt.Fprintln(os.Stderr, "lab: stopped")
				return nil
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&symbols, "symbols", true, "get the kernel's symbol file (850 MB the first time)")
	return cmd
}

func up(ctx context.Context, f *hostFlags, symbols bool) (err error) {
	cfg, guestCfg := f.configs()
	h, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	g, err := h.CreateGuest(ctx, guestCfg)
	if err != nil {
		return err
	}
	serverHint := ""
	err = h.CopyIn(ctx, f.server, serverInDom0, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		serverHint = fmt.Sprintf("\n  (there is no %s: run make build, then start again)", f.server)
	} else if err != nil {
		return err
	}
	addr, err := h.Forward(ctx, serverPort)
	if err != nil {
		return err
	}
	vmlinux := "VMLINUX"
	if symbols {
		if vmlinux, err = h.Symbols(ctx); err != nil {
			return err
		}
	}
	fmt.Printf(`
xen %s with linux %s, and a %s guest named %s (domain %d)

dom0's shell:
  %[11]s shell
the guest's console:
  %[11]s console
the server in dom0 and gdb here, with and without the kernel's symbol file:%[6]s
  gdb -ex 'target remote | %[11]s shell gdbserver-xen attach --listen stdio %[4]s' %[9]s
  gdb -ex 'target remote | %[11]s shell gdbserver-xen attach --listen stdio %[4]s'
or, for debuggers that connect to a port:
  %[11]s shell gdbserver-xen attach --listen 0.0.0.0:%[7]d %[4]s
  gdb -ex 'target remote %[8]s' %[9]s
files to and from dom0's /share:
  %[10]s

Ctrl-C ends it all.
`, h.XenVersion(), h.KernelRelease(), guestCfg.Kind, g.Name(), g.ID(), serverHint, serverPort, addr, vmlinux, h.ShareDir(), os.Args[0])

	select {
	case <-ctx.Done():
		return nil
	case <-h.Done():
		return fmt.Errorf("the host ended by itself\n%s", h.Report())
	}
}

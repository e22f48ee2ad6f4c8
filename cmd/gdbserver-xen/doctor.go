// This file is the command doctor: what this host has and lacks.

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/debugger"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen/xenstore"
)

// A finding is what one check has found.
type finding struct {
	name   string
	ok     bool
	needed bool   // nothing works without it
	detail string // what is there, or what is missing and what to do
}

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [DOMAIN]",
		Short: "check what this host has and lacks for debugging guests",
		Long: `Check what debugging guests needs of this host, a line for each thing: ok, or
what is missing and what to do. The exit code is 1 if something is missing that
nothing works without.

With a domain, given by number or name: try what can be done with it, and print
a line for each thing: yes and by what means, or no and why not. Of a Linux it
tells which it is, and which package has its symbol file. The domain is paused for
a moment meanwhile, and is as it was after it.`,
		Example: `  gdbserver-xen doctor
  gdbserver-xen doctor mydomain`,
		DisableFlagsInUseLine: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return tooMany(args, "gdbserver-xen doctor [DOMAIN]")
			}
			return nil
		},
		ValidArgsFunction: completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return examineDomain(cmd, args[0])
			}
			missing := 0
			for _, f := range examine() {
				mark := "ok"
				switch {
				case !f.ok && f.needed:
					mark = "MISSING"
					missing++
				case !f.ok:
					mark = "lacks"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-8s %-18s %s\n", mark, f.name, f.detail)
			}
			if missing > 0 {
				return fmt.Errorf("this host cannot debug guests yet: %d of the things above must be put right", missing)
			}
			return nil
		},
	}
}

// examineDomain prints what can be done with a domain.
func examineDomain(cmd *cobra.Command, domain string) error {
	return printOf(cmd, domain, func(w io.Writer, g *guest.Guest, log *slog.Logger) error {
		cs, err := debugger.Capabilities(g, log)
		return errors.Join(debugger.WriteCapabilities(w, cs), err)
	})
}

// examine makes all checks.
func examine() []finding {
	findings := []finding{
		checkRoot(),
		checkDevice("/dev/xen/hypercall", "Linux 4.18 and later have it; locked memory is used instead"),
		checkDevice("/dev/xen/evtchn", "load it with `modprobe xen-evtchn`"),
		checkXenstore(),
	}
	return append(findings, checkHypervisor()...)
}

func checkRoot() finding {
	f := finding{name: "root", ok: os.Geteuid() == 0, needed: true, detail: "running as root"}
	if !f.ok {
		f.detail = "run this as root"
	}
	return f
}

// checkDevice looks for a device that is not needed for everything.
func checkDevice(path, remedy string) finding {
	f := finding{name: strings.TrimPrefix(path, "/dev/xen/") + " device", detail: path}
	_, err := os.Stat(path)
	switch {
	case err == nil:
		f.ok = true
	case errors.Is(err, fs.ErrNotExist):
		f.detail = fmt.Sprintf("no %s: %s", path, remedy)
	default:
		f.detail = err.Error()
	}
	return f
}

func checkXenstore() finding {
	store, err := xenstore.Open()
	if err != nil {
		return finding{name: "xenstore", detail: err.Error() + " (without it, domains go by number only)"}
	}
	defer store.Close()
	return finding{name: "xenstore", ok: true, detail: "domains can be given by name"}
}

func checkHypervisor() []finding {
	host, err := openHost()
	if err != nil {
		return []finding{{name: "hypervisor", needed: true, detail: err.Error()}}
	}
	defer host.Close()
	v := host.Version()
	findings := []finding{{name: "hypervisor", ok: true, needed: true,
		detail: fmt.Sprintf("Xen %v, domctl version %#x, sysctl version %#x", v, v.Domctl, v.Sysctl)}}
	findings = append(findings, finding{name: "guest kinds", ok: true, detail: strings.Join(v.Capabilities, " ")})
	if host.Quirks().ContextLosesR8toR15 {
		findings = append(findings, finding{name: "registers",
			detail: "this Xen loses r8 to r15, so that there are no breakpoints and steps, and registers of PV guests are read-only: update to 4.21.2 or later"})
	}
	return findings
}

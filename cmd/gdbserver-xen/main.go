// Command gdbserver-xen lets GDB and LLDB debug Xen guests from dom0.
//
// What it prints for people goes to standard error, each line with the
// program's name in front, in lower case and without a final period; what other
// programs may read (list, version) goes to standard output.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() { os.Exit(run()) }

// run is main, with the exit code as its result.
func run() int {
	// A reader that goes away must not end us before the guest runs again.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()

	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	say(root.ErrOrStderr(), "%v", err)
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// say prints a line for people.
func say(w io.Writer, format string, args ...any) {
	fmt.Fprintf(w, "gdbserver-xen: "+format+"\n", args...)
}

// newRoot makes the command tree. The root command itself is gdbserver's
// classic form: gdbserver-xen COMM --attach DOMAIN.
func newRoot() *cobra.Command {
	var (
		domain string
		opts   attachOptions
	)
	root := &cobra.Command{
		Use:   "gdbserver-xen",
		Short: "let GDB and LLDB debug Xen guests",
		Long: `gdbserver-xen runs in dom0, attaches to a running domain and lets an
unmodified GDB or LLDB, on this machine or another, read its registers and
memory and take backtraces of its vCPUs. When the debugger detaches, the domain
runs on as if nothing had been there.

Start with: gdbserver-xen attach DOMAIN`,
		Args: func(_ *cobra.Command, args []string) error {
			if domain == "" && len(args) > 0 {
				return usagef("unknown command %q: `gdbserver-xen --help` lists the commands", args[0])
			}
			if domain != "" && len(args) != 1 {
				return usagef("--attach takes one address to listen on: gdbserver-xen COMM --attach DOMAIN")
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if domain == "" {
				return cmd.Help()
			}
			opts.listen = args[0]
			// gdbserver has it the other way round: --attach COMM PID.
			if isComm(domain) && !isComm(opts.listen) {
				domain, opts.listen = opts.listen, domain
			}
			return attach(cmd.Context(), cmd, domain, opts)
		},
	}
	root.Flags().StringVar(&domain, "attach", "", "attach to `DOMAIN`, listening on COMM: the classic form, gdbserver-xen COMM --attach DOMAIN")
	opts.register(root.Flags())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newAttach(), newList(), newDoctor(), newVersion())
	for _, cmd := range root.Commands() {
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, words []string) error {
				if err := args(cmd, words); err != nil {
					return usagef("%w: usage: %s", err, cmd.UseLine())
				}
				return nil
			}
		}
	}
	return root
}

// isComm tells whether a word names a place to listen on, rather than a domain.
func isComm(word string) bool {
	return word == "stdio" || word == "-" || strings.Contains(word, ":")
}

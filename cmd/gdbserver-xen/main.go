// Command gdbserver-xen lets GDB and LLDB debug Xen guests from dom0.
//
// What was asked for (list, bt, doctor and so on) goes to standard output. What is said
// besides, by a server or of an error, goes to standard error, each line with the
// program's name in front, in lower case and without a final period.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gdbserver-xen/xen"
)

func main() { os.Exit(profiled(run)) }

// openHost connects to the hypervisor. Tests put another one in its place.
var openHost = xen.Open

// run is main, with the exit code as its result.
func run() int {
	// A reader that goes away must not end us before the guest runs again.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// execute runs a command line and gives its exit code: 1 if it failed, 2 if it
// cannot be understood.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	say(stderr, "%v", err)
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
		domain      string
		opts        attachOptions
		showVersion bool
	)
	root := &cobra.Command{
		Use:   "gdbserver-xen COMM --attach DOMAIN",
		Short: "let GDB and LLDB debug Xen guests",
		Long: `gdbserver-xen runs in dom0, attaches to a running domain and lets an unmodified
GDB or LLDB, on this machine or another, read and write its registers and memory,
take backtraces of its vCPUs, and break, watch, step and continue. When the
debugger detaches or goes away, the domain gets back what it had, and runs on.

Start with: gdbserver-xen attach DOMAIN
Without a debugger: bt, dmesg, ps, lsmod and regs print what is in a domain.
If something does not work: gdbserver-xen doctor, and doctor DOMAIN, tell why.`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case domain != "" && len(args) != 1:
				return usagef("--attach takes one place to listen on: gdbserver-xen COMM --attach DOMAIN")
			case domain != "" || len(args) == 0:
				return nil
			case isComm(args[0]):
				return usagef("no domain to attach to: gdbserver-xen %s --attach DOMAIN", args[0])
			}
			hint := "`gdbserver-xen --help` lists the commands"
			like := slices.DeleteFunc(cmd.SuggestionsFor(args[0]), func(name string) bool {
				return len(name) <= cmd.SuggestionsMinimumDistance // which is like every short word
			})
			if len(like) > 0 {
				hint = "is it " + strings.Join(like, " or ") + "?"
			}
			return usagef("unknown command %q: %s", args[0], hint)
		},
		DisableFlagsInUseLine:      true,
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, args []string) error {
			if showVersion {
				return printVersion(cmd)
			}
			if domain == "" {
				if cmd.Flags().NFlag() > 0 {
					return usagef("no domain to attach to: gdbserver-xen attach [FLAG...] DOMAIN")
				}
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
	root.Flags().StringVar(&domain, "attach", "", "attach to `DOMAIN` and listen on COMM")
	opts.register(root.Flags())
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	root.PersistentFlags().BoolP("help", "h", false, "show this help")
	root.SetUsageFunc(usage)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w: `%s --help` lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(newAttach(), newList(), newDoctor(), newBacktrace(), newDmesg(), newPS(), newLsmod(), newRegs(), newRecover(), newVersion(), newCompletion(), newGuardian())
	root.SetHelpCommand(newHelp())
	return root
}

// usage prints how a command is called, in place of cobra's own words. It uses
// no template, for text/template makes the binary 1.6 MB larger.
func usage(cmd *cobra.Command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "usage:\n  %s\n", cmd.UseLine())
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n\ncommands:\n", cmd.CommandPath())
		for _, c := range cmd.Commands() {
			if !c.Hidden {
				fmt.Fprintf(&b, "  %-*s %s\n", cmd.NamePadding(), c.Name(), c.Short)
			}
		}
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nexamples:\n%s\n", cmd.Example)
	}
	fmt.Fprintf(&b, "\nflags:\n%s", allFlags(cmd).FlagUsages())
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n\"%s COMMAND --help\" tells more about a command.\n", cmd.CommandPath())
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}

// allFlags gives the flags that a command has, those of its parents included.
func allFlags(cmd *cobra.Command) *pflag.FlagSet {
	flags := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	flags.AddFlagSet(cmd.LocalFlags())
	flags.AddFlagSet(cmd.InheritedFlags())
	return flags
}

// noArguments is for commands that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%q is too much: `%s` takes no arguments", args[0], cmd.CommandPath())
	}
	return nil
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:                   "help [COMMAND]",
		Short:                 "show the help of a command",
		Long:                  "Show the help of a command or, without one, what commands there are.",
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if len(args) == 0 {
				for _, c := range cmd.Root().Commands() {
					if !c.Hidden {
						names = append(names, c.Name())
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("no help on %q: `gdbserver-xen --help` lists the commands", strings.Join(args, " "))
			}
			return c.Help()
		},
	}
}

func newCompletion() *cobra.Command {
	shells := []string{"bash", "fish", "zsh"}
	return &cobra.Command{
		Use:   "completion bash|fish|zsh",
		Short: "print what makes a shell complete commands, flags and domains",
		Long: `Print a script that makes a shell complete this program's commands, flags and
the names of domains.`,
		Example: `  . <(gdbserver-xen completion bash)
  gdbserver-xen completion bash >/etc/bash_completion.d/gdbserver-xen`,
		DisableFlagsInUseLine: true,
		ValidArgs:             shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usagef("which shell? gdbserver-xen completion bash|fish|zsh")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(out, true)
			case "fish":
				return cmd.Root().GenFishCompletion(out, true)
			default:
				return cmd.Root().GenZshCompletion(out)
			}
		},
	}
}

// isComm tells whether a word names a place to listen on, rather than a domain.
func isComm(word string) bool {
	return word == "stdio" || word == "-" || strings.Contains(word, ":")
}

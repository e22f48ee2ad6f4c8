package main

// xenlab shell and xenlab console: ways into a host that is up.

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gdbserver-xen/lab"
)

func shellCommand() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:   "shell [COMMAND...]",
		Short: "run a shell, or a command, in dom0 of a host that is up",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := running(pid)
			if err != nil {
				return err
			}
			command := strings.Join(args, " ")
			if command == "" {
				command = "cd /root; PS1='dom0# ' exec sh -i"
			}
			return shell(cmd.Context(), r, command)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().IntVar(&pid, "pid", 0, "`id` of the host's QEMU process, if several are up")
	return cmd
}

// running finds the one host that is up, or that of a process.
func running(pid int) (lab.Remote, error) {
	hosts, err := lab.Running()
	if err != nil {
		return lab.Remote{}, err
	}
	var pids []string
	for _, h := range hosts {
		if h.PID == pid || pid == 0 && len(hosts) == 1 {
			return h, nil
		}
		pids = append(pids, fmt.Sprintf("--pid %d (xen %s)", h.PID, h.Release))
	}
	switch {
	case len(hosts) == 0:
		return lab.Remote{}, fmt.Errorf("no host is up: start one with `make lab`")
	case pid != 0:
		return lab.Remote{}, fmt.Errorf("no host has that process: there is %s", strings.Join(pids, ", "))
	default:
		return lab.Remote{}, fmt.Errorf("several hosts are up: choose by %s", strings.Join(pids, ", "))
	}
}

func shell(ctx context.Context, r lab.Remote, command string) error {
	code, err := shellOn(ctx, r, command, int(os.Stdin.Fd()))
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// shellOn runs the command on a terminal in dom0 if stdin is one here.
func shellOn(ctx context.Context, r lab.Remote, command string, stdin int) (int, error) {
	var term *lab.Terminal
	if old, err := unix.IoctlGetTermios(stdin, unix.TCGETS); err == nil {
		term = &lab.Terminal{Rows: 24, Cols: 80}
		if size, err := unix.IoctlGetWinsize(stdin, unix.TIOCGWINSZ); err == nil && size.Row > 0 {
			term.Rows, term.Cols = int(size.Row), int(size.Col)
		}
		if err := unix.IoctlSetTermios(stdin, unix.TCSETS, raw(*old)); err != nil {
			return -1, fmt.Errorf("set up terminal: %w", err)
		}
		defer unix.IoctlSetTermios(stdin, unix.TCSETS, old)
	}
	return r.Run(ctx, command, os.Stdin, os.Stdout, os.Stderr, term)
}

// raw is a terminal that leaves everything to the one in dom0, as
// cfmakeraw(3) has it.
func raw(t unix.Termios) *unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB
	t.Cflag |= unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return &t
}

func consoleCommand() *cobra.Command {
	var pid int
	var follow bool
	cmd := &cobra.Command{
		Use:   "console [GUEST]",
		Short: "show a guest's console and follow it until Ctrl-C",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := running(pid)
			if err != nil {
				return err
			}
			files, err := r.GuestConsoles()
			if err != nil {
				return err
			}
			var names []string
			for name := range files {
				names = append(names, name)
			}
			if len(args) == 0 && len(names) == 1 {
				args = names
			}
			if len(args) == 0 || files[args[0]] == "" {
				return fmt.Errorf("which guest? there is %s", strings.Join(names, ", "))
			}
			return showFile(cmd.Context(), files[args[0]], follow)
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "`id` of the host's QEMU process, if several are up")
	cmd.Flags().BoolVar(&follow, "follow", true, "go on with what comes")
	return cmd
}

func showFile(ctx context.Context, path string, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := io.Copy(os.Stdout, f); err != nil {
			return err
		}
		// The directory goes away with the host.
		if _, err := os.Stat(path); err != nil || !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

package main

// xenlab demo: a whole session, from nothing to a backtrace of a live guest.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gdbserver-xen/lab"
)

type demoFlags struct {
	hostFlags
	gdb    string
	attach string // the server's command line
	ready  string // what the server says when it listens
	keep   bool
}

func demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "show real gdb on a live guest",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := demo(cmd.Context(), &f)
			if err != nil && cmd.Context().Err() != nil {
				return errors.New("demo was interrupted")
			}
			return err
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.Lookup("cmdline").DefValue = "work=kernel"
	f.guest.Cmdline = "work=kernel" // so that one vCPU has a stack to show
	flags.StringVar(&f.gdb, "gdb", "gdb", "`path` of gdb")
	flags.StringVar(&f.attach, "attach", fmt.Sprintf("gdbserver-xen attach --listen 0.0.0.0:%d {guest}", serverPort), "`command` that starts the server in dom0")
	flags.StringVar(&f.ready, "ready", "listening", "`text` the server prints when it listens")
	flags.BoolVar(&f.keep, "keep", false, "leave the host up until Ctrl-C")
	return cmd
}

// A clock prints a line per step, with the time since it was made.
type clock struct{ begin time.Time }

func (c clock) step(format string, args ...any) {
	fmt.Printf("[%5.1f s] %s\n", time.Since(c.begin).Seconds(), fmt.Sprintf(format, args...))
}

func demo(ctx context.Context, f *demoFlags) (err error) {
	c := clock{time.Now()}
	if _, err := os.Stat(f.server); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s: run make build", f.server)
	}
	if f.gdb == "gdb" {
		if err := lab.EnsureTools(ctx, map[string]string{"gdb": "gdb"}); err != nil {
			return err
		}
	}
	cfg, guestCfg := f.configs()
	c.step("starting xen %s in qemu", cfg.Release)
	h, err := lab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprint(os.Stderr, h.Report())
		}
		err = errors.Join(err, h.Close())
	}()
	c.step("xen %s and dom0's linux %s are up", h.XenVersion(), h.KernelRelease())
	vmlinux, err := h.Symbols(ctx)
	if err != nil {
		return err
	}
	c.step("kernel symbols: %s", vmlinux)
	g, err := h.CreateGuest(ctx, guestCfg)
	if err != nil {
		return err
	}
	c.step("%s guest %s is up, domain %d with %d vCPUs", guestCfg.Kind, g.Name(), g.ID(), guestCfg.VCPUs)
	if err := h.CopyIn(ctx, f.server, serverInDom0, 0o755); err != nil {
		return err
	}
	addr, err := h.Forward(ctx, serverPort)
	if err != nil {
		return err
	}
	for stop := 1; ; stop++ {
		err := gdbSession(ctx, c, f, h, g, addr, vmlinux)
		if err == nil {
			break
		}
		if !errors.Is(err, errNoEntry) || stop == 5 {
			return err
		}
		c.step("this stop met all vCPUs in hypercalls, where gdb loses the stack: once more")
	}
	wait, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := g.WaitTick(wait, 2); err != nil {
		return fmt.Errorf("the guest does not run on: %w", err)
	}
	c.step("the guest still ticks: it has counted to %d", g.Ticks())
	if f.keep {
		fmt.Printf("the host stays up: %[1]s shell, %[1]s console; Ctrl-C ends it\n", os.Args[0])
		select {
		case <-ctx.Done():
		case <-h.Done():
			return errors.New("the host ended by itself")
		}
	}
	return nil
}

// gdbSession attaches the server to the guest, runs gdb on it and checks what gdb
// has found.
func gdbSession(ctx context.Context, c clock, f *demoFlags, h *lab.Host, g *lab.Guest, addr, vmlinux string) error {
	server, err := h.Command(ctx, "exec "+strings.ReplaceAll(f.attach, "{guest}", g.Name()))
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := server.WaitOutput(wait, f.ready); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	c.step("the server listens in dom0, from here on %s", addr)

	out, gdbErr := runGDB(ctx, f.gdb, addr, vmlinux)
	c.step("gdb has ended")
	if gdbErr == nil {
		gdbErr = checkSession(string(out), g.Config().VCPUs)
	}
	if err := stopServer(ctx, server); err != nil {
		return errors.Join(gdbErr, err)
	}
	c.step("the server has ended")
	if gdbErr != nil && !errors.Is(gdbErr, errNoEntry) {
		fmt.Fprintf(os.Stderr, "--- the server said ---\n%s%s", server.Stdout(), server.Stderr())
	}
	return gdbErr
}

// runGDB shows and returns what gdb prints in a session with the server.
func runGDB(ctx context.Context, gdb, addr, vmlinux string) ([]byte, error) {
	args := []string{"-nx", "-batch"}
	for _, command := range []string{
		"set width 0",
		"set confirm off",
		"target remote " + addr,
		"info threads",
		"thread apply all bt",
		"detach",
	} {
		args = append(args, "-ex", command)
	}
	args = append(args, vmlinux)
	fmt.Printf("\n$ %s %s\n", gdb, quote(args))
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, gdb, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	fmt.Printf("%s\n", out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("gdb: %w", err)
	}
	return out.Bytes(), nil
}

func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; strings.Contains(a, " ") {
			quoted[i] = strconv.Quote(a)
		}
	}
	return strings.Join(quoted, " ")
}

// stopServer ends the server by SIGTERM, if it has not ended by itself.
func stopServer(ctx context.Context, server *lab.Process) error {
	select {
	case <-server.Done():
	default:
		if err := server.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop the server: %w", err)
		}
		select {
		case <-server.Done():
		case <-time.After(20 * time.Second):
			return errors.Join(errors.New("the server does not end on SIGTERM"), server.Kill())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	_, err := server.Wait()
	return err
}

// This file is the command attach: one domain, one client at a time.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gdbserver-xen/internal/debugger"
	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/xen"
)

// defaultListen is where clients connect if nothing else is said.
const defaultListen = "localhost:1234"

type attachOptions struct {
	listen string
	engine string
	once   bool
	log    string
}

func (o *attachOptions) register(flags *pflag.FlagSet) {
	flags.BoolVar(&o.once, "once", false, "exit when the first debugger goes away, detached or not")
	flags.StringVar(&o.engine, "engine", "", "stop and step vCPUs by `ENGINE`: "+strings.Join(engine.Names(), ", ")+" (default: redirect or monitor)")
	flags.StringVar(&o.log, "log", "", "log what `LAYERS` do: debugger, rsp or all, with commas between")
}

func newAttach() *cobra.Command {
	var opts attachOptions
	cmd := &cobra.Command{
		Use:   "attach [FLAG...] DOMAIN",
		Short: "attach to a domain and wait for a debugger",
		Long: `Attach to a domain, given by number or name, pause it, and serve a debugger that
connects to COMM:

  [HOST]:PORT  TCP; without HOST on the loopback interface, port 0 for any
  unix:PATH    a Unix socket, for its owner only
  stdio or -   standard input and output, for gdb's "target remote | COMMAND"

There is no password: whoever can connect controls the domain. To debug from
another machine, leave COMM on loopback and use ssh:

  (gdb) target remote | ssh root@HOST gdbserver-xen attach --listen stdio DOMAIN

An engine stops and steps the domain's vCPUs. 64-bit PV domains have redirect and,
on a Xen 4.17 or later built with CONFIG_GDBSX, gdbsx; PVH and HVM domains have
monitor. Without --engine it is redirect or monitor, and if that cannot be had, the
domain can be looked at, paused and continued only; with it, that is an error.

The domain is unpaused when the debugger detaches or goes away, and on SIGINT,
SIGTERM and SIGHUP; if it was paused before, it stays paused. After a detach the
server exits; after a lost connection it waits for another. If the server is
killed, a process of its own, xen-guardian, gives the domain back.`,
		Example: `  gdbserver-xen attach mydomain
  gdbserver-xen attach --listen :0 3
  gdbserver-xen attach --listen unix:/run/mydomain.gdb mydomain
  gdbserver-xen attach --engine gdbsx mydomain`,
		DisableFlagsInUseLine: true,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef("no domain to attach to: `gdbserver-xen list` shows those there are")
			case len(args) == 1:
				return nil
			case len(args) == 2 && isComm(args[1]):
				return usagef("where to listen is a flag: gdbserver-xen attach --listen %s %s", args[1], args[0])
			default:
				return tooMany(args, "gdbserver-xen attach [FLAG...] DOMAIN")
			}
		},
		ValidArgsFunction: completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			return attach(cmd.Context(), cmd, args[0], opts)
		},
	}
	cmd.Flags().StringVar(&opts.listen, "listen", defaultListen, "wait for the debugger at `COMM`")
	opts.register(cmd.Flags())
	return cmd
}

// attach serves a domain until a client has detached from it.
func attach(ctx context.Context, cmd *cobra.Command, domain string, opts attachOptions) error {
	logs, err := newLogs(cmd.ErrOrStderr(), opts.log)
	if err != nil {
		return err
	}
	if opts.engine != "" && !slices.Contains(engine.Names(), opts.engine) {
		return usagef("no engine %q: there are %s", opts.engine, strings.Join(engine.Names(), ", "))
	}
	l, err := listen(ctx, opts.listen)
	if err != nil {
		return err
	}
	defer l.Close()
	host, id, err := openDomain(ctx, domain)
	if err != nil {
		return err
	}
	defer host.Close()
	held, err := hold(ctx, host, id, logs.layer("debugger"), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	s := &server{
		host: host, id: id, ledger: held.ledger, domain: domain, opts: opts, logs: logs,
		out: cmd.ErrOrStderr(), clients: clients(ctx, l),
	}
	// What could not be given back is left to the guardian.
	return errors.Join(s.debug(ctx, l), held.Close())
}

// A server serves one domain.
type server struct {
	host    *xen.Host
	id      xen.DomID
	ledger  *guest.Ledger
	domain  string // as the user calls it
	opts    attachOptions
	logs    logs
	out     io.Writer
	clients <-chan connection
	leaving <-chan struct{} // the domain is about to
}

// debug attaches to the domain and serves it.
func (s *server) debug(ctx context.Context, l listener) error {
	g, err := attachTo(s.host, s.id, s.ledger)
	if err != nil {
		return err
	}
	if err := s.canUse(g); err != nil {
		return errors.Join(err, g.Detach())
	}
	s.announce(g, l)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.leaving = watchLeaving(ctx, s.id, s.logs.layer("debugger"))
	return s.serve(ctx, g)
}

// canUse tells at once, not when the first client comes, of an engine that was
// asked for and cannot be had.
func (s *server) canUse(g *guest.Guest) error {
	if s.opts.engine == "" {
		return nil
	}
	e, err := engine.Choose(g, s.opts.engine, s.logs.layer("debugger"))
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		err = fmt.Errorf("--engine %s: %w: `gdbserver-xen doctor %d` tells what the domain has without it", s.opts.engine, err, s.id)
	}
	return err
}

// clients gives the connections that come in, until none can come any more.
func clients(ctx context.Context, l listener) <-chan connection {
	ch := make(chan connection)
	go func() {
		defer close(ch)
		for {
			conn, err := l.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
					return
				}
				// The client went away before it was accepted, or we are short of
				// something: do not spin.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			select {
			case ch <- conn:
			case <-ctx.Done():
				conn.Close()
				return
			}
		}
	}()
	return ch
}

// announce says what was attached to and how to reach it.
func (s *server) announce(g *guest.Guest, l listener) {
	what := fmt.Sprintf("domain %d", s.id)
	if s.domain != strconv.Itoa(int(s.id)) {
		what += fmt.Sprintf(" (%s)", printable(s.domain))
	}
	if info, err := g.Info(); err == nil {
		say(s.out, "attached to %s, paused: %v, %d vCPUs, %d MB, on Xen %v",
			what, info.Kind, info.OnlineVCPUs, info.TotalPages*xen.PageSize>>20, s.host.Version())
	}
	address := l.Address()
	if address == "" {
		return
	}
	say(s.out, "listening on %s", address)
	fmt.Fprintf(s.out, "  gdb:   target remote %s\n  lldb:  gdb-remote %s\n", reachable(address), lldbAddress(reachable(address)))
	if l.Open() {
		say(s.out, "warning: %s can be reached from other machines, and whoever connects controls the domain", address)
	}
}

// reachable gives an address that a client can type: this machine's name, or
// HOST if it has none, in place of "any address".
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !net.ParseIP(host).IsUnspecified() {
		return address
	}
	name, err := os.Hostname()
	if err != nil || strings.HasPrefix(name, "(") || name == "localhost" { // Linux begins as "(none)"
		name = "HOST"
	}
	return net.JoinHostPort(name, port)
}

// lldbAddress gives an address in the form that lldb's gdb-remote takes.
func lldbAddress(address string) string {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "unix-connect://" + address
	}
	return address
}

// serve serves clients, one after the other, until one has detached, none can
// come any more, the domain is gone, or ctx ends. It gives the domain back.
func (s *server) serve(ctx context.Context, g *guest.Guest) error {
	for {
		conn, ok := s.next(ctx)
		if !ok {
			return s.giveBack(ctx, g)
		}
		if g == nil {
			var err error
			if g, err = attachTo(s.host, s.id, s.ledger); err != nil {
				conn.Close()
				return err
			}
		}
		say(s.out, "%s connected", conn.peer)
		target, err := debugger.New(g, debugger.Config{
			Log: s.logs.layer("debugger"), Engine: s.opts.engine, Leaving: s.leaving,
			Names: func(domains []xen.DomainInfo) (map[xen.DomID]string, error) { return domainNames(ctx, domains) },
		})
		if err != nil {
			conn.Close()
			return errors.Join(err, g.Detach())
		}
		err = s.session(ctx, conn, target)
		if err == nil {
			say(s.out, "%s detached, domain %d is as it was", conn.peer, s.id)
			return nil
		}
		if detachErr := target.Detach(); detachErr != nil {
			return errors.Join(err, detachErr)
		}
		g = nil
		switch {
		case s.gone():
			say(s.out, "domain %d is gone", s.id)
			return nil
		case ctx.Err() != nil:
			say(s.out, "stopped by a signal, domain %d is as it was", s.id)
			return nil
		case !errors.Is(err, rsp.ErrDisconnected):
			return err
		}
		say(s.out, "%s went away without detaching, domain %d is as it was", conn.peer, s.id)
		if s.opts.once {
			return nil
		}
	}
}

// gone tells whether the domain was destroyed, or is about to be, as it has shut
// down: no client can have it any more. One that has crashed may be kept.
func (s *server) gone() bool {
	info, err := s.host.DomainInfo(s.id)
	if err != nil {
		return errors.Is(err, xen.ErrNoDomain)
	}
	crashed := info.ShutdownReason == xen.ShutdownCrash || info.ShutdownReason == xen.ShutdownWatchdog
	return info.Dying || info.Shutdown && !crashed
}

// giveBack detaches when no client is there.
func (s *server) giveBack(ctx context.Context, g *guest.Guest) error {
	if g != nil {
		if err := g.Detach(); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		say(s.out, "stopped by a signal, domain %d is as it was", s.id)
	case s.gone():
		say(s.out, "domain %d is gone", s.id)
	}
	return nil
}

// gonePoll is how often a server without a client looks whether the domain is gone.
const gonePoll = time.Second

// next waits for a client, as long as there is a domain for it.
func (s *server) next(ctx context.Context) (connection, bool) {
	poll := time.NewTicker(gonePoll)
	defer poll.Stop()
	for {
		select {
		case conn, ok := <-s.clients:
			return conn, ok
		case <-ctx.Done():
			return connection{}, false
		case <-poll.C:
			if s.gone() {
				return connection{}, false
			}
		}
	}
}

// session serves one client, and turns others away meanwhile.
func (s *server) session(ctx context.Context, conn connection, target *debugger.Target) error {
	done := make(chan error, 1)
	go func() { done <- rsp.Serve(ctx, conn, target, rsp.Config{Log: s.logs.layer("rsp")}) }()
	others := s.clients
	for {
		select {
		case err := <-done:
			return err
		case other, ok := <-others:
			if !ok {
				others = nil
				continue
			}
			reason := fmt.Sprintf("domain %d is being debugged by %s", s.id, conn.peer)
			say(s.out, "%s turned away: %s", other.peer, reason)
			go rsp.Refuse(ctx, other, reason)
		}
	}
}

// This file is about what outlives this process: a domain's session with its
// ledger, the guardian that undoes what is in it, and the command recover.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guardian"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// sessionDir is where sessions are kept. Tests put another one in its place.
var sessionDir = guardian.Dir

// A session is a domain that this process has for itself.
type session struct {
	*guardian.Session
	ledger *guest.Ledger
}

// hold takes a domain for this process, has it guarded, and undoes what a killed
// process has left in it.
func hold(ctx context.Context, host *xen.Host, id xen.DomID, log *slog.Logger, out io.Writer) (session, error) {
	s, err := guardian.Take(ctx, sessionDir, int(id), guest.LedgerSize)
	if err != nil {
		return session{}, err
	}
	err = s.Guard(log)
	if err == nil && s.Stale() {
		err = undoStale(s, host, id, log, out)
	}
	var ledger *guest.Ledger
	if err == nil {
		ledger, err = guest.NewLedger(s.Journal())
	}
	if err != nil {
		return session{}, errors.Join(err, s.Close())
	}
	return session{s, ledger}, nil
}

// withDomain does something with a domain that nobody else debugs meanwhile, and
// gives it back.
func withDomain(cmd *cobra.Command, domain string, do func(g *guest.Guest, log *slog.Logger) error) error {
	logs, err := newLogs(cmd.ErrOrStderr(), "")
	if err != nil {
		return err
	}
	host, id, err := openDomain(cmd.Context(), domain)
	if err != nil {
		return err
	}
	defer host.Close()
	held, err := hold(cmd.Context(), host, id, logs.layer("debugger"), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	g, err := attachTo(host, id, held.ledger)
	if err == nil {
		err = errors.Join(do(g, logs.layer("debugger")), g.Detach())
	}
	return errors.Join(err, held.Close())
}

// printOf prints something of a domain, once that has been given back: who reads may be
// slow.
func printOf(cmd *cobra.Command, domain string, print func(w io.Writer, g *guest.Guest, log *slog.Logger) error) error {
	var out bytes.Buffer
	err := withDomain(cmd, domain, func(g *guest.Guest, log *slog.Logger) error { return print(&out, g, log) })
	_, writeErr := out.WriteTo(cmd.OutOrStdout())
	return errors.Join(err, writeErr)
}

// undoStale undoes what a killed process has left in a domain, and says so.
func undoStale(s *guardian.Session, host *xen.Host, id xen.DomID, log *slog.Logger, out io.Writer) error {
	report, err := undo(host, s.Journal(), log)
	if err != nil {
		return fmt.Errorf("a gdbserver-xen that was killed left things in domain %d that cannot be undone: %w", id, err)
	}
	s.Clear()
	say(out, "undid what a gdbserver-xen that was killed had left in domain %d: %s", id, report)
	return nil
}

// undo undoes what is in a session's ledger, and gives what to say of it.
func undo(host *xen.Host, journal []byte, log *slog.Logger) (report string, err error) {
	ledger, err := guest.OpenLedger(journal)
	if err != nil {
		return "", fmt.Errorf("%w, or one of another version of gdbserver-xen, which must undo it", err)
	}
	err = engine.Recover(host, ledger, log)
	switch {
	case errors.Is(err, guest.ErrOtherDomain):
		return "it is gone, and nothing is left to undo", nil
	case err != nil:
		return "", err
	}
	return "it is as it was", nil
}

func newRecover() *cobra.Command {
	return &cobra.Command{
		Use:   "recover DOMAIN",
		Short: "undo what a killed gdbserver-xen left in a domain",
		Long: `Undo what a killed gdbserver-xen left in a domain, given by number or name.

A server that is killed has a guardian, a process called xen-guardian, which
gives the domain back at once. This command is for the day that both were
killed. The next attach to the domain does the same before anything else.`,
		DisableFlagsInUseLine: true,
		Args:                  oneDomain,
		ValidArgsFunction:     completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			logs, err := newLogs(cmd.ErrOrStderr(), "")
			if err != nil {
				return err
			}
			host, id, err := openDomain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer host.Close()
			s, err := guardian.Take(cmd.Context(), sessionDir, int(id), guest.LedgerSize)
			if err != nil {
				return err
			}
			if s.Stale() {
				err = undoStale(s, host, id, logs.layer("debugger"), cmd.ErrOrStderr())
			} else {
				say(cmd.ErrOrStderr(), "nothing was left in domain %d", id)
			}
			return errors.Join(err, s.Close())
		},
	}
}

// newGuardian makes the command that only this program itself starts.
func newGuardian() *cobra.Command {
	return &cobra.Command{
		Use:    guardian.Command + " DOMAIN",
		Short:  "wait for the end of a server, and undo what it has left",
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			out := lastWords{cmd.ErrOrStderr()}
			logs, err := newLogs(out, "")
			if err != nil {
				return err
			}
			var report string
			err = guardian.Main(func(journal []byte) error {
				host, err := openHost()
				if err != nil {
					return err
				}
				defer host.Close()
				report, err = undo(host, journal, logs.layer("debugger"))
				return err
			})
			switch {
			case errors.Is(err, guardian.ErrNotByServer):
				return usageError{err}
			case err != nil:
				say(out, "the server of domain %s is gone, and what it left could not be undone (%v): `gdbserver-xen recover %s` tries again",
					args[0], err, args[0])
			case report != "":
				say(out, "the server of domain %s is gone, what it left in the domain was undone: %s", args[0], report)
			}
			return nil
		},
	}
}

// lastWords writes what a guardian has to say to the server's standard error
// or, if nobody reads that any more, to the kernel's log.
type lastWords struct{ stderr io.Writer }

func (w lastWords) Write(p []byte) (int, error) {
	if n, err := w.stderr.Write(p); err == nil {
		return n, nil
	}
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Write(p)
}

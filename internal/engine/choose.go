// This file chooses the engine for a guest, and undoes what one has left.

package engine

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// The engines' numbers in a guest.Ledger.
const (
	numberRedirect uint32 = 1
	numberMonitor  uint32 = 2
	numberGDBSX    uint32 = 3
)

// Names gives the names of the engines, the best first.
func Names() []string { return []string{"redirect", "monitor", "gdbsx"} }

// Choose gives the engine for a guest: the best of those that it has, or the one
// that is asked for by name.
func Choose(g *guest.Guest, name string, log *slog.Logger) (Engine, error) {
	switch {
	case g.Kind() == xen.PV && (name == "" || name == "redirect"):
		return newRedirect(g, log)
	case g.Kind() != xen.PV && (name == "" || name == "monitor"):
		return newMonitor(g, log)
	case name == "gdbsx":
		return newGDBSX(g, log)
	}
	if !slices.Contains(Names(), name) {
		return nil, fmt.Errorf("there is no engine %q: there are %s", name, strings.Join(Names(), ", "))
	}
	return nil, fmt.Errorf("%w: engine %s is not for %v guests", ErrUnavailable, name, g.Kind())
}

// Recover undoes what a killed process has left in the domain that a ledger is
// about. guest.ErrOtherDomain says that the domain is gone.
func Recover(host *xen.Host, ledger *guest.Ledger, log *slog.Logger) error {
	g, err := guest.TakeOver(host, ledger)
	if err != nil {
		return err
	}
	switch ledger.Engine() {
	case numberRedirect:
		err = adoptRedirect(g, log).Close()
	case numberMonitor:
		var e Engine
		if e, err = adoptMonitor(g, log); err == nil {
			err = e.Close()
		}
	case numberGDBSX:
		var e Engine
		if e, err = adoptGDBSX(g, log); err == nil {
			err = e.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("undo in domain %d: %w", ledger.Domain(), err)
	}
	return g.Detach()
}

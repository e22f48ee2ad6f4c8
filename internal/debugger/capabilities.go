// This file tells what can be done with a guest.

package debugger

import (
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"

	"gdbserver-xen/internal/engine"
	"gdbserver-xen/internal/guest"
)

// Capabilities tells what a client can do with a guest: what the guest's own
// capabilities are, what the engine of its choice can do, and what its kernel says
// of itself.
// Preconditions: the guest is paused, and is so after.
func Capabilities(g *guest.Guest, log *slog.Logger) ([]guest.Capability, error) {
	e, err := engine.Choose(g, "", log)
	if err == nil {
		err = e.Close()
	}
	cs := capabilities(g, e, err)
	s, err := findWhileRunning(g, false)
	if err != nil && !g.Paused() {
		return cs, err
	}
	return append(cs, kernelCapabilities(s.k, err)...), nil
}

// capabilities tells what can be done with an engine, or without it for the
// reason why.
func capabilities(g *guest.Guest, e engine.Engine, why error) []guest.Capability {
	cs := append(g.Capabilities(), guest.Capability{Name: "pause, continue", Can: true, Detail: "all vCPUs together"})
	for _, c := range []guest.Capability{
		{Name: "breakpoints", Detail: "int3 in the guest's memory, as many as needed"},
		{Name: "watchpoints", Detail: fmt.Sprintf("%d debug registers, less those that the guest uses, for hardware breakpoints too", debugSlots)},
		{Name: "single step", Detail: "one vCPU while the others stand still"},
	} {
		if c.Can = why == nil; c.Can {
			c.Detail += ", by engine " + e.Name()
		} else {
			c.Detail = why.Error()
		}
		cs = append(cs, c)
	}
	return cs
}

// WriteCapabilities prints the capabilities as a table.
func WriteCapabilities(w io.Writer, cs []guest.Capability) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range cs {
		can := "no"
		if c.Can {
			can = "yes"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", can, c.Name, c.Detail)
	}
	return tw.Flush()
}

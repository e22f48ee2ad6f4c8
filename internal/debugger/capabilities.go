// This file tells what can be done with a guest.

package debugger

import (
	"fmt"
	"io"
	"text/tabwriter"

	"gdbserver-xen/internal/guest"
)

// Capabilities tells what a client can do with a guest: what the guest's own
// capabilities are, and how it can be stopped.
// Preconditions: the guest is paused.
func Capabilities(g *guest.Guest) []guest.Capability {
	const notYet = "this version of gdbserver-xen cannot do it"
	return append(g.Capabilities(),
		guest.Capability{Name: "pause, continue", Can: true, Detail: "all vCPUs together"},
		guest.Capability{Name: "breakpoints", Detail: notYet},
		guest.Capability{Name: "watchpoints", Detail: notYet},
		guest.Capability{Name: "single step", Detail: notYet},
	)
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

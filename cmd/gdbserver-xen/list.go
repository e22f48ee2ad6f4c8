// This file is the command list.

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/debugger"
	"gdbserver-xen/xen"
)

func newList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the domains of this host",
		Long: `List the domains of this host: number, name, kind (PV, PVH or HVM), vCPUs that
are up, memory in MB, and state.`,
		DisableFlagsInUseLine: true,
		Args:                  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := openHost()
			if err != nil {
				return err
			}
			defer host.Close()
			domains, err := host.Domains()
			if err != nil {
				return err
			}
			names, err := domainNames(cmd.Context(), domains)
			if err != nil {
				say(cmd.ErrOrStderr(), "domains have no names: %v", err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tKIND\tVCPUS\tMEMORY\tSTATE")
			for _, d := range domains {
				name := names[d.ID]
				if name == "" {
					name = "-"
				}
				fmt.Fprintf(w, "%d\t%s\t%v\t%d\t%d\t%s\n", d.ID, printable(name), d.Kind, d.OnlineVCPUs,
					d.TotalPages*xen.PageSize>>20, debugger.DomainState(d))
			}
			return w.Flush()
		},
	}
}

// printable keeps what a guest or its owner wrote from commanding the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

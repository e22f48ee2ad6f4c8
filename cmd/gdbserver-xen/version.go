// This file is the command version.

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"gdbserver-xen/xen"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version of this program and the Xen releases it knows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			oldest, newest := xen.KnownReleases()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "gdbserver-xen %s (%s, %s/%s)\nknows Xen %s to %s\n",
				version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, oldest, newest)
			return err
		},
	}
}

// version gives the module's version, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && v == "devel" {
			v += "-" + s.Value[:12]
		}
	}
	return v
}

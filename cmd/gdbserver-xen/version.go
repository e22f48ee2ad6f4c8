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
		Use:                   "version",
		Short:                 "print the version, and the Xen releases that are known",
		Long:                  "Print the version, and the Xen releases that are known.",
		DisableFlagsInUseLine: true,
		Args:                  noArguments,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return printVersion(cmd) },
	}
}

func printVersion(cmd *cobra.Command) error {
	oldest, newest := xen.KnownReleases()
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "gdbserver-xen %s (%s, %s/%s)\nknows Xen %s to %s\n",
		version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, oldest, newest)
	return err
}

// stamp is the version that the build gives: make build sets it with the
// linker's -X.
var stamp string

// version gives the build's stamp, the module's version, or the commit that it
// was built from, whichever is there.
func version() string {
	if stamp != "" {
		return stamp
	}
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

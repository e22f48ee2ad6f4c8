//go:build profile

// This file makes a server that profiles itself, for `make bench`.

package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// envProfile names the file that a CPU profile goes to.
const envProfile = "GDBSERVER_XEN_PROFILE"

// profiled runs the program with a CPU profile, if one is wanted. Its guardian has
// none.
func profiled(run func() int) int {
	path := os.Getenv(envProfile)
	if path == "" {
		return run()
	}
	os.Unsetenv(envProfile)
	f, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		return 1
	}
	code := run()
	pprof.StopCPUProfile()
	if err := f.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		return 1
	}
	return code
}

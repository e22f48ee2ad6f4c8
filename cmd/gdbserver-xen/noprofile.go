//go:build !profile

// This file is in place of profile.go in the server that people use.

package main

// profiled runs the program.
func profiled(run func() int) int { return run() }

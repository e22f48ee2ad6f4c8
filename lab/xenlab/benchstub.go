package main

// The part of the benchmark that is of the protocol alone, on this machine: QEMU's
// stub and ours over the same memory.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gdbserver-xen/lab/bench"
)

const (
	nameStub   = "QEMU's stub"
	nameMemory = "gdbserver-xen, over memory"
	nameLimit  = "limit"
	stubBase   = 16 << 20
	stubSize   = 16 << 20
	stubRounds = 3
	// stubPatience is how long a server may take to end.
	stubPatience = 5 * time.Second
)

// measureStub measures a paused QEMU and ours, and the limit, in turns, over Unix
// sockets.
func (b *bencher) measureStub(ctx context.Context) error {
	if err := b.result.useTool(ctx, "qemu-system-x86_64"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	// Bytes without a pattern: nothing to shorten.
	pattern := make([]byte, stubSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(pattern) // never fails
	if err := os.WriteFile(path("memory"), pattern, 0o600); err != nil {
		return err
	}
	base := fmt.Sprintf("-bulk=%#x", stubBase)
	var ends []func()
	for _, args := range [][]string{
		{"qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-monitor", "none",
			"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", path("memory"), stubBase),
			"-chardev", "socket,id=gdb,server=on,wait=off,path=" + path(nameStub), "-gdb", "chardev:gdb"},
		{b.flags.client, "memory", base, "-file", path("memory"), "-listen", path(nameMemory), "-profile", path("profile")},
		{b.flags.client, "echo", "-listen", path(nameLimit)},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		end := sync.OnceFunc(func() {
			late := time.AfterFunc(stubPatience, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait() // by that signal
		})
		defer end()
		ends = append(ends, end)
	}
	for range stubRounds {
		for _, name := range []string{nameStub, nameMemory, nameLimit} {
			if err := awaitFile(ctx, path(name)); err != nil {
				return err
			}
			works := [][]string{{"run", "-work=warm"}, {"run", "-work=registers"}, {"run", "-work=bulk"}}
			if name == nameLimit {
				works = [][]string{{"limit"}}
			}
			for _, args := range works {
				args = append(args, "-connect="+path(name), "-times=3000", "-most=5s",
					fmt.Sprintf("-read=%#x", stubBase), base, fmt.Sprintf("-bulk-size=%d", stubSize),
					fmt.Sprintf("-code=%#x", stubBase), fmt.Sprintf("-code-size=%d", stubSize))
				cmd := exec.CommandContext(ctx, b.flags.client, args...)
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				var r bench.Report
				if err := json.Unmarshal(out, &r); err != nil {
					return fmt.Errorf("read what the client prints: %w", err)
				}
				if r.Failed != "" {
					return fmt.Errorf("%s: %s", name, r.Failed)
				}
				b.result.add(name, r)
			}
		}
	}
	for _, end := range ends { // the profile is whole then
		end()
	}
	b.result.Profile, err = profileTop(ctx, b.flags.client, path("profile"))
	return err
}

// profileTop gives the functions that a profile has most of, as go tool pprof prints
// them.
func profileTop(ctx context.Context, program, profile string, options ...string) (string, error) {
	args := slices.Concat([]string{"tool", "pprof", "-top", "-nodecount=10"}, options, []string{program, profile})
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("go tool pprof: %w", err)
	}
	i := bytes.Index(out, []byte("flat  flat%"))
	if i < 0 {
		return "", fmt.Errorf("go tool pprof printed no table: %.200q", out)
	}
	i = bytes.LastIndexByte(out[:i], '\n') + 1
	return strings.TrimRight(string(out[i:]), "\n"), nil
}

// awaitFile waits for a socket to come up.
func awaitFile(ctx context.Context, path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New(filepath.Base(path) + " does not come up")
}

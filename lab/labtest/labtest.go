// Package labtest gives tests real Xen.
//
// Tests that use it run only where the environment has GDBSERVER_XEN_LAB=1,
// and skip elsewhere. The tests of a package share one host per
// configuration, which [Main] closes:
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
//
//	func TestAttach(t *testing.T) {
//		h := labtest.Host(t, lab.Config{})
//		g := labtest.Guest(t, h, lab.GuestConfig{})
//		...
//	}
//
// All consoles go to the output of the test that runs. A test that fails also
// prints how to boot the same machine by hand, and the ends of all consoles.
package labtest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gdbserver-xen/lab"
)

// Env is the variable that must be "1" for tests on real Xen to run.
const Env = "GDBSERVER_XEN_LAB"

// EnvAll is the variable that must be "1" for them to run on every release
// of Xen that the lab knows, where a test asks by [Releases].
const EnvAll = "GDBSERVER_XEN_LAB_ALL"

// startTimeout covers the downloads of a first start too, and buildTimeout what
// is built from source then.
const (
	startTimeout = 15 * time.Minute
	buildTimeout = 30 * time.Minute
)

// maxAge is how long a host may have run when a test begins on it. QEMU may run a
// PVH or HVM guest with the state of Xen, which ends in a triple fault, and on one
// host, after twenty minutes, all such guests had it from then on.
const maxAge = 12 * time.Minute

var (
	mu    sync.Mutex
	hosts = map[lab.Config]*shared{}
	tests = map[string]bool{} // names of those that asked for a host
)

// A shared host serves all tests with its configuration.
type shared struct {
	mu      sync.Mutex
	host    *lab.Host
	started time.Time
	out     router
}

// end closes the host, if there is one.
// Preconditions: s.mu is held.
func (s *shared) end(t testing.TB) {
	t.Helper()
	if s.host == nil {
		return
	}
	if err := s.host.Close(); err != nil {
		t.Errorf("close host: %v", err)
	}
	s.host = nil
}

// endUnused closes the host, unless a test uses it.
func (s *shared) endUnused(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.unused() {
		s.end(t)
	}
}

// Require skips the test unless tests on real Xen are wanted.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(Env) != "1" {
		t.Skipf("needs real Xen in QEMU: set %s=1", Env)
	}
}

// Releases are the Xen releases to run a test on: all with [EnvAll], else
// the default.
func Releases() []string {
	if os.Getenv(EnvAll) == "1" {
		return lab.Releases()
	}
	return []string{lab.DefaultRelease}
}

// Host returns a running host: the one there is, if it has the same configuration
// and is not too old. It closes others that no test uses. The fields Log and
// Progress do not count: consoles go to the test's output.
func Host(t testing.TB, cfg lab.Config) *lab.Host {
	t.Helper()
	Require(t)
	if cfg.Release == "" {
		cfg.Release = lab.DefaultRelease
	}
	cfg.Log, cfg.Progress = nil, nil
	mu.Lock()
	s := hosts[cfg]
	if s == nil {
		s = &shared{}
		hosts[cfg] = s
	}
	tests[t.Name()] = true
	others := slices.Collect(maps.Values(hosts))
	mu.Unlock()
	for _, o := range others {
		if o != s {
			o.endUnused(t)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	worn := s.out.unused() && time.Since(s.started) > maxAge
	s.out.add(t)
	if s.host != nil && (worn || s.host.PID() == 0) { // or a test before has brought it down
		s.end(t)
	}
	if s.host == nil {
		diesWithGo()
		cfg.Log, cfg.Progress = &s.out, &s.out
		timeout := startTimeout
		if cfg.GDBSX {
			timeout += buildTimeout
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		h, err := lab.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.host, s.started = h, time.Now()
	}
	h := s.host
	before := len(h.Console())
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		fmt.Fprint(t.Output(), h.Report())
		if why := broken(h.Console()[before:]); why != "" {
			t.Logf("%s: %s", excuse, why)
		}
	})
	return h
}

// excuse is in what a test prints that failed on a machine which QEMU has broken:
// such a failure says nothing of what was tested, and make test runs it again.
const excuse = "this machine is broken"

// xensState is what Xen prints of a guest's vCPU that has crashed, if it has the
// code segment of Xen (__HYPERVISOR_CS in its asm-x86/config.h), which no guest has.
var xensState = regexp.MustCompile(`\*\*\* Dumping (Dom[1-9][0-9]* vcpu#[0-9]+) state: \*\*\*\n.*\n.*\n.*RIP: +e008:`)

// lostInt3 is what Xen prints where it has found another instruction than the int3 that
// a guest's vCPU has executed, to see how long that was, and brings the guest a general
// protection fault for it (svm_get_insn_len in its svm/emulate.c). QEMU's processor does
// not tell the length, and the guest's kernel had been patching its code.
var lostInt3 = regexp.MustCompile(`Insn mismatch: Expected opcode 0xcc,.*\n.*SVM Insn len emulation failed \(\d+\): (d[1-9][0-9]*v[0-9]+) `)

// broken looks in the console of Xen for what only QEMU's processor does.
func broken(console string) (why string) {
	if m := xensState.FindStringSubmatch(console); m != nil {
		return "QEMU has run " + m[1] + " with the state of Xen"
	}
	if m := lostInt3.FindStringSubmatch(console); m != nil {
		return "Xen has not recognised an int3 of " + m[1] + ", whose length QEMU does not tell"
	}
	return ""
}

// Guest creates a guest that is destroyed when the test ends.
func Guest(t testing.TB, h *lab.Host, cfg lab.GuestConfig) *lab.Guest {
	t.Helper()
	g, err := h.CreateGuest(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	DestroyAtEnd(t, g)
	return g
}

// DestroyAtEnd destroys a guest when the test ends.
func DestroyAtEnd(t testing.TB, g *lab.Guest) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := g.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
}

// Output runs a command in dom0, which must succeed, and returns what it
// writes to stdout.
func Output(t testing.TB, h *lab.Host, command string) string {
	t.Helper()
	out, err := h.Output(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Main runs a package's tests, closes the hosts they shared and exits.
func Main(m *testing.M) {
	code := m.Run()
	mu.Lock()
	defer mu.Unlock()
	for _, s := range hosts {
		if s.host == nil {
			continue
		}
		if err := s.host.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close host:", err)
			code = max(code, 1)
		}
	}
	if os.Getenv(Env) == "1" {
		fmt.Fprintf(os.Stderr, "labtest: %d tests used real xen\n", len(tests))
	}
	os.Exit(code)
}

// A router passes output on to the latest test that still runs.
type router struct {
	mu    sync.Mutex
	tests []testing.TB
}

// add directs output to t until t has ended. Cleanups run in reverse order,
// so t still gets what those that it adds later cause.
func (r *router) add(t testing.TB) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.tests, t) {
		return
	}
	r.tests = append(r.tests, t)
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tests = slices.DeleteFunc(r.tests, func(o testing.TB) bool { return o == t })
	})
}

// unused tells that no test runs that was added.
func (r *router) unused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tests) == 0
}

// Write passes whole lines on.
func (r *router) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var w io.Writer
	switch {
	case len(r.tests) > 0:
		w = r.tests[len(r.tests)-1].Output()
	case testing.Verbose():
		w = os.Stderr
	default:
		return len(p), nil
	}
	return w.Write(p)
}

// diesWithGo ends this process when the go command that started it is gone:
// killed, it would leave the test, and so the hosts, running.
var diesWithGo = sync.OnceFunc(func() {
	parent := os.Getppid()
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(parent) + "/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "go" {
		return
	}
	go func() {
		for range time.Tick(500 * time.Millisecond) {
			if os.Getppid() != parent {
				os.Exit(1)
			}
		}
	}()
})

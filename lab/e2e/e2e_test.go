// Package e2e tests the product as its users meet it: the static binary in a
// real dom0, on a real Xen, on real guests, through real gdb or the plain
// protocol.
package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
	"gdbserver-xen/rsp/rsptest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// machine is the host of these tests.
var machine = lab.Config{}

// vectors is a host whose guests have vector registers. On it, programs in dom0
// that use AVX (Go's and C's copying do) now and then find it corrupted, and
// what they copy, guests' kernels included: so dom0 is told that it has none.
var vectors = lab.Config{CPU: lab.VectorCPU, XenArgs: "dom0-cpuid=no-avx,no-avx2"}

// prepared are the hosts that have the product, and a guest to share.
var prepared sync.Map

type preparation struct {
	once   sync.Once
	err    error
	guests map[string]*sharedGuest // by name
}

// A sharedGuest is paused while no test uses it: what it does would take time from
// the others.
type sharedGuest struct {
	*lab.Guest
	users int
}

// host gives a host with the product, built as the Makefile does, in dom0's
// path.
func host(t *testing.T, cfg lab.Config) *lab.Host {
	t.Helper()
	h, _ := prepare(t, cfg)
	return h
}

// idle gives a host and an idle PV guest that tests share.
func idle(t *testing.T, cfg lab.Config) (*lab.Host, *lab.Guest) {
	t.Helper()
	return guestOf(t, cfg, idling, lab.PV)
}

// busy is idle with a guest whose vCPUs are in user mode.
func busy(t *testing.T, cfg lab.Config) (*lab.Host, *lab.Guest) {
	t.Helper()
	return guestOf(t, cfg, spinning, lab.PV)
}

// working is idle with a small guest of a kind, with one vCPU in a process and its
// system calls. That of an HVM guest has addresses of its own choice.
func working(t *testing.T, kind lab.Kind) (*lab.Host, *lab.Guest) {
	t.Helper()
	return guestOf(t, machine, inSystemCalls, kind)
}

// Guests that tests share have names, which get the kind of each.
var (
	idling = lab.GuestConfig{Name: "idle", Cmdline: "work=idle"}
	// Each vCPU sleeps for short times, and counts how often, see countingProbe.
	sleeping      = lab.GuestConfig{Name: "sleep", Cmdline: "work=sleep " + countingProbe}
	spinning      = lab.GuestConfig{Name: "busy", MemoryMB: 128, Cmdline: "work=busy"}
	inSystemCalls = lab.GuestConfig{Name: "kernel", MemoryMB: 128, Cmdline: "work=kernel"}
	withModules   = lab.GuestConfig{Name: "modules", MemoryMB: 128, Cmdline: "work=modules"}
	loaded        = lab.GuestConfig{Name: "load", Cmdline: "work=load"}
)

// guestOf gives a host, and a guest of a kind: that of its name, which tests share, or
// one for this test if it has none.
func guestOf(t *testing.T, cfg lab.Config, guest lab.GuestConfig, kind lab.Kind) (*lab.Host, *lab.Guest) {
	t.Helper()
	guest.Kind = kind
	if guest.Name == "" {
		h := host(t, cfg)
		return h, labtest.Guest(t, h, guest)
	}
	guest.Name += "-" + string(kind)
	return share(t, cfg, guest)
}

// share gives the guest of a name, which it creates when it is first asked for. Each
// test leaves it as it was; one that may not takes a guest of its own. If a test fails,
// the next gets a new one.
func share(t *testing.T, cfg lab.Config, guest lab.GuestConfig) (*lab.Host, *lab.Guest) {
	t.Helper()
	h, p := prepare(t, cfg)
	g := p.guests[guest.Name]
	switch {
	case g == nil:
		created, err := h.CreateGuest(t.Context(), guest)
		if err != nil {
			t.Fatal(err)
		}
		g = &sharedGuest{Guest: created}
		p.guests[guest.Name] = g
	case g.users == 0:
		labtest.Output(t, h, "xl unpause "+guest.Name)
	}
	g.users++
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		g.users--
		switch {
		case g.users > 0:
		case t.Failed():
			delete(p.guests, guest.Name)
			if err := g.Destroy(ctx); err != nil {
				t.Log(err)
			}
		default:
			if _, err := h.Output(ctx, "xl pause "+guest.Name); err != nil {
				t.Error(err)
			}
		}
	})
	return h, g.Guest
}

func prepare(t *testing.T, cfg lab.Config) (*lab.Host, *preparation) {
	t.Helper()
	h := labtest.Host(t, cfg)
	v, _ := prepared.LoadOrStore(h, &preparation{guests: map[string]*sharedGuest{}})
	p := v.(*preparation)
	p.once.Do(func() {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w",
			"-o", filepath.Join(h.ShareDir(), "gdbserver-xen"), "gdbserver-xen/cmd/gdbserver-xen")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("go build: %w\n%s", err, out)
			return
		}
		_, p.err = h.Output(t.Context(), "cp /share/gdbserver-xen /bin")
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return h, p
}

// A server is the product at work in dom0.
type server struct {
	t    *testing.T
	host *lab.Host
	*lab.Process
	addr string // on this machine
}

var nextPort atomic.Int32

// attach starts the product on a guest. The test ends it, if nothing else has. On
// the hypervisor with gdbsx it is for the engine of that name.
func attach(t *testing.T, h *lab.Host, g *lab.Guest, flags ...string) *server {
	t.Helper()
	return attachTo(t, h, g.Name(), flags...)
}

// anyEngine is a flag for guests that the engine gdbsx is not for.
const anyEngine = "--engine="

// attachTo is attach with a domain's name.
func attachTo(t *testing.T, h *lab.Host, name string, flags ...string) *server {
	t.Helper()
	if h.Config().GDBSX && !slices.Contains(flags, anyEngine) {
		flags = append(flags, "--engine", "gdbsx")
	}
	port := 9000 + int(nextPort.Add(1))
	command := fmt.Sprintf("exec gdbserver-xen attach --listen 0.0.0.0:%d %s %s", port, strings.Join(flags, " "), name)
	p, err := h.Command(context.WithoutCancel(t.Context()), command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("server said:\n%s", p.Stderr())
		}
	})
	if err := p.WaitOutput(t.Context(), "listening"); err != nil {
		t.Fatal(err)
	}
	addr, err := h.Forward(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	return &server{t: t, host: h, Process: p, addr: addr}
}

// exit waits for the server's end, which must be a good one.
func (s *server) exit() {
	s.t.Helper()
	select {
	case <-s.Done():
	case <-time.After(30 * time.Second):
		s.t.Fatal("server does not end")
	}
	if res, err := s.Wait(); err != nil || res.ExitCode != 0 {
		s.t.Fatalf("server ended with %v, exit code %d:\n%s", err, res.ExitCode, res.Stderr)
	}
}

// dial connects a client of the plain protocol, as a new gdb would.
func (s *server) dial() *client {
	s.t.Helper()
	return s.dialAs("multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386;binary-upload+;error-message+")
}

// dialAs connects a client that says what it supports.
func (s *server) dialAs(features string) *client {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &client{t: s.t, Client: rsptest.NewClient(conn)}
	c.Patience = time.Minute // an emulated machine may be slow
	s.t.Cleanup(func() {
		defer conn.Close()
		if !s.t.Failed() {
			return
		}
		c.Patience = time.Second
		for range 10 {
			reply, err := c.Receive()
			if err != nil {
				return
			}
			s.t.Logf("a reply that nobody has read: %q", reply)
		}
	})
	c.must("qSupported:" + features)
	if err := c.NoAck(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// A client fails its test when the connection does.
type client struct {
	t *testing.T
	*rsptest.Client
}

func (c *client) must(packet string) string {
	c.t.Helper()
	reply, err := c.Send(packet)
	if err != nil {
		c.t.Fatalf("%s: %v", packet, err)
	}
	return reply
}

func (c *client) want(packet, want string) {
	c.t.Helper()
	if got := c.must(packet); got != want {
		c.t.Fatalf("%s: got reply %q, want %q", packet, got, want)
	}
}

// read reads memory in binary, up to the first byte that cannot be had.
func (c *client) read(addr uint64, n int) []byte {
	c.t.Helper()
	var mem []byte
	for len(mem) < n {
		reply := c.must(fmt.Sprintf("x%x,%x", addr+uint64(len(mem)), min(n-len(mem), 0x8000)))
		data, ok := strings.CutPrefix(reply, "b")
		if !ok || data == "" {
			break
		}
		mem = append(mem, data...)
	}
	return mem
}

// word reads a word, which must be there.
func (c *client) word(addr uint64) uint64 {
	c.t.Helper()
	b := c.read(addr, 8)
	if len(b) != 8 {
		c.t.Fatalf("%#x cannot be read", addr)
	}
	return binary.LittleEndian.Uint64(b)
}

// gdb runs the machine's gdb on a server and gives what it prints.
func (s *server) gdb(args ...string) string {
	s.t.Helper()
	return runGDB(s.t, true, append([]string{"-ex", "target remote " + s.addr}, args...)...)
}

// runGDB runs the machine's gdb, which must succeed or fail as told.
func runGDB(t *testing.T, succeed bool, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	args = append([]string{"-nx", "-batch", "-iex", "set confirm off", "-iex", "set pagination off"}, args...)
	out, err := exec.CommandContext(ctx, "gdb", args...).CombinedOutput()
	if (err == nil) != succeed {
		t.Fatalf("gdb: %v, want success %v\n%s", err, succeed, out)
	}
	return string(out)
}

// ticks checks that a guest runs.
func ticks(t *testing.T, g *lab.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := g.WaitTick(ctx, 2); err != nil {
		t.Fatalf("guest does not tick: %v", err)
	}
}

// paused tells whether the toolstack sees a guest as paused.
func paused(t *testing.T, h *lab.Host, g *lab.Guest) bool {
	t.Helper()
	for line := range strings.Lines(labtest.Output(t, h, "xl list")) {
		if f := strings.Fields(line); len(f) >= 5 && f[0] == g.Name() {
			return strings.Contains(f[4], "p")
		}
	}
	t.Fatalf("xl list does not know %s", g.Name())
	return false
}

// warnings are lines of a guest's console that say that something went wrong. A
// guest that was paused for long complains of a soft lockup, which is no harm
// done: that it ticks is checked beside.
var warnings = regexp.MustCompile(`(WARNING:|BUG: [^s]|\bOops\b|Bad FPU state|general protection)`)

// healthy checks that a guest's kernel has found nothing to complain about.
func healthy(t *testing.T, g *lab.Guest) {
	t.Helper()
	for line := range strings.Lines(g.Console()) {
		if warnings.MatchString(line) {
			t.Errorf("%s complains: %s", g.Name(), line)
		}
	}
}

// firstDifference gives the index of the first byte that differs, or -1.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

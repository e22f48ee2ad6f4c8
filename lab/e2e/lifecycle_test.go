// This file shows that a guest gets back what it had, whatever ends a session.

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// Ten clients attach and detach, in all the ways there are; the guest ticks on
// after each.
func TestAttachDetachRounds(t *testing.T) {
	h, g := idle(t, machine)
	ends := []func(s *server, c *client){
		func(s *server, c *client) { c.want("D", "OK") },
		func(s *server, c *client) { c.want(fmt.Sprintf("D;%x", g.ID()), "OK") },
		func(s *server, c *client) { c.Post("k") },
		func(s *server, c *client) { c.Close() },
		func(s *server, c *client) { c.Post("vCont;c"); c.Close() },
	}
	for round := range 10 {
		s := attach(t, h, g, "--once")
		if !paused(t, h, g) {
			t.Fatalf("round %d: guest is not paused after attach", round)
		}
		c := s.dial()
		c.must("?")
		c.must("g")
		ends[round%len(ends)](s, c)
		s.exit()
		if paused(t, h, g) {
			t.Fatalf("round %d: guest is still paused", round)
		}
		ticks(t, g)
	}
	healthy(t, g)
}

// A signal to the server gives the guest back, with and without a client.
func TestSignals(t *testing.T) {
	h, g := idle(t, machine)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, client %v", sig, connected), func(t *testing.T) {
				s := attach(t, h, g)
				if connected {
					s.dial().must("g")
				}
				if err := s.Signal(sig); err != nil {
					t.Fatal(err)
				}
				s.exit()
				if paused(t, h, g) {
					t.Error("guest is still paused")
				}
				ticks(t, g)
			})
		}
	}
}

// A pause by the user survives an attach and a detach.
func TestUsersPauseStays(t *testing.T) {
	h, g := idle(t, machine)
	labtest.Output(t, h, "xl pause "+g.Name())
	s := attach(t, h, g)
	c := s.dial()
	c.must("g")
	c.want("D", "OK")
	s.exit()
	if !paused(t, h, g) {
		t.Error("guest runs, which its user had paused")
	}
	labtest.Output(t, h, "xl unpause "+g.Name())
	ticks(t, g)
}

// While one client debugs, a second is told why it cannot; when the first goes
// away, the guest runs until the next one comes.
func TestSecondClient(t *testing.T) {
	h, g := idle(t, machine)
	s := attach(t, h, g)
	c := s.dial()
	c.must("g")
	out := gdbFails(t, s)
	if !strings.Contains(out, fmt.Sprintf("domain %d is being debugged by", g.ID())) {
		t.Errorf("gdb does not say why it was refused:\n%s", out)
	}
	c.must("g") // the first is none the worse
	c.Close()
	ticks(t, g)
	again := s.dial()
	if !paused(t, h, g) {
		t.Error("guest is not paused for the next client")
	}
	again.must("g")
	again.want("D", "OK")
	s.exit()
	ticks(t, g)
}

// c resumes and the interrupt byte pauses, in guests of each kind: TestKASLR does so to
// an HVM guest, which takes long to boot.
func TestContinueAndInterrupt(t *testing.T) {
	h, g := idle(t, machine)
	continueAndInterrupt(t, h, g, 3)
	h, g = working(t, lab.PVH)
	continueAndInterrupt(t, h, g, 1)
}

func continueAndInterrupt(t *testing.T, h *lab.Host, g *lab.Guest, rounds int) {
	t.Helper()
	s := attach(t, h, g)
	c := s.dial()
	for range rounds {
		if err := c.Post("vCont;c"); err != nil {
			t.Fatal(err)
		}
		ticks(t, g)
		if err := c.Interrupt(); err != nil {
			t.Fatal(err)
		}
		stop, err := c.Receive()
		if err != nil || !strings.HasPrefix(stop, "T02") {
			t.Fatalf("got stop reply %q, %v, want T02", stop, err)
		}
		before := g.Ticks()
		time.Sleep(2500 * time.Millisecond)
		if g.Ticks() > before+1 {
			t.Errorf("guest counts on from %d to %d while it is stopped", before, g.Ticks())
		}
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

// A domain that is destroyed under a client ends the session, and the server.
func TestDestroyed(t *testing.T) {
	h := host(t, machine)
	g := labtest.Guest(t, h, lab.GuestConfig{})
	s := attach(t, h, g)
	c := s.dial()
	if err := c.Post("vCont;c"); err != nil {
		t.Fatal(err)
	}
	if err := g.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stop, err := c.Receive(); err != nil || !strings.HasPrefix(stop, "W00") {
		t.Fatalf("got stop reply %q, %v, want W00", stop, err)
	}
	c.Close()
	s.exit()
	if said := string(s.Stderr()); !strings.Contains(said, "is gone") {
		t.Errorf("server does not say that the domain is gone:\n%s", said)
	}
}

// What cannot be attached to gives a sentence that says why.
func TestRefusals(t *testing.T) {
	h := host(t, machine)
	for _, tt := range []struct{ domain, want string }{
		{"0", "domain 0 runs this program"},
		{"Domain-0", "domain 0 runs this program"},
		{"32752", "one of the hypervisor's own domains"},
		{"32754", "one of the hypervisor's own domains"},
		{"31999", "no such domain"},
		{"nosuch", `no domain is called "nosuch"`},
	} {
		res, err := h.Run(t.Context(), "gdbserver-xen attach --listen stdio "+tt.domain+" </dev/null")
		if err != nil {
			t.Fatal(err)
		}
		if res.ExitCode != 1 || !strings.Contains(string(res.Stderr), tt.want) {
			t.Errorf("%s: got exit code %d and %q, want 1 and %q", tt.domain, res.ExitCode, res.Stderr, tt.want)
		}
	}
}

// The server idles in little memory.
func TestResidentMemory(t *testing.T) {
	const mostMB = 30
	h, g := idle(t, machine)
	s := attach(t, h, g)
	c := s.dial()
	c.must("g")
	out := labtest.Output(t, h, "grep VmRSS /proc/$(pidof gdbserver-xen)/status")
	kb, err := strconv.Atoi(strings.Fields(out)[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KB resident", kb)
	if kb > mostMB<<10 {
		t.Errorf("got %d KB resident, want at most %d MB", kb, mostMB)
	}
	c.want("D", "OK")
	s.exit()
}

// gdbFails runs gdb on a server that turns it away, and gives what it prints.
func gdbFails(t *testing.T, s *server) string {
	t.Helper()
	return runGDB(t, false, "-ex", "target remote "+s.addr)
}

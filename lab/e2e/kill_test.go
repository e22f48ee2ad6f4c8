// This file shows that a guest gets back what it had when the server is killed.

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// killed kills the server by a command in dom0, and gives how long it takes from
// then until the toolstack does not see the guest as paused any more.
func (s *server) killed(g *lab.Guest, kill string) time.Duration {
	s.t.Helper()
	out := labtest.Output(s.t, s.host, fmt.Sprintf(`
up() { cut -d' ' -f1 /proc/uptime; }
before=$(up)
%s
for i in $(seq 200); do
	xl list %s | tail -n1 | awk '{ exit $5 ~ /p/ }' && break
done
echo $before $(up)`, kill, g.Name()))
	var before, after float64
	if _, err := fmt.Sscan(out, &before, &after); err != nil {
		s.t.Fatalf("%q: %v", out, err)
	}
	return time.Duration((after - before) * float64(time.Second))
}

// The guardian gives the guest back, whatever the server did, and lets the next one
// attach. How long the guest stands still is printed.
func TestKilled(t *testing.T) {
	h, g := idle(t, machine)
	for _, tt := range []struct {
		name string
		kill string
		do   func(s *server)
	}{
		{"no client", "kill -9 $(pidof gdbserver-xen)", func(*server) {}},
		{"stopped", "kill -9 $(pidof gdbserver-xen)", func(s *server) { s.dial().must("g") }},
		{"running", "kill -9 $(pidof gdbserver-xen)", func(s *server) { s.dial().Post("vCont;c") }},
		{"by name", "killall -9 gdbserver-xen", func(s *server) { s.dial().must("g") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := attach(t, h, g)
			tt.do(s)
			t.Logf("guest runs after %v", s.killed(g, tt.kill))
			<-s.Done()
			if paused(t, h, g) {
				t.Fatal("guest is still paused")
			}
			ticks(t, g)
			s = attach(t, h, g)
			if said := string(s.Stderr()); strings.Contains(said, "undid") {
				t.Errorf("something was left to undo:\n%s", said)
			}
			s.dial().want("D", "OK")
			s.exit()
			ticks(t, g)
		})
	}
	healthy(t, g)
}

// What the guardian has to say is in the kernel's log if nobody reads the
// server's standard error any more.
func TestKilledUnseen(t *testing.T) {
	h, g := idle(t, machine)
	labtest.Output(t, h, fmt.Sprintf(
		"(gdbserver-xen attach --listen localhost:0 %s 2>&1 </dev/null | head -n1 >/tmp/said) >/dev/null 2>&1 & while ! [ -s /tmp/said ]; do sleep 0.1; done",
		g.Name()))
	labtest.Output(t, h, "kill -9 $(pidof gdbserver-xen); while pidof xen-guardian; do sleep 0.1; done")
	if paused(t, h, g) {
		t.Error("guest is still paused")
	}
	want := fmt.Sprintf("gdbserver-xen: the server of domain %d is gone", g.ID())
	if log := labtest.Output(t, h, "dmesg"); !strings.Contains(log, want) {
		t.Errorf("no %q in the kernel's log", want)
	}
	ticks(t, g)
}

// A pause by the user survives a kill of the server.
func TestUsersPauseSurvivesKill(t *testing.T) {
	h, g := idle(t, machine)
	labtest.Output(t, h, "xl pause "+g.Name())
	s := attach(t, h, g)
	s.dial().must("g")
	labtest.Output(t, h, "kill -9 $(pidof gdbserver-xen); while pidof xen-guardian; do sleep 0.1; done")
	<-s.Done()
	if !paused(t, h, g) {
		t.Error("guest runs, which its user had paused")
	}
	labtest.Output(t, h, "xl unpause "+g.Name())
	ticks(t, g)
}

// Both are killed: the guest is given back by recover, or by the next attach.
func TestBothKilled(t *testing.T) {
	h, g := idle(t, machine)
	const had = "undid what a gdbserver-xen that was killed had left in domain %d: it is as it was"
	kill := func() {
		t.Helper()
		s := attach(t, h, g)
		s.dial().must("g")
		// A server that is stopped cannot start another guardian.
		labtest.Output(t, h, "kill -STOP $(pidof gdbserver-xen); kill -9 $(pidof xen-guardian); kill -9 $(pidof gdbserver-xen)")
		<-s.Done()
		if !paused(t, h, g) {
			t.Fatal("guest is not paused: who gave it back?")
		}
	}
	command := func(command, want string) {
		t.Helper()
		res, err := h.Run(t.Context(), command)
		if err != nil || res.ExitCode != 0 || !strings.Contains(string(res.Stderr), want) {
			t.Errorf("%s: exit code %d, %v, %q, want %q", command, res.ExitCode, err, res.Stderr, want)
		}
	}

	kill()
	command("gdbserver-xen recover "+g.Name(), fmt.Sprintf(had, g.ID()))
	if paused(t, h, g) {
		t.Error("guest is still paused after recover")
	}
	ticks(t, g)
	command("gdbserver-xen recover "+g.Name(), fmt.Sprintf("nothing was left in domain %d", g.ID()))

	kill()
	s := attach(t, h, g)
	if said := string(s.Stderr()); !strings.Contains(said, fmt.Sprintf(had, g.ID())) {
		t.Errorf("server does not say what it has undone:\n%s", said)
	}
	s.dial().want("D", "OK")
	s.exit()
	if paused(t, h, g) {
		t.Error("guest is still paused after attach and detach")
	}
	ticks(t, g)
	healthy(t, g)
}

// A domain is debugged by one server at a time.
func TestSecondServer(t *testing.T) {
	h, g := idle(t, machine)
	s := attach(t, h, g)
	pid := strings.TrimSpace(labtest.Output(t, h, "pidof gdbserver-xen"))
	for _, command := range []string{"attach --listen stdio", "doctor", "recover"} {
		res, err := h.Run(t.Context(), "gdbserver-xen "+command+" "+g.Name()+" </dev/null")
		want := fmt.Sprintf("domain %d is being debugged by process %s: detach that debugger first, or end that process\n", g.ID(), pid)
		if err != nil || res.ExitCode != 1 || !strings.HasSuffix(string(res.Stderr), want) {
			t.Errorf("%s: exit code %d, %v, %q, want %q", command, res.ExitCode, err, res.Stderr, want)
		}
	}
	s.dial().want("D", "OK")
	s.exit()
	ticks(t, g)
}

// A guardian is small, and what looks for memory to free does not choose it.
func TestGuardianIsSmall(t *testing.T) {
	const mostMB = 12
	h, g := idle(t, machine)
	s := attach(t, h, g)
	out := labtest.Output(t, h, "cd /proc/$(pidof xen-guardian); cat oom_score_adj; grep VmRSS status; grep Threads status")
	f := strings.Fields(out)
	if f[0] != "-1000" {
		t.Errorf("oom_score_adj is %s", f[0])
	}
	kb, err := strconv.Atoi(f[2])
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.Join(f, " "))
	if kb > mostMB<<10 {
		t.Errorf("got %d KB resident, want at most %d MB", kb, mostMB)
	}
	s.dial().want("D", "OK")
	s.exit()
	// Lock files stay: somebody may be waiting for one.
	if out := labtest.Output(t, h, "pidof xen-guardian; ls /run/gdbserver-xen | grep -v '[.]lock$'; true"); out != "" {
		t.Errorf("left behind: %q", out)
	}
}

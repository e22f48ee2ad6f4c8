package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"gdbserver-xen/internal/guardian"
	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp/rsptest"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// leave leaves domain 3 paused, as a server does that is killed together with
// its guardian.
func leave(t *testing.T) {
	t.Helper()
	s, err := guardian.Take(t.Context(), sessionDir, 3, guest.LedgerSize)
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := guest.NewLedger(s.Journal())
	if err != nil {
		t.Fatal(err)
	}
	host, err := openHost()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Attach(host, 3, ledger); err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// unpause takes back what leave has done, which a fake hypervisor keeps count of.
func unpause(t *testing.T) {
	t.Helper()
	host, err := openHost()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := host.Unpause(3); err != nil && !errors.Is(err, xen.ErrNoDomain) && !errors.Is(err, xen.ErrNotPaused) {
		t.Error(err)
	}
}

func TestServerKilled(t *testing.T) {
	cmd, said := onFake(t, "attach", "--listen", ":0", "3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", said.wait(t, "listening on "))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send(t, rsptest.NewClient(conn), "qC", "QC1")
	cmd.Process.Kill()
	said.wait(t, "gdbserver-xen: the server of domain 3 is gone, what it left in the domain was undone: it is as it was")
	said.wait(t, "guardian's fake: domain 3 is paused 0 times")
	cmd.Wait()
}

func TestSecondServer(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, "attach", "--listen", ":0", "3")
	c := s.dial("tcp")
	refusal := fmt.Sprintf("gdbserver-xen: domain 3 is being debugged by process %d: detach that debugger first, or end that process\n", os.Getpid())
	for _, args := range [][]string{{"attach", "--listen", ":0", "3"}, {"doctor", "3"}, {"bt", "3"}, {"recover", "3"}} {
		other := start(t, args...)
		other.ends(1)
		if other.String() != refusal {
			t.Errorf("%s: it said %q, want %q", args[0], other, refusal)
		}
	}
	paused(t, d, 1)
	readText(t, c)
	detach(t, c)
	s.ends(0)
	s = start(t, "attach", "--listen", ":0", "3")
	detach(t, s.dial("tcp"))
	s.ends(0)
	paused(t, d, 0)
}

func TestAttachUndoesFirst(t *testing.T) {
	d := fakeDomain(t, 0)
	leave(t)
	paused(t, d, 1)
	s := start(t, "attach", "--listen", ":0", "3")
	c := s.dial("tcp")
	s.wait(t, "gdbserver-xen: undid what a gdbserver-xen that was killed had left in domain 3: it is as it was")
	paused(t, d, 1)
	detach(t, c)
	s.ends(0)
	paused(t, d, 0)
}

func TestRecover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		since func(d *xentest.Domain)
		want  string
		left  int // pauses
	}{
		{"paused", func(*xentest.Domain) {}, "had left in domain 3: it is as it was\n", 0},
		{"gone", func(d *xentest.Domain) { d.Destroy() }, "had left in domain 3: it is gone, and nothing is left to undo\n", 1},
		{"another with its number", func(d *xentest.Domain) { d.UUID[0]++ }, "had left in domain 3: it is gone, and nothing is left to undo\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := fakeDomain(t, 0)
			leave(t)
			tt.since(d)
			s := start(t, "recover", "3")
			s.ends(0)
			if !strings.HasSuffix(s.String(), tt.want) {
				t.Errorf("it said %q, want %q", s, tt.want)
			}
			paused(t, d, tt.left)
			s = start(t, "recover", "3")
			s.ends(0)
			if want := "gdbserver-xen: nothing was left in domain 3\n"; s.String() != want {
				t.Errorf("it said %q, want %q", s, want)
			}
			paused(t, d, tt.left)
			unpause(t)
		})
	}
}

// A journal that is not understood is kept, and the domain left alone.
func TestRecoverUnknown(t *testing.T) {
	d := fakeDomain(t, 0)
	leave(t)
	s, err := guardian.Take(t.Context(), sessionDir, 3, guest.LedgerSize)
	if err != nil {
		t.Fatal(err)
	}
	s.Journal()[0]++
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"recover", "3"}, {"attach", "--listen", ":0", "3"}} {
		s := start(t, args...)
		s.ends(1)
		if !strings.Contains(s.String(), "left things in domain 3 that cannot be undone: this is no record of a debugging session") {
			t.Errorf("it said %q", s)
		}
	}
	paused(t, d, 1)
	unpause(t)
}

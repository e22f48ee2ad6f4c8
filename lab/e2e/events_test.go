// This file is about domains that end, move or change while a client waits for a
// stop, with a breakpoint in them that is hit all the time.

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// trapped is hitAllTheTime with a guest that traps itself.
func trapped(t *testing.T, h *lab.Host, kind lab.Kind) (g *lab.Guest, s *server, c *client, text []byte) {
	t.Helper()
	g = labtest.Guest(t, h, lab.GuestConfig{Kind: kind, MemoryMB: 128, Cmdline: "work=traps sysrq_always_enabled"})
	// Until then its kernel patches itself for them, which Xen 4.17 takes amiss beside
	// int3 of ours on a processor that does not tell an instruction's length, as QEMU's.
	readOwnTraps(t, g)
	s, c, text = hitAllTheTime(t, h, g)
	return g, s, c, text
}

// hitAllTheTime gives a client that waits for a stop while a breakpoint that does not
// count is hit in the guest all the time. text is from before.
func hitAllTheTime(t *testing.T, h *lab.Host, g *lab.Guest) (s *server, c *client, text []byte) {
	t.Helper()
	s = attach(t, h, g)
	c = s.dial()
	text = c.text(h)
	c.want(fmt.Sprintf("Z0,%x,1", symbolAddress(t, h, "do_nanosleep"))+falseCondition, "OK")
	if err := c.Post("vCont;c"); err != nil {
		t.Fatal(err)
	}
	ticks(t, g)
	return s, c, text
}

// text reads code of a guest's kernel: what there is at the breakpoint of
// trapped, and the handler whose place the parking spot takes.
func (c *client) text(h *lab.Host) []byte {
	c.t.Helper()
	return append(c.read(symbolAddress(c.t, h, "do_nanosleep"), 16),
		c.read(symbolAddress(c.t, h, "xen_asm_exc_coproc_segment_overrun"), 16)...)
}

// stopSoon is stop for what takes the toolstack a while.
func (c *client) stopSoon(within time.Duration) string {
	c.t.Helper()
	for deadline := time.Now().Add(within); ; {
		reply, err := c.Receive()
		switch {
		case err == nil && !strings.HasPrefix(reply, "O"):
			return reply
		case err != nil && time.Now().After(deadline):
			c.t.Fatalf("wait for a stop: %v", err)
		}
	}
}

// nothingLeft checks that no journal is left to undo.
func nothingLeft(t *testing.T, h *lab.Host) {
	t.Helper()
	// A guardian empties the journal of what it has undone, and then removes it: either will do.
	out := labtest.Output(t, h, `pidof gdbserver-xen xen-guardian
for f in /run/gdbserver-xen/*.journal; do [ -e $f ] && [ -n "$(head -c 8 $f | tr -d '\000')" ] && echo $f; done; true`)
	if strings.TrimSpace(out) != "" {
		t.Errorf("left behind: %q", out)
	}
}

// The end of a domain is the end of the session: W00, and a server that says
// nothing of errors.
func TestDomainEnds(t *testing.T) { eachKindHere(t, domainEnds) }

func domainEnds(t *testing.T, h *lab.Host, kind lab.Kind) {
	for _, tt := range []struct {
		name, command string
		pv            bool // only
	}{
		{"destroyed", "", false},
		{"rebooted", "xl reboot %s", true}, // for the next is the same, and quicker
		{"reboots itself", "xl sysrq %s b", false},
		// Linux 6.1 has nothing to power a PVH guest off by: it says that it has, and
		// goes on.
		{"powered off", "xl sysrq %s o", true},
	} {
		if tt.pv && kind != lab.PV {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			g, s, c, _ := trapped(t, h, kind)
			if tt.command == "" {
				if err := g.Destroy(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				labtest.Output(t, h, fmt.Sprintf(tt.command, g.Name()))
			}
			if stop := c.stopSoon(40 * time.Second); !strings.HasPrefix(stop, "W00") {
				t.Errorf("got stop reply %q, want W00", stop)
			}
			c.Close()
			s.exit()
			nothingLeft(t, h)
		})
	}
}

// A crash is a stop, in which all can be read.
func TestDomainCrashes(t *testing.T) { eachKindHere(t, domainCrashes) }

func domainCrashes(t *testing.T, h *lab.Host, kind lab.Kind) {
	g, s, c, text := trapped(t, h, kind)
	labtest.Output(t, h, "xl sysrq "+g.Name()+" c")
	if stop := c.stopSoon(40 * time.Second); !strings.HasPrefix(stop, "T06") {
		t.Fatalf("got stop reply %q, want T06", stop)
	}
	// The parking spot does not show while it is there.
	if got := c.text(h); !bytes.Equal(got, text) {
		t.Errorf("got % x of a crashed guest, want % x", got, text)
	}
	if rip := registers(c)["rip"]; int64(rip) >= 0 {
		t.Errorf("a kernel crashed at rip %#x", rip)
	}
	if stop := c.resume("vCont;c"); !strings.HasPrefix(stop, "T06") {
		t.Errorf("got stop reply %q when it is to go on, want T06", stop)
	}
	c.want("D", "OK")
	s.exit()
	nothingLeft(t, h)
}

// A domain that is saved leaves without what was planted in it: the session ends, and
// what goes on elsewhere is the guest's own.
func TestDomainLeaves(t *testing.T) {
	eachKindHere(t, func(t *testing.T, h *lab.Host, kind lab.Kind) {
		g, s, c, text := trapped(t, h, kind)
		leaves(t, h, g, s, c, "xl save %[1]s /run/%[1]s.save && xl restore /run/%[1]s.save; rm /run/%[1]s.save")
		readOwnTraps(t, g).worksOn(t, g, "after it was restored")
		backAgain(t, h, g, text)
	})
}

// A domain that migrates live has been copied with what was planted in it before it
// leaves, and is the guest's own where it goes on all the same.
func TestDomainMigrates(t *testing.T) {
	// xenconsoled has a log by the name that the domain has on its way. xl gives up on a
	// PV domain that is paused when it begins, as one is for moments that is debugged.
	const migrate = "ln -s guest-%[1]s.log /share/console/guest-%[1]s--incoming.log; " +
		"for try in 1 2 3 4 5 6 7 8 9; do xl migrate -s '' %[1]s 'xl migrate-receive' && break; done"
	t.Run("pv", func(t *testing.T) {
		h := host(t, debuggable) // which has shadow paging
		g, s, c, text := trapped(t, h, lab.PV)
		leaves(t, h, g, s, c, migrate)
		readOwnTraps(t, g).worksOn(t, g, "after it has migrated")
		backAgain(t, h, g, text)
	})
	// While a guest migrates, Xen loses its int3 where somebody listens to vm_events, on
	// a processor that does not tell an instruction's length, as QEMU's: this one has none.
	t.Run("pvh", func(t *testing.T) {
		h := host(t, machine)
		g := labtest.Guest(t, h, lab.GuestConfig{Kind: lab.PVH, MemoryMB: 128, Cmdline: "work=sleep"})
		s, c, text := hitAllTheTime(t, h, g)
		leaves(t, h, g, s, c, migrate)
		ticks(t, g)
		backAgain(t, h, g, text)
	})
}

// leaves has a command take a guest away from under a client, and bring it back.
func leaves(t *testing.T, h *lab.Host, g *lab.Guest, s *server, c *client, command string) {
	t.Helper()
	const log = "/share/leaves.log"
	process, err := h.Command(t.Context(), fmt.Sprintf("("+command+") >"+log+" 2>&1", g.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			res, err := h.Run(context.WithoutCancel(t.Context()), "cat "+log)
			t.Logf("what took the guest away said: %v\n%s", err, res.Stdout)
		}
	})
	if stop := c.stopSoon(2 * time.Minute); !strings.HasPrefix(stop, "W00") {
		t.Errorf("got stop reply %q, want W00", stop)
	}
	c.Close()
	s.exit()
	nothingLeft(t, h)
	if res, err := process.Wait(); err != nil || res.ExitCode != 0 {
		t.Fatalf("%s: %v, exit code %d", command, err, res.ExitCode)
	}
}

// backAgain checks that a guest that was away has the code that it had, and can be
// attached to.
func backAgain(t *testing.T, h *lab.Host, g *lab.Guest, text []byte) {
	t.Helper()
	s := attach(t, h, g)
	c := s.dial()
	if got := c.text(h); !bytes.Equal(got, text) {
		t.Errorf("got % x, want % x", got, text)
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

// vCPUs that go and come back are threads that go and come back, and hit what is
// planted. One that is down at detach has its own traps when it comes back.
func TestVCPUsComeAndGo(t *testing.T) { eachKindHere(t, vcpusComeAndGo) }

func vcpusComeAndGo(t *testing.T, h *lab.Host, kind lab.Kind) {
	g, s, c, _ := trapped(t, h, kind)
	set := func(n int) { t.Helper(); setVCPUs(t, h, g, n) }
	interrupt := func() {
		t.Helper()
		if err := c.Interrupt(); err != nil {
			t.Fatal(err)
		}
		if stop := c.stop(); !strings.HasPrefix(stop, "T02") {
			t.Fatalf("got stop reply %q to an interrupt", stop)
		}
	}
	set(1)
	interrupt()
	if n := c.threads(); n != 1 {
		t.Errorf("got %d threads of 1 vCPU", n)
	}
	place := fmt.Sprintf("0,%x,1", symbolAddress(t, h, "do_idle"))
	c.want("Z"+place+falseCondition, "OK")
	c.runs(func() { set(2) })
	if n := c.threads(); n != 2 {
		t.Errorf("got %d threads of 2 vCPUs", n)
	}
	c.want("Z"+place, "OK")
	second := fmt.Sprintf("p%x.2", g.ID())
	for try := 0; stopThread(t, c.resume("vCont;c")) != second; try++ {
		if try == 100 {
			t.Fatal("the vCPU that came back does not come to a breakpoint")
		}
	}
	c.want("z"+place, "OK")
	c.runs(func() { set(1) })
	c.want("D", "OK")
	s.exit()
	set(2)
	readOwnTraps(t, g).worksOn(t, g, "after a vCPU came back")
	healthy(t, g)
}

// setVCPUs has a guest's kernel take its second vCPU down, or bring it up. The toolstack
// also takes a vCPU that we hold for one that is down, so the kernel is asked.
func setVCPUs(t *testing.T, h *lab.Host, g *lab.Guest, n int) {
	t.Helper()
	says := map[int]string{1: "CPU 1 is now offline", 2: "cpu 1 spinlock event irq"}[n]
	before := strings.Count(g.Console(), says)
	labtest.Output(t, h, fmt.Sprintf("xl vcpu-set %s %d", g.Name(), n))
	eventually(t, fmt.Sprintf("the guest has %d vCPUs", n), func() bool {
		return strings.Count(g.Console(), says) > before
	})
}

// threads tells how many there are.
func (c *client) threads() int {
	c.t.Helper()
	return strings.Count(c.must("qfThreadInfo"), ".")
}

// A vCPU that is stepped until it takes itself down is told to be gone, and takes nobody
// with it. When it comes up again, it is watched like the others.
func TestStepTakesDown(t *testing.T) { eachKindHere(t, stepTakesDown) }

func stepTakesDown(t *testing.T, h *lab.Host, kind lab.Kind) {
	g := labtest.Guest(t, h, lab.GuestConfig{Kind: kind, MemoryMB: 128, Cmdline: "work=sleep"})
	s := attach(t, h, g)
	c := s.dial()
	second := fmt.Sprintf("p%x.2", g.ID())
	place := fmt.Sprintf("0,%x,1", symbolAddress(t, h, "arch_cpu_idle_dead"))
	c.want("Z"+place, "OK")
	if err := c.Post("vCont;c"); err != nil {
		t.Fatal(err)
	}
	labtest.Output(t, h, "xl vcpu-set "+g.Name()+" 1")
	if stop := c.stopSoon(40 * time.Second); stopThread(t, stop) != second {
		t.Fatalf("got stop reply %q, want one of %s", stop, second)
	}
	c.want("z"+place, "OK")
	const most = 5000
	steps := 0
	for stop := ""; !strings.HasPrefix(stop, "T00"); steps++ {
		stop = c.resume("vCont;s:" + second)
		if !strings.HasPrefix(stop, "T00") && (stopThread(t, stop) != second || steps == most) {
			t.Fatalf("got stop reply %q to step %d", stop, steps)
		}
	}
	t.Logf("it was down after %d steps", steps)
	if n := c.threads(); n != 1 {
		t.Errorf("got %d threads of 1 vCPU", n)
	}
	c.runs(func() { ticks(t, g) })

	// A flag of the second processor's that each of its interrupts sets.
	flag := symbolAddress(t, h, "hardirq_stack_inuse") + c.word(symbolAddress(t, h, "__per_cpu_offset")+8)
	c.want(fmt.Sprintf("Z2,%x,1", flag), "OK")
	if err := c.Post("vCont;c"); err != nil {
		t.Fatal(err)
	}
	setVCPUs(t, h, g, 2)
	if stop := c.stopSoon(40 * time.Second); stopThread(t, stop) != second || !strings.Contains(stop, fmt.Sprintf("watch:%x;", flag)) {
		t.Errorf("got stop reply %q, want one of %s, which has written to %#x", stop, second, flag)
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

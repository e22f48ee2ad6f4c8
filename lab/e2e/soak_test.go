// This file puts a load on run control: many hits and steps over a busy guest,
// and servers that are killed in the middle of it.

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
	"gdbserver-xen/xen"
)

// envSoak says how often things are to be done.
const envSoak = "GDBSERVER_XEN_SOAK"

// soaking tells whether they are to be done more often than for a test.
func soaking() bool { return os.Getenv(envSoak) != "" }

// scaled gives how often to do something: less than what was asked for, unless
// the environment says otherwise.
func scaled(t *testing.T, least, most int) int {
	t.Helper()
	if soaking() {
		n, err := strconv.Atoi(os.Getenv(envSoak))
		if err != nil {
			t.Fatalf("%s: %v", envSoak, err)
		}
		return min(n, most)
	}
	return least
}

// textSize is how much of the kernel's text is compared: what is planted, the trap
// handlers and the parking spot are in it.
const textSize = 2 << 20

// soakConfig is a guest with more to do than there are CPUs for. Its watchdogs
// would take a stop for a hang.
var soakConfig = lab.GuestConfig{VCPUs: 4, Cmdline: "work=load nowatchdog rcupdate.rcu_cpu_stall_suppress=1"}

// Hits on code that all vCPUs run all the time, and steps, lose nothing and leave
// no trace: the guest counts as many hits itself.
func TestSoak(t *testing.T) {
	hits, steps := scaled(t, 200, 20000), scaled(t, 200, 20000)
	guest := soakConfig
	guest.Cmdline += " " + countingProbe
	eachControlled(t, guest, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		counters := probeCounters(t, h, g, c)
		counted := func() (n []int) {
			for _, at := range counters {
				n = append(n, int(c.word(at)))
			}
			return n
		}
		text := c.read(textStart, textSize)
		at := symbolAddress(t, h, "hrtimer_nanosleep")
		c.want(fmt.Sprintf("Z0,%x,1", at), "OK")
		before := counted()
		begin := time.Now()
		byThread := map[string]int{}
		for range hits {
			stop := c.resume("vCont;c")
			if !strings.Contains(stop, "swbreak") {
				t.Fatalf("got stop reply %q", stop)
			}
			byThread[stopThread(t, stop)]++
		}
		hitTime := time.Since(begin) / time.Duration(hits)
		told, now := make([]int, len(counters)), counted()
		for vcpu := range told {
			told[vcpu] = byThread[fmt.Sprintf("p%x.%x", g.ID(), vcpu+1)]
			now[vcpu] -= before[vcpu]
		}
		sameHits(t, told, now, 0)
		c.want(fmt.Sprintf("z0,%x,1", at), "OK")
		begin = time.Now()
		threads := []string{}
		for thread := range byThread {
			threads = append(threads, thread)
		}
		for i := range steps {
			thread := threads[i*len(threads)/steps]
			if stop := c.resume("vCont;s:" + thread); !strings.HasPrefix(stop, "T05") || stopThread(t, stop) != thread {
				t.Fatalf("got stop reply %q to a step of %s", stop, thread)
			}
		}
		stepTime := time.Since(begin) / time.Duration(steps)
		if len(byThread) != g.Config().VCPUs {
			t.Errorf("hits by thread: %v, want some on each of %d", byThread, g.Config().VCPUs)
		}
		if i := firstDifference(c.read(textStart, textSize), text); i >= 0 {
			t.Errorf("kernel text differs at %#x", textStart+uint64(i))
		}
		t.Logf("%d hits, %v each, by thread %v; %d steps, %v each", hits, hitTime.Round(10*time.Microsecond), byThread, steps, stepTime.Round(10*time.Microsecond))
		c.want("D", "OK")
		s.exit()
	})
}

// A parting is how a guest is let go. stop has the client stop at the next stop of
// the guest.
type parting struct {
	name string
	part func(s *server, c *client, stop func())
}

// signalled is a parting by a signal to the server.
func signalled(sig syscall.Signal) parting {
	return parting{sig.String(), func(s *server, _ *client, _ func()) {
		if err := s.Signal(sig); err != nil {
			s.t.Fatal(err)
		}
	}}
}

// A guest that is let go in the middle of run control, in whatever way, has all that
// it had, and ticks on. Most often the server is killed, which cannot clean up.
func TestKilledInRunControl(t *testing.T) {
	kill := signalled(syscall.SIGKILL)
	var partings []parting
	for range scaled(t, 1, 20) {
		partings = append(partings,
			signalled(syscall.SIGTERM),
			signalled(syscall.SIGINT),
			parting{"lost connection", func(_ *server, c *client, _ func()) { c.Close() }},
			parting{"detach", func(_ *server, c *client, stop func()) { stop(); c.want("D", "OK") }})
	}
	for range scaled(t, 4, 200) {
		partings = append(partings, kill)
	}
	guest := soakConfig
	guest.Cmdline = strings.Replace(guest.Cmdline, "work=load", "work=sleep", 1) // it is to tick after each
	guest.MemoryMB = 128                                                         // which is dumped
	eachControlled(t, guest, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		at := symbolAddress(t, h, "hrtimer_nanosleep")
		traps := trapsOf(t, g)
		sameTraps := func(when string) {
			t.Helper()
			for n, now := range trapsOf(t, g) {
				if now != traps[n] {
					t.Errorf("%s: traps of vCPU %d are\n%v, were\n%v", when, n, now, traps[n])
				}
			}
		}
		var before snapshot
		times := map[string]int{}
		for round, p := range partings {
			s := attach(t, h, g, "--once")
			c := s.dial()
			now := takeSnapshot(t, h, g, c)
			if why := now.differs(before); round > 0 && why != "" {
				t.Fatalf("round %d, after %s: %s", round, partings[round-1].name, why)
			}
			before = now
			c.want(fmt.Sprintf("Z0,%x,1", at), "OK")
			c.want(fmt.Sprintf("Z2,%x,8", symbolAddress(t, h, "init_task")), "OK")
			enough := make(chan struct{})
			ended := c.stopsAndSteps(enough)
			wait := func() {
				t.Helper()
				select {
				case <-ended:
				case <-time.After(30 * time.Second):
					t.Fatalf("round %d, %s: the session goes on", round, p.name)
				}
			}
			time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
			p.part(s, c, func() { close(enough); wait() })
			wait()
			if p.name != kill.name {
				s.exit()
			}
			ticks(t, g)
			times[p.name]++
			// Trap tables of other kinds are memory, which takes long to dump.
			if times[p.name] == 1 && g.Config().Kind == lab.PV {
				sameTraps(p.name)
			}
		}
		s := attach(t, h, g)
		c := s.dial()
		if why := takeSnapshot(t, h, g, c).differs(before); why != "" {
			t.Fatalf("in the end: %s", why)
		}
		c.want("D", "OK")
		s.exit()
		sameTraps("in the end")
		t.Logf("let go %d times: %v", len(partings), times)
	})
}

// stopsAndSteps lets the guest go on from hit to hit, with three steps after each,
// until the connection ends or, at a stop, there were enough. ended is closed then.
func (c *client) stopsAndSteps(enough <-chan struct{}) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := "vCont;c"
		for i := 1; ; i++ {
			if c.Post(packet) != nil {
				return
			}
			stop, err := c.Receive()
			for err == nil && strings.HasPrefix(stop, "O") { // what the server has to say
				stop, err = c.Receive()
			}
			if err != nil {
				return
			}
			select {
			case <-enough:
				return
			default:
			}
			packet = "vCont;c"
			if i%4 != 0 {
				_, thread, _ := strings.Cut(stop, "thread:")
				thread, _, _ = strings.Cut(thread, ";")
				packet = "vCont;s:" + thread
			}
		}
	}()
	return done
}

// vcpuTraps is what decides where a vCPU traps to, and when.
type vcpuTraps struct {
	table [256]xen.TrapInfo
	debug [5]uint64 // DR0 to DR3 and DR7
}

// trapsOf gives the traps of a guest's vCPUs by a witness that knows nothing of the
// server: xl dump-core.
func trapsOf(t *testing.T, g *lab.Guest) []vcpuTraps {
	t.Helper()
	core := dumpCore(t, g)
	traps := make([]vcpuTraps, g.Config().VCPUs)
	for n := range traps {
		b, err := core.VCPUContext(n)
		if err != nil {
			t.Fatal(err)
		}
		var ctx xen.VCPUContext
		if _, err := binary.Decode(b, binary.LittleEndian, &ctx); err != nil {
			t.Fatalf("vCPU %d: %v", n, err)
		}
		traps[n] = vcpuTraps{ctx.Traps, [5]uint64(append(ctx.DebugRegs[:4:4], ctx.DebugRegs[7]))}
	}
	return traps
}

// snapshot is what a guest must have back.
type snapshot struct {
	text   []byte
	seeded bool   // the kernel has rewritten the branches that wait for random numbers
	online string // the vCPUs, as the toolstack sees them
	dr7    [4]uint64
}

func takeSnapshot(t *testing.T, h *lab.Host, g *lab.Guest, c *client) snapshot {
	t.Helper()
	s := snapshot{text: c.read(textStart, textSize), seeded: strings.Contains(g.Console(), "crng init done")}
	for n := range g.Config().VCPUs {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), n+1), "OK")
		s.dr7[n] = registers(c)["dr7"]
	}
	s.online = labtest.Output(t, h, fmt.Sprintf("xl vcpu-list %s | awk '{print $3, $5}' | tr -d 'rb'", g.Name()))
	return s
}

// differs tells what is not as it was.
func (s snapshot) differs(old snapshot) string {
	switch i := firstDifference(s.text, old.text); {
	case i >= 0 && s.seeded == old.seeded:
		return fmt.Sprintf("kernel text differs at %#x", textStart+uint64(i))
	case s.dr7 != old.dr7:
		return fmt.Sprintf("dr7 is %#x, was %#x", s.dr7, old.dr7)
	case len(bytes.Fields([]byte(s.online))) != len(bytes.Fields([]byte(old.online))):
		return fmt.Sprintf("vCPUs are %s, were %s", s.online, old.online)
	}
	return ""
}

// This file shows that what a guest traps itself for goes on working while it is
// debugged: kprobes, and programs that use int3 and the trap flag.

package e2e

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// ownTraps is what a guest with work=traps has counted of its own traps.
type ownTraps struct {
	entry, inside int // hits of two kprobes in one function: by ftrace, and by int3
	missed        int // hits of either that were not handled
	breaks, steps int // signals of a program that traps itself
	others        int // signals that it has not asked for
	writes        int // that a hardware breakpoint of its own has seen; QEMU sees some twice
}

var (
	probesLine = regexp.MustCompile(`(?m)^probes entry (\d+) (\d+) inside (\d+) (\d+)\r?\n`)
	trapsLine  = regexp.MustCompile(`(?m)^traps (\d+) (\d+) (\d+) (\d+)\r?\n`)
)

// readOwnTraps gives what the guest has printed last.
func readOwnTraps(t *testing.T, g *lab.Guest) ownTraps {
	t.Helper()
	last := func(line *regexp.Regexp) []int {
		var numbers []int
		if all := line.FindAllStringSubmatch(g.Console(), -1); len(all) > 0 {
			for _, s := range all[len(all)-1][1:] {
				n, _ := strconv.Atoi(s)
				numbers = append(numbers, n)
			}
		}
		return numbers
	}
	eventually(t, "the guest has traps of its own", func() bool { return last(probesLine) != nil && last(trapsLine) != nil })
	probes, traps := last(probesLine), last(trapsLine)
	return ownTraps{
		entry: probes[0], inside: probes[2], missed: probes[1] + probes[3],
		breaks: traps[0], steps: traps[1], others: traps[2], writes: traps[3],
	}
}

// worksOn checks that the guest's own traps go on, and that none was lost: that
// the probe by int3 is hit as often as the other one in its function, and that
// each round of the program has one breakpoint, six steps and one write.
func (before ownTraps) worksOn(t *testing.T, g *lab.Guest, when string) ownTraps {
	t.Helper()
	const rounds, underway = 50, 4
	// Beside a breakpoint that is hit all the time, a guest in QEMU is slow.
	now := before
	for deadline := time.Now().Add(2 * time.Minute); now.breaks < before.breaks+rounds || now.inside < before.inside+rounds; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: from %+v to %+v in 2 minutes", when, before, now)
		}
		time.Sleep(200 * time.Millisecond)
		now = readOwnTraps(t, g)
	}
	t.Logf("%s: %+v", when, now)
	// entry is read a moment before inside.
	if d := (now.inside - before.inside) - (now.entry - before.entry); d < -underway || d > underway {
		t.Errorf("%s: from %+v to %+v: the probe by int3 has not been hit as often as the other", when, before, now)
	}
	steps, others := now.steps, now.others
	if g.Config().Kind != lab.PV {
		// On AMD's processors Xen has RFLAGS.TF say that a #DB is a step's, which the
		// last step of a round takes away. DR6 says so too only if the vCPU has read it
		// since it was scheduled last (svm_inject_event, svm_save_dr): without a
		// debugger too.
		steps, others = steps+others, 0
	}
	if now.missed != before.missed || others != 0 || steps != 6*now.breaks || now.writes < now.breaks {
		t.Errorf("%s: from %+v to %+v: traps were lost", when, before, now)
	}
	return now
}

// falseCondition is a condition that does not hold: const8 0, end.
const falseCondition = ";X3,220027"

// A guest's kprobes, and a program in it that traps itself, do not notice a
// debugger whose breakpoint is hit all the time, nor one that steps, nor a
// breakpoint right at a kprobe's int3, nor a watchpoint beside its own.
func TestOwnTraps(t *testing.T) { eachKindHere(t, ownTrapsWorkOn) }

func ownTrapsWorkOn(t *testing.T, h *lab.Host, kind lab.Kind) {
	g := labtest.Guest(t, h, lab.GuestConfig{Kind: kind, MemoryMB: 128, Cmdline: "work=traps"})
	counts := readOwnTraps(t, g).worksOn(t, g, "before")

	s := attach(t, h, g)
	c := s.dial()
	hot := fmt.Sprintf("0,%x,1", symbolAddress(t, h, "do_nanosleep"))
	probed := symbolAddress(t, h, "hrtimer_nanosleep") + 5
	if got := c.read(probed, 1); string(got) != "\xcc" {
		t.Fatalf("got % x where the guest has an int3", got)
	}

	c.want("Z"+hot+falseCondition, "OK")
	c.runs(func() { counts = counts.worksOn(t, g, "beside a breakpoint") })

	// The client sees the guest's int3, whether or not there is one of its own.
	place := fmt.Sprintf("0,%x,1", probed)
	c.want("Z"+place+falseCondition, "OK")
	if got := c.read(probed, 1); string(got) != "\xcc" {
		t.Errorf("got % x where the guest has an int3, and so have we", got)
	}
	c.runs(func() { counts = counts.worksOn(t, g, "under a breakpoint at the probe") })
	c.want("Z"+place, "OK") // and without the condition
	for range 10 {
		if stop := c.resume("vCont;c"); !strings.Contains(stop, "swbreak") || registers(c)["rip"] != probed {
			t.Fatalf("got stop reply %q at %#x", stop, registers(c)["rip"])
		}
	}
	c.want("z"+place, "OK")

	c.want("Z"+hot, "OK")
	thread := stopThread(t, c.resume("vCont;c"))
	c.want("z"+hot, "OK")
	begin := time.Now()
	for range 200 {
		if stop := c.resume("vCont;s:" + thread + ";c"); !strings.HasPrefix(stop, "T05") || stopThread(t, stop) != thread {
			t.Fatalf("got stop reply %q to a step of %s", stop, thread)
		}
	}
	t.Logf("200 steps in %v", time.Since(begin).Round(time.Millisecond))
	c.runs(func() { counts = counts.worksOn(t, g, "after steps") })

	// Nobody writes there, but each stop sets the debug registers of all vCPUs.
	watch := fmt.Sprintf("2,%x,8", symbolAddress(t, h, "linux_banner"))
	c.want("Z"+watch, "OK")
	for range 50 {
		c.interruptAfter(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
	c.runs(func() { counts = counts.worksOn(t, g, "beside a watchpoint") })

	c.want("D", "OK")
	s.exit()
	counts.worksOn(t, g, "after detach")
	healthy(t, g)
}

// What is planted where the guest has a kprobe's int3 is not ours any more when
// the guest has taken that away: then its code is left as it is, and the client
// is told.
func TestRewritten(t *testing.T) {
	h := host(t, machine)
	g := labtest.Guest(t, h, lab.GuestConfig{Cmdline: "work=toggle"})
	probed := symbolAddress(t, h, "hrtimer_nanosleep") + 5
	place := fmt.Sprintf("0,%x,1", probed)
	// toggled waits until the guest has switched the probe once more.
	toggled := func(to string) {
		t.Helper()
		n := strings.Count(g.Console(), "inside "+to)
		eventually(t, "the guest switches its probe to "+to, func() bool {
			return strings.Count(g.Console(), "inside "+to) > n
		})
	}

	toggled("0")
	s := attach(t, h, g)
	c := s.dial()
	original := c.read(probed, 1)
	if string(original) == "\xcc" {
		t.Fatal("the guest has not taken its int3 away")
	}
	c.runs(func() { toggled("1") })
	c.want("Z"+place+falseCondition, "OK")
	c.runs(func() { toggled("0") })
	if got := c.read(probed, 1); string(got) != string(original) {
		t.Errorf("got % x, want % x, which the guest has put there", got, original)
	}
	c.want("z"+place, "OK")
	if told := c.runs(func() {}); !strings.Contains(told, "was overwritten by the guest itself") {
		t.Errorf("the client is not told, but %q", told)
	}
	if got := c.read(probed, 1); string(got) != string(original) {
		t.Errorf("left % x, want % x, which the guest has put there", got, original)
	}
	// And at detach, with the breakpoint in place.
	c.runs(func() { toggled("1") })
	c.want("Z"+place+falseCondition, "OK")
	c.runs(func() { toggled("0") })
	c.want("D", "OK")
	s.exit()
	s = attach(t, h, g)
	c = s.dial()
	if got := c.read(probed, 1); string(got) != string(original) {
		t.Errorf("left % x after detach, want % x", got, original)
	}
	c.want("D", "OK")
	s.exit()
	toggled("1")
	ticks(t, g)
	healthy(t, g)
}

// runs lets the guest run while something is done, and interrupts it. It gives
// what the server has had to say.
func (c *client) runs(do func()) (said string) {
	c.t.Helper()
	if err := c.Post("vCont;c"); err != nil {
		c.t.Fatal(err)
	}
	do()
	if err := c.Interrupt(); err != nil {
		c.t.Fatal(err)
	}
	for {
		reply, err := c.Receive()
		if err != nil {
			c.t.Fatalf("wait for a stop: %v", err)
		}
		if text, ok := strings.CutPrefix(reply, "O"); ok {
			b, err := hex.DecodeString(text)
			if err != nil {
				c.t.Fatalf("got output %q", reply)
			}
			said += string(b)
			continue
		}
		if !strings.HasPrefix(reply, "T02") {
			c.t.Fatalf("got stop reply %q to an interrupt", reply)
		}
		return said
	}
}

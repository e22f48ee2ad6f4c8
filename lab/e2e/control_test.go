// This file breaks, steps and watches in live guests, with real gdb.

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// controlled are the kinds of guests in which vCPUs can be stopped and stepped.
var controlled = []lab.Kind{lab.PV, lab.PVH}

// eachControlled runs a test on each kind of guest on each release of Xen, and with
// the engine gdbsx.
func eachControlled(t *testing.T, guest lab.GuestConfig, test func(t *testing.T, h *lab.Host, g *lab.Guest)) {
	run := func(name string, cfg lab.Config, kind lab.Kind) {
		t.Run(name, func(t *testing.T) {
			h, g := guestOf(t, cfg, guest, kind)
			test(t, h, g)
			ticks(t, g)
			healthy(t, g)
		})
	}
	eachKind(run)
	// A third host takes its time: it is for one test, or for the whole matrix.
	if t.Name() == "TestRunControl" || os.Getenv(labtest.EnvAll) == "1" {
		run("pv by gdbsx", debuggable, lab.PV)
	}
}

// eachKind runs something for each kind of guest on each release of Xen, by a name.
func eachKind(run func(name string, cfg lab.Config, kind lab.Kind)) {
	for _, release := range labtest.Releases() {
		for _, kind := range controlled {
			cfg := machine
			cfg.Release = release
			run(fmt.Sprintf("%s on %s", kind, release), cfg, kind)
		}
	}
}

// eachKindHere runs a test for each kind of guest on the default release only.
func eachKindHere(t *testing.T, test func(t *testing.T, h *lab.Host, kind lab.Kind)) {
	for _, kind := range controlled {
		t.Run(string(kind), func(t *testing.T) { test(t, host(t, machine), kind) })
	}
}

// eachLinux runs a test on each kind of guest on each release of Xen, whose Linux is
// its own.
func eachLinux(t *testing.T, guest lab.GuestConfig, test func(t *testing.T, h *lab.Host, g *lab.Guest)) {
	eachKind(func(name string, cfg lab.Config, kind lab.Kind) {
		t.Run(name, func(t *testing.T) {
			h, g := guestOf(t, cfg, guest, kind)
			test(t, h, g)
		})
	})
}

// debuggable is a host whose hypervisor has the calls of gdbsx.
var debuggable = lab.Config{GDBSX: true, MemoryMB: 2560}

// expect checks that gdb prints what matches each pattern, in order.
func expect(t *testing.T, out string, patterns ...string) {
	t.Helper()
	rest := out
	for _, p := range patterns {
		at := regexp.MustCompile(p).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("gdb does not print %q, or not in its turn:\n%s", p, out)
		}
		rest = rest[at[1]:]
	}
}

// stepScript steps instructions, and tells how many it has been at.
const stepScript = `
def step(times):
  thread, places = gdb.selected_thread().num, set()
  for i in range(times):
    gdb.execute("stepi", to_string=True)
    if gdb.selected_thread().num != thread: raise gdb.GdbError("step %d stopped another vCPU" % i)
    places.add(gdb.selected_frame().pc())
  print("stepped %d times on one vCPU, to %d places" % (times, len(places)))
`

// A kernel developer's session: stop in a function that runs on both vCPUs, look
// at its arguments, go on by lines and instructions, out of it, watch a counter, and
// let go.
func TestRunControl(t *testing.T) {
	steps := scaled(t, 50, 500)
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		args := []string{
			"-ex", "break hrtimer_nanosleep", "-ex", "continue", "-ex", "bt", "-ex", "p clockid",
			"-ex", "next", "-ex", "next", "-ex", "step", "-ex", "delete", "-ex", "finish",
			"-ex", fmt.Sprintf("python exec(%q)", stepScript), "-ex", fmt.Sprintf("python step(%d)", steps),
			"-ex", "tbreak hrtimer_nanosleep if $_thread == 2", "-ex", "continue", "-ex", "info threads", "-ex", "x/i $pc",
			"-ex", "hbreak hrtimer_nanosleep", "-ex", "continue", "-ex", "continue", "-ex", "delete",
			"-ex", "watch jiffies_64", "-ex", "continue", "-ex", "continue", "-ex", "delete"}
		want := []string{
			`hit Breakpoint 1, hrtimer_nanosleep \(rqtp=\d+, mode=(mode@entry=)?HRTIMER_MODE_REL`,
			`#0  hrtimer_nanosleep`, `#\d+ .*do_syscall_64`, `\$1 = [01]`,
			`\n\d+\t`, `\n\d+\t`, `\n\w+ \(.*\) at \S+:\d+\n`, // lines of the source, and a caller
			fmt.Sprintf(`stepped %d times on one vCPU, to \d\d+ places`, steps),
			`Thread 2 "vCPU 1" hit Temporary breakpoint 2, hrtimer_nanosleep`,
			`=> 0x\w+ <hrtimer_nanosleep>:\s+(nop[lw]|data16)`, // one NOP, which compilers write in many ways
			`hit Breakpoint 3, hrtimer_nanosleep`, `hit Breakpoint 3, hrtimer_nanosleep`,
			`hit Hardware watchpoint 4: jiffies_64\n\nOld value = \d+\nNew value = \d+`,
			`hit Hardware watchpoint 4: jiffies_64`}
		expect(t, s.gdb(append(args, "-ex", "detach", symbols(t, h))...), append(want, `detached`)...)
		s.exit()
	})
}

// countingProbe has a guest's kernel count, by a kprobe that ftrace serves, how often
// each of its CPUs comes through do_nanosleep. hrtimer_nanosleep calls that once, and
// does not sleep before.
const (
	countingProbe  = "kprobe_event=p:own," + probedFunction
	probedFunction = "do_nanosleep"
)

// probeCounters gives the addresses of what the kernel counts by countingProbe, one
// for each CPU.
func probeCounters(t *testing.T, h *lab.Host, g *lab.Guest, c *client) []uint64 {
	t.Helper()
	// struct trace_kprobe begins with the link of the list, and has
	//	unsigned long __percpu *nhit;
	//	const char *symbol;
	// behind what the same name is in too. Its size is the kernel's affair.
	const most = 512
	probe := c.word(symbolAddress(t, h, "dyn_event_list"))
	word := func(i int) uint64 { return c.word(probe + 8*uint64(i)) }
	i := most/8 - 1
	for ; i > 0 && string(c.read(word(i), len(probedFunction)+1)) != probedFunction+"\x00"; i-- {
	}
	if i == 0 {
		t.Fatal("the guest has no kprobe")
	}
	var counters []uint64
	for cpu := range g.Config().VCPUs {
		counters = append(counters, word(i-1)+c.word(symbolAddress(t, h, "__per_cpu_offset")+8*uint64(cpu)))
	}
	return counters
}

// sameHits compares how often each vCPU was told to have hit a breakpoint at
// hrtimer_nanosleep with what the guest's kernel has counted. A vCPU may be on its
// way from one to the other, at the first stop and at the last. It may have passed
// without a breakpoint a number of times.
func sameHits(t *testing.T, told, counted []int, passed int) {
	t.Helper()
	for vcpu, n := range counted {
		if d := n - told[vcpu]; d < -1 || d > 1+passed {
			t.Errorf("vCPU %d: %d hits were told, the guest has counted %d", vcpu, told[vcpu], n)
		}
	}
	t.Logf("hits told by vCPU: %v, counted by the guest: %v, of which %d may have passed", told, counted, passed)
}

// A breakpoint that both vCPUs come to all the time is hit by both, and each hit
// is told once: as often as the guest counts them itself.
func TestHits(t *testing.T) {
	hits := scaled(t, 100, 200)
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		counters := probeCounters(t, h, g, c)
		c.want("D", "OK") // counters stay where they are
		s.exit()
		s = attach(t, h, g)
		count := fmt.Sprintf(`import collections
def counted(): return [int(gdb.parse_and_eval("*(long *)%%#x" %% a)) for a in (%d, %d)]
hits, before, together = collections.Counter(), counted(), 0
for i in range(%d):
  together += gdb.execute("continue", to_string=True).count("could not finish its step alone")
  hits[gdb.selected_thread().num, gdb.selected_frame().name()] += 1
for k in sorted(hits): print("hits:", *k, hits[k])
print("counted:", *[now - was for now, was in zip(counted(), before)])
print("together:", together)`, counters[0], counters[1], hits)
		out := s.gdb("-ex", "break hrtimer_nanosleep", "-ex", fmt.Sprintf("python exec(%q)", count),
			"-ex", "info breakpoints", "-ex", "detach", symbols(t, h))
		told, counted, together := make([]int, 2), make([]int, 2), 0
		_, report, _ := strings.Cut(out, "hits: ") // of a stop elsewhere too, if there was one
		if _, err := fmt.Sscanf(report, "1 hrtimer_nanosleep %d\nhits: 2 hrtimer_nanosleep %d\ncounted: %d %d\ntogether: %d",
			&told[0], &told[1], &counted[0], &counted[1], &together); err != nil {
			t.Fatalf("gdb does not stop where it should, and only there: %v\n%s", err, out)
		}
		expect(t, out, fmt.Sprintf(`breakpoint already hit %d times`, hits))
		if told[0] < 10 || told[1] < 10 {
			t.Errorf("got %d hits of the vCPUs", told)
		}
		// gdb takes its breakpoint away to step off it. If the others have to run for
		// that, they pass where it was.
		const passes = 3
		sameHits(t, told, counted, together*passes)
		s.exit()
	})
}

// Instructions that are stepped one at a time go where the code goes.
func TestSteps(t *testing.T) {
	steps := scaled(t, 200, 500)
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		address := symbolAddress(t, h, "hrtimer_nanosleep")
		c.want(fmt.Sprintf("Z0,%x,1", address), "OK")
		stop := c.resume("vCont;c")
		c.want(fmt.Sprintf("z0,%x,1", address), "OK")
		thread := stopThread(t, stop)
		begin := time.Now()
		seen := map[uint64]bool{}
		for range steps {
			pc := registers(c)["rip"]
			stop := c.resume("vCont;s:" + thread)
			if !strings.HasPrefix(stop, "T05") || stopThread(t, stop) != thread {
				t.Fatalf("got stop reply %q to a step of %s", stop, thread)
			}
			// A string instruction is stepped once for each of its repetitions.
			if next := registers(c)["rip"]; next == pc && !slices.Contains([]string{"\xf2", "\xf3"}, string(c.read(pc, 1))) {
				t.Fatalf("step at %#x goes nowhere", pc)
			} else {
				seen[next] = true
			}
			if tf := registers(c)["eflags"] >> 8 & 1; tf != 0 {
				t.Fatal("the trap flag shows")
			}
		}
		t.Logf("%d steps in %v, %d addresses", steps, time.Since(begin).Round(time.Millisecond), len(seen))
		if len(seen) < steps/10 {
			t.Errorf("got %d addresses in %d steps", len(seen), steps)
		}
		c.want("D", "OK")
		s.exit()
	})
}

// A condition that is false many times and then true costs no stop before.
func TestCondition(t *testing.T) {
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		out := s.gdb("-ex", "set breakpoint condition-evaluation target", "-ex", "set debug remote off",
			"-ex", "break hrtimer_nanosleep if rqtp > 100000000", "-ex", "continue", "-ex", "p rqtp", "-ex", "info breakpoints",
			"-ex", "detach", symbols(t, h))
		expect(t, out, `hit Breakpoint 1, hrtimer_nanosleep`, `\$1 = 1000000000`,
			`stop only if rqtp > 100000000 \(target evals\)`, `breakpoint already hit 1 time\n`)
		s.exit()
	})
}

// A condition that is false ten thousand times makes no stop reply, and the first
// time that it is true makes one.
func TestFalseCondition(t *testing.T) {
	times := scaled(t, 300, 10000)
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		place := fmt.Sprintf("Z0,%x,1", symbolAddress(t, h, "hrtimer_nanosleep"))
		c.want(place+falseCondition, "OK")
		begin := time.Now()
		hits, kept := 0, 0
		for kept < times {
			before := kept
			c.runs(func() { time.Sleep(5 * time.Second) })
			if hits, kept = c.hits(); kept == before {
				t.Fatal("no hit in 5 seconds")
			}
		}
		if hits != kept {
			t.Errorf("%d hits, but the condition was false %d times", hits, kept)
		}
		t.Logf("false %d times in %v", kept, time.Since(begin).Round(time.Second))
		// const32 100000000, reg 5 (rdi: for how long), less_signed, end
		c.want(place+";Xa,2405f5e1002600051427", "OK")
		if stop := c.resume("vCont;c"); !strings.Contains(stop, "swbreak") {
			t.Fatalf("got stop reply %q", stop)
		}
		if r := registers(c)["rdi"]; r <= 100000000 {
			t.Errorf("stopped at a sleep of %d ns", r)
		}
		c.want("D", "OK")
		s.exit()
	})
}

// hits gives how often breakpoints were hit, and how often nobody was told.
func (c *client) hits() (all, kept int) {
	c.t.Helper()
	said := c.monitor("stats")
	_, line, _ := strings.Cut(said, "hits ")
	if _, err := fmt.Sscanf(strings.TrimSpace(line), "%d, %d of them", &all, &kept); err != nil {
		c.t.Fatalf("%q: %v", said, err)
	}
	return all, kept
}

// dprintf prints from the server, and nothing stops.
func TestDprintf(t *testing.T) {
	h, g := idle(t, machine)
	s := attach(t, h, g)
	out := s.gdb("-ex", "set dprintf-style agent", "-ex", `dprintf hrtimer_nanosleep,"asleep for %ld ns\n", rqtp`,
		"-ex", "break do_exit", "-ex", "continue", "-ex", "continue", "-ex", "continue", "-ex", "detach", symbols(t, h))
	expect(t, out, `asleep for 1000000000 ns`, `hit Breakpoint 2, do_exit`, `asleep for 1000000000 ns`, `hit Breakpoint 2, do_exit`)
	s.exit()
	ticks(t, g)
}

// A breakpoint in a program stops that program.
func TestUserBreakpoint(t *testing.T) {
	eachControlled(t, spinning, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		rip, thread := uint64(1<<63), ""
		for try := 0; rip>>63 != 0 && try < 100; try++ {
			for vcpu := range 2 {
				thread = fmt.Sprintf("p%x.%x", g.ID(), vcpu+1)
				c.want("Hg"+thread, "OK")
				if rip = registers(c)["rip"]; rip>>63 == 0 {
					break
				}
			}
			if rip>>63 != 0 {
				c.interruptAfter(50 * time.Millisecond)
			}
		}
		if rip>>63 != 0 {
			t.Fatal("no vCPU is in user mode")
		}
		before := c.read(rip, 16)
		c.want(fmt.Sprintf("Z0,%x,1", rip), "OK")
		if got := c.read(rip, 16); string(got) != string(before) {
			t.Errorf("the planted byte shows: % x, want % x", got, before)
		}
		for n := range 11 {
			stop := c.resume("vCont;c")
			if !strings.Contains(stop, "swbreak") {
				t.Fatalf("got stop reply %q", stop)
			}
			if got := registers(c); got["rip"] != rip {
				t.Fatalf("got rip %#x, want %#x", got["rip"], rip)
			}
			if n == 10 {
				break // here the vCPU is in the process for sure: a step may lead out of it
			}
			step := c.resume("vCont;s:" + stopThread(t, stop))
			if !strings.HasPrefix(step, "T05") {
				t.Fatalf("got stop reply %q to a step", step)
			}
		}
		c.want(fmt.Sprintf("z0,%x,1", rip), "OK")
		if got := c.read(rip, 16); string(got) != string(before) {
			t.Errorf("left behind: % x, want % x", got, before)
		}
		c.want("D", "OK")
		s.exit()
	})
}

// A program's last system call is stepped into the kernel, which does not come back.
func TestStepIntoKernel(t *testing.T) {
	eachControlled(t, sleeping, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		c := s.dial()
		exit := symbolAddress(t, h, "__x64_sys_exit_group")
		c.want(fmt.Sprintf("Z0,%x,1", exit), "OK")
		if stop := c.resume("vCont;c"); !strings.Contains(stop, "swbreak") {
			t.Fatalf("got stop reply %q", stop)
		}
		const ip = 16 * 8 // in struct pt_regs
		call := c.word(registers(c)["rdi"]+ip) - 2
		if got := c.read(call, 2); !bytes.Equal(got, []byte{0x0f, 0x05}) {
			t.Fatalf("got % x where a program exits, want SYSCALL", got)
		}
		c.want(fmt.Sprintf("z0,%x,1", exit), "OK")
		// All processes of that program have its code in one page.
		c.want(fmt.Sprintf("Z0,%x,1", call), "OK")
		entries := []uint64{symbolAddress(t, h, "entry_SYSCALL_64"), symbolAddress(t, h, "xen_entry_SYSCALL_64")}
		// A vCPU may be taken from the program before, and come to the same place in
		// another.
		const want, most = 5, 25
		entered := 0
		for tries := 0; entered < want; tries++ {
			stop := c.resume("vCont;c")
			if rip := registers(c)["rip"]; rip != call || !strings.Contains(stop, "swbreak") {
				t.Fatalf("got stop reply %q at %#x, want a hit at %#x", stop, rip, call)
			}
			stop = c.resume("vCont;s:" + stopThread(t, stop))
			switch rip := registers(c)["rip"]; {
			case tries < most && rip == call && strings.Contains(stop, "swbreak"):
				continue
			case !strings.HasPrefix(stop, "T05") || !slices.Contains(entries, rip):
				t.Fatalf("got stop reply %q at %#x to a step, want one at %#x", stop, rip, entries)
			}
			entered++
			c.resume("vCont;s:" + stopThread(t, stop))
		}
		c.want(fmt.Sprintf("z0,%x,1", call), "OK")
		c.want("D", "OK")
		s.exit()
	})
}

// The interrupt gets through to an idle guest, one in user mode, one that hits a
// breakpoint whose condition is false all the time, and one that spins in its kernel
// with interrupts masked.
func TestInterrupts(t *testing.T) {
	t.Run("idle", func(t *testing.T) { // TestContinueAndInterrupt does so to other kinds
		h, g := idle(t, machine)
		interrupts(t, h, g, func(*client) func() { return func() {} })
	})
	eachKindHere(t, func(t *testing.T, _ *lab.Host, kind lab.Kind) {
		h, g := guestOf(t, machine, spinning, kind)
		for _, tt := range []struct {
			name    string
			prepare func(c *client) (undo func())
		}{
			{"in user mode", func(*client) func() { return func() {} }},
			{"at a false condition", func(c *client) func() {
				place := fmt.Sprintf("0,%x,1", symbolAddress(c.t, h, "hrtimer_interrupt"))
				c.want("Z"+place+falseCondition, "OK")
				return func() {
					if hits, kept := c.hits(); kept < 10 || hits != kept {
						c.t.Errorf("%d hits, the condition was false %d times", hits, kept)
					}
					c.want("z"+place, "OK")
				}
			}},
			{"masked", func(c *client) func() { return c.spinMasked(h, kind) }},
		} {
			t.Run(tt.name, func(t *testing.T) { interrupts(t, h, g, tt.prepare) })
		}
	})
}

// interrupts interrupts a guest many times, after it was prepared and before that is
// undone, and tells how long that takes.
func interrupts(t *testing.T, h *lab.Host, g *lab.Guest, prepare func(c *client) (undo func())) {
	t.Helper()
	s := attach(t, h, g)
	c := s.dial()
	undo := prepare(c)
	var times []time.Duration
	for range 10 {
		times = append(times, c.interruptAfter(200*time.Millisecond))
	}
	slices.Sort(times)
	t.Logf("from interrupt to stop reply: median %v, most %v", times[5], times[9])
	undo()
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

// spinMasked makes each vCPU of a guest spin where its next timer interrupt comes to.
// undo checks that one does so, with interrupts masked.
func (c *client) spinMasked(h *lab.Host, kind lab.Kind) (undo func()) {
	c.t.Helper()
	at := symbolAddress(c.t, h, "hrtimer_interrupt")
	c.want(fmt.Sprintf("Z0,%x,1", at), "OK")
	thread := stopThread(c.t, c.resume("vCont;c"))
	c.want(fmt.Sprintf("z0,%x,1", at), "OK")
	before := c.read(at, 2)
	c.want(fmt.Sprintf("M%x,2:ebfe", at), "OK") // a jump to itself
	return func() {
		c.t.Helper()
		c.want("Hg"+thread, "OK")
		regs := registers(c)
		if regs["rip"] != at {
			c.t.Errorf("%s is at %#x, not in the loop at %#x", thread, regs["rip"], at)
		}
		masked := regs["eflags"]&(1<<9) == 0
		if kind == lab.PV { // whose events are masked in struct vcpu_info
			const upcallMask = 1
			info := c.word(regs["gs_base"] + symbolAddress(c.t, h, "xen_vcpu"))
			masked = c.read(info+upcallMask, 1)[0] != 0
		}
		if !masked {
			c.t.Errorf("%s spins with interrupts enabled", thread)
		}
		c.want(fmt.Sprintf("M%x,2:%x", at, before), "OK")
	}
}

// resume lets the guest go on, and gives the stop reply.
func (c *client) resume(packet string) string {
	c.t.Helper()
	if err := c.Post(packet); err != nil {
		c.t.Fatal(err)
	}
	return c.stop()
}

// stop gives the next stop reply.
func (c *client) stop() string {
	c.t.Helper()
	for {
		reply, err := c.Receive()
		if err != nil {
			c.t.Fatalf("wait for a stop: %v", err)
		}
		if !strings.HasPrefix(reply, "O") || reply == "OK" {
			return reply
		}
	}
}

// interruptAfter lets the guest run for a while and interrupts it. It tells how
// long that took.
func (c *client) interruptAfter(d time.Duration) time.Duration {
	c.t.Helper()
	if err := c.Post("vCont;c"); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(d)
	begin := time.Now()
	if err := c.Interrupt(); err != nil {
		c.t.Fatal(err)
	}
	if stop := c.stop(); !strings.HasPrefix(stop, "T02") {
		c.t.Fatalf("got stop reply %q to an interrupt", stop)
	}
	return time.Since(begin)
}

// stopThread gives the thread of a stop reply.
func stopThread(t *testing.T, stop string) string {
	t.Helper()
	m := regexp.MustCompile(`thread:([^;]+);`).FindStringSubmatch(stop)
	if m == nil {
		t.Fatalf("stop reply %q names no thread", stop)
	}
	return m[1]
}

// This file debugs guests with real gdb and what the server tells it of a Linux
// kernel: a file in place of the kernel's own, call-frame information for what that
// has none for, and where KASLR has put the kernel.

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
)

// gdb without a file has the guest's kernel by name: in stacks, as what is at an
// address, to break at, and in code that it disassembles. It has its types, too.
func TestGDBWithoutFile(t *testing.T) {
	eachLinux(t, inSystemCalls, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		s := attach(t, h, g)
		handler := symbolAddress(t, h, "hrtimer_nanosleep")
		out := s.gdb("-ex", "thread apply all bt", "-ex", fmt.Sprintf("info symbol %#x", handler+3),
			"-ex", "p/x &jiffies_64", "-ex", "x/s &linux_banner",
			"-ex", "ptype struct list_head", "-ex", "p ((struct task_struct *)&init_task)->comm",
			"-ex", "p ((struct task_struct *)&init_task)->tasks.next->prev == &((struct task_struct *)&init_task)->tasks",
			"-ex", "p (enum pid_type)1", "-ex", "whatis hrtimer_nanosleep", "-ex", "whatis &runqueues",
			"-ex", "break hrtimer_nanosleep", "-ex", "continue", "-ex", "bt", "-ex", "x/2i $pc",
			"-ex", "delete", "-ex", "finish", "-ex", "info os", "-ex", "info os processes", "-ex", "info os modules", "-ex", "detach")
		s.exit()
		checkGDBStacks(t, out, g.Config().VCPUs)
		expect(t, out,
			`(?m)^hrtimer_nanosleep \+ 3 in section \.text`,
			fmt.Sprintf(`(?m)^\$1 = %#x$`, symbolAddress(t, h, "jiffies_64")),
			`<linux_banner>:\s+"Linux version `+regexp.QuoteMeta(h.KernelRelease()),
			`(?m)^type = struct list_head \{\n    struct list_head \*next;\n    struct list_head \*prev;\n\}$`,
			`(?m)^\$2 = "swapper/0`, `(?m)^\$3 = 1$`, `(?m)^\$4 = PIDTYPE_TGID$`,
			`(?m)^type = long \(.*clockid_t\)$`, `(?m)^type = (struct rq|<variable .*no debug info>) \*$`, // Linux 5.10 describes no variables
			`hit Breakpoint 1, 0x[0-9a-f]+ in hrtimer_nanosleep \(\)`,
			`(?m)^#0 .* hrtimer_nanosleep \(\)\n(#.*\n)+#\d+ .* entry_SYSCALL_64\w* \(\)$`,
			`(?m)^=> 0x[0-9a-f]+ <hrtimer_nanosleep(\+\d+)?>:`,
			`(?m)^Value returned is \$5 = 0$`,
			`(?m)^processes +Tasks`,
			`(?m)^pid +tid +ppid +state +cpu +command`,
			`(?m)^2 .*\[kthreadd\]`,
			`detached`)
		ticks(t, g)
		healthy(t, g)
	})
}

// Idle vCPUs of a PV guest, which are in the hypercall page, have whole stacks: without
// a file, and with the kernel's own, which has nothing on them, with file and line.
func TestGDBIdle(t *testing.T) {
	h, g := idle(t, machine)
	for name, args := range map[string][]string{"no file": nil, "symbol file": {symbols(t, h)}} {
		t.Run(name, func(t *testing.T) {
			s := attach(t, h, g)
			out := s.gdb(append([]string{"-ex", "thread apply all bt", "-ex", "detach"}, args...)...)
			s.exit()
			stacks := checkGDBStacks(t, out, g.Config().VCPUs)
			for _, last := range []string{"startup_xen", "asm_cpu_bringup_and_idle"} {
				if !slices.ContainsFunc(stacks, func(s gdbStack) bool { return s.last() == last }) {
					t.Errorf("no stack ends in %s", last)
				}
			}
			if lines := strings.Count(out, " at "); args != nil && lines < 10 {
				t.Errorf("%d frames have a file and line", lines)
			}
			if t.Failed() {
				t.Log(out)
			}
			ticks(t, g)
		})
	}
}

// KASLR has moved the kernel of an HVM guest. Debuggers that have loaded its symbol
// file before have it where it is, and gdb needs none. Its debug registers stop it, too.
func TestKASLR(t *testing.T) {
	h, g := working(t, lab.HVM)
	vmlinux := symbols(t, h)
	s := attach(t, h, g)
	out := s.gdb("-ex", "thread apply all bt", "-ex", "p/x &init_task", "-ex", "x/s &linux_banner", "-ex", "detach")
	s.exit()
	checkGDBStacks(t, out, g.Config().VCPUs)
	banner := `linux_banner>:\s+"Linux version ` + regexp.QuoteMeta(h.KernelRelease())
	expect(t, out, `\$1 = 0x`, banner)
	address, _, _ := strings.Cut(out[strings.Index(out, "$1 = ")+5:], "\n")
	if linked := fmt.Sprintf("%#x", symbolAddress(t, h, "init_task")); address == linked {
		t.Errorf("init_task is at %s, where it was linked to", linked)
	}

	s = attach(t, h, g)
	out = s.gdb("-ex", "thread apply all bt", "-ex", "p/x &init_task", "-ex", "p init_task.comm", "-ex", "x/s linux_banner",
		"-ex", "tbreak hrtimer_nanosleep", "-ex", "continue",
		"-ex", fmt.Sprintf("python exec(%q)", stepScript), "-ex", "python step(30)",
		"-ex", "hbreak hrtimer_nanosleep", "-ex", "continue", "-ex", "delete", "-ex", "watch jiffies_64", "-ex", "continue", "-ex", "detach", vmlinux)
	s.exit()
	expect(t, out, `#[1-9]\d* .* at \S+:\d+`, `\$1 = `+address+`\n`, `\$2 = "swapper/0`, banner,
		`hit Temporary breakpoint 1, hrtimer_nanosleep \(rqtp=\d+`, `stepped 30 times on one vCPU, to \d\d places`,
		`hit Breakpoint 2, hrtimer_nanosleep \(rqtp=\d+`, `hit Hardware watchpoint 3: jiffies_64\n\nOld value = \d+\nNew value = \d+`)

	// gdb moves no file that it loads later, but can be told how far: so it is.
	s = attach(t, h, g)
	caps := s.gdb("-ex", "monitor caps", "-ex", "detach")
	s.exit()
	s = attach(t, h, g)
	out = s.gdb("-ex", fmt.Sprintf("symbol-file -o %#x %s", slideOf(t, caps), vmlinux), "-ex", "thread apply all bt", "-ex", "p/x &init_task", "-ex", "p init_task.comm", "-ex", "detach")
	s.exit()
	checkGDBStacks(t, out, g.Config().VCPUs)
	expect(t, out, `#[1-9]\d* .* at \S+:\d+`, `\$1 = `+address+`\n`, `\$2 = "swapper/0`)

	lldb, err := lab.LLDB(t.Context(), "16", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	s = attach(t, h, g)
	out = runLLDB(t, lldb, "target create "+vmlinux, "gdb-remote "+s.addr, "p init_task.comm", "p &init_task", "thread backtrace all", "detach")
	s.exit()
	expect(t, out, `"swapper/0`, address, `frame #[1-9]\d*: .* at \S+:\d+`)
	linuxCommands(t, h, g)
	continueAndInterrupt(t, h, g, 1)
}

// slideOf gives how far KASLR has moved a kernel, by what monitor caps says.
func slideOf(t *testing.T, caps string) uint64 {
	t.Helper()
	move := regexp.MustCompile("load it with `symbol-file -o (0x[0-9a-f]+) FILE`").FindStringSubmatch(caps)
	if move == nil {
		t.Fatalf("monitor caps does not say how far the kernel was moved:\n%s", caps)
	}
	slide, err := strconv.ParseUint(move[1], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return slide
}

// A file of another build is none that gdb keeps quiet about: it tells which kernel the
// guest has, and which package has its symbols, as does the server.
func TestWrongFile(t *testing.T) {
	h, g := idle(t, machine)
	s := attach(t, h, g)
	out := s.gdb("-ex", "monitor caps", "-ex", "detach", "/bin/true")
	s.exit()
	expect(t, out,
		`Build ID mismatch between current exec-file \S*/true\s+and automatically determined exec-file /gdbserver-xen/[0-9a-f]{40}/linux-image-`+
			regexp.QuoteMeta(h.KernelRelease())+`-dbg/vmlinux-`+regexp.QuoteMeta(h.KernelRelease())+`\n`,
		`yes +kernel +Linux version .*, build id [0-9a-f]{40}`,
		`yes +symbols +names and types .*, in package linux-image-`+regexp.QuoteMeta(h.KernelRelease())+`-dbg`)
	ticks(t, g)
}

// A gdbStack is the stack of a vCPU, as gdb prints it.
type gdbStack struct {
	vcpu   int
	frames []string // names, but for those of signal handlers, which are not functions
	user   bool     // the vCPU is in user mode, of which nothing is known
	text   string
}

func (s *gdbStack) last() string {
	if len(s.frames) == 0 {
		return ""
	}
	return s.frames[len(s.frames)-1]
}

// lastKnown is the last function before nothing is known.
func (s *gdbStack) lastKnown() string {
	known := s.frames
	if i := slices.Index(known, "??"); i >= 0 {
		known = known[:i]
	}
	if len(known) == 0 {
		return "the first frame"
	}
	return known[len(known)-1]
}

// kernelFrames are all but that of user mode.
func (s *gdbStack) kernelFrames() []string {
	if s.last() == "user_mode" {
		return s.frames[:len(s.frames)-1]
	}
	return s.frames
}

// sameFunction compares gdb's name with the server's. gdb leaves out the last part of those
// that a compiler has made of another, as do_execveat_common.isra.0, and has one of its own
// for where a task begins that has not run yet.
func sameFunction(a, b string) bool {
	if a == "new_task" {
		return b == "ret_from_fork" || b == "ret_from_fork_asm"
	}
	a, _, _ = strings.Cut(a, ".")
	b, _, _ = strings.Cut(b, ".")
	return a == b
}

// whole tells whether a stack goes to where it began, with nothing unknown.
func (s *gdbStack) whole() bool {
	if s.user {
		return true
	}
	return !slices.Contains(s.frames, "??") && (s.last() == "user_mode" || s.last() == "new_task" || slices.Contains(lastFrames, s.last()))
}

// newTask is the end of a stack of a task that has not run yet, as the server prints it.
var newTask = regexp.MustCompile(`(0x[0-9a-f]{16}) ret_from_fork(?:_asm)?\+0x0\s*$`)

// ofNewTask tells whether a stack goes to where a task that has not run yet will begin.
// gdb takes that for the return from a call, and names what is before it in the kernel's
// symbol file; in the server's that is new_task.
func (s *gdbStack) ofNewTask(printed *printedStack) bool {
	m := newTask.FindStringSubmatch(printed.text)
	lines := strings.Split(strings.TrimSpace(s.text), "\n")
	return m != nil && strings.Contains(lines[len(lines)-1], " "+m[1]+" in ")
}

var (
	gdbThread = regexp.MustCompile(`^Thread \d+ \(Thread \d+\.\d+ "vCPU (\d+)" \((\w+) mode`)
	gdbFrame  = regexp.MustCompile(`^#\d+ +(?:0x[0-9a-f]+ in )?(?:<signal handler called>|(\S+) \()`)
)

// parseGDBStacks reads what gdb prints for thread apply all bt.
func parseGDBStacks(out string) []gdbStack {
	var stacks []gdbStack
	inside := false
	for line := range strings.Lines(out) {
		if m := gdbThread.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(m[1])
			stacks = append(stacks, gdbStack{vcpu: n, user: m[2] == "user"})
			inside = true
			continue
		}
		inside = inside && strings.TrimSpace(line) != ""
		if !inside {
			continue
		}
		s := &stacks[len(stacks)-1]
		s.text += line
		if m := gdbFrame.FindStringSubmatch(line); m != nil && m[1] != "" {
			s.frames = append(s.frames, m[1])
		}
	}
	return stacks
}

// checkGDBStacks checks that the stacks that gdb has printed are whole, and that there
// are so many.
func checkGDBStacks(t *testing.T, out string, want int) []gdbStack {
	t.Helper()
	stacks := parseGDBStacks(out)
	if len(stacks) != want {
		t.Errorf("gdb prints %d stacks, want %d", len(stacks), want)
	}
	for _, s := range stacks {
		if !s.whole() {
			t.Errorf("a stack is not whole:\n%s", s.text)
		}
	}
	return stacks
}

// noFiles has gdb ask the server for no files.
var noFiles = []string{"-iex", "set remote pid-to-exec-file-packet off", "-iex", "set remote library-info-packet off"}

// stopScript has gdb stop a guest at random, and print its stacks by the server and by
// itself. It interrupts what it resumed as the user does.
const stopScript = `
import gdb, os, random, signal, threading
def interrupt(event):
    threading.Timer(0.3 + random.random() / 20, os.kill, (os.getpid(), signal.SIGINT)).start()
gdb.events.cont.connect(interrupt)
for i in range(%d):
    gdb.execute("continue")
    print("=== server")
    gdb.execute("monitor bt")
    print("=== gdb")
    gdb.execute("thread apply all bt")
`

// Wherever a busy guest is stopped, gdb's stacks are whole without a file, and nearly
// all are those that the server prints. So they are with the kernel's symbol file, if that
// is loaded later. How many are where it is loaded before, with and without what the server
// adds to it, is printed beside. A kernel that KASLR has moved, that of an HVM guest, is
// for the figures, too.
func TestGDBStacks(t *testing.T) {
	const symbolsLater = "gdb, symbol file later"
	kinds := controlled
	if soaking() {
		kinds = append(slices.Clone(kinds), lab.HVM)
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			h, g := guestOf(t, machine, loaded, kind)
			vmlinux := symbols(t, h)
			slide := uint64(0)
			if kind == lab.HVM {
				s := attach(t, h, g)
				slide = slideOf(t, s.gdb("-ex", "monitor caps", "-ex", "detach"))
				s.exit()
			}
			script := filepath.Join(t.TempDir(), "stops.py")
			for _, client := range []struct {
				name  string
				args  []string
				whole bool // all stacks are to be
			}{
				{"gdb, no file", nil, true},
				{symbolsLater, []string{"-ex", "file " + vmlinux}, true},
				{"gdb, symbol file", []string{vmlinux}, false},
				{"gdb, symbol file alone", append(slices.Clone(noFiles), vmlinux), false},
			} {
				if slide != 0 && client.name == symbolsLater {
					continue // gdb moves no file that it loads later
				}
				t.Run(client.name, func(t *testing.T) {
					stops := scaled(t, 10, 1000)
					if !client.whole { // which is for the figures
						stops = scaled(t, 3, 1000)
					}
					if err := os.WriteFile(script, fmt.Appendf(nil, stopScript, stops), 0o644); err != nil {
						t.Fatal(err)
					}
					s := attach(t, h, g)
					begin := time.Now()
					out := s.gdb(append(client.args, "-ex", "source "+script, "-ex", "detach")...)
					s.exit()
					server, own, same := 0, 0, 0
					lost := map[string]int{} // stacks that are not whole, by their last function
					parts := strings.Split(out, "=== server\n")[1:]
					for _, part := range parts {
						printed, rest, _ := strings.Cut(part, "=== gdb\n")
						ours := parseStacks(t, h, printed, slide)
						theirs := parseGDBStacks(rest)
						slices.SortFunc(theirs, func(a, b gdbStack) int { return a.vcpu - b.vcpu })
						if len(ours) != len(theirs) {
							t.Fatalf("%s: %d stacks, by monitor bt %d:\n%s", client.name, len(theirs), len(ours), part)
						}
						for i := range ours {
							if ours[i].whole() {
								server++
							}
							if theirs[i].user || slices.EqualFunc(theirs[i].kernelFrames(), ours[i].kernelFrames(), sameFunction) {
								same++
							} else if client.args == nil {
								t.Logf("gdb's stack:\n%s\nis not the server's:\n%s", theirs[i].text, ours[i].text)
							}
							if theirs[i].whole() || client.args != nil && theirs[i].ofNewTask(&ours[i]) {
								own++
								continue
							}
							lost[theirs[i].lastKnown()]++
							if client.whole {
								t.Errorf("%s: a stack is not whole:\n%s\nthe server's:\n%s", client.name, theirs[i].text, ours[i].text)
							}
						}
					}
					all := stops * g.Config().VCPUs
					if client.args == nil && same < all*9/10 {
						t.Errorf("of %d stacks only %d are those of monitor bt", all, same)
					}
					t.Logf("%-24s %d of %d stacks are whole, by monitor bt %d, which has the same %d; %.1f s",
						client.name, own, all, server, same, time.Since(begin).Seconds())
					for _, name := range slices.SortedFunc(maps.Keys(lost), func(a, b string) int { return lost[b] - lost[a] }) {
						t.Logf("%24s %d are lost at %s", "", lost[name], name)
					}
					if len(parts) != stops {
						t.Errorf("%s: %d stops, want %d:\n%s", client.name, len(parts), stops, out)
					}
				})
			}
			ticks(t, g)
			healthy(t, g)
		})
	}
}

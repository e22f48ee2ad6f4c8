// This file checks stacks that the server prints by itself, with no symbol file.

package e2e

import (
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// A printedStack is what is printed of a vCPU.
type printedStack struct {
	vcpu   int
	frames []string // names, empty for those that have none
	user   bool     // the last is in user mode
	text   string
}

// lastFrames are functions that nothing has called: where kernels and threads
// begin, and where a vCPU is on its way from user mode or to it, which has no stack.
var lastFrames = []string{
	"startup_xen", "secondary_startup_64", "secondary_startup_64_no_verify", "common_startup_64", "asm_cpu_bringup_and_idle",
	"ret_from_fork", "ret_from_fork_asm",
	"entry_SYSCALL_64", "entry_SYSCALL_64_after_hwframe", "syscall_return_via_sysret", "common_interrupt_return",
}

// whole tells whether a stack goes to where it began.
func (s *printedStack) whole() bool {
	return s.user || len(s.frames) > 0 && slices.Contains(lastFrames, s.frames[len(s.frames)-1])
}

// kernelFrames are all but that of user mode.
func (s *printedStack) kernelFrames() []string {
	if s.user && len(s.frames) > 0 {
		return s.frames[:len(s.frames)-1]
	}
	return s.frames
}

var (
	printedVCPU  = regexp.MustCompile(`^vCPU (\d+), (?:kernel|user) mode(?:, blocked)?:$`)
	printedFrame = regexp.MustCompile(`^#(\d+) +0x([0-9a-f]{16})(?: (\S+)\+0x([0-9a-f]+))?$`)
)

// parseStacks reads what is printed of a guest, and checks names and places against
// the kernel's symbol file, from which KASLR has moved it by slide.
func parseStacks(t *testing.T, h *lab.Host, printed string, slide uint64) []printedStack {
	t.Helper()
	banner, rest, _ := strings.Cut(printed, "\n")
	if !strings.HasPrefix(banner, "Linux version "+h.KernelRelease()+" ") {
		t.Errorf("the first line is %q", banner)
	}
	var stacks []printedStack
	for line := range strings.Lines(rest) {
		if m := printedVCPU.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			n, _ := strconv.Atoi(m[1])
			stacks = append(stacks, printedStack{vcpu: n})
			continue
		}
		if len(stacks) == 0 {
			continue
		}
		s := &stacks[len(stacks)-1]
		s.text += line
		if strings.TrimSpace(line) == "--- user mode ---" {
			s.user = true
		}
		m := printedFrame.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if m[1] != strconv.Itoa(len(s.frames)) {
			t.Errorf("frame %s is not number %d", m[1], len(s.frames))
		}
		s.frames = append(s.frames, m[3])
		if m[3] == "" {
			continue
		}
		addr, _ := strconv.ParseUint(m[2], 16, 64)
		offset, _ := strconv.ParseUint(m[4], 16, 64)
		if all := symbolAddresses(t, h, m[3]); !slices.Contains(all, addr-offset-slide) {
			t.Errorf("%s is at %#x, not %#x", m[3], all, addr-offset-slide)
		}
	}
	return stacks
}

// Stacks of a guest that works are whole, wherever it was stopped, and named as the
// symbol file has it. The guest runs on.
func TestBacktraceCommand(t *testing.T) {
	const times = 5
	eachLinux(t, loaded, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		ticks(t, g)
		seen := map[string]bool{}
		stacks, whole := 0, 0
		check := func(printed string) {
			t.Helper()
			for _, s := range parseStacks(t, h, printed, 0) {
				stacks++
				if s.whole() {
					whole++
				} else {
					t.Errorf("vCPU %d: the stack is not whole:\n%s", s.vcpu, s.text)
				}
				for _, name := range s.frames {
					seen[name] = true
				}
			}
		}
		for range times {
			check(labtest.Output(t, h, "gdbserver-xen bt "+g.Name()))
		}
		if paused(t, h, g) {
			t.Error("the guest is paused")
		}
		// The same, for a debugger, which finds the kernel once.
		s := attach(t, h, g)
		c := s.dial()
		stops := scaled(t, 30, 1000)
		for range stops {
			c.interruptAfter(time.Duration(rand.IntN(30)) * time.Millisecond)
			check(c.monitor("bt"))
		}
		if want := (times + stops) * g.Config().VCPUs; stacks != want {
			t.Errorf("got %d stacks, want %d", stacks, want)
		}
		t.Logf("%d of %d stacks are whole, with %d functions", whole, stacks, len(seen))
		c.want("D", "OK")
		s.exit()
		ticks(t, g)
		healthy(t, g)
	})
}

// monitor runs a monitor command.
func (c *client) monitor(command string) (said string) {
	c.t.Helper()
	reply := c.must("qRcmd," + hex.EncodeToString([]byte(command)))
	for reply != "OK" {
		b, err := hex.DecodeString(strings.TrimPrefix(reply, "O"))
		if err != nil {
			c.t.Fatalf("%s: got %q", command, reply)
		}
		said += string(b)
		if reply, err = c.Receive(); err != nil {
			c.t.Fatal(err)
		}
	}
	return said
}

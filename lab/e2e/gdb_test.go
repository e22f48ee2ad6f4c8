// This file debugs guests with real gdb and the kernel's own symbol file.

package e2e

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gdbserver-xen/lab"
)

// The seed of this project: gdb's bt of a live PV guest. The vCPU that is in a
// system call has a stack that reaches the kernel's entry, with file and line.
func TestBacktrace(t *testing.T) {
	h, g := working(t, lab.PV)
	vmlinux := symbols(t, h)
	const most = 10
	for stop := 1; ; stop++ {
		s := attach(t, h, g)
		out := s.gdb("-ex", "info threads", "-ex", "thread apply all bt", "-ex", "p init_task.comm",
			"-ex", "p/x *(unsigned char(*)[4])linux_banner", "-ex", "info registers cr0 efer", "-ex", "detach", vmlinux)
		s.exit()
		if !entryFrame.MatchString(out) && stop < most {
			// All vCPUs were in hypercalls, where gdb alone loses the stack.
			ticks(t, g)
			continue
		}
		for _, want := range []string{
			`Thread \d+\.1 "vCPU 0"`,
			`Thread \d+\.2 "vCPU 1"`,
			entryFrame.String(),
			`\$1 = "swapper/0`,
			`\$2 = \{0x4c, 0x69, 0x6e, 0x75\}`, // Linu
			`cr0 .*\[ PE .*PG \]`,
			`efer +<unavailable>`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("gdb does not print %q", want)
			}
		}
		t.Logf("stop %d:\n%s", stop, out)
		break
	}
	ticks(t, g)
	healthy(t, g)
}

// On a vCPU that was stopped in user mode, gdb sees the program's memory and
// the kernel's.
func TestUserMode(t *testing.T) {
	h, g := busy(t, machine)
	s := attach(t, h, g)
	c := s.dial()
	text := c.read(textStart, 64)
	if len(text) != 64 {
		t.Fatal("kernel text cannot be read")
	}
	user := 0
	for vcpu := range 2 {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		rip := registers(c)["rip"]
		if rip>>63 != 0 {
			continue // an interrupt has taken it into the kernel
		}
		user++
		if len(c.read(rip, 1)) == 0 {
			t.Errorf("vCPU %d: user memory at rip %#x cannot be read", vcpu, rip)
		}
		if again := c.read(textStart, 64); string(again) != string(text) {
			t.Errorf("vCPU %d: kernel text differs as seen from user mode", vcpu)
		}
	}
	if user == 0 {
		t.Error("no vCPU was in user mode")
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
}

// A user's session over standard input and output, as through ssh.
func TestStdio(t *testing.T) {
	h, g := idle(t, machine)
	res, err := h.Run(t.Context(), `printf '+$qSupported#37+$?#3f+$D#44+' | gdbserver-xen attach --listen stdio `+g.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PacketSize=", "$T05", "$OK#"} {
		if res.ExitCode != 0 || !strings.Contains(string(res.Stdout), want) {
			t.Errorf("got exit code %d and %q, want %q", res.ExitCode, res.Stdout, want)
		}
	}
	ticks(t, g)
}

// A write by gdb reaches the guest's memory, and one that cannot be done whole
// is not done at all.
func TestWriteMemory(t *testing.T) {
	h, g := idle(t, machine)
	s := attach(t, h, g)
	c := s.dial()
	writeAndRestore(t, c)

	// The page after the end of memory is not there.
	end := uint64(directMap + 256<<20)
	for len(c.read(end-4096, 1)) == 0 {
		end -= 4096
	}
	before := c.read(end-4, 4)
	if reply := c.must(fmt.Sprintf("M%x,8:ffffffffffffffff", end-4)); !strings.HasPrefix(reply, "E") {
		t.Errorf("write over the end of memory: got reply %q", reply)
	}
	if got := c.read(end-4, 4); string(got) != string(before) {
		t.Errorf("half a write was done: %x became %x", before, got)
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
}

// The binary that users copy to their dom0 is static and small.
func TestBinary(t *testing.T) {
	const mostMB = 12
	h := host(t, machine)
	path := filepath.Join(h.ShareDir(), "gdbserver-xen")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() > mostMB<<20 {
		t.Errorf("got %d bytes, want at most %d MB", info.Size(), mostMB)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP || prog.Type == elf.PT_DYNAMIC {
			t.Errorf("binary is not static: it has a program header %v", prog.Type)
		}
	}
}

// This file debugs a guest with the lldbs of Debian and the kernel's own symbol
// file.

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
)

// lldbPatterns are what each lldb prints of a guest whose vCPU 0 idles, or
// handles an interrupt, and whose vCPU 1 is in a system call.
var lldbPatterns = []string{
	`Process \d+ stopped\n(?:warning: .*\n)?\* thread #1, name = 'vCPU 0', stop reason = signal SIGTRAP\n +frame #0: 0x\w+ vmlinux-\S+ at \S+:\d+`,
	`\* thread #1: tid = 1, 0x\w+ .*, name = 'vCPU 0'`,
	`  thread #2: tid = 2, 0x\w+ .*, name = 'vCPU 1'`,
	`frame #\d+: .*(start_kernel|entry_SYSCALL_64)\b.* at \S+:\d+`,
	`cr8 += error: unavailable`, // a PV vCPU has its own, which Xen does not tell
	`efer += error: unavailable`,
	`"swapper/0`,
	`\[0xffffffff81000000-0xffffffff8\w+\) r-x`,
	`Process \d+ detached`,
}

// Each lldb attaches to a guest and reads what is there: registers as xenctx
// has them in the same pause, memory as the plain protocol has it, threads by
// name, stacks up to the kernel's entry or start. Detached, the guest runs on.
func TestLLDB(t *testing.T) {
	h, g := working(t, lab.PV)
	vmlinux := symbols(t, h)
	programs := map[string]string{}
	versions := []string{"14", "16", "19"}
	for _, version := range versions {
		path, err := lab.LLDB(t.Context(), version, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		programs[version] = path
	}
	s := attach(t, h, g)
	c := s.dial()
	text := c.read(textStart, 0x4000)
	c.want("D", "OK")
	s.exit()
	if len(text) != 0x4000 {
		t.Fatal("kernel text cannot be read")
	}
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			s := attach(t, h, g)
			var regs []map[string]uint64
			for vcpu := range g.Config().VCPUs {
				regs = append(regs, xenctx(t, h, g, vcpu))
			}
			memory := filepath.Join(t.TempDir(), "memory")
			out := runLLDB(t, programs[version], "version", "target create "+vmlinux, "gdb-remote "+s.addr,
				"thread list", "thread backtrace all", "register read cr8 efer", "p init_task.comm",
				fmt.Sprintf("memory read --force --binary --outfile %s --count %d %#x", memory, len(text), uint64(textStart)),
				"process plugin packet monitor help", fmt.Sprintf("memory region %#x", uint64(textStart)),
				"thread select 1", "register read --all", "thread select 2", "register read --all",
				"detach")
			for _, want := range append(lldbPatterns, "lldb version "+version) {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("lldb does not print %q", want)
				}
			}
			if n := len(regexp.MustCompile(`(?m)^. thread #\d+: tid = `).FindAllString(out, -1)); n != len(regs) {
				t.Errorf("lldb lists %d threads, want %d", n, len(regs))
			}
			if got, err := os.ReadFile(memory); err != nil || string(got) != string(text) {
				t.Errorf("lldb reads %d bytes of kernel text, %v, the first that differs is %d", len(got), err,
					firstDifference(got, text))
			}
			compareLLDBRegisters(t, out, regs)
			if t.Failed() {
				t.Log(out)
			}
			s.exit()
			ticks(t, g)
			healthy(t, g)
		})
	}
}

// compareLLDBRegisters compares the registers that lldb has printed, of one vCPU
// after the other, with xenctx's.
func compareLLDBRegisters(t *testing.T, out string, want []map[string]uint64) {
	t.Helper()
	names := strings.Fields(`rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags
		cs ss ds es fs gs fs_base cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7`)
	lists := strings.Split(out, "(lldb) register read --all\n")[1:]
	if len(lists) != len(want) {
		t.Fatalf("lldb prints %d lists of registers, want %d", len(lists), len(want))
	}
	for vcpu, list := range lists {
		got := map[string]uint64{}
		for _, m := range regexp.MustCompile(`(?m)^ +(\w+) = 0x([0-9a-f]{1,16})\b`).FindAllStringSubmatch(list, -1) {
			got[m[1]], _ = strconv.ParseUint(m[2], 16, 64)
		}
		for _, name := range names {
			w, known := want[vcpu][name]
			if g, ok := got[name]; !ok || !known || g != w {
				t.Errorf("vCPU %d: %s: lldb prints %#x (%v), want %#x (%v)", vcpu, name, g, ok, w, known)
			}
		}
	}
}

// runLLDB runs commands in an lldb, each of which must succeed, and gives what
// it prints.
func runLLDB(t *testing.T, program string, commands ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	args := []string{"--no-lldbinit", "--batch"}
	for _, c := range commands {
		args = append(args, "-o", c)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+t.TempDir())
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("lldb: %v\n%s", err, out)
	}
	t.Logf("lldb took %.1f s", time.Since(begin).Seconds())
	return string(out)
}

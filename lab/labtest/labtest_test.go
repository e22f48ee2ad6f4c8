package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDiesWithGo kills a go test with SIGKILL and sees that the test binary,
// and with it whatever it started, goes too.
func TestDiesWithGo(t *testing.T) {
	if file := os.Getenv("LABTEST_PID_FILE"); file != "" {
		diesWithGo()
		if err := os.WriteFile(file, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		return
	}
	file := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("go", "test", "-count=1", "-run=^TestDiesWithGo$", ".")
	cmd.Env = append(os.Environ(), "LABTEST_PID_FILE="+file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var pid int
	wait(t, "the test has started", func() bool {
		b, err := os.ReadFile(file)
		if err != nil || !strings.HasSuffix(string(b), "\n") {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	wait(t, "the test has ended", func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

// make test runs tests again by the text that they print here.
func TestExcuse(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if want := "-again '" + excuse + "'"; !strings.Contains(string(makefile), want) {
		t.Errorf("the Makefile has no %s", want)
	}
}

// A guest's vCPU with the state of Xen is told from crashes that are somebody's
// fault: a guest's own, and the hypervisor's. So is an int3 that Xen has not recognised
// from other instructions.
func TestBroken(t *testing.T) {
	const console = `(XEN) d4v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom4 vcpu#0 state: ***
(XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    e008:[<ffff82d0402044a5>]
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d4v0)
`
	const lost = `(XEN) Insn mismatch: Expected opcode 0xcc, modrm 0, got nrip_len 0, emul_len 5
(XEN) SVM Insn len emulation failed (1): d7v1 64bit @ 0010:ffffffff81a5265a -> e9 dd 01 00 00 49 8d 85 58 0f 00 00 48 0f ba 28
`
	for text, want := range map[string]string{
		"":                                   "",
		console:                              "QEMU has run Dom4 vcpu#0 with the state of Xen",
		lost:                                 "Xen has not recognised an int3 of d7v1, whose length QEMU does not tell",
		strings.ReplaceAll(lost, "cc", "f4"): "",
		strings.ReplaceAll(console, "e008", "0010"):                       "",
		strings.ReplaceAll(console, "e008", "e033"):                       "",
		strings.ReplaceAll(console, "Dumping Dom4 vcpu#0 state", "Panic"): "",
	} {
		if got := broken(text); got != want {
			t.Errorf("got %q, want %q, in\n%s", got, want, text)
		}
	}
}

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 600 {
		if is() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("after a minute it is not so that %s", what)
}

func TestSkipsWithReason(t *testing.T) {
	t.Setenv(Env, "")
	var skipped bool
	t.Run("inner", func(t *testing.T) {
		defer func() { skipped = t.Skipped() }()
		Require(t)
	})
	if !skipped {
		t.Error("a test that needs xen runs without it")
	}
	t.Setenv(Env, "1")
	t.Run("inner", func(t *testing.T) {
		skipped = true
		Require(t)
		skipped = false
	})
	if skipped {
		t.Error("a test that needs xen skips although it is wanted")
	}
}

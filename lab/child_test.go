package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestChildDiesWithOwner kills a process that has started QEMU and sees that
// QEMU goes too. The owner is this test binary, run again.
func TestChildDiesWithOwner(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	if os.Getenv("LAB_TEST_OWNER") == "1" {
		c, err := startChild(exec.Command(qemu, "-M", "none", "-nodefaults", "-display", "none", "-S"))
		if err != nil {
			t.Fatal(err)
		}
		churnThreads()
		fmt.Printf("child %d\n", c.cmd.Process.Pid)
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithOwner$")
	cmd.Env = append(os.Environ(), "LAB_TEST_OWNER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var pid int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "child "); ok {
			pid, _ = strconv.Atoi(s)
			break
		}
	}
	if pid == 0 {
		t.Fatal("the owner started no child")
	}
	time.Sleep(200 * time.Millisecond)
	if !alive(pid) {
		t.Fatal("the child died before its owner")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	waitUntil(t, "the child died with its owner", func() bool { return !alive(pid) })
}

// churnThreads makes threads come and go: only the death of the one that
// started the child may matter, and that one must stay.
func churnThreads() {
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { runtime.LockOSThread() })
	}
	wg.Wait()
}

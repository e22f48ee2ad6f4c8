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

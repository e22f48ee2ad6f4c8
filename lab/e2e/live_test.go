// This file runs those unit tests that need a real dom0 in one.

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// The packages that touch /dev/xen, xen and xenstore, pass their live tests in
// dom0, none skipped.
func TestLive(t *testing.T) {
	h, _ := idle(t, machine)
	cmd := exec.Command("go", "test", "-c", "-o", filepath.Join(h.ShareDir(), "xen.test"), "gdbserver-xen/xen")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	res, err := h.Run(t.Context(), "cd /tmp && GDBSERVER_XEN_LIVE=1 /share/xen.test -test.v -test.run Live")
	if err != nil {
		t.Fatal(err)
	}
	passed := len(regexp.MustCompile(`(?m)^--- PASS`).FindAll(res.Stdout, -1))
	skipped := regexp.MustCompile(`(?m)^\s*--- SKIP.*`).FindAllString(string(res.Stdout), -1)
	t.Logf("%d passed in dom0", passed)
	if res.ExitCode != 0 || passed == 0 || len(skipped) > 0 {
		t.Errorf("exit code %d, %d passed, skipped %q:\n%s%s", res.ExitCode, passed, skipped, res.Stdout, res.Stderr)
	}
}

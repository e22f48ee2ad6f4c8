// This file runs those unit tests that need a real dom0 in one.

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"testing"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// The packages that touch /dev/xen, xen and xenstore, pass their live tests in
// dom0, none skipped.
func TestLive(t *testing.T) {
	h, _ := idle(t, machine)
	liveTests(t, h, "gdbserver-xen/xen", "")
}

// The engine monitor stops, steps and gives back a guest, also after a kill, as
// a test in dom0 drives it.
func TestLiveMonitor(t *testing.T) {
	for _, release := range labtest.Releases() {
		for _, kind := range lab.Kinds() {
			if kind == lab.PV {
				continue
			}
			t.Run(fmt.Sprintf("%s on %s", kind, release), func(t *testing.T) {
				cfg := machine
				cfg.Release = release
				guest := sleeping
				if kind == lab.HVM {
					guest = lab.GuestConfig{Cmdline: "work=sleep nokaslr"}
				}
				h, g := guestOf(t, cfg, guest, kind)
				liveEngine(t, h, g, "monitor")
			})
		}
	}
}

// The engine gdbsx does too.
func TestGDBSXEngine(t *testing.T) {
	t.Run("pv by gdbsx", func(t *testing.T) {
		h, g := guestOf(t, debuggable, sleeping, lab.PV)
		liveEngine(t, h, g, "gdbsx")
	})
}

// liveEngine runs the live tests of an engine on a guest.
func liveEngine(t *testing.T, h *lab.Host, g *lab.Guest, name string) {
	t.Helper()
	liveTests(t, h, "gdbserver-xen/internal/engine", fmt.Sprintf(
		"GDBSERVER_XEN_LIVE_DOMAIN=%d GDBSERVER_XEN_LIVE_FUNCTIONS='%x %x' GDBSERVER_XEN_LIVE_ENGINE=%s",
		g.ID(), symbolAddress(t, h, "hrtimer_nanosleep"), symbolAddress(t, h, "vfs_write"), name))
	ticks(t, g)
	healthy(t, g)
}

// liveTests runs those tests of a package in dom0 that need one.
func liveTests(t *testing.T, h *lab.Host, pkg, env string) {
	t.Helper()
	file := path.Base(pkg) + ".test"
	cmd := exec.Command("go", "test", "-c", "-o", filepath.Join(h.ShareDir(), file), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	res, err := h.Run(t.Context(), fmt.Sprintf("cd /tmp && GDBSERVER_XEN_LIVE=1 %s /share/%s -test.v -test.run Live", env, file))
	if err != nil {
		t.Fatal(err)
	}
	passed := len(regexp.MustCompile(`(?m)^--- PASS`).FindAll(res.Stdout, -1))
	skipped := regexp.MustCompile(`(?m)^\s*--- SKIP.*`).FindAllString(string(res.Stdout), -1)
	t.Logf("%d passed in dom0:\n%s", passed, res.Stdout)
	if res.ExitCode != 0 || passed == 0 || len(skipped) > 0 {
		t.Errorf("exit code %d, %d passed, skipped %q:\n%s", res.ExitCode, passed, skipped, res.Stderr)
	}
}

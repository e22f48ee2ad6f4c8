package lab_test

// The lab on real Xen.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func TestRun(t *testing.T) {
	h := labtest.Host(t, lab.Config{})
	t.Logf("dom0 answered after %.1f s", h.BootTime().Seconds())
	res, err := h.Run(t.Context(), "echo out; echo err >&2; exit 3")
	if err != nil || string(res.Stdout) != "out\n" || string(res.Stderr) != "err\n" || res.ExitCode != 3 {
		t.Errorf("got %q, %q, %d, %v", res.Stdout, res.Stderr, res.ExitCode, err)
	}
	if _, err := h.Output(t.Context(), "exit 5"); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		t.Errorf("got %v, want an error with the exit code", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := h.Run(ctx, "sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if got := strings.TrimSpace(labtest.Output(t, h, "uname -r")); got != h.KernelRelease() {
		t.Errorf("dom0 runs linux %s, want %s", got, h.KernelRelease())
	}
	version := strings.TrimSpace(labtest.Output(t, h, "cat /sys/hypervisor/version/major; cat /sys/hypervisor/version/minor"))
	if got := strings.ReplaceAll(version, "\n", "."); got != lab.DefaultRelease {
		t.Errorf("dom0 runs on xen %s, want %s", got, lab.DefaultRelease)
	}
	eventually(t, "sleep is killed", func() bool {
		return !strings.Contains(labtest.Output(t, h, "ps"), "sleep 1000")
	})
}

func TestCommand(t *testing.T) {
	h := labtest.Host(t, lab.Config{})
	p, err := h.Command(t.Context(), `trap 'echo bye; exit 9' TERM; echo hello; while :; do sleep 0.1; done`)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitOutput(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if res, err := p.Wait(); err != nil || res.ExitCode != 9 || string(res.Stdout) != "hello\nbye\n" {
		t.Errorf("got %q, %d, %v", res.Stdout, res.ExitCode, err)
	}
}

func TestCopy(t *testing.T) {
	h := labtest.Host(t, lab.Config{})
	dir := t.TempDir()
	data := make([]byte, 32<<20)
	rand.Read(data)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/root/file", "/share/file"} {
		begin := time.Now()
		if err := h.CopyIn(t.Context(), in, path, 0o711); err != nil {
			t.Fatal(err)
		}
		wrote := time.Now()
		if err := h.CopyOut(t.Context(), path, out); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MB in %.1f s, back in %.1f s", path, len(data)>>20, wrote.Sub(begin).Seconds(), time.Since(wrote).Seconds())
		if back, err := os.ReadFile(out); err != nil || !bytes.Equal(back, data) {
			t.Errorf("%s: got %d other bytes back, %v", path, len(back), err)
		}
		if mode := strings.TrimSpace(labtest.Output(t, h, "stat -c %a "+path)); mode != "711" {
			t.Errorf("%s has mode %s, want 711", path, mode)
		}
		labtest.Output(t, h, "rm "+path)
	}
	if err := h.CopyOut(t.Context(), "/nonexistent", out); err == nil {
		t.Error("copying a missing file succeeds")
	}
}

func TestForward(t *testing.T) {
	h := labtest.Host(t, lab.Config{})
	p, err := h.Command(t.Context(), "echo from dom0 | nc -l -p 9001")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := h.Forward(t.Context(), 9001)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.Forward(t.Context(), 9001); err != nil || again != addr {
		t.Errorf("a second time: got %s, %v, want %s", again, err, addr)
	}
	eventually(t, "nc listens", func() bool {
		return strings.Contains(labtest.Output(t, h, "netstat -ltn"), ":9001 ")
	})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, len("from dom0\n"))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "from dom0\n" {
		t.Errorf("got %q, %v", buf, err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
}

// TestGuests leaves HVM, which takes longest to boot, to package e2e unless all is
// wanted.
func TestGuests(t *testing.T) {
	kinds := []lab.Kind{lab.PV, lab.PVH}
	if os.Getenv(labtest.EnvAll) == "1" {
		kinds = lab.Kinds()
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			h := labtest.Host(t, lab.Config{})
			testGuest(t, h, kind)
		})
	}
}

func testGuest(t *testing.T, h *lab.Host, kind lab.Kind) {
	g := labtest.Guest(t, h, lab.GuestConfig{Kind: kind, Cmdline: "sysrq_always_enabled"})
	t.Logf("guest %s ticked after %.1f s", g.Name(), g.BootTime().Seconds())
	if err := g.WaitTick(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	list := labtest.Output(t, h, "xl list "+g.Name())
	if !strings.Contains(list, " "+strconv.Itoa(g.ID())+" ") {
		t.Errorf("domain %d is not in:\n%s", g.ID(), list)
	}
	if vcpus := strings.Count(labtest.Output(t, h, "xl vcpu-list "+g.Name()), g.Name()+" "); vcpus != 2 {
		t.Errorf("guest has %d vCPUs, want 2", vcpus)
	}

	labtest.Output(t, h, "xl pause "+g.Name())
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := g.WaitTick(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused guest ticks: %v", err)
	}
	labtest.Output(t, h, "xl unpause "+g.Name())
	if err := g.WaitTick(t.Context(), 1); err != nil {
		t.Error(err)
	}

	if kind == lab.HVM {
		testKASLR(t, h, g)
	}

	if err := g.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err := h.Run(t.Context(), "xl domid "+g.Name()); err != nil || res.ExitCode == 0 {
		t.Errorf("after destroy the guest has the id %s, %v", res.Stdout, err)
	}
	if err := g.WaitTick(t.Context(), 1); err == nil {
		t.Error("a destroyed guest ticks")
	}
}

var kernelOffset = regexp.MustCompile(`Kernel Offset: (\S+) from (\S+)`)

// testKASLR crashes a guest, whose kernel then says where it was.
func testKASLR(t *testing.T, h *lab.Host, g *lab.Guest) {
	labtest.Output(t, h, "xl sysrq "+g.Name()+" c")
	eventually(t, "the kernel names its offset", func() bool { return kernelOffset.MatchString(g.Console()) })
	if m := kernelOffset.FindStringSubmatch(g.Console()); m != nil {
		t.Logf("kernel was at %s from %s", m[1], m[2])
		if m[1] == "0x0" {
			t.Error("kernel was where it was linked")
		}
	}
}

func TestDumpCore(t *testing.T) {
	h := labtest.Host(t, lab.Config{})
	g := labtest.Guest(t, h, lab.GuestConfig{MemoryMB: 96, VCPUs: 1})
	core := filepath.Join(t.TempDir(), "core")
	begin := time.Now()
	if err := g.DumpCore(t.Context(), core); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(core); err != nil || st.Size() < 96<<20 {
		t.Errorf("core file: %v, %v, want 96 MB", st, err)
	}
	t.Logf("core file after %.1f s", time.Since(begin).Seconds())
	if err := g.WaitTick(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// TestTwoHosts starts a host beside the shared one, closes it, and sees that
// nothing of it is left and that the other does not care.
func TestTwoHosts(t *testing.T) {
	first := labtest.Host(t, lab.Config{})
	second, err := lab.Start(t.Context(), lab.Config{Dom0MemoryMB: 768, MemoryMB: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	for _, h := range []*lab.Host{first, second} {
		labtest.Output(t, h, "xl info")
	}
	p, err := second.Command(t.Context(), "sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	all, err := lab.Running()
	if err != nil || len(all) < 2 {
		t.Errorf("running hosts: got %d, %v, want at least 2", len(all), err)
	}
	pid, dir := second.PID(), filepath.Dir(second.ShareDir())
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("qemu is still there after Close: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run directory is still there after Close: %v", err)
	}
	if _, err := p.Wait(); err == nil {
		t.Error("a command of a closed host ends well")
	}
	if _, err := second.CreateGuest(t.Context(), lab.GuestConfig{}); err == nil {
		t.Error("a closed host creates guests")
	}
	labtest.Output(t, first, "true")
}

// TestReleases boots the releases that the other tests do not.
func TestReleases(t *testing.T) {
	labtest.Require(t)
	for _, release := range labtest.Releases() {
		if release == lab.DefaultRelease {
			continue
		}
		t.Run(release, func(t *testing.T) {
			h := labtest.Host(t, lab.Config{Release: release})
			for _, kind := range lab.Kinds() {
				t.Run(string(kind), func(t *testing.T) { testGuest(t, h, kind) })
			}
		})
	}
}

// A hypervisor with CONFIG_GDBSX runs guests, and lets Xen's own gdbsx, which dom0
// has, stop them and read their registers.
func TestGDBSX(t *testing.T) {
	h := labtest.Host(t, lab.Config{GDBSX: true})
	t.Logf("xen %s", h.XenVersion())
	config := labtest.Output(t, h, "xenhypfs cat /buildinfo/config")
	for _, want := range []string{"\nCONFIG_GDBSX=y\n", "\n# CONFIG_DEBUG is not set\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in the hypervisor's configuration:\n%s", want, config)
		}
	}
	g := labtest.Guest(t, h, lab.GuestConfig{})
	registers := labtest.Output(t, h, "gdbsx -c "+strconv.Itoa(g.ID())+" 64 1")
	if !strings.Contains(registers, "rip:ffffffff8") {
		t.Errorf("gdbsx prints no registers of a kernel:\n%s", registers)
	}
	if err := g.WaitTick(t.Context(), 2); err != nil {
		t.Error(err)
	}
}

// TestStartGivesUp ends a start half way.
func TestStartGivesUp(t *testing.T) {
	labtest.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	h, err := lab.Start(ctx, lab.Config{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if h != nil {
		h.Close()
		t.Error("got a host and an error")
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 50 {
		if is() {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("after 10 s it is not so that %s", what)
}

package debugger

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Real lldb, where it is installed, lists what a guest has mapped.
func TestMemoryRegion(t *testing.T) {
	target, _, _ := newTarget(t, xentest.Config{}, xen.PV, 1, nil)
	r, err := target.MemoryRegion(thread(1), text+5)
	if want := (rsp.MemoryRegion{Start: text, Last: text + 0xfff, Mapped: true, Writable: true, Executable: true}); err != nil || r != want {
		t.Errorf("got %+v, %v, want %+v", r, err, want)
	}
	lldb, err := exec.LookPath("lldb-14")
	if err != nil {
		t.Skipf("needs lldb: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	addr, served := serveTCP(ctx, t, target)
	out, err := exec.CommandContext(ctx, lldb, "--no-lldbinit", "--batch", "-o", "gdb-remote "+addr,
		"-o", "memory region 0", "-o", fmt.Sprintf("memory region %#x", uint64(text+0x123)),
		"-o", fmt.Sprintf("memory region %#x", uint64(text+0x1000)), "-o", "detach").CombinedOutput()
	if err != nil {
		t.Fatalf("lldb: %v\n%s", err, out)
	}
	for _, want := range []string{
		`(?m)^\[0x0000000000000000-0xffffffff81000000\) ---$`,
		`(?m)^\[0xffffffff81000000-0xffffffff81001000\) rwx$`,
		`(?m)^\[0xffffffff81001000-0x(ffffffffffffffff|0000000000000000)\) ---$`,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("lldb does not print %s:\n%s", want, out)
		}
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// serveTCP serves a target to one client.
func serveTCP(ctx context.Context, t *testing.T, target rsp.Target) (addr string, served <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = rsp.Serve(ctx, conn, target, rsp.Config{})
		}
		done <- err
	}()
	return l.Addr().String(), done
}

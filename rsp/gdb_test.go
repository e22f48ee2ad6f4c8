package rsp_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

var update = flag.Bool("update", false, "write docs/packets.md, and transcripts of the gdb and lldb that are installed")

// serveTCP serves t to one client on a loopback port. The transcript, if there
// is one, takes down what they say.
func serveTCP(tb testing.TB, t rsp.Target, transcript *rsptest.Transcript) (addr string, served <-chan error) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	result := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			result <- err
			return
		}
		if transcript != nil {
			near, far := rsptest.Pipe(tb)
			done := make(chan struct{})
			go func() {
				transcript.Record(conn, near)
				close(done)
			}()
			err := rsp.Serve(ctx, far, t, rsp.Config{})
			conn.SetReadDeadline(time.Now().Add(time.Second))
			<-done
			result <- err
			return
		}
		result <- rsp.Serve(ctx, conn, t, rsp.Config{})
	}()
	return l.Addr().String(), result
}

// runClient runs a debugger and returns what it prints.
func runClient(tb testing.TB, served <-chan error, name string, args ...string) string {
	tb.Helper()
	return runInterrupted(tb, served, nil, name, args...)
}

// runInterrupted is runClient, with a signal to the debugger when the target
// runs.
func runInterrupted(tb testing.TB, served <-chan error, running func() bool, name string, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+tb.TempDir())
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	if running != nil {
		for !running() && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // gdb has yet to wait
		cmd.Process.Signal(os.Interrupt)
	}
	err := cmd.Wait()
	out := output.Bytes()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	select {
	case err := <-served:
		if err != nil && !errors.Is(err, rsp.ErrDisconnected) {
			tb.Errorf("Serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		tb.Errorf("the server goes on after %s", name)
	}
	return string(out)
}

func gdbArgs(addr string, commands ...string) []string {
	args := []string{"-nx", "-nh", "-batch"}
	for _, c := range append([]string{"set debuginfod enabled off", "target remote " + addr}, commands...) {
		args = append(args, "-ex", c)
	}
	return args
}

func checkOutput(tb testing.TB, out string, want []string) {
	tb.Helper()
	for _, w := range want {
		if ok, err := regexp.MatchString(w, out); err != nil || !ok {
			tb.Errorf("no match for %s (%v) in\n%s", w, err, out)
		}
	}
}

func checkTarget(tb testing.TB, f *rsptest.Target) {
	tb.Helper()
	if m := f.Misuse(); len(m) > 0 {
		tb.Errorf("target misused: %s", strings.Join(m, ", "))
	}
	if !f.Detached() {
		tb.Error("not detached")
	}
}

// A real gdb reads and writes the fake target.
func TestGDB(t *testing.T) {
	f := rsptest.NewTarget(3)
	f.Stops = []rsp.StopReply{{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 2}, Expedite: []int{16, 7, 6}}}
	dump := filepath.Join(t.TempDir(), "dump")
	addr, served := serveTCP(t, f, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr,
		"info registers",
		"p $cr0", "p $efer", "p $mxcsr", "p $xmm1.uint128", "p $st1", "p/x $fctrl", "p/x $fs_base", "p/x $k_gs_base",
		"info registers float", "info registers vector",
		"x/4xb 0x1000",
		"x/16xg 0xffffffff81000000",
		"x/4xb 0x2ffe",
		"dump binary memory "+dump+" 0x1000 0x3000",
		"set var *(char*)0x1003 = 0x5a", "x/4xb 0x1000",
		"set var *(char*)0x3003 = 1",
		"set var $rbx = 0x1234", "p/x $rbx",
		"info threads",
		"thread 3", "p/x $rax", "p $xmm2",
		"monitor hello",
		"continue", "p/x $rax",

		"maint packet vMustReplyEmpty",
		"detach")...)
	checkOutput(t, out, []string{
		`rax +0x1000000000000001 +1152921504606846977`,
		`rip +0xffffffff81000100`,
		`eflags +0x246 +\[ PF ZF IF \]`,
		`cr0 +0x80050033 +\[ PE MP ET NE WP AM PG \]`,
		`= \[ PE MP ET NE WP AM PG \]`,
		`= \[ SCE LME LMA NXE \]`,
		`= \[ IM DM ZM OM UM PM \]`,
		`\$4 = 41\n`, // xmm1 is register 41
		`\$6 = 0x37f`,
		`0x1000:\s+0x00\s+0x07\s+0x0e\s+0x15`,
		`0xffffffff81000000:\s+0x312a231c150e0700`,
		`(?s)0x2ffe:.*Cannot access memory at address 0x3000`,
		`0x1000:\s+0x00\s+0x07\s+0x0e\s+0x5a`,
		`Cannot access memory at address 0x3003`,
		`= 0x1234`,
		`\* 1 +Thread 1\.1 "vCPU 0" \(kernel mode\)`,
		`  3 +Thread 1\.3 "vCPU 2" \(kernel mode\)`,
		`= 0x3000000000000001`,
		`= <unavailable>`,
		`hello`,
		`Thread 2 "vCPU 1" received signal SIGTRAP`,
		`= 0x2000000000000001`,
		`Inferior 1 .process 1. detached`,
	})
	want := f.Clone()[0].Data
	got, err := os.ReadFile(dump)
	want[3] = 0x15 // was written later
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("dump of %d bytes differs, %v", len(got), err)
	}
	if rbx, _ := f.Registers(1).Uint(1); rbx != 0x1234 {
		t.Errorf("rbx is %#x", rbx)
	}
	checkTarget(t, f)
}

// What a gdb that knows no error-message feature makes of errors in words.
func TestGDBErrors(t *testing.T) {
	f := rsptest.NewTarget(2)
	f.NoStep = true
	f.Fail["WriteRegisters"] = errors.New("this vCPU cannot be written")
	addr, served := serveTCP(t, f, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr,
		"x/1xb 0x3000", "stepi", "set var $rbx = 1", "info registers rbx", "detach")...)
	checkOutput(t, out, []string{
		`Cannot access memory at address 0x3000`,
		`\nnot supported: single-stepping this target\n`,
		`E\.this vCPU cannot be written`,
		`rbx +0x1000000000000002`,
	})
	checkTarget(t, f)
}

// Ctrl-C in gdb stops a running target.
func TestGDBInterrupt(t *testing.T) {
	f := rsptest.NewTarget(2)
	addr, served := serveTCP(t, f, nil)
	out := runInterrupted(t, served, f.Running, "gdb", gdbArgs(addr, "continue", "p/x $rip", "detach")...)
	checkOutput(t, out, []string{`received signal SIGINT`, `= 0xffffffff81000100`, `detached`})
	checkTarget(t, f)
}

// gdb's kill, and its quitting without a word, leave the target alive.
func TestGDBKill(t *testing.T) {
	for _, commands := range [][]string{{"kill"}, {"quit"}} {
		f := rsptest.NewTarget(1)
		addr, served := serveTCP(t, f, nil)
		runClient(t, served, "gdb", gdbArgs(addr, commands...)...)
		checkTarget(t, f)
	}
}

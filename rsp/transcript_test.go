package rsp_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// recordings are the sessions in testdata, each with the client that it takes to
// record it.
var recordings = []struct {
	file   string
	target func() *rsptest.Target
	client []string // the first that is found
	args   func(addr string) []string
}{
	{"gdb.txt", stopsIn(2), []string{"gdb"}, func(addr string) []string {
		return gdbArgs(addr, "info registers rip cr0", "info threads", "x/4xb 0x2ffe",
			"set var *(char*)0x1003 = 0x5a", "set var $rbx = 1", "monitor hello", "continue", "bt 1", "detach")
	}},
	{"lldb-14.txt", stopsIn(1), []string{"lldb-14"}, lldbSession},
	{"lldb-19.txt", stopsIn(1), []string{"lldb-19"}, lldbSession},
	{"gdb-run.txt", runs, []string{"gdb"}, func(addr string) []string { return gdbArgs(addr, gdbRun...) }},
	{"lldb-14-run.txt", runs, []string{"lldb-14"}, lldbRunArgs},
	{"lldb-19-run.txt", runs, []string{"lldb-19"}, lldbRunArgs},
}

// stopsIn makes a target that stops once, in a thread.
func stopsIn(thread int) func() *rsptest.Target {
	return func() *rsptest.Target {
		f := rsptest.NewTarget(2)
		f.Stops = []rsp.StopReply{{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: thread}, Expedite: []int{16, 7, 6}}}
		return f
	}
}

// runs makes a target that executes the program.
func runs() *rsptest.Target { return rsptest.NewProgram(2) }

func lldbSession(addr string) []string {
	return lldbArgs(addr, "register read rip cr0", "thread list", "memory read -c 4 0x2ffe",
		"memory write 0x1003 0x5a", "register write rbx 1", "thread step-inst", "detach")
}

func lldbArgs(addr string, commands ...string) []string {
	args := []string{"--no-lldbinit", "--batch", "-o", "settings set plugin.process.gdb-remote.packet-timeout 20"}
	for _, c := range append([]string{"gdb-remote " + addr}, commands...) {
		args = append(args, "-o", c)
	}
	return args
}

// The server says byte for byte what it said to real clients.
func TestTranscripts(t *testing.T) {
	for _, r := range recordings {
		t.Run(r.file, func(t *testing.T) {
			path := filepath.Join("testdata", r.file)
			if *update {
				record(t, path, r.target(), r.client, r.args)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f := r.target()
			c := rsptest.Dial(t, f, rsp.Config{})
			rsptest.Replay(t, c, string(text))
			if err := c.Served(); err != nil {
				t.Error(err)
			}
			checkTarget(t, f)
		})
	}
}

func record(t *testing.T, path string, f *rsptest.Target, clients []string, args func(string) []string) {
	client := find(t, clients)
	version, _ := exec.Command(client, "--version").Output()
	first, _, _ := strings.Cut(string(version), "\n")
	var transcript rsptest.Transcript
	transcript.Comment("%s", first)
	addr, served := serveTCP(t, f, &transcript)
	a := args(addr)
	transcript.Comment("%s", strings.ReplaceAll(fmt.Sprintf("%q", a), addr, "ADDR"))
	runClient(t, served, client, a...)
	checkTarget(t, f)
	if err := os.WriteFile(path, []byte(transcript.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// find returns the first of the clients that is installed.
func find(t *testing.T, clients []string) string {
	for _, c := range clients {
		if path, err := exec.LookPath(c); err == nil {
			return path
		}
	}
	t.Skipf("none of %s is installed", strings.Join(clients, ", "))
	return ""
}

// A real lldb reads and writes the fake target.
func TestLLDBClient(t *testing.T) {
	for _, name := range []string{"lldb-14", "lldb-16", "lldb-19"} {
		t.Run(name, func(t *testing.T) {
			lldb := find(t, []string{name})
			f := rsptest.NewTarget(3)
			f.Stops = []rsp.StopReply{{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 3}, Expedite: []int{16, 7, 6}}}
			// A caller's frame, to be found by rbp: lldb knows the registers by
			// name, without DWARF numbers in target.xml.
			stack := f.Memory[1].Data
			binary.LittleEndian.PutUint64(stack[0xf40:], rsptest.Stack+0xf80)
			binary.LittleEndian.PutUint64(stack[0xf48:], rsptest.Text+0x200)
			clear(stack[0xf80:0xf90])
			addr, served := serveTCP(t, f, nil)
			out := runClient(t, served, lldb, lldbArgs(addr, "bt",
				"register read pc sp fp rax rip cr0 eflags", "register read xmm1", "thread list",
				"memory read -s 1 -f x -c 4 0x1000",
				"memory write 0x1003 0x5a", "memory read -s 1 -f x -c 4 0x1000",
				"register write rbx 0x1234", "register read rbx",
				"thread select 3", "register read rax", "register read xmm2", "bt",
				"process plugin packet monitor hello",
				"thread step-inst", "detach")...)
			checkOutput(t, out, []string{
				`frame #1: 0xffffffff81000200`,
				`rip = 0xffffffff81000100`,
				`cr0 = 0x0*80050033`,
				`0x00001000: 0x00 0x07 0x0e 0x15`,
				`0x00001000: 0x00 0x07 0x0e 0x5a`,
				`rbx = 0x0*1234`,
				`rax = 0x3000000000000001`,
				`xmm2 += error: unavailable`,
				`thread #2: tid = (0x000)?2, 0xffffffff81000110`,
				`stop reason = instruction step into`,
			})
			checkTarget(t, f)
		})
	}
}

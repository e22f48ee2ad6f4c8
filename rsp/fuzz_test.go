package rsp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// Any sequence of packets, one a line, gets one reply each, the right replies
// to m after writes, and never harms the target.
func FuzzServer(f *testing.F) {
	f.Add("qSupported:multiprocess+;swbreak+;xmlRegisters=i386\nQStartNoAckMode\n?\ng\nHgp1.2\nm1000,4\nM1000,2:beef\nD")
	f.Add(lldb + "\nQThreadSuffixSupported\nQListThreadsInStopReply\nQEnableErrorStrings\np0;thread:0002;\nx0,0\nqThreadStopInfo2\nvCont;s:0002")
	f.Add(gdb16 + "\nX1000,4:}]}\x03*#\nx1000,ff\nm2ffe,ffffffffffffffff\nMfffffffffffffffe,4:00000000\nXffffffff81001fff,2:ab")
	f.Add("vCont;c\nm0,1\nvCtrlC\nc1000\nC05;10\ns\nS5\nvCont;C05:p1.1;t:1;c\nvKill;1\nk")
	f.Add("qXfer:features:read:target.xml:0,ffff\nqXfer:threads:read::1,ffffffffffffffff\nqXfer:osdata:read::0,100\nqXfer:exec-file:read:1:0,10\nqXfer:libraries:read::0,10\nvFile:open:2f6b,0,0\nvFile:pread:0,10,0\nvFile:fstat:0\nvFile:close:0\nqOffsets\nqRcmd,6661696c\nqRcmd,00\nTp1.-1\nH\nHg-1\nHcp0.0\nvCont;s:p1.2;c")
	f.Add("P0=xxxxxxxxxxxxxxxx\nP11=00000000\nG00\nG\nP400=1\np40\npffffffffffffffff\nqThreadExtraInfo,2\nqThreadExtraInfo,p-1.-1\nvCont;r1,2:1")
	f.Add(gdb13 + "\nZ0,1000,1;X3,220127X3,220227;cmds:1,X3,220127\nZ1,1000,1\nZ2,1000,8\nz0,1000,0\nvCont;r1000,1010:p1.1;c\nZ0,1000,1;X1,01\nc\nz0,1000,1\nc")
	f.Add("qSupported:swbreak+;hwbreak+\nZ3,0,1\nZ4,ffffffffffffffff,1\nZ4,ffffffffffffffff,2\nZ9,1,1\nqWatchpointSupportInfo:\nvCont;t;c\nvCont;r1,1\nvCont;r2,1\nc\nc\nc")
	for _, r := range recordings {
		if text, err := os.ReadFile(filepath.Join("testdata", r.file)); err == nil {
			var packets []string
			for line := range strings.SplitSeq(string(text), "\n") {
				if p, ok := strings.CutPrefix(line, "> $"); ok && len(p) > 3 {
					packets = append(packets, p[:len(p)-3])
				}
			}
			f.Add(strings.Join(packets, "\n"))
		}
	}
	f.Fuzz(func(t *testing.T, script string) {
		packets := strings.Split(script, "\n")
		if len(packets) > 50 {
			packets = packets[:50]
		}
		target := rsptest.NewTarget(2)
		for cause := range rsp.AccessWatch - rsp.SoftwareBreakpoint + 1 {
			target.Stops = append(target.Stops, rsp.StopReply{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 2}, Expedite: []int{16, 7},
				Cause: rsp.SoftwareBreakpoint + cause, WatchAddr: 0x1000})
		}
		target.Says = []string{"", strings.Repeat("x", 1000)}
		target.Commands = func(_ context.Context, line string, out func(string)) error {
			out(line)
			return nil
		}
		const packetSize = 512
		c := dial(t, &library{Target: target, name: "/k"}, rsp.Config{PacketSize: packetSize}, "")
		for _, p := range packets {
			before := target.Clone()
			if !fuzzPacket(t, c, target, p, packetSize) {
				break
			}
			checkWrites(t, target, before, p)
		}
		c.Close()
		if err := c.Served(); (err == nil) != target.Detached() {
			t.Fatalf("Serve: %v, detached %v", err, target.Detached())
		}
	})
}

// fuzzPacket sends a packet and takes what is owed for it. It reports whether
// the session goes on.
func fuzzPacket(t *testing.T, c *rsptest.Client, target *rsptest.Target, p string, packetSize int) bool {
	if p == "k" {
		c.Post(p)
		return false
	}
	if err := c.Post(p); err != nil {
		t.Fatal(err)
	}
	// The interrupt brings the stop that a running target owes. A stopped one
	// does not notice it.
	if resumes(p) {
		c.Interrupt()
	}
	for {
		reply, err := c.Receive()
		if err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		if len(reply) > packetSize && !strings.HasPrefix(reply, "T") && !strings.HasPrefix(reply, "E") && p != "g" && !strings.HasPrefix(p, "g;") {
			t.Fatalf("%q: reply of %d bytes", p, len(reply))
		}
		if strings.HasPrefix(p, "qRcmd") && strings.HasPrefix(reply, "O") && reply != "OK" || isConsole(p, reply) {
			continue
		}
		// A second reply would be taken for the answer to this.
		if target.Detached() || strings.HasPrefix(p, "D") && reply == "OK" {
			return false
		}
		if empty, err := c.Send("vMustReplyEmpty"); err != nil || empty != "" {
			t.Fatalf("after %q: %q, %v", p, empty, err)
		}
		return true
	}
}

// resumes reports whether a packet may be answered when the target stops.
func resumes(p string) bool {
	return strings.HasPrefix(p, "vCont;") || p != "" && strings.IndexByte("cCsS", p[0]) >= 0
}

// isConsole reports whether a reply is text for the console before the one that
// answers a resumption.
func isConsole(p, reply string) bool {
	return len(reply) > 2 && reply[0] == 'O' && resumes(p)
}

// checkWrites checks that memory has changed only by M and X, and then by all of
// the data.
func checkWrites(t *testing.T, target *rsptest.Target, before []rsptest.Region, p string) {
	changed := 0
	for i, r := range before {
		for j := range r.Data {
			if r.Data[j] != target.Memory[i].Data[j] {
				changed++
			}
		}
	}
	if changed == 0 {
		return
	}
	if !strings.HasPrefix(p, "M") && !strings.HasPrefix(p, "X") {
		t.Fatalf("%q changed memory", p)
	}
	_, data, _ := strings.Cut(p, ":")
	most := len(data)
	if p[0] == 'M' {
		most /= 2
	}
	if changed > most {
		t.Fatalf("%q changed %d bytes", p, changed)
	}
}

// A program that runs, whatever breakpoints it has and however it is resumed,
// stops once for each resumption, and where the stop reply says.
func FuzzRun(f *testing.F) {
	f.Add("Z0,ffffffff81000024,1\nc\nz0,ffffffff81000024,1\nvCont;s:1\nZ0,ffffffff81000024,1\nc\nvCont;s:2;c\nvCont;rffffffff81000024,ffffffff81000038:2;c:-1")
	f.Add("Z1,ffffffff81000028,1\nc\nz1,ffffffff81000028,1\nZ2,ffffffff81001008,8\nc\nZ3,ffffffff81001000,8\nc\nZ4,ffffffff81001000,1\nc\nc")
	f.Add("Z0,ffffffff81000024,1;Xe,248100100016201a164022281327\nc\nc")
	f.Add("Z0,ffffffff8100002f,1;cmds:1,X31,2600102a40248100100016201a16402200220034020019636f756e74657220697320256c6420696e2025236c785c6e0027\nc\nZ0,ffffffff81000012,1\nc")
	f.Add("Hc1\ns\nHc2\nc\nHc-1\ns\nsffffffff81000024\nvCont;t:1;s\nvCont;s:1;t\nvCont;c\nX1000,1:a\nGffff\nP10=0000000000000000\nc\ns")
	f.Fuzz(func(t *testing.T, script string) {
		packets := strings.Split(script, "\n")
		packets = packets[:min(len(packets), 40)]
		target := rsptest.NewProgram(2)
		c := dial(t, target, rsp.Config{}, gdb13)
		for _, p := range packets {
			if p == "k" || strings.HasPrefix(p, "D") || strings.HasPrefix(p, "vKill") {
				continue
			}
			c.Post(p)
			if resumes(p) {
				c.Interrupt()
			}
			reply, err := c.Receive()
			for err == nil && isConsole(p, reply) {
				reply, err = c.Receive()
			}
			if err != nil {
				t.Fatalf("%q: %v", p, err)
			}
			if resumes(p) {
				checkCause(t, c, target, p, reply)
			}
		}
		c.Close()
		c.Served()
	})
}

// checkCause checks that there is the breakpoint that a stop reply tells of.
func checkCause(t *testing.T, c *rsptest.Client, target *rsptest.Target, p, reply string) {
	t.Helper()
	mark, rest, _ := strings.Cut(reply, ":")
	digits, _, _ := strings.Cut(rest, ";")
	watched, _ := strconv.ParseUint(digits, 16, 64)
	var kind rsp.BreakpointKind
	switch mark {
	case "T05swbreak":
		kind = rsp.SoftwareBreakpoint
	case "T05hwbreak":
		kind = rsp.HardwareBreakpoint
	case "T05watch":
		kind = rsp.Watch
	case "T05rwatch":
		kind = rsp.ReadWatch
	case "T05awatch":
		kind = rsp.AccessWatch
	case "T05thread", "T02thread", "T00thread":
		return
	default:
		t.Fatalf("%q: %q", p, reply)
	}
	if kind < rsp.Watch {
		pc, err := c.Send("p10")
		var le [8]byte
		if n, _ := hex.Decode(le[:], []byte(pc)); n != 8 || err != nil {
			t.Fatalf("pc is %q, %v", pc, err)
		}
		watched = binary.LittleEndian.Uint64(le[:])
	}
	if !slices.ContainsFunc(target.Breakpoints(), func(b rsp.Breakpoint) bool {
		return b.Kind == kind && watched >= b.Addr && watched-b.Addr < uint64(b.Size)
	}) {
		t.Fatalf("%q: %q at %#x, of %v", p, reply, watched, target.Breakpoints())
	}
}

// Whatever bytes come, the server ends when the connection does and has not
// misused the target.
func FuzzWire(f *testing.F) {
	f.Add([]byte("+$qSupported:xmlRegisters=i386#77+$g#67-\x03$c#63\x03+$D#44"))
	f.Add([]byte("$QStartNoAckMode#b0$m1000,4#8e$vCont;c#a8\x03\x03$X1000,2:}]}#00"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		target := rsptest.NewTarget(2)
		near, far := rsptest.Pipe(t)
		served := make(chan error, 1)
		go func() { served <- rsp.Serve(t.Context(), far, target, rsp.Config{PacketSize: 256}) }()
		go func() {
			near.Write(wire)
			near.(*net.UnixConn).CloseWrite()
		}()
		var sink bytes.Buffer
		near.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := sink.ReadFrom(near); err != nil {
			if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
				t.Fatal("the server hangs")
			}
		}
		near.Close()
		if err := <-served; (err == nil) != target.Detached() {
			t.Fatalf("Serve: %v, detached %v", err, target.Detached())
		}
		if m := target.Misuse(); len(m) > 0 {
			t.Fatalf("target misused: %s", strings.Join(m, ", "))
		}
	})
}

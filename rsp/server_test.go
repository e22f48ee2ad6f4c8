package rsp_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

const (
	gdb13 = "qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;vfork-events+;exec-events+;vContSupported+;QThreadEvents+;no-resumed+;memory-tagging+;xmlRegisters=i386"
	gdb16 = gdb13 + ";error-message+"
	lldb  = "qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+"
)

// dial serves t to a client that has sent hello and wants no acks.
func dial(tb testing.TB, t rsp.Target, cfg rsp.Config, hello string) *rsptest.Client {
	tb.Helper()
	c := rsptest.Dial(tb, t, cfg)
	if err := c.NoAck(); err != nil {
		tb.Fatal(err)
	}
	if hello != "" {
		rsptest.Script{{hello, "PacketSize=*"}}.Run(tb, c)
	}
	if f, ok := t.(*rsptest.Target); ok {
		tb.Cleanup(func() {
			if m := f.Misuse(); len(m) > 0 {
				tb.Errorf("target misused: %s", strings.Join(m, ", "))
			}
		})
	}
	return c
}

// sample is byte i of a region of the fake target.
func sample(i int) byte { return byte(i*7 + i>>8) }

// plain hides all that a target need not have.
type plain struct{ rsp.Target }

func TestFeatures(t *testing.T) {
	const (
		always      = "PacketSize=20000;QStartNoAckMode+;vContSupported+;qXfer:features:read+;qXfer:threads:read+"
		breakpoints = ";swbreak+;hwbreak+;ConditionalBreakpoints+;BreakpointCommands+"
	)
	for _, tt := range []struct{ hello, want string }{
		{"qSupported", ";binary-upload+"},
		{gdb13, ";multiprocess+;binary-upload+"},
		{gdb16, ";multiprocess+;binary-upload+;error-message+"},
		{lldb, ""},
		{lldb + ";binary-upload+", ";binary-upload+"},
	} {
		x := "b\x00\x07"
		if tt.hello == lldb {
			x = "\x00\x07"
		}
		c := dial(t, rsptest.NewTarget(1), rsp.Config{}, "")
		rsptest.Script{{tt.hello, always + breakpoints + tt.want}, {"x1000,2", x}, {"vMustReplyEmpty", ""}, {"vUnheardOf", ""}, {"qCRC:0,1", ""}, {"", ""}}.Run(t, c)
		c = dial(t, plain{rsptest.NewTarget(1)}, rsp.Config{}, "")
		rsptest.Script{{tt.hello, always + tt.want}, {"x1000,2", x}, {"vCont?", "vCont;c;C;t"}, {"Z0,1000,1", ""}, {"z2,1000,4", ""}, {"qRcmd,00", ""},
			{"qWatchpointSupportInfo:", ""}, {"qHostInfo", "triple:7838365f36342d756e6b6e6f776e2d6c696e7578;ptrsize:8;endian:little;"}}.Run(t, c)
	}
}

func TestMemory(t *testing.T) {
	c := dial(t, rsptest.NewTarget(1), rsp.Config{PacketSize: 0x1000}, gdb13)
	rsptest.Script{
		{"m1000,4", "00070e15"},
		{"m1000,0", ""},
		{"m2ffe,10", fmt.Sprintf("%02x%02x", sample(0x1ffe), sample(0x1fff))}, // up to the hole
		{"m3000,1", "E14"},
		{"mfff,2", "E14"},
		{"mfffffffffffffffc,ffff", "*"}, // up to the end of the address space
		{"m0,ffffffffffffffff", "E14"},
		{"m1000", "E22"},
		{"m1000,", "E22"},
		{"m1000,4x", "E22"},
		{"m12345678123456789,4", "E22"},
		{"x1000,4", "b\x00\x07\x0e\x15"},
		{"x1000,0", "b"},
		{"x3000,1", "E14"},
		{"M1000,2:beef", "OK"},
		{"m1000,3", "beef0e"},
		{"M1000,0:", "OK"},
		{"M1000,2:be", "E.malformed packet: 1 bytes*"},
		{"M1000,1:beef", "E.malformed packet: 2 bytes*"},
		{"M1000,1:b", "E.malformed*"},
		{"M1000,1:zz", "E.malformed*"},
		{"M2fff,2:aaaa", "E.memory is not mapped: 0x3000"}, // nothing is written
		{"m2fff,1", fmt.Sprintf("%02x", sample(0x1fff))},
		{"Mffffffffffffffff,2:aaaa", "E.memory is not mapped*"},
		{"X1000,0:", "OK"},
		{"X1000,5:#$}*\x03", "OK"},
		{"m1000,5", "23247d2a03"},
		{"x1000,5", "b#$}*\x03"},
	}.Run(t, c)
	if got, err := c.Send("m1000,ffffffffffffffff"); err != nil || len(got) != 0x1000 {
		t.Errorf("a huge read gives %d digits, %v", len(got), err)
	}
	if got, err := c.Send("x1000,ffffffffffffffff"); err != nil || len(got) != 0x1000 {
		t.Errorf("a huge binary read gives %d bytes, %v", len(got), err)
	}
}

func TestErrors(t *testing.T) {
	const sentence = "memory is not mapped: 0x3000"
	for _, tt := range []struct{ hello, enable, m, t string }{
		{"qSupported", "", "E14", "E01"},
		{gdb13, "", "E14", "E.no such thread: 0.63"},
		{gdb16, "", "E." + sentence, "E.no such thread: 0.63"},
		{lldb, "", "E14", "E01"},
		{lldb, "QEnableErrorStrings", "E14;" + fmt.Sprintf("%x", sentence), "E01;" + fmt.Sprintf("%x", "no such thread: 0.63")},
	} {
		c := dial(t, rsptest.NewTarget(1), rsp.Config{}, tt.hello)
		if tt.enable != "" {
			rsptest.Script{{tt.enable, "OK"}}.Run(t, c)
		}
		rsptest.Script{{"m3000,1", tt.m}, {"T3f", tt.t}}.Run(t, c)
	}
}

func TestRegisters(t *testing.T) {
	f := rsptest.NewTarget(2)
	c := dial(t, f, rsp.Config{}, gdb13)
	g, err := c.Send("g")
	if err != nil {
		t.Fatal(err)
	}
	regs := f.Registers(1)
	if want := 2 * sizeOf(regs, regs.Len()); len(g) != want {
		t.Fatalf("g has %d digits, want %d", len(g), want)
	}
	xmm0, _ := regs.Index("xmm0")
	rsptest.Script{
		{"p0", "0100000000000010"},
		{"p10", "00010081ffffffff"},
		{"P0=efbeadde00000000", "OK"},
		{"p0", "efbeadde00000000"},
		{"P0=efbe", "E.malformed*"},
		{"P0=efbeadde0000000000", "E.malformed*"},
		{"P0=xxxxxxxxxxxxxxxx", "OK"}, // unknown: not written
		{"p0", "efbeadde00000000"},
		{"p400", "E.no register has number 1024"},
		{"P400=00", "E.no register*"},
		{"G" + g, "OK"},
		{"p0", "0100000000000010"},
		{"G0000000000000000", "OK"}, // fewer registers
		{"p0", "0000000000000000"},
		{"p1", "0200000000000010"},
		{"G" + g + "00", "E.malformed*"},
		{"G00000000", "E.malformed*"},
		{"Hgp1.2", "OK"},
		{"p0", "0100000000000020"},
		{fmt.Sprintf("p%x", xmm0), strings.Repeat("x", 32)},
	}.Run(t, c)
}

func TestThreads(t *testing.T) {
	c := dial(t, rsptest.NewTarget(3), rsp.Config{}, gdb13)
	rsptest.Script{
		{"qC", "QCp1.1"},
		{"qfThreadInfo", "mp1.1,p1.2,p1.3"},
		{"qsThreadInfo", "l"},
		{"Hgp1.3", "OK"},
		{"qC", "QCp1.3"},
		{"Hg2", "OK"},
		{"qC", "QCp1.2"},
		{"Hgp0.0", "OK"},
		{"qC", "QCp1.1"},
		{"Hg0", "OK"},
		{"Hc-1", "OK"},
		{"Hcp1.-1", "OK"},
		{"Hgp2.1", "E.no such thread: 2.1"},
		{"Hg4", "E.no such*"},
		{"Hx1", "E.malformed*"},
		{"Hg", "E.malformed*"},
		{"Hgp1.", "E.malformed*"},
		{"Tp1.3", "OK"},
		{"Tp1.4", "E.no such*"},
		{"T0", "OK"},
		{"qThreadExtraInfo,p1.2", fmt.Sprintf("%x", "vCPU 1: kernel mode")},
		{"qXfer:threads:read::0,1000", `l<?xml version="1.0"?>
<threads>
<thread id="p1.1" core="0" name="vCPU 0">kernel mode</thread>
<thread id="p1.2" core="1" name="vCPU 1">kernel mode</thread>
<thread id="p1.3" core="2" name="vCPU 2">kernel mode</thread>
</threads>
`},
		{"qXfer:threads:read::2,4", "mxml "},
		{"qXfer:threads:read::1000,4", "l"},
		{"qXfer:features:read:target.xml:0,5", "m<?xml"},
		{"qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff", "l"},
		{"qXfer:features:read:other.xml:0,5", "E.no description*"},
		{"qXfer:auxv:read::0,5", ""},
		{"qAttached", "1"},
		{"qAttached:1", "1"},
		{"qSymbol::", "OK"},
		{"qTStatus", ""},
		{"qOffsets", ""},
		{"!", ""},
	}.Run(t, c)
}

func TestThreadListPages(t *testing.T) {
	c := dial(t, rsptest.NewTarget(100), rsp.Config{PacketSize: 256}, gdb13)
	var ids []string
	for query := "qfThreadInfo"; ; query = "qsThreadInfo" {
		reply, err := c.Send(query)
		if err != nil {
			t.Fatal(err)
		}
		if reply == "l" {
			break
		}
		if len(reply) > 256 {
			t.Errorf("%s: %d bytes", query, len(reply))
		}
		ids = append(ids, strings.Split(reply[1:], ",")...)
	}
	if len(ids) != 100 || ids[99] != "p1.64" {
		t.Errorf("%d threads: %s", len(ids), ids)
	}
}

func TestRunControl(t *testing.T) {
	f := rsptest.NewTarget(2)
	second := rsp.ThreadID{PID: 1, TID: 2}
	f.Stops = []rsp.StopReply{
		{Signal: 5, Thread: second, Expedite: []int{16, 7, 40, 999}},
		{Signal: 5, Thread: second},
		{Signal: 5, Thread: second},
		{Signal: 5, Thread: second},
		{Signal: 5, Thread: second},
		{Reason: rsp.StopExited, Signal: 3, Thread: second},
	}
	c := dial(t, f, rsp.Config{}, gdb13)
	rsptest.Script{
		{"?", "T05thread:p1.1;"},
		{"vCont?", "vCont;c;C;t;s;S;r"},
		{"vCont;c", "T05thread:p1.2;10:10010081ffffffff;7:004f000000c9ffff;"},
		{"qC", "QCp1.2"}, // a stop selects its thread
		{"vCont;s:p1.2;c:p1.-1", "T05thread:p1.2;"},
		{"c", "T05thread:p1.2;"},
		{"C05", "T05thread:p1.2;"},
		{"s1234", "T05thread:p1.2;"},
		{"p10", "3512000000000000"},    // and one step on
		{"vCont;t", "T00thread:p1.2;"}, // nothing runs
	}.Run(t, c)
	for packet, why := range map[string]string{
		"vCont;x":      "not supported: vCont action x",
		"vCont;":       "malformed packet: vCont without an action",
		"vCont;c;":     "malformed packet: vCont without an action",
		"vCont;C":      "malformed packet: vCont action C",
		"vCont;c:p1.9": "no such thread: 1.9",
	} {
		checkRefused(t, c, packet, why, "T00thread:p1.2;")
	}
	rsptest.Script{{"vCont;c", "W03;process:1"}}.Run(t, c)
	all, process := rsp.ThreadID{PID: -1, TID: -1}, rsp.ThreadID{PID: 1, TID: -1}
	want := [][]rsp.Action{
		{{Kind: rsp.Continue, Thread: all}},
		{{Kind: rsp.Step, Thread: second}, {Kind: rsp.Continue, Thread: process}},
		{{Kind: rsp.Continue, Thread: all}},
		{{Kind: rsp.Continue, Thread: second, Signal: 5}, {Kind: rsp.Continue, Thread: all}},
		{{Kind: rsp.Step, Thread: second}, {Kind: rsp.Continue, Thread: all}},
		{{Kind: rsp.Continue, Thread: all}},
	}
	if diff := cmp.Diff(want, f.Resumed()); diff != "" {
		t.Errorf("resumed with (-want +got):\n%s", diff)
	}
}

// checkRefused sends a packet that resumes and checks that a gdb gets to know why
// it does not.
func checkRefused(t *testing.T, c *rsptest.Client, packet, why, stop string) {
	t.Helper()
	if err := c.Post(packet); err != nil {
		t.Fatal(err)
	}
	if text, reply := receiveText(t, c, rsp.DefaultPacketSize); text != why+"\n" || reply != stop {
		t.Errorf("%s: %q and %q, want %q and %q", packet, text, reply, why+"\n", stop)
	}
}

func TestNoStep(t *testing.T) {
	f := rsptest.NewTarget(1)
	f.NoStep = true
	c := dial(t, f, rsp.Config{}, gdb13)
	rsptest.Script{
		{"vCont?", "vCont;c;C;t"},
	}.Run(t, c)
	for _, packet := range []string{"s", "S05", "vCont;s:p1.1", "vCont;r10,20:p1.1;c"} {
		checkRefused(t, c, packet, "not supported: single-stepping this target", "T00thread:p1.1;")
	}
	rsptest.Script{{"?", "T05*"}}.Run(t, c)
	if f.Running() {
		t.Error("the target runs")
	}
	// A client of whom nothing is known gets the words on its console.
	c = dial(t, f, rsp.Config{}, "")
	rsptest.Script{{"s", fmt.Sprintf("O%x", "not supported: single-stepping this target\n")}}.Run(t, c)
	if reply, err := c.Receive(); reply != "E01" {
		t.Errorf("after the text: %q, %v", reply, err)
	}
}

// The target's own failures reach the client, and the session goes on.
func TestFailures(t *testing.T) {
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{}, gdb13)
	failure := errors.New("hypercall failed")
	for _, tt := range []struct{ method, packet, want string }{
		{"Threads", "qfThreadInfo", "E.hypercall failed"},
		{"Threads", "Hg1", "E.hypercall failed"},
		{"ReadRegisters", "g", "E.hypercall failed"},
		{"WriteRegisters", "P0=0000000000000000", "E.hypercall failed"},
		{"ReadMemory", "m1000,1", "E01"},
		{"WriteMemory", "M1000,1:00", "E.hypercall failed"},
		{"Monitor", "qRcmd,00", "O" + fmt.Sprintf("%x", "hypercall failed\n")},
		{"", "", "OK"}, // of qRcmd
	} {
		if tt.method == "" {
			if reply, err := c.Receive(); reply != tt.want {
				t.Errorf("got %q, %v", reply, err)
			}
			continue
		}
		f.Fail[tt.method] = failure
		rsptest.Script{{tt.packet, tt.want}}.Run(t, c)
		delete(f.Fail, tt.method)
	}
	for _, tt := range []struct{ method, packet, want string }{
		{"WriteRegisters", "c1000", "hypercall failed"},
		{"Threads", "vCont;c", "hypercall failed"},
		{"Resume", "vCont;c", "hypercall failed"},
		{"Wait", "vCont;c", "wait for a stop: hypercall failed"},
	} {
		rsptest.Script{{"?", "T05*"}, {"m1000,1", "00"}}.Run(t, c)
		f.Fail[tt.method] = failure
		checkRefused(t, c, tt.packet, tt.want, "T00thread:p1.1;")
		delete(f.Fail, tt.method)
	}
}

func TestWhileRunning(t *testing.T) {
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{}, gdb13)
	c.Interrupt() // ignored: nothing runs
	rsptest.Script{{"?", "T05*"}}.Run(t, c)
	c.Post("vCont;c")
	rsptest.Script{
		{"m1000,4", "E01"},
		{"g", "E.target is running: g has to wait for a stop"},
		{"?", "E01"},
		{"vUnheardOf", ""},
	}.Run(t, c)
	if !f.Running() {
		t.Error("the target stands still")
	}
	c.Interrupt()
	if reply, err := c.Receive(); reply != "T02thread:p1.1;" {
		t.Errorf("interrupt: %q, %v", reply, err)
	}
	c.Post("c")
	rsptest.Script{{"vCtrlC", "OK"}}.Run(t, c)
	if reply, err := c.Receive(); reply != "T02thread:p1.1;" {
		t.Errorf("vCtrlC: %q, %v", reply, err)
	}
	c.Post("c")
	rsptest.Script{{"D;1", "OK"}}.Run(t, c)
	if err := c.Served(); err != nil || !f.Detached() {
		t.Errorf("detach while running: %v, detached %v", err, f.Detached())
	}
}

func TestEnd(t *testing.T) {
	failure := errors.New("no")
	for _, tt := range []struct {
		name  string
		fail  string
		act   func(c *rsptest.Client)
		reply string
		want  error
	}{
		{name: "D", act: func(c *rsptest.Client) { c.Post("D") }, reply: "OK"},
		{name: "D of lldb", act: func(c *rsptest.Client) { c.Post("D;0000000000000001") }, reply: "OK"},
		{name: "vKill", act: func(c *rsptest.Client) { c.Post("vKill;1") }, reply: "OK"},
		{name: "k", act: func(c *rsptest.Client) { c.Post("k") }},
		{name: "failed D", fail: "Detach", act: func(c *rsptest.Client) { c.Post("D") }, reply: "E01", want: failure},
		{name: "failed k", fail: "Detach", act: func(c *rsptest.Client) { c.Post("k") }, want: failure},
		{name: "disconnect", act: func(c *rsptest.Client) { c.Close() }, want: rsp.ErrDisconnected},
		{name: "disconnect inside a packet", act: func(c *rsptest.Client) { c.Write([]byte("$m10")); c.Close() }, want: rsp.ErrDisconnected},
		{name: "disconnect while running", act: func(c *rsptest.Client) { c.Post("c"); c.Close() }, want: rsp.ErrDisconnected},
	} {
		f := rsptest.NewTarget(1)
		if tt.fail != "" {
			f.Fail[tt.fail] = failure
		}
		c := dial(t, f, rsp.Config{}, "")
		tt.act(c)
		if tt.reply != "" {
			if reply, err := c.Receive(); reply != tt.reply {
				t.Errorf("%s: reply %q, %v", tt.name, reply, err)
			}
		}
		if err := c.Served(); !errors.Is(err, tt.want) {
			t.Errorf("%s: Serve returns %v, want %v", tt.name, err, tt.want)
		}
		if f.Detached() != (tt.want == nil) {
			t.Errorf("%s: detached %v", tt.name, f.Detached())
		}
	}
	c := dial(t, rsptest.NewTarget(1), rsp.Config{}, gdb13)
	rsptest.Script{{"D;7", "E.no such thread*"}, {"?", "T05*"}}.Run(t, c)
}

func TestContextEnds(t *testing.T) {
	for _, running := range []bool{false, true} {
		f := rsptest.NewTarget(1)
		near, far := rsptest.Pipe(t)
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- rsp.Serve(ctx, far, f, rsp.Config{}) }()
		c := rsptest.NewClient(near)
		rsptest.Script{{"?", "T05*"}}.Run(t, c)
		if running {
			c.Post("c")
			for !f.Running() {
				time.Sleep(time.Millisecond)
			}
		}
		cancel()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("running %v: %v", running, err)
		}
		if f.Detached() || f.Running() != running {
			t.Errorf("running %v: detached %v, running %v", running, f.Detached(), f.Running())
		}
		near.Close()
	}
}

func TestAcknowledgements(t *testing.T) {
	c := rsptest.Dial(t, rsptest.NewTarget(1), rsp.Config{PacketSize: 256})
	for _, tt := range []struct{ send, want string }{
		{"$qC#b4", "+$QC1#c5"},
		{"+", ""},
		{"-", "$QC1#c5"},       // again
		{"$qC#b5", "-"},        // wrong checksum
		{"$qC#b4", "+$QC1#c5"}, //
		{"$}#7d", "+$E22#a9"},  // bad escape
		{"$" + strings.Repeat("a", 300) + "#ac", "+$E22#a9"}, // too long
		{"$QStartNoAckMode#b0", "+$OK#9a"},
		{"+$qC#b4", "$QC1#c5"},
		{"$qC#b5", "$E22#a9"}, // cannot be asked for again
		{"-", ""},
		{"$qC#b4", "$QC1#c5"},
	} {
		c.Write([]byte(tt.send))
		if got, err := c.Read(len(tt.want)); string(got) != tt.want {
			t.Fatalf("%q: got %q, want %q, %v", tt.send, got, tt.want, err)
		}
	}
}

func TestMonitor(t *testing.T) {
	long := strings.Repeat("long ", 200)
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{PacketSize: 256}, gdb13)
	for _, tt := range []struct{ line, want string }{
		{"hello", "hello\n"}, {"fail", "command failed\n"}, {"wait", "context canceled\n"}, {"", "\n"}, {"long", long},
	} {
		if tt.line == "long" {
			f.Commands = func(_ context.Context, _ string, out func(string)) error {
				out(long)
				return nil
			}
		}
		c.Post(fmt.Sprintf("qRcmd,%x", tt.line))
		if tt.line == "wait" {
			c.Interrupt()
		}
		var got strings.Builder
		for {
			reply, err := c.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if reply == "OK" {
				break
			}
			var text []byte
			if _, err := fmt.Sscanf(reply, "O%x", &text); err != nil || len(reply) > 256 {
				t.Fatalf("%q: %q, %v", tt.line, reply, err)
			}
			got.Write(text)
		}
		if got.String() != tt.want {
			t.Errorf("%q: got %q, want %q", tt.line, got.String(), tt.want)
		}
	}
	rsptest.Script{{"qRcmd,6", "E22"}}.Run(t, c)
}

func TestLLDB(t *testing.T) {
	f := rsptest.NewTarget(2)
	f.Stops = []rsp.StopReply{{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 2}}}
	c := dial(t, f, rsp.Config{}, lldb)
	rsptest.Script{
		{"QThreadSuffixSupported", "OK"},
		{"QListThreadsInStopReply", "OK"},
		{"QEnableErrorStrings", "OK"},
		{"qHostInfo", "triple:" + fmt.Sprintf("%x", "x86_64-unknown-linux") + ";ptrsize:8;endian:little;watchpoint_exceptions_received:after;"},
		{"qWatchpointSupportInfo:", "num:4;"},
		{"qProcessInfo", "pid:1;triple:*"},
		{"p0;thread:0002;", "0100000000000020"},
		{"P0=0000000000000000;thread:0002;", "OK"},
		{"p0;thread:0002;", "0000000000000000"},
		{"p0;thread:0001;", "0100000000000010"},
		{"p0;thread:9;", "E01;*"},
		{"p18;thread:0001;", "18000000000000000000"}, // st0
		{"p18;thread:0002;", "E01;*"},
		{"g;thread:0001;", "*"},
		{"g;thread:0002;", "E01;*"},
		{"qOffsets", "Text=0;Data=0;Bss=0"},
		{"p0;thread:zz;", "E22;*"},
		{"x0,0", "OK"},
		{"x1000,4", "\x00\x07\x0e\x15"},
		{"_M1000,rwx", ""},
		{"qMemoryRegionInfo:0", ""},
		{"jThreadsInfo", ""},
		{"qThreadStopInfo2", "T00thread:2;hexname:" + fmt.Sprintf("%x", "vCPU 1") + ";threads:1,2;thread-pcs:ffffffff81000100,ffffffff81000110;"},
		{"qC", "QC1"},
		{"vCont;s:0002", "T05reason:trace;thread:2;hexname:*"},
		{"D;0000000000000001", "OK"},
	}.Run(t, c)
}

func TestBadTarget(t *testing.T) {
	near, far := rsptest.Pipe(t)
	defer near.Close()
	f := rsptest.NewTarget(1)
	f.Description().Features[0].Registers[0].Bits = 7
	if err := rsp.Serve(t.Context(), far, f, rsp.Config{}); err == nil || !strings.Contains(err.Error(), "rax") {
		t.Errorf("Serve: %v", err)
	}
}

func TestLog(t *testing.T) {
	var text strings.Builder
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{Log: log}, gdb13)
	rsptest.Script{{"X1000,2:\x00\x03", "OK"}, {"x1000,400", "b*"}}.Run(t, c)
	c.Post("k")
	c.Served()
	for _, want := range []string{"layer=rsp", `packet="X1000,2:\x00\x03"`, "(1025 bytes)"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %s in\n%s", want, text.String())
		}
	}
}

// On the way of a packet that reads, nothing is allocated.
func TestAllocations(t *testing.T) {
	near, far := rsptest.Pipe(t)
	defer near.Close()
	go rsp.Serve(t.Context(), far, rsptest.NewTarget(4), rsp.Config{})
	noAck(t, near)
	reply := make([]byte, 1<<16)
	for _, packet := range []string{"m1000,8", "x1000,1000", "mffffffff81000000,2000", "g", "p10", "Hg2", "T1"} {
		frame := rsp.AppendRequest(nil, []byte(packet))
		trip := func() { roundTrip(t, near, frame, reply) }
		trip()
		if n := testing.AllocsPerRun(200, trip); n != 0 {
			t.Errorf("%s: %v allocations", packet, n)
		}
	}
}

// noAck readies a connection for roundTrip.
func noAck(tb testing.TB, conn net.Conn) {
	if err := rsptest.NewClient(conn).NoAck(); err != nil {
		tb.Fatal(err)
	}
	conn.SetReadDeadline(time.Time{})
}

// roundTrip sends a frame and reads a frame.
func roundTrip(tb testing.TB, conn net.Conn, frame, reply []byte) int {
	if _, err := conn.Write(frame); err != nil {
		tb.Fatal(err)
	}
	for n := 0; ; {
		m, err := conn.Read(reply[n:])
		if err != nil {
			tb.Fatal(err)
		}
		n += m
		if n >= 4 && reply[n-3] == '#' {
			return n
		}
	}
}

func BenchmarkPackets(b *testing.B) {
	for _, packet := range []string{"m1000,8", "m1000,2000", "x1000,2000", "g", "p10"} {
		b.Run(packet, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go func() {
				far, err := l.Accept()
				if err == nil {
					rsp.Serve(context.Background(), far, rsptest.NewTarget(4), rsp.Config{})
				}
			}()
			near, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer near.Close()
			noAck(b, near)
			reply := make([]byte, 1<<16)
			frame := rsp.AppendRequest(nil, []byte(packet))
			b.ReportAllocs()
			for b.Loop() {
				roundTrip(b, near, frame, reply)
			}
		})
	}
}

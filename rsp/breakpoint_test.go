package rsp_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

func TestBreakpoints(t *testing.T) {
	f := rsptest.NewTarget(2)
	c := dial(t, f, rsp.Config{}, gdb16)
	list := func() string {
		var all []string
		for _, b := range f.Breakpoints() {
			text := fmt.Sprintf("%c %d.%d %x %d", b.Kind, b.Thread.PID, b.Thread.TID, b.Addr, b.Size)
			for _, e := range b.Conditions {
				text += fmt.Sprintf(" if %s", e)
			}
			for _, e := range b.Commands {
				text += fmt.Sprintf(" do %s", e)
			}
			all = append(all, text)
		}
		return strings.Join(all, "\n")
	}
	for _, tt := range []struct{ packet, want, list string }{
		{"Z0,1000,1", "OK", "0 1.1 1000 1"},
		{"Z0,1000,1", "OK", "0 1.1 1000 1"},
		{"Z0,1000,1;X3,220127", "OK", "0 1.1 1000 1 if const8 1; end"},
		{"Z0,1000,1;X3,220127X6,260005220713", "E.malformed packet: invalid agent expression: no instruction at 6", "0 1.1 1000 1 if const8 1; end"},
		{"Z0,1000,1;X3,220127X3,220227", "OK", "0 1.1 1000 1 if const8 1; end if const8 2; end"},
		{"Z0,1000,1;cmds:1,X3,220127X3,220227", "OK", "0 1.1 1000 1 do const8 1; end do const8 2; end"},
		{"Z0,1000,1;X3,220327;cmds:0,X3,220127", "OK", "0 1.1 1000 1 if const8 3; end do const8 1; end"},
		{"z0,1000,1;X3,220327;cmds:0,X3,220127", "OK", ""},
		{"z0,1000,1", "OK", ""},
		{"Z0,1000,0", "OK", "0 1.1 1000 1"},
		{"z0,1000,0", "OK", ""},
		{"Hgp1.2", "OK", ""},
		{"Z1,ffffffffffffffff,1", "OK", "1 1.2 ffffffffffffffff 1"},
		{"z1,ffffffffffffffff,1", "OK", ""},
		{"Z2,fffffffffffffff8,8", "OK", "2 1.2 fffffffffffffff8 8"},
		{"z2,fffffffffffffff8,4", "OK", "2 1.2 fffffffffffffff8 8"},
		{"z2,fffffffffffffff8,8", "OK", ""},
		{"Z3,1000,2", "OK", "3 1.2 1000 2"},
		{"Z4,1000,2", "OK", "3 1.2 1000 2\n4 1.2 1000 2"},
		{"z3,1000,2", "OK", "4 1.2 1000 2"},
		{"z4,1000,2", "OK", ""},
		{"Z5,1000,2", "", ""},
		{"z9,1000,2", "", ""},
		{"Z2,1000,0", "E.malformed packet: write watchpoint of 0 bytes at 0x1000", ""},
		{"Z2,ffffffffffffffff,2", "E.malformed*", ""},
		{"Z2,1000,80000000", "E.malformed*", ""},
		{"z2,1000,0", "E.malformed*", ""},
		{"Z2,1000,4;X3,220127", "E.malformed packet: write watchpoint with conditions", ""},
		{"Z0,1000", "E.malformed*", ""},
		{"Z0", "E.malformed*", ""},
		{"Z0,1000,1;Y", "E.malformed packet: list of agent expressions", ""},
		{"Z0,1000,1;X", "E.malformed packet: length*", ""},
		{"Z0,1000,1;X3", "E.malformed packet: length*", ""},
		{"Z0,1000,1;X3,2201", "E.malformed packet: length*", ""},
		{"Z0,1000,1;Xffffffffffffffff,220127", "E.malformed packet: length*", ""},
		{"Z0,1000,1;X3,22zz27", "E.malformed packet: agent expression is not hexadecimal", ""},
		{"Z0,1000,1;X0,", "E.malformed packet: invalid agent expression*", ""},
		{"Z0,1000,1;cmds:", "E.malformed packet: commands*", ""},
		{"Z0,1000,1;cmds:1", "E.malformed packet: commands*", ""},
		{"Z0,1000,1;cmds:1,Y", "E.malformed packet: list*", ""},
		{"Z0,3000,1", "E.memory is not mapped: 0x3000", ""},
	} {
		rsptest.Script{{tt.packet, tt.want}}.Run(t, c)
		if got := list(); got != tt.list {
			t.Errorf("after %s there is\n%s\nwant\n%s", tt.packet, got, tt.list)
		}
	}
}

// gdb, which does not print the error of a Z packet, is told when it resumes.
func TestRefusedBreakpoint(t *testing.T) {
	f := rsptest.NewTarget(1)
	f.Stops = []rsp.StopReply{{Signal: 5}, {Signal: 5}}
	c := dial(t, f, rsp.Config{}, gdb13)
	const full = "not supported: a write watchpoint at 0x%x: all 4 debug registers are in use"
	rsptest.Script{
		{"Z1,1000,1", "OK"}, {"Z1,1001,1", "OK"}, {"Z2,1002,1", "OK"}, {"Z4,1003,1", "OK"},
		{"Z2,1010,8", "OK"}, {"Z2,1008,8", "OK"},
	}.Run(t, c)
	checkRefused(t, c, "vCont;c", fmt.Sprintf(full, 0x1008), "T00thread:p1.1;")
	checkRefused(t, c, "s", fmt.Sprintf(full, 0x1008), "T00thread:p1.1;")
	rsptest.Script{{"z2,1008,8", "OK"}}.Run(t, c)
	checkRefused(t, c, "c", fmt.Sprintf(full, 0x1010), "T00thread:p1.1;")
	rsptest.Script{
		{"z4,1003,1", "OK"},
		{"Z2,1010,8", "OK"}, // now there is room
		{"c", "T05"},
		{"Z0,1000,1;X1,01", "OK"},
	}.Run(t, c)
	checkRefused(t, c, "c", "not supported: unsupported agent expression: floating point (float)", "T00thread:p1.1;")
	rsptest.Script{{"z0,1000,1", "OK"}, {"c", "T05"}}.Run(t, c)
	// The others get the error at once.
	f = rsptest.NewTarget(1)
	f.Fail["InsertBreakpoint"] = fmt.Errorf("%w: no engine", rsp.ErrNotSupported)
	f.Fail["RemoveBreakpoint"] = errors.New("no")
	for _, tt := range []struct{ hello, insert, remove string }{
		{"qSupported", "E01", "E01"},
		{lldb, "E01", "E01"},
		{gdb16, "OK", "E.no"},
	} {
		c := dial(t, f, rsp.Config{}, tt.hello)
		rsptest.Script{{"Z0,1000,1", tt.insert}, {"z0,1000,1", tt.remove}, {"?", "T05*"}}.Run(t, c)
	}
}

func TestStopCauses(t *testing.T) {
	second := rsp.ThreadID{PID: 1, TID: 2}
	for _, tt := range []struct {
		stop                 rsp.StopReply
		action               string
		plain, gdb, lldbWant string
	}{
		{rsp.StopReply{Signal: 5, Thread: second, Cause: rsp.SoftwareBreakpoint}, "vCont;c",
			"T05thread:2;", "T05swbreak:;thread:p1.2;", "T05reason:breakpoint;thread:2;"},
		{rsp.StopReply{Signal: 5, Thread: second, Cause: rsp.HardwareBreakpoint}, "vCont;s:2;c",
			"T05thread:2;", "T05hwbreak:;thread:p1.2;", "T05reason:breakpoint;thread:2;"},
		{rsp.StopReply{Signal: 5, Thread: second, Cause: rsp.Watch, WatchAddr: 0xffffffff81001004}, "c",
			"T05watch:ffffffff81001004;thread:2;", "T05watch:ffffffff81001004;thread:p1.2;", "T05watch:ffffffff81001004;reason:watchpoint;thread:2;"},
		{rsp.StopReply{Signal: 5, Thread: second, Cause: rsp.ReadWatch}, "c",
			"T05rwatch:0;thread:2;", "T05rwatch:0;thread:p1.2;", "T05rwatch:0;reason:watchpoint;thread:2;"},
		{rsp.StopReply{Signal: 5, Cause: rsp.AccessWatch, WatchAddr: 8}, "c",
			"T05awatch:8;", "T05awatch:8;", "T05awatch:8;reason:watchpoint;"},
		{rsp.StopReply{Signal: 5, Thread: second}, "vCont;s:2;c",
			"T05thread:2;", "T05thread:p1.2;", "T05reason:trace;thread:2;"},
		{rsp.StopReply{Signal: 5, Thread: second}, "vCont;r10,20:2;c",
			"T05thread:2;", "T05thread:p1.2;", "T05reason:trace;thread:2;"},
		{rsp.StopReply{Signal: 5, Thread: second}, "vCont;s:1;c",
			"T05thread:2;", "T05thread:p1.2;", "T05thread:2;"},
		{rsp.StopReply{Signal: 2, Thread: second}, "vCont;s:2;c",
			"T02thread:2;", "T02thread:p1.2;", "T02thread:2;"},
	} {
		for hello, want := range map[string]string{"qSupported": tt.plain, gdb13: tt.gdb, lldb: tt.lldbWant} {
			f := rsptest.NewTarget(2)
			f.Stops = []rsp.StopReply{tt.stop}
			c := dial(t, f, rsp.Config{}, hello)
			rsptest.Script{{tt.action, want}, {"?", want}}.Run(t, c)
		}
	}
}

func TestActions(t *testing.T) {
	first, second := rsp.ThreadID{PID: 1, TID: 1}, rsp.ThreadID{PID: 1, TID: 2}
	f := rsptest.NewTarget(2)
	f.Stops = []rsp.StopReply{{Signal: 5, Thread: first}, {Signal: 5, Thread: second}, {Signal: 5, Thread: second}}
	c := dial(t, f, rsp.Config{}, gdb13)
	const malformed = "malformed packet: vCont action r"
	rsptest.Script{
		{"vCont;r1000,1010:p1.2;c:p1.-1", "T05thread:p1.1;"},
		{"vCont;r1000,1000:2;t", "T05thread:p1.2;"}, // an empty range: a step
		{"vCont;C1f:p1.1;S05:p1.2", "T05thread:p1.2;"},
		{"vCont;t;c", "T00thread:p1.2;"}, // the leftmost wins: nothing runs
		{"vCont;t:1;t:2;s", "T00thread:p1.2;"},
	}.Run(t, c)
	for packet, why := range map[string]string{
		"vCont;r": malformed, "vCont;r10": malformed, "vCont;r10,": malformed, "vCont;r20,10": malformed,
		"vCont;r10,20:": malformed, "vCont;r10,20,30": "malformed packet: actions of vCont",
	} {
		checkRefused(t, c, packet, why, "T00thread:p1.2;")
	}
	want := []string{
		"p1: c; p2: r 0x1000-0x1010",
		"p1: t; p2: s",
		"p1: c 31; p2: s 5",
	}
	if len(f.Resumed()) != len(want) {
		t.Fatalf("%d resumptions", len(f.Resumed()))
	}
	for i, actions := range f.Resumed() {
		var parts []string
		for _, id := range []rsp.ThreadID{first, second} {
			a := rsp.ActionFor(actions, id)
			text := fmt.Sprintf("p%d: %c", id.TID, a.Kind)
			if a.Signal != 0 {
				text += fmt.Sprintf(" %d", a.Signal)
			}
			if a.Kind == rsp.StepRange {
				text += fmt.Sprintf(" %#x-%#x", a.Start, a.End)
			}
			parts = append(parts, text)
		}
		if got := strings.Join(parts, "; "); got != want[i] {
			t.Errorf("resumption %d: %s, want %s", i, got, want[i])
		}
	}
}

// receiveText takes O packets up to another one, which it returns too.
func receiveText(t *testing.T, c *rsptest.Client, most int) (text, reply string) {
	t.Helper()
	for {
		reply, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var part []byte
		if n, _ := fmt.Sscanf(reply, "O%x", &part); n == 0 {
			return text, reply
		}
		if len(reply) > most {
			t.Fatalf("O packet of %d bytes", len(reply))
		}
		text += string(part)
	}
}

// What the target says reaches the client before the stop, and only then.
func TestConsole(t *testing.T) {
	f := rsptest.NewTarget(1)
	stop := rsp.StopReply{Signal: 5}
	f.Stops = []rsp.StopReply{stop, stop, stop, stop}
	long := strings.Repeat("0123456789", 100)
	f.Says = []string{"running\n", long, ""}
	c := dial(t, f, rsp.Config{PacketSize: 256}, gdb13)
	f.Say("before\n")
	f.Say("all\n")
	rsptest.Script{{"?", "T05*"}, {"m1000,1", "00"}}.Run(t, c) // not now
	for _, want := range []string{"before\nall\nrunning\n", long, ""} {
		c.Post("c")
		if text, reply := receiveText(t, c, 256); text != want || reply != "T05" {
			t.Errorf("got %q and %q, want %q", text, reply, want)
		}
		rsptest.Script{{"vMustReplyEmpty", ""}}.Run(t, c)
	}
	// A resumption that fails is none.
	f.Say("later\n")
	f.Fail["Resume"] = errors.New("no")
	checkRefused(t, c, "c", "no", "T00thread:p1.1;")
	delete(f.Fail, "Resume")
	f.Fail["Wait"] = errors.New("no")
	checkRefused(t, c, "c", "later\nwait for a stop: no", "T00thread:p1.1;")
}

// A target that runs and runs is heard at once, from any goroutine; what is too
// much is cut.
func TestConsoleWhileRunning(t *testing.T) {
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{}, gdb13)
	c.Post("c")
	for !f.Running() {
		time.Sleep(time.Millisecond)
	}
	f.Say("now\n")
	if reply, err := c.Receive(); reply != fmt.Sprintf("O%x", "now\n") {
		t.Fatalf("while running: %q, %v", reply, err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				f.Say("line\n")
			}
		})
	}
	all.Wait()
	c.Interrupt()
	text, reply := receiveText(t, c, rsp.DefaultPacketSize)
	if text != strings.Repeat("line\n", 400) || reply != "T02thread:p1.1;" {
		t.Errorf("%d bytes, then %q", len(text), reply)
	}
	f.Say(strings.Repeat("x", 1<<20))
	c.Post("c")
	c.Interrupt()
	text, _ = receiveText(t, c, rsp.DefaultPacketSize)
	if want := strings.Repeat("x", 1<<18) + "\n[786432 bytes of output are lost]\n"; text != want {
		t.Errorf("%d bytes, ending in %q", len(text), text[len(text)-50:])
	}
}

// An interrupt is neither lost, however soon it follows, nor does one that
// crosses a stop bring a second one, or the next.
func TestInterruptRaces(t *testing.T) {
	f := rsptest.NewTarget(1)
	c := dial(t, f, rsp.Config{}, gdb13)
	resume := append(rsp.AppendRequest(nil, []byte("vCont;c")), 0x03)
	for range 500 {
		c.Write(resume)
		if reply, err := c.Receive(); reply != "T02thread:p1.1;" {
			t.Fatalf("at once: %q, %v", reply, err)
		}
	}
	g := rsptest.NewProgram(1)
	c = dial(t, g, rsp.Config{}, gdb13)
	rsptest.Script{{fmt.Sprintf("Z0,%x,1", uint64(rsptest.Bump)), "OK"}}.Run(t, c)
	crossed := 0
	for i := range 500 {
		c.Post("vCont;c")
		for range i % 50 {
			g.Running()
		}
		c.Interrupt()
		reply, err := c.Receive()
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.HasPrefix(reply, "T05swbreak:;"):
			crossed++
			// Over it, which the interrupt must not keep from happening.
			rsptest.Script{
				{fmt.Sprintf("z0,%x,1", uint64(rsptest.Bump)), "OK"},
				{"vCont;s:1", "T05thread:p1.1;10:250000*"},
				{fmt.Sprintf("Z0,%x,1", uint64(rsptest.Bump)), "OK"},
			}.Run(t, c)
		case !strings.HasPrefix(reply, "T02"):
			t.Fatalf("got %q", reply)
		}
		rsptest.Script{{"vMustReplyEmpty", ""}}.Run(t, c)
	}
	t.Logf("%d of 500 interrupts crossed a stop", crossed)
}

func TestHit(t *testing.T) {
	f := rsptest.NewProgram(1)
	c := dial(t, f, rsp.Config{}, gdb13)
	at := func(kind int, rest string) string { return fmt.Sprintf("Z%d,%x,1%s", kind, uint64(rsptest.Bump), rest) }
	counterIs := func(n int) string { // const64 Counter; ref64; const8 n; equal; end
		return fmt.Sprintf("25%016x1a22%02x1327", uint64(rsptest.Counter), n)
	}
	const bump = "10:24000081ffffffff;*"
	say := "22002200340000" + fmt.Sprintf("%02x%x00", len("hit")+1, "hit") + "27"
	// True at the third time, of two conditions one.
	rsptest.Script{
		{at(0, ";X3,220027Xe,"+counterIs(2)), "OK"},
		{"c", "T05swbreak:;thread:p1.1;" + bump},
		{fmt.Sprintf("m%x,8", uint64(rsptest.Counter)), "0200000000000000"},
		{at(0, ";X6,220122000527"), "OK"}, // 1 / 0
	}.Run(t, c)
	c.Post("c")
	text, reply := receiveText(t, c, 1000)
	if text != "condition of the software breakpoint at 0xffffffff81000024: division by zero\n" || !strings.HasPrefix(reply, "T05swbreak:;") {
		t.Errorf("failed condition: %q, %q", text, reply)
	}
	rsptest.Script{
		{fmt.Sprintf("Z2,%x,8", uint64(rsptest.Rounds)), "OK"},
		{at(0, fmt.Sprintf(";X3,220127;cmds:0,X%x,%s", len(say)/2, say)), "OK"},
	}.Run(t, c)
	c.Post("c")
	text, reply = receiveText(t, c, 1000)
	if text != "hit" || !strings.HasPrefix(reply, "T05watch:ffffffff81001008;") {
		t.Errorf("commands: %q, %q", text, reply)
	}
}

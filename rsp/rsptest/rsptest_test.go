package rsptest_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/agent"
	"gdbserver-xen/rsp/rsptest"
)

// What is recorded can be replayed, whatever bytes it has.
func TestTranscript(t *testing.T) {
	client, proxyNear := rsptest.Pipe(t)
	proxyFar, server := rsptest.Pipe(t)
	var transcript rsptest.Transcript
	transcript.Comment("a session with %q", "all bytes")
	recorded := make(chan struct{})
	go func() {
		transcript.Record(proxyNear, proxyFar)
		close(recorded)
	}()
	go rsp.Serve(t.Context(), server, rsptest.NewTarget(1), rsp.Config{})
	c := rsptest.NewClient(client)
	rsptest.Script{{"QStartNoAckMode", "OK"}, {"qSupported", "PacketSize*"}, {"x1000,100", "b*"}, {"X1000,2:\"\\", "OK"}}.Run(t, c)
	c.Interrupt()
	c.Post("k")
	<-recorded
	text := transcript.String()
	if !strings.Contains(text, "# a session with \"all bytes\"\n> $QStartNoAckMode#b0\n< +\n< $OK#9a\n") ||
		!strings.Contains(text, "> \\x03\n> $k#6b\n") {
		t.Errorf("recorded:\n%s", text)
	}
	f := rsptest.NewTarget(1)
	c = rsptest.Dial(t, f, rsp.Config{})
	rsptest.Replay(t, c, text)
	if err := c.Served(); err != nil || !f.Detached() {
		t.Errorf("replay: %v", err)
	}
}

// The fake notices what a target must not be asked.
func TestMisuse(t *testing.T) {
	f := rsptest.NewTarget(1)
	all := []rsp.Action{{Kind: rsp.Step, Thread: rsp.ThreadID{PID: -1, TID: -1}}}
	f.NoStep = true
	f.Wait(canceled())
	f.Resume(all)
	f.ReadMemory(rsp.ThreadID{}, 0x1000, make([]byte, 1))
	f.Detach()
	f.Threads()
	want := "Wait for a stopped target, step of a target that cannot, ReadMemory of a running target, Threads after Detach"
	if got := strings.Join(f.Misuse(), ", "); got != want {
		t.Errorf("misuse: %s", got)
	}
}

// The fake notices what its run control must not be asked.
func TestRunMisuse(t *testing.T) {
	f := rsptest.NewTarget(2)
	one, all := rsp.ThreadID{PID: 1, TID: 1}, rsp.ThreadID{PID: -1, TID: -1}
	for _, actions := range [][]rsp.Action{
		nil,
		{{Kind: rsp.Halt, Thread: all}, {Kind: rsp.Continue, Thread: all}},
		{{Kind: rsp.StepRange, Thread: one, Start: 2, End: 2}},
		{{Kind: rsp.Step, Thread: one, End: 2}},
		{{Kind: rsp.Continue, Thread: rsp.ThreadID{PID: 1, TID: 3}}, {Kind: rsp.Continue, Thread: all}},
	} {
		f.Resume(actions)
		f.Interrupt()
		f.Wait(context.Background())
	}
	f.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.SoftwareBreakpoint, Thread: one, Addr: 0x1000})
	f.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.NoBreakpoint, Thread: one, Addr: 0x1000, Size: 1})
	f.RemoveBreakpoint(rsp.Breakpoint{Kind: rsp.Watch, Thread: one, Addr: 0xffffffffffffffff, Size: 2})
	f.RemoveBreakpoint(rsp.Breakpoint{Kind: rsp.Watch, Addr: 0x1000, Size: 2})
	f.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.Watch, Thread: one, Addr: 0x1000, Size: 2, Conditions: make([]agent.Expr, 1)})
	f.Say("")
	f.Resume([]rsp.Action{{Kind: rsp.Continue, Thread: all}})
	f.InsertBreakpoint(rsp.Breakpoint{Kind: rsp.SoftwareBreakpoint, Thread: one, Addr: 0x1000, Size: 1})
	f.SetConsole(nil)
	for i, want := range []string{
		"Resume of nothing", "Resume of nothing", "r from 0x2 to 0x2", "s from 0x0 to 0x2", "action for thread 1.3",
		"software breakpoint of 0 bytes", "no breakpoint of 1 bytes", "write watchpoint of 2 bytes", "write watchpoint of 2 bytes", "write watchpoint of 2 bytes",
		"no console", "InsertBreakpoint of a running target", "SetConsole of a running target",
	} {
		if got := f.Misuse(); i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Fatalf("misuse %d: want %s, got %q", i, want, got)
		}
	}
}

// The program does what testdata/program.s says.
func TestProgram(t *testing.T) {
	f := rsptest.NewProgram(2)
	one := rsp.ThreadID{PID: 1, TID: 1}
	rip, _ := f.Registers(1).Index("rip")
	var way []uint64
	for range 24 {
		if err := f.Resume([]rsp.Action{{Kind: rsp.Step, Thread: one}}); err != nil {
			t.Fatal(err)
		}
		stop, err := f.Wait(context.Background())
		if err != nil || stop.Thread != one || stop.Signal != 5 {
			t.Fatalf("stop %+v, %v", stop, err)
		}
		pc, _ := f.Registers(1).Uint(rip)
		way = append(way, pc-rsptest.Text)
	}
	want := []uint64{
		0x06, 0x07, 0x0a, 0x0b, 0x0c, 0x0d, // main
		0x24, 0x25, 0x28, 0x2f, 0x36, 0x37, // bump
		0x12, 0x17, 0x19, 0x17, 0x19, 0x17, 0x19, 0x1b, 0x22, // the inner loop
		0x0a, 0x0b, 0x0c, // again
	}
	if !slices.Equal(way, want) {
		t.Errorf("stepped to %#x\nwant       %#x", way, want)
	}
	counters := make([]byte, 16)
	f.ReadMemory(one, rsptest.Counter, counters)
	if want := "\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"; string(counters) != want {
		t.Errorf("counter and rounds are %x", counters)
	}
	if other, _ := f.Registers(2).Uint(rip); other != rsptest.Text {
		t.Errorf("the other thread went to %#x", other)
	}
	if m := f.Misuse(); len(m) > 0 {
		t.Errorf("misuse: %s", m)
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

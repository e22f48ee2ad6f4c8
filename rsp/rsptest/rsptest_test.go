package rsptest_test

import (
	"context"
	"strings"
	"testing"

	"gdbserver-xen/rsp"
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

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

package rsp_test

import (
	"strings"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

func TestRefuse(t *testing.T) {
	near, far := rsptest.Pipe(t)
	defer near.Close()
	refused := make(chan error, 1)
	go func() { refused <- rsp.Refuse(t.Context(), far, "another client is connected") }()
	c := rsptest.NewClient(near)
	c.Post(gdb13)
	want := "+" + string(rsp.AppendPacket(nil, []byte("E.another client is connected")))
	if got, err := c.Read(len(want)); string(got) != want {
		t.Errorf("refused with %q, %v", got, err)
	}
	if err := <-refused; err != nil {
		t.Error(err)
	}
	if more, err := c.Read(1); err == nil {
		t.Errorf("the connection goes on: %q", more)
	}

	near, far = rsptest.Pipe(t)
	near.Close()
	if err := rsp.Refuse(t.Context(), far, "no"); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("refusing nobody: %v", err)
	}
}

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
	rsptest.Script{{gdb13, "E.another client is connected"}}.Run(t, c)
	if err := <-refused; err != nil {
		t.Error(err)
	}
	if reply, err := c.Receive(); err == nil {
		t.Errorf("the connection goes on: %q", reply)
	}

	near, far = rsptest.Pipe(t)
	near.Close()
	if err := rsp.Refuse(t.Context(), far, "no"); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("refusing nobody: %v", err)
	}
}

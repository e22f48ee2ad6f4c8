package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab/bench"
)

// A server that cannot be started is an error; that it fails is a result, and does not
// take long.
func TestServerFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	gone := options{server: filepath.Join(t.TempDir(), "server"), connect: socket, work: "none"}
	if _, err := gone.run(); err == nil {
		t.Error("run: a server that is not there is no error")
	}
	gone.Times = 1
	if _, err := gone.attach(); err == nil {
		t.Error("attach: a server that is not there is no error")
	}
	failing := options{server: "false", connect: socket, work: "none", Params: bench.Params{Times: 1}}
	begin := time.Now()
	for name, measure := range map[string]func() (bench.Report, error){"run": failing.run, "attach": failing.attach} {
		r, err := measure()
		if err != nil || !strings.Contains(r.Failed, "exit status 1") {
			t.Errorf("%s: got %q, %v", name, r.Failed, err)
		}
	}
	if took := time.Since(begin); took > startTimeout {
		t.Errorf("it took %v to see that the server had ended", took)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"sing"}, {"attach"}, {"run", "-steps=x"}, {"memory", "-file=/does/not/exist"}} {
		if err := run(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gdbserver-xen/internal/guardian"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

var update = flag.Bool("update", false, "write docs/man and the golden parts of testdata anew")

func TestMain(m *testing.M) {
	// Programs with the race detector wait for a second at their end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	testscript.Main(m, map[string]func(){
		"gdbserver-xen":         main,
		"gdbserver-xen-on-fake": mainOnFake,
		guardian.Name:           mainGuardianOnFake,
	})
}

// TestScripts runs testdata/*.txtar: the command line where no hypervisor is
// needed.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "dom0":
				_, err := os.Stat("/dev/xen/privcmd")
				return err == nil, nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"occupy":   occupy,
			"exitcode": exitCode,
			"absent":   absent,
		},
	})
}

// occupy listens on a port, and sets $PORT to it.
func occupy(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "localhost:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv("PORT", port)
}

// exitcode N COMMAND... runs a command that must exit with N.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	var exit interface{ ExitCode() int }
	switch {
	case errors.As(err, &exit):
		code = fmt.Sprint(exit.ExitCode())
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// absent FILE wants that there is no such file, not even a socket.
func absent(ts *testscript.TestScript, _ bool, args []string) {
	if _, err := os.Lstat(ts.MkAbs(args[0])); !errors.Is(err, fs.ErrNotExist) {
		ts.Fatalf("%s is there: %v", args[0], err)
	}
}

// A process is a testing.TB for a fake hypervisor in a process of its own.
type process struct {
	testing.TB
	cleanups []func()
	failed   bool
}

func (p *process) Helper()          {}
func (p *process) Name() string     { return "process" }
func (p *process) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }
func (p *process) Error(args ...any) {
	p.failed = true
	fmt.Fprintln(os.Stderr, args...)
}
func (p *process) Errorf(format string, args ...any) { p.Error(fmt.Sprintf(format, args...)) }
func (p *process) Fatal(args ...any) {
	p.Error(args...)
	os.Exit(100)
}
func (p *process) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }

// end runs what the fake hypervisor has registered and exits, with 100 if
// something was left behind.
func (p *process) end(code int) {
	for _, f := range p.cleanups {
		f()
	}
	if p.failed {
		code = 100
	}
	os.Exit(code)
}

// mainOnFake is main on a fake hypervisor, with sessions in
// GDBSERVER_XEN_TEST_SESSIONS. At its end it says how often domain 3 is paused.
func mainOnFake() {
	sessionDir = os.Getenv("GDBSERVER_XEN_TEST_SESSIONS")
	p := &process{}
	d := openFake(p, 0)
	code := run()
	fmt.Fprintf(os.Stderr, "fake: domain 3 is paused %d times\n", d.Pauses())
	p.end(code)
}

// mainGuardianOnFake is main of a guardian. If that has something to undo, it is
// on a fake hypervisor like the one of its server, with domain 3 paused.
func mainGuardianOnFake() {
	p := &process{}
	var d *xentest.Domain
	openHost = func() (*xen.Host, error) {
		d = openFake(p, 1)
		return openHost()
	}
	code := run()
	if d != nil {
		fmt.Fprintf(os.Stderr, "guardian's fake: domain 3 is paused %d times\n", d.Pauses())
	}
	p.end(code)
}

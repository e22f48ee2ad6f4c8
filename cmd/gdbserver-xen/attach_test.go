package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/rsp/rsptest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

const textAddr uint64 = 0xffffffff81000000

// fakeDomain puts a fake hypervisor in the place of the real one for a test, and
// gives its domain 3.
func fakeDomain(t *testing.T, pauses int) *xentest.Domain {
	t.Helper()
	oldHost, oldDir := openHost, sessionDir
	t.Cleanup(func() { openHost, sessionDir = oldHost, oldDir })
	sessionDir = t.TempDir()
	return openFake(t, pauses)
}

// openFake makes openHost open a fake hypervisor. It gives its domain 3: a PV
// guest with two vCPUs and a page of kernel text.
func openFake(t testing.TB, pauses int) *xentest.Domain {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2, Pauses: pauses})
	pt := d.NewPageTables(x86.FourLevel)
	pt.MapPage(textAddr, []byte("kernel text"))
	d.UsePageTables(pt)
	openHost = func() (*xen.Host, error) { return xen.NewHost(x.Transport()) }
	return d
}

// A lineReader takes down what is written to it, and can be waited for.
type lineReader struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newLineReader() *lineReader { return &lineReader{more: make(chan struct{}, 1)} }

func (l *lineReader) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lineReader) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait waits for text, and gives the rest of its line.
func (l *lineReader) wait(t *testing.T, text string) string {
	t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		_, after, _ := strings.Cut(l.String(), text)
		if line, _, ok := strings.Cut(after, "\n"); ok {
			return line
		}
		select {
		case <-l.more:
		case <-timeout:
			t.Fatalf("no %q in what it said:\n%s", text, l)
		}
	}
}

// A job is a command line that runs.
type job struct {
	*lineReader
	t    *testing.T
	stop context.CancelFunc // as a signal does
	done chan int
}

// start runs a command line. It must have ended when the test does.
func start(t *testing.T, args ...string) *job {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &job{lineReader: newLineReader(), t: t, stop: stop, done: make(chan int, 1)}
	go func() { s.done <- execute(ctx, args, io.Discard, s) }()
	return s
}

// ends waits for the server to end with an exit code.
func (s *job) ends(code int) {
	s.t.Helper()
	select {
	case got := <-s.done:
		if got != code {
			s.t.Errorf("exit code %d, want %d; it said:\n%s", got, code, s)
		}
	case <-time.After(10 * time.Second):
		s.t.Fatalf("it does not end; it said:\n%s", s)
	}
}

// dial connects a client.
func (s *job) dial(network string) *rsptest.Client {
	s.t.Helper()
	conn, err := net.Dial(network, s.wait(s.t, "listening on "))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return rsptest.NewClient(conn)
}

func send(t *testing.T, c *rsptest.Client, packet, want string) {
	t.Helper()
	if got, err := c.Send(packet); err != nil || got != want {
		t.Fatalf("%s: got %q, %v, want %q", packet, got, err, want)
	}
}

// detach detaches. The server hangs up at once, maybe before the client has
// acknowledged its reply.
func detach(t *testing.T, c *rsptest.Client) {
	t.Helper()
	if got, err := c.Send("D"); got != "OK" {
		t.Fatalf("D: got %q, %v", got, err)
	}
}

func paused(t *testing.T, d *xentest.Domain, want int) {
	t.Helper()
	if got := d.Pauses(); got != want {
		t.Fatalf("paused %d times, want %d", got, want)
	}
}

// becomes waits until the domain is paused so many times.
func becomes(t *testing.T, d *xentest.Domain, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); d.Pauses() != want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	paused(t, d, want)
}

// readText is what every client here does: read the guest's kernel text.
func readText(t *testing.T, c *rsptest.Client) {
	t.Helper()
	send(t, c, fmt.Sprintf("m%x,6", textAddr), fmt.Sprintf("%x", "kernel"))
}

func TestAttachAndDetach(t *testing.T) {
	for _, pauses := range []int{0, 1} {
		d := fakeDomain(t, pauses)
		s := start(t, "attach", "--listen", ":0", "3")
		c := s.dial("tcp")
		paused(t, d, pauses+1)
		readText(t, c)
		detach(t, c)
		s.ends(0)
		paused(t, d, pauses)
		for _, line := range []string{
			"gdbserver-xen: attached to domain 3, paused: PV, 2 vCPUs, ",
			"\n  gdb:   target remote 127.0.0.1:", "\n  lldb:  gdb-remote 127.0.0.1:",
			" connected\n", " detached, domain 3 is as it was\n",
		} {
			if !strings.Contains(s.String(), line) {
				t.Errorf("no %q in\n%s", line, s)
			}
		}
	}
}

func TestDisconnectAndConnectAgain(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, "attach", "--listen", ":0", "3")
	for range 3 {
		c := s.dial("tcp")
		readText(t, c)
		paused(t, d, 1)
		c.Close()
		becomes(t, d, 0)
	}
	s.wait(t, " went away without detaching, domain 3 is as it was")
	s.stop()
	s.ends(0)
	paused(t, d, 0)
}

func TestOnce(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, ":0", "--attach", "3", "--once")
	c := s.dial("tcp")
	readText(t, c)
	c.Close()
	s.ends(0)
	paused(t, d, 0)
}

func TestGdbserversOrder(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, "--attach", ":0", "3")
	c := s.dial("tcp")
	detach(t, c)
	s.ends(0)
	paused(t, d, 0)
}

// Signals end the context: see run, and TestSignals for real ones.
func TestStopped(t *testing.T) {
	t.Run("before a client", func(t *testing.T) {
		d := fakeDomain(t, 0)
		s := start(t, "attach", "--listen", ":0", "3")
		s.wait(t, "listening on ")
		paused(t, d, 1)
		s.stop()
		s.ends(0)
		s.wait(t, "gdbserver-xen: stopped by a signal, domain 3 is as it was")
		paused(t, d, 0)
	})
	t.Run("with a client", func(t *testing.T) {
		d := fakeDomain(t, 1)
		s := start(t, "attach", "--listen", ":0", "3")
		readText(t, s.dial("tcp"))
		paused(t, d, 2)
		s.stop()
		s.ends(0)
		paused(t, d, 1)
	})
	t.Run("while the guest runs", func(t *testing.T) {
		d := fakeDomain(t, 0)
		s := start(t, "attach", "--listen", ":0", "3")
		c := s.dial("tcp")
		readText(t, c)
		if err := c.Post("c"); err != nil {
			t.Fatal(err)
		}
		becomes(t, d, 0)
		s.stop()
		s.ends(0)
		paused(t, d, 0)
	})
}

func TestSecondClient(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, "attach", "--listen", ":0", "3")
	first := s.dial("tcp")
	readText(t, first)
	second := s.dial("tcp")
	reply, err := second.Send("qSupported:multiprocess+")
	if err != nil || !strings.HasPrefix(reply, "E.domain 3 is being debugged by 127.0.0.1:") {
		t.Errorf("got %q, %v", reply, err)
	}
	s.wait(t, " turned away: domain 3 is being debugged by ")
	readText(t, first)
	paused(t, d, 1)
	detach(t, first)
	s.ends(0)
	paused(t, d, 0)
}

// A server has nothing to wait for when its domain is gone.
func TestDestroyed(t *testing.T) {
	d := fakeDomain(t, 0)
	s := start(t, "attach", "--listen", ":0", "3")
	c := s.dial("tcp")
	readText(t, c)
	if err := c.Post("vCont;c"); err != nil {
		t.Fatal(err)
	}
	becomes(t, d, 0)
	d.Destroy()
	if reply, err := c.Receive(); err != nil || !strings.HasPrefix(reply, "W00") {
		t.Errorf("got stop reply %q, %v", reply, err)
	}
	c.Close()
	s.ends(0)
	s.wait(t, "gdbserver-xen: domain 3 is gone")
}

// A server does not wait for clients of a domain that is gone.
func TestDestroyedWithoutClient(t *testing.T) {
	for name, meanwhile := range map[string]func(s *job){
		"before the first": func(*job) {},
		"after one that went away": func(s *job) {
			s.dial("tcp").Close()
			s.wait(t, " went away without detaching")
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := fakeDomain(t, 0)
			s := start(t, "attach", "--listen", ":0", "3")
			s.wait(t, "listening on ")
			meanwhile(s)
			d.Destroy()
			s.ends(0)
			s.wait(t, "gdbserver-xen: domain 3 is gone")
		})
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	// What a server that was killed leaves behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	d := fakeDomain(t, 0)
	s := start(t, "attach", "--listen", "unix:"+path, "3")
	c := s.dial("unix")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	readText(t, c)
	if !strings.Contains(s.String(), "\n  gdb:   target remote "+path+"\n") {
		t.Errorf("no line for gdb in\n%s", s)
	}

	other := start(t, "attach", "--listen", "unix:"+path, "3")
	other.ends(1)
	if !strings.Contains(other.String(), path+": another server listens there\n") {
		t.Errorf("another server said:\n%s", other)
	}

	detach(t, c)
	s.ends(0)
	paused(t, d, 0)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is still there: %v", err)
	}
}

func TestOpenAddressWarns(t *testing.T) {
	fakeDomain(t, 0)
	s := start(t, "attach", "--listen", "0.0.0.0:0", "3")
	s.wait(t, "listening on 0.0.0.0:") // and not on all addresses of IPv6 too
	s.wait(t, "can be reached from other machines, and whoever connects controls the domain")
	if strings.Contains(s.String(), "target remote 0.0.0.0") {
		t.Errorf("no address to type in\n%s", s)
	}
	s.stop()
	s.ends(0)
}

func TestLog(t *testing.T) {
	fakeDomain(t, 0)
	s := start(t, "attach", "--listen", ":0", "--log", "rsp", "3")
	c := s.dial("tcp")
	readText(t, c)
	detach(t, c)
	s.ends(0)
	if !strings.Contains(s.String(), "level=DEBUG") || !strings.Contains(s.String(), "layer=rsp") {
		t.Errorf("no log of rsp in\n%s", s)
	}
}

func TestRefusedDomains(t *testing.T) {
	for _, tt := range []struct {
		domain, want string
		set          func(d *xentest.Domain)
	}{
		{"0", "domain 0 runs this program", nil},
		{"32754", "hypervisor's own domains", nil},
		{"7", "gdbserver-xen: no such domain as 7: `gdbserver-xen list` shows those there are\n", nil},
		{"3", "being destroyed", func(d *xentest.Domain) { d.Dying = true }},
		{"3", "still being built", func(d *xentest.Domain) { d.NoVCPUs = true }},
		{"3", "still being built", func(d *xentest.Domain) { d.NoPages = true }},
		{"3", "still being built", func(d *xentest.Domain) { d.VCPU(0).Uninitialised, d.VCPU(1).Uninitialised = true, true }},
	} {
		d := fakeDomain(t, 0)
		if tt.set != nil {
			tt.set(d)
		}
		for _, command := range []string{"attach --listen :0", "doctor", "bt", "regs"} {
			s := start(t, append(strings.Fields(command), tt.domain)...)
			s.ends(1)
			if !strings.Contains(s.String(), tt.want) || strings.Count(s.String(), "\n") != 1 {
				t.Errorf("%s %s: want a line with %q, got\n%s", command, tt.domain, tt.want, s)
			}
			paused(t, d, 0)
		}
	}
}

// An engine that was asked for and cannot be had is told at once, not to the first
// client.
func TestEngineRefused(t *testing.T) {
	d := fakeDomain(t, 1)
	s := start(t, "attach", "--listen", "localhost:0", "--engine", "monitor", "3")
	s.ends(1)
	if said := s.String(); !strings.Contains(said, "monitor") || strings.Contains(said, "listening") {
		t.Errorf("it says %q", said)
	}
	paused(t, d, 1)
}

func TestListOnFake(t *testing.T) {
	d := fakeDomain(t, 1)
	var out bytes.Buffer
	if code := execute(t.Context(), []string{"list"}, &out, io.Discard); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "ID NAME KIND VCPUS MEMORY STATE" {
		t.Fatalf("got\n%s", &out)
	}
	if f := strings.Fields(lines[2]); f[0] != "3" || f[2] != "PV" || f[3] != "2" || f[5] != "paused" {
		t.Errorf("domain 3 is listed as %q", lines[2])
	}
	paused(t, d, 1)
}

// onFake starts the program as a process of its own, on a fake hypervisor.
func onFake(t *testing.T, args ...string) (*exec.Cmd, *lineReader) {
	t.Helper()
	said := newLineReader()
	cmd := exec.Command("gdbserver-xen-on-fake", args...)
	cmd.Env = append(os.Environ(), "GDBSERVER_XEN_TEST_SESSIONS="+t.TempDir())
	cmd.Stderr = said
	t.Cleanup(func() {
		if cmd.ProcessState == nil && cmd.Process != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd, said
}

// end waits for the process. It must have left nothing behind.
func end(t *testing.T, cmd *exec.Cmd, said *lineReader) {
	t.Helper()
	kill := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; it said:\n%s", err, said)
	}
	said.wait(t, "fake: domain 3 is paused 0 times")
}

func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, said := onFake(t, "attach", "--listen", ":0", "3")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			addr := said.wait(t, "listening on ")
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			send(t, rsptest.NewClient(conn), "qC", "QC1")
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			end(t, cmd, said)
			if !strings.Contains(said.String(), "stopped by a signal, domain 3 is as it was") {
				t.Errorf("it said\n%s", said)
			}
		})
	}
}

// TestStdio is gdb's "target remote | COMMAND".
func TestStdio(t *testing.T) {
	detach := func(stdin io.WriteCloser, _ *os.Process) {
		io.WriteString(stdin, "+$D#44")
		stdin.Close()
	}
	hangUp := func(stdin io.WriteCloser, _ *os.Process) { stdin.Close() }
	terminate := func(_ io.WriteCloser, p *os.Process) { p.Signal(syscall.SIGTERM) }
	for _, tt := range []struct {
		name string
		args []string
		end  func(stdin io.WriteCloser, p *os.Process)
		says string
	}{
		{"detach", []string{"attach", "--listen", "stdio", "3"}, detach, "detached, domain 3 is as it was"},
		{"hang up", []string{"attach", "--listen", "-", "3"}, hangUp, "went away without detaching, domain 3 is as it was"},
		{"signal", []string{"attach", "--listen", "-", "3"}, terminate, "stopped by a signal, domain 3 is as it was"},
		{"classic form", []string{"stdio", "--attach", "3"}, detach, "detached, domain 3 is as it was"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, said := onFake(t, tt.args...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(stdin, "$qC#b4")
			r := bufio.NewReader(stdout)
			got := make([]byte, len("+$QC1#c5"))
			if _, err := io.ReadFull(r, got); err != nil || string(got) != "+$QC1#c5" {
				t.Errorf("got %q, %v", got, err)
			}
			tt.end(stdin, cmd.Process)
			io.Copy(io.Discard, r)
			end(t, cmd, said)
			if !strings.Contains(said.String(), tt.says) {
				t.Errorf("it said\n%s", said)
			}
		})
	}
}

// Commands that need a Linux say that there is none, and leave the domain as it was.
func TestNotLinux(t *testing.T) {
	d := fakeDomain(t, 0)
	for _, command := range []string{"bt", "dmesg", "ps", "lsmod"} {
		var out, errs bytes.Buffer
		code := execute(t.Context(), []string{command, "3"}, &out, &errs)
		const want = "gdbserver-xen: no Linux kernel with kallsyms was found in the guest's memory"
		if code != 1 || !strings.HasPrefix(errs.String(), want) || out.Len() > 0 {
			t.Errorf("%s: exit code %d, %q, %q", command, code, &errs, &out)
		}
		paused(t, d, 0)
	}
}

// regs prints registers of any guest, and leaves the domain as it was.
func TestRegs(t *testing.T) {
	d := fakeDomain(t, 0)
	d.VCPU(0).Context.RAX = 0x1234
	d.VCPU(0).Context.RFLAGS = 0x246
	var out, errs bytes.Buffer
	if code := execute(t.Context(), []string{"regs", "3"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	for _, want := range []string{
		"vCPU 0, kernel mode:\n  rip       ", "  eflags    00000246  [ PF ZF IF ]\n", "\n  rax       0000000000001234  rbx       ",
		"\n  efer      ----------------\n", "\n\nvCPU 1, kernel mode:\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	paused(t, d, 0)
}

// writerFunc is a writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Nobody who reads slowly keeps a domain paused.
func TestPrintedWhileRunning(t *testing.T) {
	d := fakeDomain(t, 0)
	for _, command := range []string{"doctor", "regs"} {
		printed := false
		out := writerFunc(func(p []byte) (int, error) {
			printed = true
			paused(t, d, 0)
			return len(p), nil
		})
		if code := execute(t.Context(), []string{command, "3"}, out, io.Discard); code != 0 || !printed {
			t.Errorf("%s: exit code %d, printed %v", command, code, printed)
		}
	}
}

// doctor tells what can be done with a domain, and leaves it as it was.
func TestDoctorDomain(t *testing.T) {
	d := fakeDomain(t, 0)
	var out, errs bytes.Buffer
	if code := execute(t.Context(), []string{"doctor", "3"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	for _, want := range []string{
		"yes  registers read   general, segment, control, debug, x87, SSE, ",
		"yes  registers write  ",
		"no   memory read      ", // its vCPUs' rsp and rip lead nowhere
		"yes  pause, continue  all vCPUs together\n",
		"no   breakpoints      ",
		"no   kernel           no Linux kernel ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	paused(t, d, 0)
}

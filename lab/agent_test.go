package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/lab/agent/wire"
)

// startAgent runs the agent as dom0 does, on this machine.
func startAgent(t *testing.T) agentClient {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir+"/agent", "./agent").CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	writeFile(t, dir+"/token", "secret\n")
	cmd := exec.Command(dir+"/agent", "-token-file", dir+"/token")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	return agentClient{Addr: fields[len(fields)-1], Token: "secret"}
}

func TestAgent(t *testing.T) {
	a := startAgent(t)
	t.Run("token", func(t *testing.T) {
		if err := a.ping(t.Context()); err != nil {
			t.Error(err)
		}
		err := agentClient{Addr: a.Addr, Token: "guess"}.ping(t.Context())
		if err == nil || err.Error() != "wrong token" {
			t.Errorf("got %v, want wrong token", err)
		}
	})
	t.Run("exit", func(t *testing.T) {
		for command, want := range map[string]struct {
			out, err string
			code     int
		}{
			"true":                      {"", "", 0},
			"echo out; echo err >&2":    {"out\n", "err\n", 0},
			"exit 7":                    {"", "", 7},
			"kill -TERM $$":             {"", "", 128 + 15},
			"no-such-program 2>&-":      {"", "", 127},
			"sleep 60 & printf started": {"started", "", 0},
		} {
			p, err := a.run(t.Context(), wire.Request{Command: command}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := p.Wait()
			if err != nil || string(res.Stdout) != want.out || string(res.Stderr) != want.err || res.ExitCode != want.code {
				t.Errorf("%s: got %q, %q, %d, %v", command, res.Stdout, res.Stderr, res.ExitCode, err)
			}
		}
	})
	t.Run("large output", func(t *testing.T) {
		p, err := a.run(t.Context(), wire.Request{Command: "head -c 5000000 /dev/zero"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := p.Wait(); err != nil || len(res.Stdout) != 5000000 {
			t.Errorf("got %d bytes, %v", len(res.Stdout), err)
		}
	})
	t.Run("signal and input", func(t *testing.T) {
		p, err := a.run(t.Context(), wire.Request{
			Command: `trap 'echo got it; exit 4' USR1; read line; echo "read $line"; while :; do sleep 0.05; done`,
		}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		if err := p.WaitOutput(t.Context(), "read hello"); err != nil {
			t.Fatal(err)
		}
		if err := p.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		res, err := p.Wait()
		if err != nil || res.ExitCode != 4 || !bytes.Contains(res.Stdout, []byte("got it")) {
			t.Errorf("got %+v, %v", res, err)
		}
		if err := p.WaitOutput(t.Context(), "never said"); err == nil {
			t.Error("waiting for what a command never said succeeds")
		}
	})
	t.Run("timeout kills the group", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		p, err := a.run(ctx, wire.Request{Command: "sleep 300 & echo $!; wait"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Wait()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(res.Stdout)))
		if err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the command's child is gone", func() bool { return !alive(pid) })
	})
	t.Run("files", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		data := bytes.Repeat([]byte("0123456789"), 300000)
		if err := a.put(t.Context(), bytes.NewReader(data), path, 0o751); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o751 {
			t.Errorf("got %v, %v", st, err)
		}
		var back bytes.Buffer
		if err := a.get(t.Context(), path, &back); err != nil || !bytes.Equal(back.Bytes(), data) {
			t.Errorf("got %d bytes back, %v", back.Len(), err)
		}
		if err := a.put(t.Context(), bytes.NewReader(data), "/nonexistent/file", 0o644); err == nil {
			t.Error("writing below a missing directory succeeds")
		}
		if err := a.get(t.Context(), "/nonexistent", &back); err == nil {
			t.Error("reading a missing file succeeds")
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		p, err := a.run(t.Context(), wire.Request{Command: "tty; stty size; cat; exit 3", Terminal: true, Rows: 30, Cols: 99}, &out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.CloseInput(); err != nil { // ends cat
			t.Fatal(err)
		}
		res, err := p.Wait()
		if err != nil || res.ExitCode != 3 || !strings.Contains(out.String(), "/dev/pts/") || !strings.Contains(out.String(), "30 99") {
			t.Errorf("got %q, %d, %v", out.String(), res.ExitCode, err)
		}
	})
}

func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	// pid (name) state; a zombie waits for its parent only
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 100 {
		if is() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("after 5 s it is not so that %s", what)
}

package main

// Commands.

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gdbserver-xen/lab/agent/wire"
)

// run runs a command to its end and sends what it writes as it comes. The
// loss of the connection kills the command's process group.
func run(conn net.Conn, req wire.Request) {
	var mu sync.Mutex // one frame at a time
	send := func(kind byte) io.Writer {
		return writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			for rest := p; len(rest) > 0; {
				n := min(len(rest), wire.MaxFrame)
				if err := wire.Write(conn, kind, rest[:n]); err != nil {
					return 0, err
				}
				rest = rest[n:]
			}
			return len(p), nil
		})
	}

	cmd := exec.Command("/bin/sh", "-c", req.Command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Processes that the command left behind may keep its pipes open.
	cmd.WaitDelay = time.Second
	var (
		stdin io.WriteCloser
		err   error
	)
	if req.Terminal {
		stdin, err = startOnTerminal(cmd, req, send(wire.KindStdout))
	} else {
		cmd.Stdout, cmd.Stderr = send(wire.KindStdout), send(wire.KindStderr)
		if stdin, err = cmd.StdinPipe(); err == nil {
			err = cmd.Start()
		}
	}
	if err != nil {
		exit(conn, -1, err)
		return
	}
	var ended atomic.Bool
	go control(conn, cmd.Process.Pid, stdin, &ended)
	err = cmd.Wait()
	ended.Store(true)
	if t, ok := stdin.(*terminal); ok {
		t.drain()
	}
	mu.Lock()
	defer mu.Unlock()
	exit(conn, exitCode(cmd.ProcessState), runError(err))
}

// control passes input and signals on until the connection ends. If that is
// before the command's end, it kills the command's process group; what a
// command leaves behind when it ends by itself may live on.
func control(conn net.Conn, pid int, stdin io.WriteCloser, ended *atomic.Bool) {
	signal := func(sig syscall.Signal) {
		if !ended.Load() {
			_ = syscall.Kill(-pid, sig)
		}
	}
	for {
		kind, payload, err := wire.Read(conn)
		switch {
		case err != nil:
			signal(syscall.SIGKILL)
			stdin.Close()
			return
		case kind == wire.KindSignal && len(payload) == 1:
			signal(syscall.Signal(payload[0]))
		case kind == wire.KindStdin && len(payload) == 0:
			if t, ok := stdin.(*terminal); ok {
				_, _ = t.Write([]byte{endOfInput}) // to close it would hang up
			} else {
				stdin.Close()
			}
		case kind == wire.KindStdin:
			_, _ = stdin.Write(payload)
		}
	}
}

func exitCode(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// runError is nil for a command that ran, however it ended.
func runError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

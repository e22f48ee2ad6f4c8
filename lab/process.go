package lab

// Commands in dom0.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"gdbserver-xen/lab/agent/wire"
)

// A Result is what a command in dom0 left.
type Result struct {
	Stdout, Stderr []byte
	ExitCode       int // 128+n if signal n ended it
}

// A Process is a command that runs in dom0. Its methods may be called from
// several goroutines.
type Process struct {
	conn    net.Conn
	release func()
	ctx     context.Context
	done    chan struct{}

	writeMu sync.Mutex // one frame at a time

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	changed        chan struct{} // closed and renewed at each output
	code           int
	err            error
}

// run starts a command. Output goes into the process's buffers, or to out and
// errOut if they are not nil.
func (a agentClient) run(ctx context.Context, req wire.Request, out, errOut io.Writer) (*Process, error) {
	req.Op = wire.Run
	conn, release, err := a.dial(ctx, req)
	if err != nil {
		return nil, err
	}
	p := &Process{conn: conn, release: release, ctx: ctx, done: make(chan struct{}), changed: make(chan struct{})}
	go p.receive(out, errOut)
	return p, nil
}

func (p *Process) receive(out, errOut io.Writer) {
	defer close(p.done)
	defer p.release()
	for {
		kind, payload, err := wire.Read(p.conn)
		switch {
		case err != nil:
			p.end(-1, contextError(p.ctx, err))
			return
		case kind == wire.KindExit:
			p.end(decodeExit(payload))
			return
		case kind == wire.KindStdout && out != nil:
			_, _ = out.Write(payload)
		case kind == wire.KindStdout:
			p.add(&p.stdout, payload)
		case kind == wire.KindStderr && errOut != nil:
			_, _ = errOut.Write(payload)
		case kind == wire.KindStderr:
			p.add(&p.stderr, payload)
		}
	}
}

func (p *Process) add(b *bytes.Buffer, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.Write(text)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Process) end(code int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.code, p.err = code, err
}

// Stdout returns what the command has written so far.
func (p *Process) Stdout() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.stdout.Bytes())
}

// Stderr returns what the command has written so far.
func (p *Process) Stderr() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.stderr.Bytes())
}

// WaitOutput waits until stdout or stderr holds text. The end of the command
// before that is an error, which quotes what it wrote.
func (p *Process) WaitOutput(ctx context.Context, text string) error {
	for {
		p.mu.Lock()
		found := bytes.Contains(p.stdout.Bytes(), []byte(text)) || bytes.Contains(p.stderr.Bytes(), []byte(text))
		all := append(bytes.Clone(p.stdout.Bytes()), p.stderr.Bytes()...)
		changed := p.changed
		p.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w; so far:\n%s", text, context.Cause(ctx), lastLines(all, 20))
		}
		// Output may have come between the look and the end.
		if bytes.Contains(append(p.Stdout(), p.Stderr()...), []byte(text)) {
			return nil
		}
		res, err := p.Wait()
		if err != nil {
			return fmt.Errorf("wait for %q: %w", text, err)
		}
		return fmt.Errorf("command ended with %d before it said %q:\n%s", res.ExitCode, text, lastLines(all, 20))
	}
}

// Signal sends a signal to the command's process group.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.send(wire.KindSignal, []byte{byte(sig)})
}

// Write sends input to the command.
func (p *Process) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), wire.MaxFrame)
		if err := p.send(wire.KindStdin, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// CloseInput ends the command's input.
func (p *Process) CloseInput() error { return p.send(wire.KindStdin, nil) }

func (p *Process) send(kind byte, payload []byte) error {
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	return wire.Write(p.conn, kind, payload)
}

// Done is closed when the command has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the command's end. A command that fails is not an error of
// Wait, but has an exit code; an error means that the command could not be
// run or that the connection to dom0 was lost.
func (p *Process) Wait() (Result, error) {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return Result{Stdout: p.stdout.Bytes(), Stderr: p.stderr.Bytes(), ExitCode: p.code}, p.err
}

// Kill ends the command's process group and waits until it is gone.
func (p *Process) Kill() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

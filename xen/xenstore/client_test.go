package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// peer is the other side of a client under test: a xenstored that does what the
// test says.
type peer struct {
	t    *testing.T
	conn net.Conn
}

// dial gives a client and its peer. Both are closed after the test.
func dial(t *testing.T) (*Client, *peer) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := New(ours)
	t.Cleanup(func() {
		c.Close()
		theirs.Close()
	})
	if err := theirs.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, &peer{t, theirs}
}

// get takes one request and checks its type and payload.
func (p *peer) get(typ msgType, payload string) message {
	p.t.Helper()
	m, err := readMessage(p.conn)
	if err != nil {
		p.t.Errorf("request: %v", err)
		return m
	}
	if m.typ != typ || string(m.payload) != payload || m.req == 0 || m.tx != 0 {
		p.t.Errorf("request %d %q (id %d, tx %d), want %d %q", m.typ, m.payload, m.req, m.tx, typ, payload)
	}
	return m
}

// put sends one message.
func (p *peer) put(typ msgType, req uint32, payload string) {
	p.t.Helper()
	p.raw(message{typ: typ, req: req, payload: []byte(payload)}.append(nil))
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Errorf("send: %v", err)
	}
}

// spawn runs f and gives a function that waits for its end.
func spawn(f func()) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	return wg.Wait
}

func TestRead(t *testing.T) {
	for _, value := range []string{"", "demo", "bytes\x00\xff\n", strings.Repeat("x", payloadMax)} {
		c, p := dial(t)
		wait := spawn(func() {
			m := p.get(typeRead, "/local/domain/7/name\x00")
			p.put(typeRead, m.req, value)
		})
		got, err := c.Read(t.Context(), "/local/domain/7/name")
		wait()
		if err != nil || got != value {
			t.Errorf("got %q, %v, want %q", got, err, value)
		}
	}
}

func TestList(t *testing.T) {
	tests := []struct {
		reply string
		want  []string
		err   error
	}{
		{"", nil, nil},
		{"0\x007\x00", []string{"0", "7"}, nil},
		{"0\x007", nil, errMalformed},
	}
	for _, tt := range tests {
		c, p := dial(t)
		wait := spawn(func() {
			m := p.get(typeDirectory, "/local/domain\x00")
			p.put(typeDirectory, m.req, tt.reply)
		})
		got, err := c.List(t.Context(), "/local/domain")
		wait()
		if !cmp.Equal(got, tt.want) || !errors.Is(err, tt.err) {
			t.Errorf("%q: got %q, %v, want %q, %v", tt.reply, got, err, tt.want, tt.err)
		}
	}
}

func TestErrorReplies(t *testing.T) {
	tests := []struct {
		name string
		want []error
		text string
	}{
		{"ENOENT", []error{ErrNotExist, fs.ErrNotExist}, "xenstore: read /a: no such path"},
		{"EACCES", []error{ErrPermission, fs.ErrPermission}, "xenstore: read /a: permission denied"},
		{"EPERM", []error{ErrPermission}, "xenstore: read /a: permission denied"},
		{"E2BIG", []error{syscall.E2BIG}, "xenstore: read /a: argument list too long"},
		{"EWHAT", nil, `xenstore: read /a: xenstored answers error "EWHAT"`},
	}
	c, p := dial(t)
	for _, tt := range tests {
		wait := spawn(func() {
			m := p.get(typeRead, "/a\x00")
			p.put(typeError, m.req, tt.name+"\x00")
		})
		_, err := c.Read(t.Context(), "/a")
		wait()
		for _, want := range tt.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v does not match %v", tt.name, err, want)
			}
		}
		var op *OpError
		if !errors.As(err, &op) || err.Error() != tt.text {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.text)
		}
	}
}

func TestBadPaths(t *testing.T) {
	c, _ := dial(t)
	for _, path := range []string{"", "name", "/a\x00b", "/" + strings.Repeat("x", pathMax), "@releaseDomain"} {
		if _, err := c.Read(t.Context(), path); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("read %.20q: %v", path, err)
		}
		if _, err := c.List(t.Context(), path); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("list %.20q: %v", path, err)
		}
		if strings.HasPrefix(path, "@") {
			continue
		}
		if _, err := c.Watch(t.Context(), path); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("watch %.20q: %v", path, err)
		}
	}
	if len(c.watches) != 0 {
		t.Errorf("%d watches are left", len(c.watches))
	}
}

// Replies come in the reverse order, with an event in the middle.
func TestRepliesInAnyOrder(t *testing.T) {
	const calls = 8
	c, p := dial(t)
	wait := spawn(func() {
		var got []message
		for range calls {
			m, err := readMessage(p.conn)
			if err != nil {
				t.Errorf("request: %v", err)
				return
			}
			got = append(got, m)
		}
		for i := range got {
			m := got[len(got)-1-i]
			p.put(typeRead, m.req, "value of "+strings.TrimSuffix(string(m.payload), "\x00"))
			p.put(typeWatchEvent, m.req, "/nobody\x00asked\x00")
		}
	})
	var callers sync.WaitGroup
	for i := range calls {
		callers.Go(func() {
			path := fmt.Sprintf("/%d", i)
			if got, err := c.Read(t.Context(), path); err != nil || got != "value of "+path {
				t.Errorf("read %s: %q, %v", path, got, err)
			}
		})
	}
	callers.Wait()
	wait()
}

// A call that is given up, before or after its request is on the wire, leaves
// the stream in order.
func TestCancel(t *testing.T) {
	c, p := dial(t)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Read(ctx, "/slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if _, err := c.Read(ctx, "/never sent"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}

	wait := spawn(func() {
		slow := p.get(typeRead, "/slow\x00") // whole, though nobody waits
		m := p.get(typeRead, "/a\x00")
		p.put(typeRead, slow.req, "late")
		p.put(typeRead, m.req, "in time")
		p.put(typeRead, m.req, "twice")
		m = p.get(typeRead, "/b\x00")
		p.put(typeRead, m.req, "next")
	})
	if got, err := c.Read(t.Context(), "/a"); err != nil || got != "in time" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := c.Read(t.Context(), "/b"); err != nil || got != "next" {
		t.Errorf("got %q, %v", got, err)
	}
	wait()
	if len(c.pending) != 0 {
		t.Errorf("%d calls are left", len(c.pending))
	}
}

// A peer that takes nothing must not hold a caller beyond its context.
func TestCancelBehindFullQueue(t *testing.T) {
	c, _ := dial(t)
	var callers sync.WaitGroup
	for range 2 * queueLen {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := c.Read(ctx, "/a"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	callers.Wait()
	if len(c.pending) != 0 {
		t.Errorf("%d calls are left", len(c.pending))
	}
}

func TestConnectionLost(t *testing.T) {
	c, p := dial(t)
	wait := spawn(func() {
		m := p.get(typeWatch, "/w\x001\x00")
		p.put(typeWatchEvent, 0, "/w\x001\x00")
		p.put(typeWatch, m.req, "OK\x00")
		p.get(typeRead, "/a\x00")
		p.get(typeRead, "/a\x00")
		p.conn.Close()
	})
	w, err := c.Watch(t.Context(), "/w")
	if err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			if _, err := c.Read(t.Context(), "/a"); err == nil || !strings.Contains(err.Error(), "connection lost: xenstored hung up") {
				t.Errorf("waiting call: %v", err)
			}
		})
	}
	callers.Wait()
	wait()
	if e, err := w.Next(t.Context()); err != nil || e.Path != "/w" {
		t.Errorf("change from before: %v, %v", e, err)
	}
	if _, err := w.Next(t.Context()); err == nil || !strings.Contains(err.Error(), "connection lost") {
		t.Errorf("watch: %v", err)
	}
	if _, err := c.Read(t.Context(), "/a"); err == nil || !strings.Contains(err.Error(), "connection lost") {
		t.Errorf("later call: %v", err)
	}
}

func TestMalformedEndsClient(t *testing.T) {
	tests := []struct {
		name  string
		reply func(p *peer, req uint32)
	}{
		{"payload too long", func(p *peer, req uint32) {
			b := message{typ: typeRead, req: req, payload: make([]byte, payloadMax+1)}.append(nil)
			p.raw(b[:headerSize])
		}},
		{"other type", func(p *peer, req uint32) { p.put(typeDirectory, req, "") }},
		{"error without NUL", func(p *peer, req uint32) { p.put(typeError, req, "ENOENT") }},
		{"error without name", func(p *peer, req uint32) { p.put(typeError, req, "") }},
		{"error of two names", func(p *peer, req uint32) { p.put(typeError, req, "EIO\x00EIO\x00") }},
		{"event without NUL", func(p *peer, _ uint32) { p.put(typeWatchEvent, 0, "/a\x001") }},
		{"event without token", func(p *peer, _ uint32) { p.put(typeWatchEvent, 0, "/a\x00") }},
		{"empty event", func(p *peer, _ uint32) { p.put(typeWatchEvent, 0, "") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, p := dial(t)
			wait := spawn(func() {
				m := p.get(typeRead, "/a\x00")
				tt.reply(p, m.req)
			})
			_, err := c.Read(t.Context(), "/a")
			wait()
			if !errors.Is(err, errMalformed) {
				t.Errorf("call: %v", err)
			}
			if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, errMalformed) {
				t.Errorf("later call: %v", err)
			}
			if _, err := p.conn.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("connection is open: %v", err)
			}
		})
	}
}

func TestClose(t *testing.T) {
	c, p := dial(t)
	wait := spawn(func() {
		p.get(typeRead, "/a\x00")
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, ErrClosed) {
		t.Errorf("waiting call: %v", err)
	}
	wait()
	if _, err := c.Watch(t.Context(), "/a"); !errors.Is(err, ErrClosed) {
		t.Errorf("later call: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// faulty is a connection whose writes of some path fail, as those to the
// kernel's device do.
type faulty struct {
	net.Conn
	path string
	err  error
}

func (f *faulty) Write(b []byte) (int, error) {
	if strings.Contains(string(b), f.path) {
		return 0, f.err
	}
	return f.Conn.Write(b)
}

// On the kernel's device a failed write is that of one request.
func TestDeviceWriteError(t *testing.T) {
	ours, theirs := net.Pipe()
	c := newClient(&faulty{ours, "/bad", syscall.EACCES}, true)
	defer c.Close()
	defer theirs.Close()
	p := &peer{t, theirs}

	if _, err := c.Watch(t.Context(), "/bad"); !errors.Is(err, ErrPermission) || !errors.Is(err, syscall.EACCES) {
		t.Errorf("got %v", err)
	}
	wait := spawn(func() {
		m := p.get(typeRead, "/good\x00")
		p.put(typeRead, m.req, "value")
	})
	if got, err := c.Read(t.Context(), "/good"); err != nil || got != "value" {
		t.Errorf("got %q, %v", got, err)
	}
	wait()
}

// On a socket a failed write ends the client.
func TestSocketWriteError(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := New(&faulty{ours, "/bad", syscall.EPIPE})
	for _, path := range []string{"/bad", "/good"} {
		if _, err := c.Read(t.Context(), path); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("read %s: %v", path, err)
		}
	}
}

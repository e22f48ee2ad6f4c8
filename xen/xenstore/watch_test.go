package xenstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// watched gives a watch on path that is set and whose first event was taken.
func watched(t *testing.T, c *Client, p *peer, path string) *Watch {
	t.Helper()
	wait := spawn(func() {
		m := p.get(typeWatch, path+"\x001\x00")
		p.put(typeWatchEvent, 0, path+"\x001\x00") // before the reply, as some xenstoreds do
		p.put(typeWatch, m.req, "OK\x00")
	})
	w, err := c.Watch(t.Context(), path)
	wait()
	if err != nil {
		t.Fatal(err)
	}
	next(t, w, Event{Path: path})
	return w
}

// next takes one event and checks it.
func next(t *testing.T, w *Watch, want Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got, err := w.Next(ctx); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// nothing checks that no event waits.
func nothing(t *testing.T, w *Watch) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// settle returns when the client has taken all that its peer sent before.
func settle(t *testing.T, c *Client, p *peer) {
	t.Helper()
	wait := spawn(func() {
		m := p.get(typeRead, "/settle\x00")
		p.put(typeRead, m.req, "")
	})
	if _, err := c.Read(t.Context(), "/settle"); err != nil {
		t.Error(err)
	}
	wait()
}

func TestWatchEvents(t *testing.T) {
	c, p := dial(t)
	w := watched(t, c, p, "/a")

	// While somebody waits, with the ids of the kernel's device and with a
	// string of a later protocol.
	wait := spawn(func() {
		p.raw(message{typ: typeWatchEvent, req: 0xdead, tx: 0xbeef, payload: []byte("/a/b\x001\x00")}.append(nil))
		p.put(typeWatchEvent, 0, "/a/c\x001\x00later\x00")
	})
	next(t, w, Event{Path: "/a/b"})
	next(t, w, Event{Path: "/a/c"})
	wait()

	// While nobody does: each path once, in the order of the first change.
	for _, path := range []string{"/a/x", "/a/y", "/a/x", "/a/x", "/a/y"} {
		p.put(typeWatchEvent, 0, path+"\x001\x00")
	}
	settle(t, c, p)
	next(t, w, Event{Path: "/a/x"})
	p.put(typeWatchEvent, 0, "/a/x\x001\x00") // changed again after it was taken
	next(t, w, Event{Path: "/a/y"})
	next(t, w, Event{Path: "/a/x"})
	nothing(t, w)
}

func TestWatchOverflow(t *testing.T) {
	c, p := dial(t)
	w := watched(t, c, p, "/a")
	for round := range 2 {
		for i := range 3 * watchQueue {
			p.put(typeWatchEvent, 0, fmt.Sprintf("/a/%d\x001\x00", i))
		}
		settle(t, c, p)
		if len(w.paths) > watchQueue || len(w.waiting) > watchQueue {
			t.Errorf("round %d: %d and %d paths are kept", round, len(w.paths), len(w.waiting))
		}
		next(t, w, Event{Path: "/a", Lost: true})
		nothing(t, w)
	}
	p.put(typeWatchEvent, 0, "/a/1\x001\x00")
	next(t, w, Event{Path: "/a/1"})
}

func TestWatchSpecial(t *testing.T) {
	c, p := dial(t)
	w := watched(t, c, p, "@releaseDomain")
	p.put(typeWatchEvent, 0, "@releaseDomain\x001\x00")
	next(t, w, Event{Path: "@releaseDomain"})
}

func TestWatchClose(t *testing.T) {
	c, p := dial(t)
	w := watched(t, c, p, "/a")
	p.put(typeWatchEvent, 0, "/a\x001\x00") // waits, and is dropped
	waiting := spawn(func() {
		for {
			if _, err := w.Next(t.Context()); err != nil {
				if !errors.Is(err, ErrClosed) {
					t.Errorf("got %v", err)
				}
				return
			}
		}
	})
	w.Close()
	w.Close()
	waiting()
	m := p.get(typeUnwatch, "/a\x001\x00")
	p.put(typeWatchEvent, 0, "/a\x001\x00") // on its way
	p.put(typeUnwatch, m.req, "OK\x00")
	settle(t, c, p)
	if len(c.watches) != 0 || len(c.pending) != 0 {
		t.Errorf("%d watches and %d calls are left", len(c.watches), len(c.pending))
	}
}

func TestWatchRefused(t *testing.T) {
	c, p := dial(t)
	wait := spawn(func() {
		m := p.get(typeWatch, "/a\x001\x00")
		p.put(typeError, m.req, "EACCES\x00")
		p.get(typeUnwatch, "/a\x001\x00")
	})
	if _, err := c.Watch(t.Context(), "/a"); !errors.Is(err, ErrPermission) {
		t.Errorf("got %v", err)
	}
	wait()
	if len(c.watches) != 0 {
		t.Errorf("%d watches are left", len(c.watches))
	}
}

// A watch that is given up while xenstored sets it is unset again.
func TestWatchCancel(t *testing.T) {
	c, p := dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	wait := spawn(func() {
		m := p.get(typeWatch, "/a\x001\x00")
		cancel()
		p.get(typeUnwatch, "/a\x001\x00")
		p.put(typeWatch, m.req, "OK\x00")
		p.put(typeWatchEvent, 0, "/a\x001\x00")
	})
	if _, err := c.Watch(ctx, "/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wait()
	settle(t, c, p)
}

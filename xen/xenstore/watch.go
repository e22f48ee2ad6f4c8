// This file is watches: word of changes at a path and below it. The facts are
// those of Xen's docs/misc/xenstore.txt, section Watches.

package xenstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// Event says that something changed, not what is there now: read it anew.
type Event struct {
	// Path is the path that was written, made or removed, or whose permissions
	// changed: the watched path or one below it. When a parent of the watched
	// path was removed it is the watched path.
	Path string

	// Lost says that more paths changed than a watch remembers, and that Path,
	// the watched path, stands for all of them: look at everything below it.
	Lost bool
}

// watchQueue is how many changed paths a watch remembers until they are taken.
const watchQueue = 256

// Watch is a watch that is set. Use it from one goroutine at a time; Close may
// be called from any.
//
// A change of a path whose last change was not taken yet adds nothing: one event
// stands for both. When more than 256 different paths wait, one event with Lost
// set stands for them all. So a slow reader costs bounded memory and misses no
// change, only how many there were.
type Watch struct {
	c           *Client
	path, token string

	wake   chan struct{} // holds one: there is something to take
	closed chan struct{} // closed by Close

	// All of these are guarded by c.mu.
	isClosed bool
	paths    []string            // in the order of their first change
	waiting  map[string]struct{} // the same paths
	lost     bool                // more than the queue holds; paths is empty
}

// Watch sets a watch on path, which begins with a slash, or is one of
// xenstored's special names: @introduceDomain, @releaseDomain (a domain crashed,
// shut down or was destroyed; which one is not said). The path need not exist.
// The first event comes at once, for path itself; events without a change are
// possible later too.
func (c *Client) Watch(ctx context.Context, path string) (*Watch, error) {
	w, err := c.watch(ctx, path)
	if err != nil {
		return nil, &OpError{Op: "watch", Path: path, Err: err}
	}
	return w, nil
}

func (c *Client) watch(ctx context.Context, path string) (*Watch, error) {
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil, fmt.Errorf("neither an absolute path nor a special name: %w", syscall.EINVAL)
	}
	w := &Watch{
		c:       c,
		path:    path,
		wake:    make(chan struct{}, 1),
		closed:  make(chan struct{}),
		waiting: make(map[string]struct{}),
	}
	// Known before it is asked for: its first event may come before the reply.
	c.mu.Lock()
	c.lastToken++
	w.token = strconv.FormatUint(c.lastToken, 16)
	c.watches[w.token] = w
	c.mu.Unlock()

	payload, err := w.payload()
	if err != nil {
		w.drop()
		return nil, err
	}
	call, err := c.send(ctx, typeWatch, payload)
	if err != nil {
		w.drop()
		return nil, err
	}
	if _, err := c.wait(ctx, call); err != nil {
		w.Close() // xenstored may have set it
		return nil, err
	}
	return w, nil
}

// payload is that of the requests that set and unset the watch.
func (w *Watch) payload() ([]byte, error) {
	b, err := appendPath(nil, w.path)
	if err != nil {
		return nil, err
	}
	return append(append(b, w.token...), 0), nil
}

// Next gives the next change and waits for it if there is none. Its error is
// that of ctx, ErrClosed after Close, or why the client ended; changes that came
// before the client ended are given first.
func (w *Watch) Next(ctx context.Context) (Event, error) {
	for {
		e, ok, err := w.take()
		if ok {
			return e, nil
		}
		if err == nil {
			select {
			case <-w.wake:
				continue
			case <-w.closed:
				continue
			case <-w.c.dead:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		return Event{}, &OpError{Op: "watch", Path: w.path, Err: err}
	}
}

// take gives the oldest change, if there is one; or else why there will be none
// any more, if so.
func (w *Watch) take() (e Event, ok bool, err error) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	switch {
	case w.isClosed:
		return Event{}, false, ErrClosed
	case w.lost:
		w.lost = false
		return Event{Path: w.path, Lost: true}, true, nil
	case len(w.paths) > 0:
		path := w.paths[0]
		w.paths = w.paths[1:]
		delete(w.waiting, path)
		return Event{Path: path}, true, nil
	}
	return Event{}, false, w.c.err
}

// Close unsets the watch. It does not wait for xenstored; events that are still
// on their way are dropped. A second Close does nothing.
func (w *Watch) Close() {
	if !w.drop() {
		return
	}
	payload, err := w.payload()
	if err != nil {
		return // it was never set
	}
	w.c.mu.Lock()
	call := w.c.newCall(typeUnwatch, payload) // nobody waits for the reply
	w.c.mu.Unlock()
	select {
	case w.c.queue <- call:
	default:
		// xenstored has stopped taking requests. The watch stays set until
		// the connection ends; its events are dropped.
	}
}

// drop lets the watch take no more events. It is false if it did so already.
func (w *Watch) drop() bool {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.isClosed {
		return false
	}
	w.isClosed = true
	close(w.closed)
	delete(w.c.watches, w.token)
	return true
}

// event hands the payload of an event to its watch. Strings after the first two
// are those of later versions of the protocol.
func (c *Client) event(payload []byte) error {
	s, err := terminated(payload)
	if err != nil {
		return err
	}
	if len(s) < 2 {
		return fmt.Errorf("%w: watch event of %d strings", errMalformed, len(s))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.watches[s[1]]; w != nil {
		w.changed(s[0])
	}
	return nil
}

// changed notes a change of path. Preconditions: c.mu is held.
func (w *Watch) changed(path string) {
	if _, ok := w.waiting[path]; ok || w.lost {
		return
	}
	if len(w.paths) == watchQueue {
		w.lost = true
		w.paths = nil
		clear(w.waiting)
	} else {
		w.paths = append(w.paths, path)
		w.waiting[path] = struct{}{}
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

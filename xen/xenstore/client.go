// This file is the client: requests and replies multiplexed over one
// connection. The facts are those of Xen's docs/misc/xenstore.txt: replies may
// come in any order and carry the req_id of their request; watch events come at
// any time between them.

// Package xenstore is a client of xenstored, Xen's small tree of configuration
// values (domain names, console ports and the like): read, list and watch.
//
// It needs no C library: it speaks xenstored's wire protocol over its Unix
// socket, or over the kernel's device where xenstored runs elsewhere (in a stub
// domain).
//
// A guest may write its own part of the tree, so values and the names of nodes
// are not to be trusted. This package bounds their size (4096 bytes) and checks
// nothing else in them.
package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
)

// Client is a connection to xenstored. All its methods may be called by several
// goroutines at once.
//
// A call that its context ends leaves the connection in order: the request is
// still sent whole, and its reply is dropped when it comes. A malformed message
// or a lost connection ends the client: every call, waiting or later, fails, and
// a new client must be opened.
type Client struct {
	conn io.ReadWriteCloser

	// lone says that a failed write is the failure of that one request and
	// leaves the connection as it was. So it is on the kernel's device.
	lone bool

	queue chan *call    // to the writer
	dead  chan struct{} // closed when err is set

	mu        sync.Mutex
	err       error            // why the client ended; guarded by mu
	lastID    uint32           // guarded by mu
	lastToken uint64           // guarded by mu
	pending   map[uint32]*call // who waits for which req_id; guarded by mu
	watches   map[string]*Watch
}

// call is one request on its way.
type call struct {
	id    uint32
	typ   msgType
	wire  []byte      // the whole message
	reply chan result // holds one, so that answering never blocks
}

// result is the payload of a reply, or why there is none.
type result struct {
	payload []byte
	err     error
}

// queueLen is how many requests may wait for the writer; more block their
// callers, until their contexts end.
const queueLen = 16

// New gives a client that speaks over conn, which it owns from then on. A Read
// of conn may block while a Write goes on, and Close must end both.
func New(conn io.ReadWriteCloser) *Client { return newClient(conn, false) }

func newClient(conn io.ReadWriteCloser, lone bool) *Client {
	c := &Client{
		conn:    conn,
		lone:    lone,
		queue:   make(chan *call, queueLen),
		dead:    make(chan struct{}),
		pending: make(map[uint32]*call),
		watches: make(map[string]*Watch),
	}
	go c.read()
	go c.write()
	return c
}

// Close ends the connection, and with it all watches. Calls that wait fail with
// ErrClosed. A second Close does nothing.
func (c *Client) Close() error { return c.end(ErrClosed) }

// Read gives the value at path: any bytes, by convention printable text without
// a NUL at its end.
func (c *Client) Read(ctx context.Context, path string) (string, error) {
	b, err := c.do(ctx, typeRead, path)
	if err != nil {
		return "", &OpError{Op: "read", Path: path, Err: err}
	}
	return string(b), nil
}

// List gives the names of the children of path, not their paths, in the order
// of xenstored. A list longer than 4096 bytes is the error syscall.E2BIG.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	b, err := c.do(ctx, typeDirectory, path)
	if err != nil {
		return nil, &OpError{Op: "list", Path: path, Err: err}
	}
	names, err := terminated(b)
	if err != nil {
		return nil, &OpError{Op: "list", Path: path, Err: err}
	}
	return names, nil
}

// do makes a request that has a path for its payload and waits for its answer.
func (c *Client) do(ctx context.Context, typ msgType, path string) ([]byte, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("not an absolute path: %w", syscall.EINVAL)
	}
	payload, err := appendPath(nil, path)
	if err != nil {
		return nil, err
	}
	call, err := c.send(ctx, typ, payload)
	if err != nil {
		return nil, err
	}
	return c.wait(ctx, call)
}

// appendPath adds the path and its NUL to b, unless it could break the message:
// xenstored judges the rest.
func appendPath(b []byte, path string) ([]byte, error) {
	if len(path) > pathMax || strings.Contains(path, "\x00") {
		return nil, fmt.Errorf("path too long or with a NUL: %w", syscall.EINVAL)
	}
	return append(append(b, path...), 0), nil
}

// send hands a request to the writer. Once it is handed over it will be sent
// whole, whatever becomes of ctx.
func (c *Client) send(ctx context.Context, typ msgType, payload []byte) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	call, err := c.register(typ, payload)
	if err != nil {
		return nil, err
	}
	select {
	case c.queue <- call:
		return call, nil
	case <-c.dead:
		return nil, c.ended()
	case <-ctx.Done():
		c.forget(call.id)
		return nil, ctx.Err()
	}
}

// wait gives the answer to a request that was sent.
func (c *Client) wait(ctx context.Context, call *call) ([]byte, error) {
	select {
	case r := <-call.reply:
		return r.payload, r.err
	case <-ctx.Done():
		c.forget(call.id)
		return nil, ctx.Err()
	case <-c.dead:
	}
	select {
	case r := <-call.reply: // it came just before the end
		return r.payload, r.err
	default:
		return nil, c.ended()
	}
}

// register makes a request that waits for a reply.
func (c *Client) register(typ msgType, payload []byte) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	call := c.newCall(typ, payload)
	call.reply = make(chan result, 1)
	c.pending[call.id] = call
	return call, nil
}

// newCall makes a request with an id that no waiting one has. Preconditions:
// c.mu is held.
func (c *Client) newCall(typ msgType, payload []byte) *call {
	for {
		c.lastID++
		if _, taken := c.pending[c.lastID]; !taken && c.lastID != 0 {
			break
		}
	}
	m := message{typ: typ, req: c.lastID, payload: payload}
	return &call{id: m.req, typ: typ, wire: m.append(nil)}
}

// forget lets nobody wait for the reply to id any more.
func (c *Client) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// take gives the request that waits for the reply to id, which then waits no
// more, or nil.
func (c *Client) take(id uint32) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.pending[id]
	delete(c.pending, id)
	return call
}

// end ends the client for the reason err, once.
func (c *Client) end(err error) error {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil
	}
	c.err = err
	close(c.dead)
	c.mu.Unlock()
	return c.conn.Close()
}

// ended gives the reason for which the client ended, or nil.
func (c *Client) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// lost ends the client because its connection broke.
func (c *Client) lost(err error) {
	if err == io.EOF {
		err = errors.New("xenstored hung up")
	}
	c.end(fmt.Errorf("connection lost: %w", err))
}

// write sends the requests, one whole message in one Write after the other.
func (c *Client) write() {
	for {
		var call *call
		select {
		case call = <-c.queue:
		case <-c.dead:
			return
		}
		_, err := c.conn.Write(call.wire)
		switch {
		case err == nil:
		case c.lone:
			// After Close the callers get ErrClosed, not this.
			if call := c.take(call.id); call != nil && c.ended() == nil {
				call.reply <- result{err: kernelError(err)}
			}
		default:
			c.lost(err)
			return
		}
	}
}

// read takes what xenstored sends, until the client ends.
func (c *Client) read() {
	for {
		m, err := readMessage(c.conn)
		if err == nil {
			err = c.dispatch(m)
		}
		if err != nil {
			c.lost(err)
			return
		}
	}
}

// dispatch hands one message to whom it is for. A reply that nobody waits for,
// or an event of a watch that is no more, is dropped. An error is a malformed
// message.
func (c *Client) dispatch(m message) error {
	// An event's ids mean nothing: xenstored sends 0, the kernel's device what
	// was in its memory.
	if m.typ == typeWatchEvent {
		return c.event(m.payload)
	}
	call := c.take(m.req)
	if call == nil {
		return nil
	}
	r := result{payload: m.payload}
	switch m.typ {
	case call.typ:
	case typeError:
		named, malformed := replyError(m.payload)
		if malformed != nil {
			return malformed
		}
		r = result{err: named}
	default:
		return fmt.Errorf("%w: reply of type %d to a request of type %d", errMalformed, m.typ, call.typ)
	}
	call.reply <- r
	return nil
}

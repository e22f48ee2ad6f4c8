// This file is a scripted client.

package rsptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gdbserver-xen/rsp"
)

// timeout is how long a client waits for what must come.
const timeout = 10 * time.Second

// replyLimit is the longest reply that a client takes.
const replyLimit = 1 << 20

// A Client speaks to a server one packet at a time.
type Client struct {
	// Patience is how long to wait for each packet; 10 seconds at first.
	Patience time.Duration

	conn   net.Conn
	reader *rsp.Reader
	acks   bool
	frame  []byte
	buf    []byte
	served <-chan error
}

// NewClient returns a client on a connection, with acknowledgements on.
func NewClient(conn net.Conn) *Client {
	return &Client{Patience: timeout, conn: conn, reader: rsp.NewReader(conn, replyLimit), acks: true}
}

// Dial serves a target and returns a client of that server. Both end with the
// test.
func Dial(tb testing.TB, t rsp.Target, cfg rsp.Config) *Client {
	tb.Helper()
	near, far := Pipe(tb)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		served <- rsp.Serve(ctx, far, t, cfg)
	}()
	c := NewClient(near)
	c.served = served
	tb.Cleanup(func() {
		near.Close()
		cancel()
		<-done
	})
	return c
}

// Pipe returns the ends of a connection that buffers, as a socket does.
func Pipe(tb testing.TB) (near, far net.Conn) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			tb.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// Served waits for the server to end and returns its result.
//
// Preconditions: the client is from Dial; Served is called once.
func (c *Client) Served() error {
	select {
	case err := <-c.served:
		return err
	case <-time.After(timeout):
		return errors.New("the server goes on")
	}
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// NoAck switches acknowledgements off on both sides.
func (c *Client) NoAck() error {
	reply, err := c.Send("QStartNoAckMode")
	if err == nil && reply != "OK" {
		err = fmt.Errorf("QStartNoAckMode: %q", reply)
	}
	c.acks = false
	return err
}

// Send sends a packet, escaped and framed, and returns the reply, decoded.
func (c *Client) Send(packet string) (string, error) {
	if err := c.Post(packet); err != nil {
		return "", err
	}
	return c.Receive()
}

// Post sends a packet and does not wait for a reply.
func (c *Client) Post(packet string) error {
	c.frame = rsp.AppendRequest(c.frame[:0], []byte(packet))
	return c.Write(c.frame)
}

// Write sends bytes as they are.
func (c *Client) Write(p []byte) error {
	_, err := c.conn.Write(p)
	return err
}

// Interrupt sends the interrupt byte.
func (c *Client) Interrupt() error { return c.Write([]byte{0x03}) }

// Receive returns the next packet from the server, decoded.
func (c *Client) Receive() (string, error) {
	c.conn.SetReadDeadline(time.Now().Add(c.Patience))
	for {
		kind, p, err := c.reader.Next(c.buf)
		c.buf = p
		if err != nil {
			return "", err
		}
		switch kind {
		case rsp.Packet:
			if c.acks {
				err = c.Write([]byte{'+'})
			}
			return string(p), err
		case rsp.Ack: // or, in no-ack mode, a sign that a reply is being made
		case rsp.Nack:
			return "", errors.New("server refused the packet")
		default:
			return "", fmt.Errorf("bad reply (kind %d)", kind)
		}
	}
}

// Read returns the next n bytes from the server as they are.
func (c *Client) Read(n int) ([]byte, error) {
	p := make([]byte, n)
	c.conn.SetReadDeadline(time.Now().Add(timeout))
	for got := 0; got < n; {
		m, err := c.conn.Read(p[got:])
		got += m
		if err != nil {
			return p[:got], err
		}
	}
	return p, nil
}

// A Script is a table of packets and the replies they must get.
type Script [][2]string

// Run sends the packets of a script in order and checks the replies. A wanted
// reply that ends in * is the start of one.
func (s Script) Run(tb testing.TB, c *Client) {
	tb.Helper()
	for _, row := range s {
		got, err := c.Send(row[0])
		if err != nil {
			tb.Fatalf("%q: %v", row[0], err)
		}
		want, prefix := strings.CutSuffix(row[1], "*")
		if got != want && !(prefix && bytes.HasPrefix([]byte(got), []byte(want))) {
			tb.Errorf("%q: got %q, want %q", row[0], got, row[1])
		}
	}
}

// This file records what a real client and a server say to each other, and
// replays it.

package rsptest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Transcript is what passed over a connection, in order, as text. A line
// begins with "> " for what the client sent and "< " for what the server sent;
// then come a packet, an acknowledgement or an interrupt as they were on the
// wire, with Go's escapes for what is not printable. Lines that begin with #
// are comments.
type Transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Comment adds a comment.
func (t *Transcript) Comment(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(&t.text, "# "+format+"\n", args...)
}

// String returns the text.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// Record passes on what a client and a server send each other, until both are
// done, and adds it to the transcript.
func (t *Transcript) Record(client, server net.Conn) {
	var wg sync.WaitGroup
	pass := func(mark string, dst, src net.Conn) {
		r := bufio.NewReader(src)
		for {
			token, err := readToken(r)
			if len(token) > 0 {
				t.mu.Lock()
				fmt.Fprintf(&t.text, "%s %s\n", mark, quote(token))
				t.mu.Unlock()
				dst.Write(token)
			}
			if err != nil {
				dst.Close()
				return
			}
		}
	}
	wg.Go(func() { pass(">", server, client) })
	wg.Go(func() { pass("<", client, server) })
	wg.Wait()
}

// readToken reads a frame or a single byte.
func readToken(r *bufio.Reader) ([]byte, error) {
	c, err := r.ReadByte()
	if err != nil || c != '$' {
		if err != nil {
			return nil, err
		}
		return []byte{c}, nil
	}
	body, err := r.ReadBytes('#')
	token := append([]byte{c}, body...)
	if err != nil {
		return token, err
	}
	sum := make([]byte, 2)
	n, err := io.ReadFull(r, sum)
	return append(token, sum[:n]...), err
}

func quote(p []byte) string {
	q := strconv.QuoteToASCII(string(p))
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

func unquote(s string) (string, error) {
	return strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
}

// Replay plays the client's part of a transcript and checks that the server
// answers byte for byte as it did.
func Replay(tb testing.TB, c *Client, transcript string) {
	tb.Helper()
	for i, line := range strings.Split(strings.TrimSuffix(transcript, "\n"), "\n") {
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		if len(line) < 3 || line[1] != ' ' {
			tb.Fatalf("line %d: no transcript: %q", i+1, line)
		}
		wire, err := unquote(line[2:])
		if err != nil {
			tb.Fatalf("line %d: %v", i+1, err)
		}
		switch line[0] {
		case '>':
			c.conn.SetWriteDeadline(time.Now().Add(timeout))
			if err := c.Write([]byte(wire)); err != nil {
				tb.Fatalf("line %d: %v", i+1, err)
			}
		case '<':
			got, err := c.Read(len(wire))
			if string(got) != wire {
				tb.Fatalf("line %d: got %q (%v), want %q", i+1, quote(got), err, line[2:])
			}
		default:
			tb.Fatalf("line %d: no transcript: %q", i+1, line)
		}
	}
}

package lab

// Consoles: what was written so far, and lines passed on with a prefix.

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"time"
)

// A console keeps all that a machine wrote and passes whole lines on.
type console struct {
	prefix string
	log    io.Writer // may be nil

	mu      sync.Mutex
	text    bytes.Buffer
	printed int // bytes of text that went to log
	ended   bool
	changed chan struct{} // closed and renewed at each write
}

func newConsole(prefix string, log io.Writer) *console {
	return &console{prefix: prefix, log: log, changed: make(chan struct{})}
}

// Write adds to the console. It never fails.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	c.flush()
	c.wake()
	return len(p), nil
}

// end says that no more will come.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	if c.log != nil && c.printed < c.text.Len() {
		c.text.WriteByte('\n')
		c.flush()
	}
	c.wake()
}

func (c *console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *console) flush() {
	for c.log != nil {
		rest := c.text.Bytes()[c.printed:]
		n := bytes.IndexByte(rest, '\n')
		if n < 0 {
			return
		}
		line := strings.TrimRight(string(rest[:n]), "\r")
		c.printed += n + 1
		io.WriteString(c.log, c.prefix+line+"\n")
	}
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.text.String(), "\r\n", "\n")
}

// state returns the text, whether it is complete, and a channel that closes
// when either changes.
func (c *console) state() (text string, ended bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.ended, c.changed
}

// tail returns the last lines.
func (c *console) tail(n int) string { return lastLines([]byte(c.String()), n) }

// syncWriter serialises the lines of several consoles on one writer, and
// stops passing on at close.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return len(p), nil
	}
	return s.w.Write(p)
}

// pollInterval is how often files that dom0 writes are looked at.
const pollInterval = 100 * time.Millisecond

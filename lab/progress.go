package lab

// Progress lines of long operations.

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A progress writes one line per phase. On a terminal, the line of a running
// phase is rewritten in place as it advances.
type progress struct {
	mu    sync.Mutex
	w     io.Writer // nil discards
	tty   bool
	dirty bool // the terminal's line is unfinished
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.tty = err == nil
	}
	return p
}

// phase says what begins now.
func (p *progress) phase(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	p.finish()
	fmt.Fprintf(p.w, "lab: "+format+"\n", args...)
}

// step says how far the phase has come; only terminals see it.
func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil || !p.tty {
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K  "+format, args...)
	p.dirty = true
}

// done ends a line that step left open.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}

func (p *progress) finish() {
	if p.dirty {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.dirty = false
	}
}

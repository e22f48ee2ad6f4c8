// This file is what the target says to the user: text that goes to the client's
// console in O packets, which the protocol allows only while a stop reply is
// owed (GDB manual, node "Stop Reply Packets").

package rsp

import (
	"fmt"
	"sync"
)

// maxUnsent is how much text is kept that cannot be sent yet. A target that says
// more, because the client is slow or stopped, does not wait: what is too much
// is lost, which the client is told.
const maxUnsent = 1 << 18

// A talk keeps what a target says until it can be sent.
type talk struct {
	// news has an element if there is text.
	news chan struct{}

	mu   sync.Mutex
	text []byte
	lost int // bytes
}

// say is what a Talker is given.
func (t *talk) say(text string) {
	t.mu.Lock()
	n := min(len(text), maxUnsent-len(t.text))
	t.text = append(t.text, text[:n]...)
	t.lost += len(text) - n
	t.mu.Unlock()
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// take returns what there is to be sent.
func (t *talk) take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := string(t.text)
	if t.lost > 0 {
		text += fmt.Sprintf("\n[%d bytes of output are lost]\n", t.lost)
	}
	t.text, t.lost = t.text[:0], 0
	return text
}

// flushTalk sends what the target has said, if it runs: else it is not the time.
func (s *session) flushTalk() {
	if s.running {
		s.console(s.talk.take())
	}
}

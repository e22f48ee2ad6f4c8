// This file is the client's monitor command: qRcmd, and the O packets that
// carry what the command prints (GDB manual, node "General Query Packets").

package rsp

import (
	"context"
	"fmt"
)

// runMonitor handles qRcmd. The command's context ends with the connection or
// when the client sends an interrupt.
func (s *session) runMonitor(a *arguments) error {
	m, ok := s.target.(Monitor)
	if !ok {
		return nil // the empty reply: not known here
	}
	line, ok := appendDecoded(nil, a.data)
	if !ok {
		return fmt.Errorf("%w: command is not hexadecimal", errMalformed)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.readOn(cancel)
	var err error
	s.patiently(func() { err = m.Monitor(ctx, string(line), s.console) })
	if err != nil {
		s.console(err.Error() + "\n")
	}
	return s.ok()
}

// console prints text on the client's console.
//
// Preconditions: the client waits for the end of qRcmd or of a resumption,
// since nothing else may be answered with O.
func (s *session) console(text string) {
	for len(text) > 0 {
		n := min(len(text), (s.packetSize-1)/2)
		s.out = appendHexString(append(s.out[:0], 'O'), text[:n])
		s.send()
		text = text[n:]
	}
	s.out = s.out[:0]
}

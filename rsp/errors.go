// This file turns errors into replies: Enn, gdb's E.text and lldb's Enn;text
// (GDB manual, node "Standard Replies"; for lldb QEnableErrorStrings).

package rsp

import (
	"context"
	"errors"
	"log/slog"
)

// Error numbers in replies. Clients show them at most; the words are in the
// text.
const (
	codeFailed    = 0x01
	codeUnmapped  = 0x14 // what QEMU says for memory that is not there
	codeMalformed = 0x22 // and for a packet that it cannot parse
)

var (
	// ErrDisconnected says that the client went away without detaching.
	ErrDisconnected = errors.New("client disconnected")

	errMalformed = errors.New("malformed packet")
	errNoReply   = errors.New("no reply is owed now")
)

func errorCode(err error) byte {
	switch {
	case errors.Is(err, ErrUnmapped):
		return codeUnmapped
	case errors.Is(err, errMalformed):
		return codeMalformed
	}
	return codeFailed
}

// replyError makes the reply to a packet an error, in words if the client takes
// words in answer to that packet. Else the words go to the client's console
// where the protocol has it, which is before the end of a resumption, and to the
// log. Preconditions: the client is owed a reply to the packet.
func (s *session) replyError(c *command, err error) {
	s.out = s.out[:0]
	switch {
	case c.resumes && s.dialect == gdb && !s.running:
		// gdb takes an error for a stop, and for the reason that it believes the
		// thread to have stopped for before. If that was a breakpoint which it
		// has removed since, it resumes, gets the error again, and so on for
		// ever (gdb 13). So it gets a stop for no reason.
		s.console(errorText(err) + "\n")
		s.appendStop(StopReply{Thread: s.general})
	case s.errorStrings:
		s.out = appendHexByte(append(s.out, 'E'), errorCode(err))
		s.out = appendHexString(append(s.out, ';'), errorText(err))
	case s.errorMessages, s.dialect == gdb && c.textErrors:
		s.out = append(append(s.out, "E."...), errorText(err)...)
	default:
		if c.resumes {
			s.console(errorText(err) + "\n")
		}
		s.out = appendHexByte(append(s.out, 'E'), errorCode(err))
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "request failed",
			slog.String("packet", c.name), slog.Any("err", err))
	}
}

// errorText makes an error fit to be sent: one line that is the same with and
// without escapes, since not all clients undo escapes in an error.
func errorText(err error) string {
	text := []byte(err.Error())
	const most = 1000
	text = text[:min(len(text), most)]
	for i, c := range text {
		switch {
		case c == '\n':
			text[i] = ' '
		case c < ' ' || c > '~' || special[c]:
			text[i] = '?'
		}
	}
	return string(text)
}

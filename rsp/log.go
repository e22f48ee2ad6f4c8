// This file makes packets fit for a log. Nothing in it runs unless the log
// wants debug records.

package rsp

import (
	"context"
	"fmt"
	"log/slog"
)

// loggedBytes is how much of a packet goes into a log record.
const loggedBytes = 256

// A loggedPacket is a payload that is cut when it is logged. The handler escapes it.
type loggedPacket []byte

// LogValue implements slog.LogValuer.
func (p loggedPacket) LogValue() slog.Value {
	text := string(p[:min(len(p), loggedBytes)])
	if len(p) > loggedBytes {
		text += fmt.Sprintf("... (%d bytes)", len(p))
	}
	return slog.StringValue(text)
}

func (s *session) logPacket(msg string, payload []byte) {
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		s.log.LogAttrs(context.Background(), slog.LevelDebug, msg, slog.Any("packet", loggedPacket(payload)))
	}
}

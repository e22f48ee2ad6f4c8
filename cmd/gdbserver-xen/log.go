// This file is about the log: one flag, which names the layers that are to say
// what they do.

package main

import (
	"io"
	"log/slog"
	"slices"
	"strings"
)

// logLayers are the layers that can be logged.
var logLayers = []string{"debugger", "rsp"}

// logs gives each layer its logger.
type logs struct {
	quiet, chatty *slog.Logger
	layers        []string
}

// newLogs makes loggers that write to w. Warnings are always logged; the layers
// named, with commas between, log all they do.
func newLogs(w io.Writer, layers string) (logs, error) {
	logger := func(level slog.Level) *slog.Logger {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	l := logs{quiet: logger(slog.LevelWarn), chatty: logger(slog.LevelDebug)}
	for layer := range strings.SplitSeq(layers, ",") {
		switch {
		case layer == "":
		case layer == "all":
			l.layers = logLayers
		case slices.Contains(logLayers, layer):
			l.layers = append(l.layers, layer)
		default:
			return l, usagef("no layer %q to log: there are %s and all", layer, strings.Join(logLayers, ", "))
		}
	}
	return l, nil
}

func (l logs) layer(name string) *slog.Logger {
	if slices.Contains(l.layers, name) {
		return l.chatty
	}
	return l.quiet
}

// This file reads events, as `go test -json` writes them (go doc test2json).

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// An event is a line of `go test -json`, or one that this command adds.
type event struct {
	Action      string  // start, run, output, pass, fail, skip, ..., build-output, build-fail, exit, again
	Package     string  `json:",omitempty"`
	ImportPath  string  `json:",omitempty"` // of build events
	FailedBuild string  `json:",omitempty"` // what made a package fail that has no tests to show
	Test        string  `json:",omitempty"`
	Elapsed     float64 `json:",omitempty"`
	Output      string  `json:",omitempty"`
	Code        int     `json:",omitempty"` // of exit: how a command ended
}

// result tells whether an event ends a test or a package.
func (e event) result() bool {
	return e.Action == actionPass || e.Action == actionFail || e.Action == actionSkip
}

const (
	actionPass = "pass"
	actionFail = "fail"
	actionSkip = "skip"
	actionExit = "exit"
	// actionAgain says that a test is run again; Output says why. What was said of
	// it before does not count.
	actionAgain = "again"
)

// eachEvent calls f for each event. What is no event, such as a complaint of
// the go command before it begins, becomes output of no package.
func eachEvent(r io.Reader, f func(event)) error {
	for b := bufio.NewReader(r); ; {
		line, err := b.ReadString('\n')
		if line != "" {
			var e event
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				e = event{Action: "output", Output: line}
			}
			f(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

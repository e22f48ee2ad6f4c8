// This file runs commands and shows what becomes of them while they run.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// skipCode is the exit code of a check that could not be made; its last line of
// output says why.
const skipCode = 77

// slow is how many seconds a test takes whose passing is worth a line.
const slow = 5

// command starts args so that it ends with ctx, gently at first.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	return cmd
}

// exitCode turns the result of a command into its exit code.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	default:
		return 0, err
	}
}

// mostAgain is how often tests are run again at the most.
const mostAgain = 3

// runTests runs a go test -json, shows it on w and adds its events to log. It runs
// again what failed, as retry allows.
func runTests(ctx context.Context, args []string, retry retry, log, w io.Writer) error {
	pattern := ""
	for round := 0; ; round++ {
		now := slices.Clone(args)
		if pattern != "" {
			now = append(now, "-run", pattern)
		}
		var events bytes.Buffer
		if err := runOnce(ctx, now, io.MultiWriter(log, &events), w); err != nil || round == mostAgain {
			return err
		}
		t := newTotals()
		t.excuse = retry.excuse
		if err := t.read("", &events); err != nil {
			return err
		}
		failed := retry.again(t)
		if len(failed) == 0 {
			return nil
		}
		var patterns []string
		for _, name := range failed {
			pkg, test, _ := strings.Cut(name, " ")
			why := cmp.Or(t.tests[name].excuse, "failed for no reason that excuses it")
			if err := json.NewEncoder(log).Encode(event{Action: actionAgain, Package: pkg, Test: test, Output: why}); err != nil {
				return err
			}
			fmt.Fprintf(w, "again\t%s: %s\n", name, why)
			patterns = append(patterns, runPattern(test))
		}
		pattern = strings.Join(patterns, "|")
	}
}

// A retry says which tests that failed are run again.
type retry struct {
	excuse string          // those that printed this, which blames something else; none if empty
	flaky  int             // so many others, once each
	done   map[string]bool // those others
}

// again gives the names of the tests that failed if all may be run again, and
// nothing otherwise.
func (r *retry) again(t *totals) []string {
	failed := t.names(actionFail)
	if len(t.problems) > 0 {
		return nil
	}
	for _, name := range failed {
		x := t.tests[name]
		switch {
		case x.excuse != "":
		case x.reason == "" && !r.done[name] && len(r.done) < r.flaky:
			r.done[name] = true
		default:
			return nil
		}
	}
	return failed
}

// runPattern is what go test's -run takes for one test or subtest.
func runPattern(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// runOnce runs a go test -json, shows it on w and adds its events to log.
func runOnce(ctx context.Context, args []string, log, w io.Writer) error {
	cmd := command(ctx, args)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	enc := json.NewEncoder(log)
	s := shower{w: w, output: map[string]*bytes.Buffer{}}
	var logErr error
	readErr := eachEvent(stdout, func(e event) {
		logErr = errors.Join(logErr, enc.Encode(e))
		s.show(e)
	})
	code, err := exitCode(cmd.Wait())
	s.rest()
	return errors.Join(err, readErr, logErr, enc.Encode(event{Action: actionExit, Code: code, Output: strings.Join(args, " ")}))
}

// A shower shows a line for each package, and the output of tests that fail.
type shower struct {
	w      io.Writer
	output map[string]*bytes.Buffer // of tests and packages that have not ended
}

func key(e event) string { return e.Package + "\x00" + e.Test }

func (s *shower) show(e event) {
	switch {
	case e.Action == "build-output", e.Action == "output" && e.Package == "":
		fmt.Fprint(s.w, e.Output)
	case e.Action == "output":
		b := s.output[key(e)]
		if b == nil {
			b = &bytes.Buffer{}
			s.output[key(e)] = b
		}
		b.WriteString(e.Output)
	case e.result() && e.Test != "":
		if b := s.output[key(e)]; b != nil && e.Action == actionFail {
			fmt.Fprintf(s.w, "%s", withoutFrames(b.Bytes()))
		}
		if e.Action == actionPass && e.Elapsed >= slow && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(s.w, "--- PASS: %s (%.0fs)\n", e.Test, e.Elapsed)
		}
		delete(s.output, key(e))
	case e.result():
		for k, b := range s.output { // tests that were cut short come first
			if strings.HasPrefix(k, e.Package+"\x00") && k != key(e) {
				fmt.Fprintf(s.w, "%s", withoutFrames(b.Bytes()))
				delete(s.output, k)
			}
		}
		if b := s.output[key(e)]; b != nil {
			if e.Action == actionFail {
				fmt.Fprintf(s.w, "%s", withoutFrames(b.Bytes()))
			} else if last := lastLine(b.String()); strings.HasPrefix(last, "ok") || strings.HasPrefix(last, "?") {
				fmt.Fprintln(s.w, last)
			}
		}
		delete(s.output, key(e))
	}
}

// rest shows the output of packages that have not ended.
func (s *shower) rest() {
	for _, b := range s.output {
		fmt.Fprintf(s.w, "%s", withoutFrames(b.Bytes()))
	}
}

// withoutFrames drops the lines that only say that a test runs.
func withoutFrames(b []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(b) {
		if !bytes.HasPrefix(line, []byte("=== ")) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// runCheck runs a command as a test that passes if it succeeds.
func runCheck(ctx context.Context, name string, args []string, log, w io.Writer) error {
	begin := time.Now()
	var out bytes.Buffer
	cmd := command(ctx, args)
	cmd.Stdout, cmd.Stderr = &out, &out
	code, err := exitCode(cmd.Run())
	if err != nil {
		return err
	}
	e := event{Package: "check", Test: name, Elapsed: time.Since(begin).Seconds()}
	enc := json.NewEncoder(log)
	for lines := bufio.NewScanner(bytes.NewReader(out.Bytes())); lines.Scan(); {
		e.Action, e.Output = "output", lines.Text()+"\n"
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	e.Output = ""
	switch code {
	case 0:
		e.Action = actionPass
		fmt.Fprintf(w, "ok  \t%s\t%.1fs\n", name, e.Elapsed)
	case skipCode:
		e.Action = actionSkip
		fmt.Fprintf(w, "skip\t%s\n", lastLine(out.String()))
	default:
		e.Action = actionFail
		fmt.Fprintf(w, "%sFAIL\t%s: exit code %d of %s\n", out.Bytes(), name, code, strings.Join(args, " "))
	}
	return enc.Encode(e)
}

// lastLine gives the last line that is not empty.
func lastLine(s string) string {
	s = strings.TrimRight(s, "\n ")
	return s[strings.LastIndexByte(s, '\n')+1:]
}

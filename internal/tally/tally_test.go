package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// report gives what report prints, and whether all was well.
func report(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"report"}, args...), strings.NewReader(""), &out)
	if err != nil && !errors.Is(err, errFailed) {
		t.Fatal(err)
	}
	return out.String(), err
}

// The streams in testdata were recorded from go 1.26.
func TestReport(t *testing.T) {
	for _, tt := range []struct {
		stream string
		last   string
		also   []string
	}{
		{"good", "4 passed, 0 failed, 0 skipped", nil},
		{"bad", "3 passed, 3 failed, 0 skipped", []string{
			"FAILED: example/bad TestBad\n", "FAILED: example/bad TestChild/b\n", "FAILED: example/bad TestParent\n"}},
		{"skip", "1 passed, 0 failed, 3 skipped", []string{
			"skipped: example/skip TestSkip: needs real Xen in QEMU: set X=1\n",
			"skipped: example/skip TestHalf/b: not here\n",
			"skipped: example/skip TestSilent: no reason given\n"}},
		{"boom", "1 passed, 1 failed, 0 skipped", []string{"FAILED: example/boom TestPanic\n"}},
		{"slow", "1 passed, 1 failed, 0 skipped", []string{"FAILED: example/slow TestSlow"}},
		{"broken", "0 passed, 1 failed, 0 skipped", []string{"FAILED: example/broken: does not build\n"}},
		{"quits", "1 passed, 1 failed, 0 skipped", []string{"FAILED: example/quits: package failed outside its tests\n"}},
		{"mixed", "4 passed, 1 failed, 0 skipped", []string{"FAILED: example/broken: does not build\n"}},
		{"nowhere", "0 passed, 1 failed, 0 skipped", []string{"FAILED: ./nowhere: does not build\n"}},
		{"killed", "1 passed, 2 failed, 0 skipped", []string{
			"FAILED: example/slow TestSlow: did not end\n", "FAILED: example/slow: did not end\n"}},
	} {
		t.Run(tt.stream, func(t *testing.T) {
			out, err := report(t, filepath.Join("testdata", tt.stream+".json"))
			if last := lastLine(out); last != tt.last || !strings.HasSuffix(out, "\n"+tt.last+"\n") {
				t.Errorf("last line is %q, want %q", last, tt.last)
			}
			for _, s := range tt.also {
				if !strings.Contains(out, s) {
					t.Errorf("no %q in\n%s", s, out)
				}
			}
			if good := strings.Contains(tt.last, " 0 failed"); good != (err == nil) {
				t.Errorf("report gives %v", err)
			}
		})
	}
}

// write makes a file in a directory that is gone after the test.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSkipGivesWay(t *testing.T) {
	const skipped = `{"Action":"skip","Package":"p","Test":"T"}
{"Action":"pass","Package":"p"}
`
	const passed = `{"Action":"pass","Package":"p","Test":"T"}
{"Action":"pass","Package":"p"}
`
	unit, lab := write(t, "unit.json", skipped), write(t, "lab.json", passed)
	for _, order := range [][]string{{unit, lab}, {lab, unit}} {
		out, err := report(t, order...)
		if err != nil || lastLine(out) != "1 passed, 0 failed, 0 skipped" {
			t.Errorf("%v: %v\n%s", order, err, out)
		}
		if !strings.Contains(out, "lab: 1 passed\n") || !strings.Contains(out, "unit: 0 passed\n") {
			t.Errorf("%v: groups are wrong\n%s", order, out)
		}
	}
	failed := write(t, "lab.json", strings.ReplaceAll(passed, "pass", "fail"))
	out, err := report(t, unit, failed, lab)
	if err == nil || lastLine(out) != "0 passed, 1 failed, 0 skipped" {
		t.Errorf("a failure gave way: %v\n%s", err, out)
	}
}

func TestSlashInName(t *testing.T) {
	const stream = `{"Action":"run","Package":"p/q","Test":"T"}
{"Action":"run","Package":"p/q","Test":"T/4.14/pv"}
{"Action":"run","Package":"p/q","Test":"T/4.14/pv/registers"}
{"Action":"fail","Package":"p/q","Test":"T/4.14/pv/registers"}
{"Action":"fail","Package":"p/q","Test":"T/4.14/pv"}
{"Action":"fail","Package":"p/q","Test":"T"}
{"Action":"fail","Package":"p/q"}
`
	for result, last := range map[string]string{
		"fail": "0 passed, 1 failed, 0 skipped",
		"pass": "1 passed, 0 failed, 0 skipped",
	} {
		out, _ := report(t, write(t, "unit.json", strings.ReplaceAll(stream, "fail", result)))
		if lastLine(out) != last {
			t.Errorf("%s: got %q, want %q", result, lastLine(out), last)
		}
	}
}

func TestMinimum(t *testing.T) {
	for _, tt := range []struct {
		name, minimum, stream, last string
	}{
		{"as many", "good 4", "good", "4 passed, 0 failed, 0 skipped"},
		{"more", "# what passed last\ngood 3 # more is fine\n", "good", "4 passed, 0 failed, 0 skipped"},
		{"fewer", "good 5", "good", "4 passed, 1 failed, 0 skipped"},
		{"a group that was not run", "lab 5", "good", "4 passed, 0 failed, 0 skipped"},
		{"skipped ones are missing", "skip 2", "skip", "1 passed, 1 failed, 3 skipped"},
		{"failed ones count once", "bad 6", "bad", "3 passed, 3 failed, 0 skipped"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := report(t, "-minimum", write(t, "minimum.txt", tt.minimum), "testdata/"+tt.stream+".json")
			if lastLine(out) != tt.last {
				t.Errorf("got %q, want %q", lastLine(out), tt.last)
			}
			if good := strings.Contains(tt.last, " 0 failed"); good != (err == nil) {
				t.Errorf("report gives %v", err)
			}
		})
	}
	err := run(t.Context(), []string{"report", "-minimum", write(t, "minimum.txt", "good many"), "testdata/good.json"}, nil, &bytes.Buffer{})
	if err == nil || errors.Is(err, errFailed) {
		t.Errorf("a bad file gives %v", err)
	}
}

// script runs a shell script through run or check, and gives what was shown
// and the report on it.
func script(t *testing.T, command, text string, flags ...string) (shown, reported string, err error) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "group.json")
	var out bytes.Buffer
	args := append([]string{command, "-o", log}, flags...)
	if err := run(t.Context(), append(args, "sh", "-c", text), nil, &out); err != nil {
		t.Fatal(err)
	}
	reported, err = report(t, log)
	return out.String(), reported, err
}

func TestRun(t *testing.T) {
	shown, reported, err := script(t, "run", "cat testdata/good.json testdata/bad.json; exit 1")
	if err == nil || lastLine(reported) != "7 passed, 3 failed, 0 skipped" {
		t.Errorf("%v\n%s", err, reported)
	}
	for _, s := range []string{"ok  \texample/good", "2 and 2 is 5", "about to fail", "--- FAIL: TestBad", "b is wrong", "FAIL\texample/bad"} {
		if !strings.Contains(shown, s) {
			t.Errorf("no %q in\n%s", s, shown)
		}
	}
	for _, s := range []string{"=== RUN", "TestFine"} {
		if strings.Contains(shown, s) {
			t.Errorf("%q in\n%s", s, shown)
		}
	}
}

func TestRunShows(t *testing.T) {
	for stream, want := range map[string]string{
		"boom":   "assignment to entry in nil map",
		"slow":   "test timed out",
		"broken": "undefined: undefined",
		"quits":  "host did not close",
		"killed": "sleeping",
	} {
		shown, _, err := script(t, "run", "cat testdata/"+stream+".json; exit 1")
		if err == nil || !strings.Contains(shown, want) {
			t.Errorf("%s: %v, no %q in\n%s", stream, err, want, shown)
		}
	}
}

func TestRunFailsByItself(t *testing.T) {
	shown, reported, err := script(t, "run", "cat testdata/good.json; echo go: no such tool >&2; exit 2")
	if err == nil || lastLine(reported) != "4 passed, 1 failed, 0 skipped" || !strings.Contains(reported, "exit code 2") {
		t.Errorf("%v\n%s", err, reported)
	}
	if !strings.Contains(shown, "go: no such tool") {
		t.Errorf("its words are lost:\n%s", shown)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct{ script, last, shown string }{
		{"echo fine", "1 passed, 0 failed, 0 skipped", "ok  \tvet"},
		{"echo line 3 is wrong; exit 1", "0 passed, 1 failed, 0 skipped", "line 3 is wrong"},
		{"echo some words; echo not run: no network; exit 77", "0 passed, 0 failed, 1 skipped", "not run: no network"},
	} {
		shown, reported, err := script(t, "check", tt.script, "-name", "vet")
		if lastLine(reported) != tt.last || (err == nil) != strings.Contains(tt.last, " 0 failed") {
			t.Errorf("%s: %v\n%s", tt.script, err, reported)
		}
		if !strings.Contains(shown, tt.shown) {
			t.Errorf("%s: no %q in %q", tt.script, tt.shown, shown)
		}
		if strings.HasSuffix(tt.script, "77") && !strings.Contains(reported, "skipped: check vet: not run: no network\n") {
			t.Errorf("no reason in\n%s", reported)
		}
	}
}

// Tests that failed for something that they name are run again, and a few others.
func TestRunAgain(t *testing.T) {
	const (
		fine = `{"Action":"pass","Package":"p","Test":"Fine"}`
		// A subtest that failed for the machine, and one that passed.
		broken = `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A/x","Output":"    a.go:1: a broken machine\n"}
{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/y"}
{"Action":"fail","Package":"p","Test":"A"}`
		bad    = `{"Action":"fail","Package":"p","Test":"A/z"}`
		passed = `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A"}`
		begun  = `{"Action":"run","Package":"p","Test":"A"}` + "\n"
		failed = `{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}`
		end = `{"Action":"fail","Package":"p"}`
	)
	for _, tt := range []struct{ name, first, second, last, again, flaky string }{
		{"passes", fine + "\n" + broken, passed, "3 passed, 0 failed, 0 skipped", "run again: p A/x: a.go:1: a broken machine\n", "0"},
		{"fails again", fine + "\n" + broken, failed, "2 passed, 1 failed, 0 skipped", "run again: p A/x", "0"},
		{"breaks again and again", fine + "\n" + broken, broken, "2 passed, 1 failed, 0 skipped", strings.Repeat("run again: p A/x: a.go:1: a broken machine\n", 3), "0"},
		{"is not there any more", fine + "\n" + broken, fine, "2 passed, 1 failed, 0 skipped", "FAILED: p A/x: did not end", "0"},
		{"another failed", fine + "\n" + broken + "\n" + bad, passed, "2 passed, 2 failed, 0 skipped", "", "0"},
		{"none failed", fine, passed, "1 passed, 0 failed, 0 skipped", "", "1"},
		{"one of no excuse", fine + "\n" + begun + failed, passed, "2 passed, 0 failed, 0 skipped", "run again: p A/x: failed for no reason that excuses it\n", "1"},
		{"fails for no excuse again", fine + "\n" + begun + failed, failed, "1 passed, 1 failed, 0 skipped", "run again: p A/x: failed", "1"},
		{"too many of no excuse", fine + "\n" + begun + failed + "\n" + bad, passed, "1 passed, 2 failed, 0 skipped", "", "1"},
		{"did not end", fine + "\n" + begun + `{"Action":"run","Package":"p","Test":"A/x"}`, passed, "1 passed, 1 failed, 0 skipped", "", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := write(t, "first", tt.first+"\n"+end), write(t, "second", tt.second+"\n"+strings.Replace(end, "fail", "pass", 1))
			if tt.name == "none failed" {
				first = write(t, "first", tt.first+"\n"+strings.Replace(end, "fail", "pass", 1))
			}
			text := fmt.Sprintf(`if [ "$0" = -run ]; then [ "$1" = '^A$/^x$' ] && cat %s; else cat %s; fi`, second, first)
			_, reported, err := script(t, "run", text, "-again", "broken machine", "-flaky", tt.flaky)
			if lastLine(reported) != tt.last || (err == nil) != strings.Contains(tt.last, " 0 failed") {
				t.Errorf("%v\n%s", err, reported)
			}
			if !strings.Contains(reported, tt.again) || tt.again == "" && strings.Contains(reported, "again") {
				t.Errorf("no %q in\n%s", tt.again, reported)
			}
		})
	}
}

// A run that is interrupted is not one that passed.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log := filepath.Join(t.TempDir(), "group.json")
	if err := run(ctx, []string{"run", "-o", log, "sleep", "60"}, nil, &bytes.Buffer{}); err == nil {
		t.Error("no error")
	}
}

// This file adds up what became of tests.

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// errFailed says that not all is well, after report has said what.
var errFailed = errors.New("failed")

// A test is a test, or a package where no test can be blamed.
type test struct {
	group  string // where its result is from
	result string // "" if it began and did not end
	parent bool   // has subtests
	output string // what it printed last, for the reason of a skip
	excuse string // what it printed that blames something else
	reason string // why it failed, if it is no test that says so itself
}

// totals are all tests by name: "package Test/sub".
type totals struct {
	tests    map[string]*test
	groups   []string
	problems []string // what is wrong beside failed tests
	again    []string // what was run again, and why
	excuse   string   // text of what blames something else; empty: nothing does
}

func newTotals() *totals { return &totals{tests: map[string]*test{}} }

// read adds the events of a group.
func (t *totals) read(group string, r io.Reader) error {
	t.groups = append(t.groups, group)
	seen := map[string]*test{}
	failed := map[string]bool{} // packages with a test that failed
	excused := false            // a failed command has been explained
	open := map[string]bool{}   // packages that have begun and not ended
	get := func(e event) *test {
		name := e.Package + " " + e.Test
		if seen[name] == nil {
			seen[name] = &test{group: group}
			// The name of a subtest may have slashes of its own.
			for i := len(name) - 1; i > len(e.Package); i-- {
				if p := seen[name[:i]]; p != nil && name[i] == '/' {
					p.parent = true
				}
			}
		}
		return seen[name]
	}
	err := eachEvent(r, func(e event) {
		switch {
		case e.Action == actionExit:
			if e.Code != 0 && !excused && len(open) == 0 {
				t.problems = append(t.problems, fmt.Sprintf("%s: exit code %d of: %s", group, e.Code, e.Output))
			}
			excused = false
		case e.Package == "":
		case e.Action == actionAgain:
			name := e.Package + " " + e.Test
			for n, x := range seen {
				if n == name || strings.HasPrefix(name, n+"/") {
					x.result = ""
				}
			}
			t.again = append(t.again, name+": "+e.Output)
		case e.Test != "":
			open[e.Package] = true
			x := get(e)
			switch {
			case e.result():
				x.result = e.Action
				if e.Action == actionFail {
					failed[e.Package], excused = true, true
				}
			case e.Action == "output" && !strings.HasPrefix(strings.TrimSpace(e.Output), "--- ") && !strings.HasPrefix(e.Output, "=== "):
				x.output = e.Output
				if t.excuse != "" && strings.Contains(e.Output, t.excuse) {
					x.excuse = strings.TrimSpace(e.Output)
				}
			}
		case e.result():
			delete(open, e.Package)
			for name, x := range seen { // tests that were cut short
				if x.result == "" && strings.HasPrefix(name, e.Package+" ") {
					x.result, x.reason = actionFail, "did not end"
					failed[e.Package] = true
				}
			}
			if e.Action == actionFail {
				excused = true
				if !failed[e.Package] {
					x := get(e)
					x.result, x.reason = actionFail, "package failed outside its tests"
					if e.FailedBuild != "" {
						x.reason = "does not build"
					}
				}
			}
		default:
			open[e.Package] = true
		}
	})
	delete(open, "check") // no package
	for p := range open {
		x := get(event{Package: p})
		x.result, x.reason = actionFail, "did not end"
	}
	for name, x := range seen {
		if x.result == "" {
			x.result, x.reason = actionFail, "did not end"
		}
		t.add(name, x)
	}
	return err
}

// add takes over a test of a group, or keeps what another group says of it: a
// failure before anything, and a pass before a skip.
func (t *totals) add(name string, x *test) {
	rank := map[string]int{actionSkip: 1, actionPass: 2, actionFail: 3}
	if old := t.tests[name]; old == nil || rank[x.result] > rank[old.result] {
		t.tests[name] = x
	}
}

// names gives the names of tests with a result, in order. A test with subtests
// stands for nothing of its own, unless it failed and none of them did.
func (t *totals) names(result string) []string {
	var names []string
	for name, x := range t.tests {
		if x.result == result && (!x.parent || result == actionFail && !t.childFailed(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (t *totals) childFailed(name string) bool {
	for other, x := range t.tests {
		if x.result == actionFail && strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// passed counts the tests that passed by group.
func (t *totals) passed() map[string]int {
	n := map[string]int{}
	for _, name := range t.names(actionPass) {
		n[t.tests[name].group]++
	}
	return n
}

// compare makes it a problem if fewer tests passed in a group than the file
// says. Its lines are "GROUP NUMBER", or comments after #.
func (t *totals) compare(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	passed, failed := t.passed(), map[string]int{}
	for _, name := range t.names(actionFail) {
		failed[t.tests[name].group]++
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return fmt.Errorf("%s: %q is not GROUP NUMBER", path, lines.Text())
		}
		least, err := strconv.Atoi(words[1])
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if group := words[0]; slices.Contains(t.groups, group) && passed[group]+failed[group] < least {
			t.problems = append(t.problems, fmt.Sprintf("%s: %d tests passed, but %s says %d: have tests gone, or been skipped? If that is right, change the number",
				group, passed[group], path, least))
		}
	}
	return nil
}

// print shows failures, skips and totals.
func (t *totals) print(w io.Writer) error {
	failed, skipped := t.names(actionFail), t.names(actionSkip)
	fmt.Fprintln(w)
	byReason := map[string][]string{}
	for _, name := range skipped {
		reason := skipReason(t.tests[name].output)
		byReason[reason] = append(byReason[reason], name)
	}
	for _, reason := range slices.Sorted(maps.Keys(byReason)) {
		for _, name := range byReason[reason] {
			fmt.Fprintf(w, "skipped: %s: %s\n", strings.TrimSpace(name), reason)
		}
	}
	for _, line := range t.again {
		fmt.Fprintf(w, "run again: %s\n", line)
	}
	for _, name := range failed {
		line := "FAILED: " + strings.TrimSpace(name)
		if r := t.tests[name].reason; r != "" {
			line += ": " + r
		}
		fmt.Fprintln(w, line)
	}
	for _, p := range t.problems {
		fmt.Fprintf(w, "FAILED: %s\n", p)
	}
	passed := t.passed()
	for _, g := range t.groups {
		fmt.Fprintf(w, "%s: %d passed\n", g, passed[g])
	}
	n := len(failed) + len(t.problems)
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", len(t.names(actionPass)), n, len(skipped))
	if n > 0 {
		return errFailed
	}
	return nil
}

// skipReason takes the place in the source off what a test said on skipping.
func skipReason(output string) string {
	reason := strings.TrimSpace(output)
	if place, rest, ok := strings.Cut(reason, ": "); ok && strings.Contains(place, ".go:") {
		reason = rest
	}
	if reason == "" {
		reason = "no reason given"
	}
	return reason
}

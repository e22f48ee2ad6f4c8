// Command tally runs checks and tests and keeps count of them, so that a test
// that has gone missing is noticed like one that fails.
//
//	tally run -o FILE [-again TEXT] [-flaky N] COMMAND...
//	                                      run `go test -json ...`
//	tally check -o FILE -name NAME COMMAND...
//	                                      run any command as one test
//	tally report [-minimum FILE] FILE...  add it all up
//
// run and check show what fails as go test would, add what happened to FILE and
// exit with 0: it is report that fails. A file's name without its extension is
// the name of its group. A test that is in several groups counts once, and a
// skip gives way to a result: that is how tests that need real Xen are skipped
// in one group and run in another.
//
// With -again, tests that failed and had printed TEXT, which blames something
// else, are run again, up to three times. With -flaky, up to N that had not are
// run again too, once each. The last result counts, and report names each. If any
// test may not be run again, none is.
//
// The last line of report is "N passed, N failed, N skipped". It exits with 1 if
// a test failed, a package did not build or did not end, a command failed for
// no reason seen, or fewer tests passed in a group than FILE says did before.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	switch {
	case errors.Is(err, errFailed):
		os.Exit(1) // report has said why
	case err != nil:
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New("what? run, check or report")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	var (
		out     = flags.String("o", "", "add what happens to `FILE`")
		name    = flags.String("name", "", "`NAME` of the check")
		again   = flags.String("again", "", "run tests again that failed and had printed `TEXT`")
		flaky   = flags.Int("flaky", 0, "run up to `N` other tests that failed again, once each")
		minimum = flags.String("minimum", "", "`FILE` with the least number of tests that must pass, by group")
	)
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "run", "check":
		if *out == "" || flags.NArg() == 0 || (args[0] == "check") != (*name != "") {
			return errors.New("flags do not go together: see the comment of the package")
		}
		f, err := os.OpenFile(*out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if *name != "" {
			err = runCheck(ctx, *name, flags.Args(), f, stdout)
		} else {
			err = runTests(ctx, flags.Args(), retry{excuse: *again, flaky: *flaky, done: map[string]bool{}}, f, stdout)
		}
		return errors.Join(err, ctx.Err())
	case "report":
		t := newTotals()
		for _, path := range flags.Args() {
			r := stdin
			if path != "-" {
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer f.Close()
				r = f
			}
			if err := t.read(group(path), r); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if *minimum != "" {
			if err := t.compare(*minimum); err != nil {
				return err
			}
		}
		return t.print(stdout)
	default:
		return fmt.Errorf("no command %q", args[0])
	}
}

// group gives the name of the group that a file is for.
func group(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

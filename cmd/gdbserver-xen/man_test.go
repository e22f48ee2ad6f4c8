package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -run ^TestManPages$ -update .

// manDir is where the man pages are.
const manDir = "../../docs/man"

// TestManPages fails if the man pages are not what the command tree says.
func TestManPages(t *testing.T) {
	root := newRoot()
	want := map[string]string{}
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		if cmd.IsAvailableCommand() || cmd == root {
			want[manName(cmd)+".1"] = manPage(cmd)
		}
	}
	if *update {
		if err := os.RemoveAll(manDir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(manDir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, page := range want {
			if err := os.WriteFile(filepath.Join(manDir, name), []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const remedy = "run: go generate ./cmd/gdbserver-xen"
	for name, page := range want {
		if got, err := os.ReadFile(filepath.Join(manDir, name)); err != nil || string(got) != page {
			t.Errorf("docs/man/%s is not what the command says (%v); %s", name, err, remedy)
		}
	}
	files, err := os.ReadDir(manDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := want[f.Name()]; !ok {
			t.Errorf("docs/man/%s is of no command; %s", f.Name(), remedy)
		}
	}
}

// TestManPagesFormat has groff look at the pages.
func TestManPagesFormat(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed")
	}
	pages, err := filepath.Glob(manDir + "/*.1")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		out, err := exec.Command("groff", "-man", "-ww", "-z", page).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", page, err, out)
		}
	}
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage gives the man page of a command in the language of man(7). cobra's
// own generator would run lines of tables together.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.\" Made from the command tree: go generate ./cmd/gdbserver-xen`)
	line(`.TH %s 1 "" gdbserver-xen "User Commands"`, strings.ToUpper(manName(cmd)))
	line(".SH NAME")
	line(`%s \- %s`, roff(manName(cmd)), roff(cmd.Short))
	line(".SH SYNOPSIS")
	synopsis := []string{cmd.UseLine()}
	if cmd.HasAvailableSubCommands() {
		synopsis = append(synopsis, cmd.CommandPath()+" COMMAND")
	}
	for i, s := range synopsis {
		if i > 0 {
			line(".br")
		}
		name, rest, _ := strings.Cut(strings.TrimPrefix(s, cmd.CommandPath()), " ")
		line(`\fB%s\fR %s`, roff(cmd.CommandPath()+name), roff(rest))
	}
	line(".SH DESCRIPTION")
	b.WriteString(paragraphs(cmd.Long))
	if cmd.HasAvailableSubCommands() {
		line(".SH COMMANDS")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				line(".TP\n\\fB%s\\fR\n%s, see\n.BR %s (1)", roff(c.Name()), roff(c.Short), roff(manName(c)))
			}
		}
	}
	line(".SH OPTIONS")
	allFlags(cmd).VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		name := `\fB` + roff("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + name
		}
		if value != "" {
			name += ` \fI` + roff(value) + `\fR`
		}
		if f.DefValue != "" && f.DefValue != "false" {
			usage += " (default " + f.DefValue + ")"
		}
		line(".TP\n%s\n%s", name, roff(usage))
	})
	if cmd.HasExample() {
		line(".SH EXAMPLES\n.nf\n%s\n.fi", roff(cmd.Example))
	}
	line(".SH EXIT STATUS\n0 for success, 1 for a failure, 2 for a command line that cannot be understood.")
	line(".SH SEE ALSO")
	others := []string{"gdb"}
	for _, c := range append([]*cobra.Command{cmd.Root()}, cmd.Root().Commands()...) {
		if c != cmd && (c.IsAvailableCommand() || c == cmd.Root()) {
			others = append(others, manName(c))
		}
	}
	slices.Sort(others)
	for i, o := range others {
		comma := ","
		if i == len(others)-1 {
			comma = ""
		}
		line(".BR %s (1)%s", roff(o), comma)
	}
	return b.String()
}

// paragraphs gives text with its paragraphs, those that are indented as they
// stand.
func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(text, "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(p, "  ") {
			fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(p))
			continue
		}
		fmt.Fprintf(&b, "%s\n", roff(p))
	}
	return b.String()
}

// roff escapes text: backslashes, hyphens that are to be copied, quotes that
// would be bent, and lines that would be requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

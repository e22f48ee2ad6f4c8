// This file checks the import graph: the order of the rooms, the list of what
// must never be, and what the product depends on.

package house

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// module is the module's path, with which all its packages begin.
const module = "gdbserver-xen"

// A rule is where a rule stands.
type rule string

const (
	ruleRooms      rule = `docs/architecture.md, "Rooms": a room imports only rooms above it in the list`
	ruleNoRoom     rule = `docs/architecture.md, "Rooms": every package stands in a room of the list`
	ruleTools      rule = `docs/architecture.md, "Rooms": the tools of the house import no room, and no room imports them`
	ruleTestOnly   rule = `docs/architecture.md, "Rooms": packages that help tests are imported by tests only`
	ruleNever      rule = `docs/architecture.md, "Never"`
	ruleBudget     rule = `docs/architecture.md, "Dependencies": what the product depends on`
	ruleStatic     rule = `docs/architecture.md, "Dependencies": the product is pure Go, with no network but its socket`
	ruleUnsafe     rule = `docs/architecture.md, "Source": unsafe stands in *_unsafe.go only`
	ruleUnix       rule = `docs/architecture.md, "Source": golang.org/x/sys/unix is for the rooms xen and lab`
	ruleKinds      rule = `docs/architecture.md, "Source": what a domain's type means is for internal/guest and internal/engine to know`
	ruleVersions   rule = `docs/architecture.md, "Source": version numbers are tested in xen only`
	rulePackageDoc rule = `docs/architecture.md, "Source": every package has a comment`
	ruleFileDoc    rule = `docs/architecture.md, "Source": every file opens with a comment that says what it is for`
)

// A violation is a broken rule.
type violation struct {
	rule  rule
	where string // a package or a file with its line
	what  string
}

func (v violation) String() string { return fmt.Sprintf("%s %s\n\t(%s)", v.where, v.what, v.rule) }

// rooms are the rooms of the house, ground floor first, as in
// docs/architecture.md. A room is a directory with all below it that is not a
// room itself.
var rooms = []string{
	"x86",
	"xen",
	"xen/xencore",
	"rsp",
	"internal/guest",
	"internal/engine",
	"internal/linux",
	"internal/debugger",
	"internal/guardian",
	"cmd/gdbserver-xen",
	"lab",
}

// tools keep the house. They are no part of it.
var tools = []string{"internal/house", "internal/tally"}

// testHelpers are imported by tests only, and by each other.
var testHelpers = []string{"xen/xentest", "rsp/rsptest", "internal/linux/linuxtest", "lab/labtest"}

const guardianKnows = "guardian knows bytes, processes and files only"

// never lists imports that the order of the rooms would allow.
var never = []struct{ from, to, why string }{
	{"rsp", "xen", "rsp knows no Xen"},
	{"rsp", "xen/xencore", "rsp knows no Xen"},
	{"internal/guest", "rsp", "guest knows no packets"},
	{"internal/engine", "rsp", "engine knows no GDB"},
	{"internal/linux", "rsp", "what Linux says of itself has nothing to do with packets"},
	{"internal/guardian", "xen", guardianKnows},
	{"internal/guardian", "rsp", guardianKnows},
	{"internal/guardian", "internal/guest", guardianKnows},
	{"internal/guardian", "internal/engine", guardianKnows},
	{"internal/guardian", "internal/debugger", guardianKnows},
}

// budget are the modules that the product may depend on, and why.
var budget = map[string]string{
	"golang.org/x/sys":       "system calls",
	"golang.org/x/arch":      "decoding instructions",
	"github.com/cilium/ebpf": "BTF",
	"github.com/spf13/cobra": "the command line",
	"github.com/spf13/pflag": "cobra's flags",
}

// only narrows a module of the budget down to one package.
var only = map[string]string{"github.com/cilium/ebpf": "github.com/cilium/ebpf/btf"}

// A pkg is what the checks need to know of a package. Paths within the module
// are without the module's name.
type pkg struct {
	path         string
	imports      []string
	testImports  []string
	module       string // of the package, if it is not this one or standard
	usesCgo      bool
	standard     bool
	undocumented bool
}

// within tells whether a package is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// room gives a package's room: the number of the deepest directory it is in.
func room(p string) (int, bool) {
	best := -1
	for i, dir := range rooms {
		if within(p, dir) && (best < 0 || len(dir) > len(rooms[best])) {
			best = i
		}
	}
	return best, best >= 0
}

func in(list []string, p string) bool {
	return slices.ContainsFunc(list, func(dir string) bool { return within(p, dir) })
}

// checkRooms checks the imports of the module's packages.
func checkRooms(pkgs []pkg) []violation {
	var vs []violation
	for _, p := range pkgs {
		if p.undocumented {
			vs = append(vs, violation{rulePackageDoc, p.path, "has none"})
		}
		from, ok := room(p.path)
		if !ok && !in(tools, p.path) {
			vs = append(vs, violation{ruleNoRoom, p.path, "stands in none"})
			continue
		}
		for _, to := range p.imports {
			if v, bad := checkImport(p.path, from, to, false); bad {
				vs = append(vs, v)
			}
		}
		for _, to := range p.testImports {
			if v, bad := checkImport(p.path, from, to, true); bad {
				v.where += " (in its tests)"
				vs = append(vs, v)
			}
		}
	}
	return vs
}

// checkImport checks one import of a package within the module.
func checkImport(from string, fromRoom int, to string, test bool) (violation, bool) {
	bad := func(r rule, format string, args ...any) (violation, bool) {
		return violation{r, from, fmt.Sprintf("imports "+to+": "+format, args...)}, true
	}
	if to == from {
		return violation{}, false
	}
	if in(tools, from) || in(tools, to) {
		return bad(ruleTools, "one of them is a tool")
	}
	toRoom, ok := room(to)
	if !ok {
		return violation{}, false // said where its own turn comes
	}
	for _, n := range never {
		if rooms[fromRoom] == n.from && rooms[toRoom] == n.to {
			return bad(ruleNever, "%s", n.why)
		}
	}
	if rooms[toRoom] == "lab" && rooms[fromRoom] != "lab" && !test {
		return bad(ruleNever, "the lab is no part of the product")
	}
	if in(testHelpers, to) {
		if !test && !in(testHelpers, from) {
			return bad(ruleTestOnly, "%s is for tests", path.Base(to))
		}
		return violation{}, false
	}
	if toRoom > fromRoom {
		if test && rooms[toRoom] == "lab" {
			return violation{}, false // any test may ask for real Xen
		}
		return bad(ruleRooms, "%s comes after %s", rooms[toRoom], rooms[fromRoom])
	}
	return violation{}, false
}

// checkProduct checks all that the product is linked from.
func checkProduct(deps []pkg) []violation {
	var vs []violation
	for _, p := range deps {
		switch {
		case p.usesCgo || p.path == "runtime/cgo":
			vs = append(vs, violation{ruleStatic, p.path, "uses cgo"})
		case within(p.path, "net/http") || p.path == "crypto/tls" || p.path == "plugin":
			vs = append(vs, violation{ruleStatic, p.path, "is in the binary"})
		case p.standard || p.module == "":
		case !inBudget(p):
			vs = append(vs, violation{ruleBudget, p.path, "is not among them"})
		}
	}
	return vs
}

func inBudget(p pkg) bool {
	if _, ok := budget[p.module]; !ok {
		return false
	}
	part, narrow := only[p.module]
	// What btf is made of lies in internal packages beside it.
	return !narrow || within(p.path, part) || within(p.path, p.module+"/internal")
}

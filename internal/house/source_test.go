// This file checks single source files.

package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strconv"
	"strings"
)

// kindRooms may test for a domain's type: xen defines it, the lab makes domains
// of each, and the rest is the design's choice.
var kindRooms = []string{"internal/guest", "internal/engine", "xen", "lab"}

// kindFiles are files that may mention a type in order to print it.
var kindFiles = []string{"cmd/gdbserver-xen/list.go"}

// unixFiles are files outside xen and lab that may use golang.org/x/sys/unix, and
// for what.
var unixFiles = map[string]string{
	"internal/guardian/guard.go": "OpenTree, which package syscall does not have",
}

// domainKinds are the constants of package xen.
var domainKinds = []string{"PV", "PVH", "HVM"}

// checkSource checks a file, given by its path within the module.
func checkSource(file string, src []byte) ([]violation, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var vs []violation
	add := func(r rule, at token.Pos, format string, args ...any) {
		where := fmt.Sprintf("%s:%d", file, fset.Position(at).Line)
		vs = append(vs, violation{r, where, fmt.Sprintf(format, args...)})
	}
	dir := path.Dir(file)
	test := strings.HasSuffix(file, "_test.go")

	// A test file is about what its name says.
	if !test && !opensWithComment(f) {
		add(ruleFileDoc, f.Package, "opens without a comment")
	}
	for _, spec := range f.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		switch {
		case name == "C":
			add(ruleStatic, spec.Pos(), "uses cgo")
		case name == "unsafe" && !unsafeName(file):
			add(ruleUnsafe, spec.Pos(), "imports unsafe")
		case name == "golang.org/x/sys/unix" && !test && !in([]string{"xen", "lab"}, dir) && unixFiles[file] == "":
			// Tests may: they make calls of a fake hypervisor fail.
			add(ruleUnix, spec.Pos(), "imports it")
		}
	}
	if test {
		return vs, nil
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, _ := sel.X.(*ast.Ident)
		name := sel.Sel.Name
		switch {
		case x != nil && x.Name == "xen" && slices.Contains(domainKinds, name) &&
			!in(kindRooms, dir) && !slices.Contains(kindFiles, file):
			add(ruleKinds, sel.Pos(), "asks for xen.%s", name)
		case (name == "Major" || name == "Minor") && !in([]string{"xen", "lab"}, dir):
			add(ruleVersions, sel.Pos(), "looks at a version's %s", name)
		}
		return true
	})
	return vs, nil
}

// unsafeName tells whether a file's name says that it is unsafe.
func unsafeName(file string) bool {
	stem := strings.TrimSuffix(strings.TrimSuffix(file, ".go"), "_test")
	return strings.HasSuffix(stem, "_unsafe")
}

// opensWithComment tells whether there is a comment before the package clause,
// or between it and what comes next.
func opensWithComment(f *ast.File) bool {
	next := token.Pos(1 << 60)
	for _, d := range f.Decls {
		next = min(next, d.Pos())
		if g, ok := d.(*ast.GenDecl); ok && g.Doc != nil && g.Tok != token.IMPORT {
			next = min(next, g.Doc.Pos())
		}
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Doc != nil {
			next = min(next, fn.Doc.Pos())
		}
	}
	return slices.ContainsFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return c.Pos() < next && !strings.HasPrefix(c.List[0].Text, "//go:")
	})
}

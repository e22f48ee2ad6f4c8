// This file shows that the checks find what they are there for.

package house

import (
	"slices"
	"testing"
)

func TestRoomsBite(t *testing.T) {
	one := func(path string, imports ...string) []pkg { return []pkg{{path: path, imports: imports}} }
	tests := func(path string, imports ...string) []pkg { return []pkg{{path: path, testImports: imports}} }
	for _, tt := range []struct {
		name string
		pkgs []pkg
		want rule // "" for none
	}{
		{"down the list", one("internal/debugger", "internal/guest", "rsp", "xen", "x86"), ""},
		{"up the list", one("x86", "internal/guest"), ruleRooms},
		{"guest imports debugger", one("internal/guest", "internal/debugger"), ruleRooms},
		{"xen imports xencore", one("xen", "xen/xencore"), ruleRooms},
		{"xencore imports xen", one("xen/xencore", "xen"), ""},
		{"within a room", one("xen/xenstore", "xen"), ""},
		{"the other way within a room", one("xen", "xen/xenstore"), ""},
		{"debugger imports the command", one("internal/debugger", "cmd/gdbserver-xen"), ruleRooms},
		{"rsp imports xen", one("rsp", "xen"), ruleNever},
		{"rsp imports xenstore", one("rsp", "xen/xenstore"), ruleNever},
		{"rsp's tests import xen", tests("rsp", "xen"), ruleNever},
		{"rsptest imports xencore", one("rsp/rsptest", "xen/xencore"), ruleNever},
		{"x86 imports xen", one("x86", "xen"), ruleRooms},
		{"guest imports rsp", one("internal/guest", "rsp"), ruleNever},
		{"engine imports rsp", one("internal/engine", "rsp"), ruleNever},
		{"linux imports rsp", one("internal/linux", "rsp"), ruleNever},
		{"guardian imports guest", one("internal/guardian", "internal/guest"), ruleNever},
		{"guardian imports xenstore", one("internal/guardian", "xen/xenstore"), ruleNever},
		{"debugger imports guardian", one("internal/debugger", "internal/guardian"), ruleRooms},
		{"the product imports the lab", one("cmd/gdbserver-xen", "lab"), ruleNever},
		{"a test imports the lab", tests("internal/guest", "lab/labtest", "lab"), ""},
		{"lab's commands import the lab", one("lab/xenlab", "lab"), ""},
		{"the product imports a test helper", one("internal/debugger", "xen/xentest"), ruleTestOnly},
		{"lab imports a test helper", one("lab", "rsp/rsptest"), ruleTestOnly},
		{"a test imports a test helper", tests("internal/debugger", "xen/xentest", "rsp/rsptest"), ""},
		{"a test helper imports another", one("lab/labtest", "rsp/rsptest", "lab"), ""},
		{"a test goes up the list", tests("x86", "internal/guest"), ruleRooms},
		{"a test in another package of the same", tests("x86", "x86"), ""},
		{"the product imports a tool", one("cmd/gdbserver-xen", "internal/tally"), ruleTools},
		{"a tool imports a room", one("internal/tally", "x86"), ruleTools},
		{"a package in no room", one("internal/misc"), ruleNoRoom},
		{"a name that only begins like a room", one("xenial"), ruleNoRoom},
		{"no comment", []pkg{{path: "x86", undocumented: true}}, rulePackageDoc},
	} {
		t.Run(tt.name, func(t *testing.T) { expect(t, checkRooms(tt.pkgs), tt.want) })
	}
}

func TestProductBites(t *testing.T) {
	for _, tt := range []struct {
		name string
		dep  pkg
		want rule
	}{
		{"own package", pkg{path: "rsp"}, ""},
		{"standard package", pkg{path: "net", standard: true}, ""},
		{"budget", pkg{path: "github.com/spf13/cobra", module: "github.com/spf13/cobra"}, ""},
		{"btf", pkg{path: "github.com/cilium/ebpf/btf", module: "github.com/cilium/ebpf"}, ""},
		{"what btf needs", pkg{path: "github.com/cilium/ebpf/internal/sys", module: "github.com/cilium/ebpf"}, ""},
		{"the rest of ebpf", pkg{path: "github.com/cilium/ebpf/link", module: "github.com/cilium/ebpf"}, ruleBudget},
		{"not in the budget", pkg{path: "github.com/google/go-cmp/cmp", module: "github.com/google/go-cmp"}, ruleBudget},
		{"man page generator", pkg{path: "github.com/cpuguy83/go-md2man/v2/md2man", module: "github.com/cpuguy83/go-md2man/v2"}, ruleBudget},
		{"net/http", pkg{path: "net/http", standard: true}, ruleStatic},
		{"part of net/http", pkg{path: "net/http/internal", standard: true}, ruleStatic},
		{"runtime/cgo", pkg{path: "runtime/cgo", standard: true}, ruleStatic},
		{"cgo", pkg{path: "xen", usesCgo: true}, ruleStatic},
	} {
		t.Run(tt.name, func(t *testing.T) { expect(t, checkProduct([]pkg{tt.dep}), tt.want) })
	}
}

func TestSourceBites(t *testing.T) {
	for _, tt := range []struct {
		name, file, src string
		want            rule
	}{
		{"comment before the package clause", "rsp/a.go", "// This file is a.\n\npackage rsp\n", ""},
		{"package comment", "rsp/a.go", "// Package rsp is a.\npackage rsp\n", ""},
		{"comment after the package clause", "lab/a.go", "package lab\n\n// This is a.\n\nimport \"io\"\n\nvar _ io.Reader\n", ""},
		{"no comment", "rsp/a.go", "package rsp\n\nimport \"io\"\n\nvar _ io.Reader\n", ruleFileDoc},
		{"the comment of a function", "rsp/a.go", "package rsp\n\n// F does.\nfunc F() {}\n", ruleFileDoc},
		{"the comment of a type", "rsp/a.go", "package rsp\n\n// T is.\ntype T int\n", ruleFileDoc},
		{"a directive", "rsp/a.go", "//go:build linux\n\npackage rsp\n", ruleFileDoc},
		{"a test without comment", "rsp/a_test.go", "package rsp\n", ""},
		{"unsafe", "xen/a.go", "// A\npackage xen\nimport \"unsafe\"\nvar _ unsafe.Pointer\n", ruleUnsafe},
		{"unsafe, renamed", "xen/a.go", "// A\npackage xen\nimport u \"unsafe\"\nvar _ u.Pointer\n", ruleUnsafe},
		{"unsafe in a test", "xen/a_test.go", "package xen\nimport \"unsafe\"\nvar _ unsafe.Pointer\n", ruleUnsafe},
		{"unsafe where it may", "xen/a_unsafe.go", "// A\npackage xen\nimport \"unsafe\"\nvar _ unsafe.Pointer\n", ""},
		{"unsafe in a test where it may", "xen/a_unsafe_test.go", "package xen\nimport \"unsafe\"\nvar _ unsafe.Pointer\n", ""},
		{"cgo", "xen/a.go", "// A\npackage xen\nimport \"C\"\n", ruleStatic},
		{"unix in xen", "xen/xenstore/a.go", "// A\npackage xenstore\nimport \"golang.org/x/sys/unix\"\nvar _ unix.Errno\n", ""},
		{"unix in rsp", "rsp/a.go", "// A\npackage rsp\nimport \"golang.org/x/sys/unix\"\nvar _ unix.Errno\n", ruleUnix},
		{"unix in the command", "cmd/gdbserver-xen/a.go", "// A\npackage main\nimport \"golang.org/x/sys/unix\"\nvar _ unix.Errno\n", ruleUnix},
		{"unix where it may", "internal/guardian/guard.go", "// A\npackage guardian\nimport \"golang.org/x/sys/unix\"\nvar _ unix.Errno\n", ""},
		{"unix in a test", "internal/debugger/a_test.go", "package debugger\nimport \"golang.org/x/sys/unix\"\nvar _ unix.Errno\n", ""},
		{"domain type in debugger", "internal/debugger/a.go", "// A\npackage debugger\nfunc f(k xen.Kind) bool { return k == xen.PV }\n", ruleKinds},
		{"domain type in the command", "cmd/gdbserver-xen/attach.go", "// A\npackage main\nfunc f(k xen.Kind) bool { return k == xen.HVM }\n", ruleKinds},
		{"domain type in guest", "internal/guest/a.go", "// A\npackage guest\nfunc f(k xen.Kind) bool { return k == xen.PVH }\n", ""},
		{"domain type in a test", "internal/debugger/a_test.go", "package debugger\nvar _ = xen.PV\n", ""},
		{"version in guest", "internal/guest/a.go", "// A\npackage guest\nfunc f(h *xen.Host) bool { return h.Version().Minor > 17 }\n", ruleVersions},
		{"version in xen", "xen/a.go", "// A\npackage xen\nfunc f(h *Host) bool { return h.Version().Minor > 17 }\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vs, err := checkSource(tt.file, []byte(tt.src))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, vs, tt.want)
		})
	}
}

// expect wants one violation of a rule, or none.
func expect(t *testing.T, vs []violation, want rule) {
	t.Helper()
	var got []rule
	for _, v := range vs {
		got = append(got, v.rule)
	}
	switch {
	case want == "" && len(vs) > 0:
		t.Errorf("got %v, want no violation", vs)
	case want != "" && !slices.Equal(got, []rule{want}):
		t.Errorf("got %v, want one violation of %s", vs, want)
	}
}

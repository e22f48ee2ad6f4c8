package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSourceVersion(t *testing.T) {
	dsc := filepath.Join(t.TempDir(), "xen.dsc")
	writeFile(t, dsc, "-----BEGIN PGP SIGNED MESSAGE-----\nFormat: 3.0 (quilt)\nSource: xen\n"+
		"Version: 4.17.5+72-g01140da4e8-1\nStandards-Version: 4.5.0\n")
	if got, err := sourceVersion(dsc); err != nil || got != "4.17.5+72-g01140da4e8-1" {
		t.Errorf("got %q, %v", got, err)
	}
	writeFile(t, dsc, "Standards-Version: 4.5.0\n")
	if got, err := sourceVersion(dsc); err == nil {
		t.Errorf("got %q of a file without version", got)
	}
}

// What was built is found again without tools and network, and says which
// version it is, which need not be the one that was asked for.
func TestBuiltHypervisor(t *testing.T) {
	c := testCache(t)
	r, err := findRelease("4.17")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := c.buildHypervisor(ctx, r, "4.17.7-1"); err == nil {
		t.Errorf("got %v of a build that was cancelled", got)
	}
	if left, _ := filepath.Glob(c.root + "/hypervisor-*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	dir, err := c.get(ctx, hypervisorEntry(r, "4.17.7-1"), func(dir string) error {
		return manifest{Packages: map[string]string{"xen": "4.17.5-1"}}.write(dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.buildHypervisor(ctx, r, "4.17.7-1")
	if want := (hypervisor{filepath.Join(dir, "xen"), "4.17.5-1"}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// A compiler's errors come out.
func TestMakeFails(t *testing.T) {
	source := t.TempDir()
	if err := os.Mkdir(filepath.Join(source, "xen"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(source, "xen", "Makefile"), "build:\n\t@echo traps.c: error; false\n")
	err := testCache(t).make(t.Context(), source, "build")
	if err == nil || !strings.Contains(err.Error(), "traps.c: error") {
		t.Errorf("got %v, want the compiler's words", err)
	}
}

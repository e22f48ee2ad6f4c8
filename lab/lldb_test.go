package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The script finds lldb beside itself wherever it stands, through links too,
// and hands arguments on as they are.
func TestLLDBScript(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a cache")
	loader := filepath.Join(dir, "root", "lib64", "ld-linux-x86-64.so.2")
	if err := os.MkdirAll(filepath.Dir(loader), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loader, []byte("#!/bin/sh\nprintf '%s\\n' \"$PYTHONHOME\" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := writeLLDB(dir, "19"); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(filepath.Dir(dir), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "lldb-19")
	if err := os.Symlink(filepath.Join(moved, "lldb"), link); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(link, "-o", "register read rip").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(moved, "root")
	want := []string{
		root + "/usr",
		"--library-path",
		root + "/lib/x86_64-linux-gnu:" + root + "/usr/lib/x86_64-linux-gnu:" + root + "/usr/lib/llvm-19/lib",
		root + "/usr/lib/llvm-19/bin/lldb",
		"-o", "register read rip",
	}
	if got := strings.TrimSpace(string(out)); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// What is in the cache needs neither network nor apt; what is not, and cannot
// be had, leaves nothing behind that would be taken for it.
func TestLLDBCache(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", base)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if path, err := LLDB(ctx, "19", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %q, %v, want the cancel", path, err)
	}
	root := filepath.Join(base, "gdbserver-xen")
	if left, _ := filepath.Glob(root + "/lldb-*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := os.MkdirAll(filepath.Join(root, lldbEntry("19")), 0o755); err != nil {
		t.Fatal(err)
	}
	path, err := LLDB(ctx, "19", io.Discard)
	if want := filepath.Join(root, lldbEntry("19"), "lldb"); err != nil || path != want {
		t.Errorf("got %q, %v, want %q", path, err, want)
	}
	for _, version := range []string{"", "../19", "19.1", "nineteen"} {
		if path, err := LLDB(t.Context(), version, io.Discard); err == nil {
			t.Errorf("version %q: got %q, want an error", version, path)
		}
	}
}

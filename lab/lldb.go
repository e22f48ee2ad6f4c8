package lab

// Debian's lldbs, to debug guests with. Several versions are wanted side by
// side, on machines that have none, so each is unpacked into the cache with all
// its libraries and run from there.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// lldbSuite is the Debian suite that has the lldbs: 13 to 16, and 19.
const lldbSuite = "bookworm"

// runLLDB starts an lldb from the directory that this script is in, with the
// loader and C library that go with its libraries, and with its own Python.
// The library path is for this one program: what it starts does not inherit it.
const runLLDB = `#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
llvm=$here/root/usr/lib/llvm-VERSION
lib=$here/root/lib/x86_64-linux-gnu:$here/root/usr/lib/x86_64-linux-gnu:$llvm/lib
export PYTHONHOME="$here/root/usr" PYTHONPATH="$llvm/lib/python3.11/dist-packages" PYTHONDONTWRITEBYTECODE=1
exec "$here/root/lib64/ld-linux-x86-64.so.2" --library-path "$lib" "$llvm/bin/lldb" "$@"
`

// lldbUnused are the packages, by the names of their files, that lldb-14
// depends on and lldb does not run: compilers' parts, most of the space.
var lldbUnused = []string{"*-dev_*", "*-dev-bin_*", "icu-devtools_*", "llvm-*"}

// LLDB returns the path of a program that runs Debian's lldb of a version, as
// "19", from the cache. The first time, this downloads 75 MB or more.
func LLDB(ctx context.Context, version string, progress io.Writer) (path string, err error) {
	if _, err := strconv.ParseUint(version, 10, 16); err != nil {
		return "", fmt.Errorf("get lldb: version %q is not a number", version)
	}
	root, err := CacheDir()
	if err != nil {
		return "", err
	}
	c := &cache{root: root, progress: newProgress(progress)}
	dir, err := c.get(ctx, lldbEntry(version), func(dir string) error { return c.installLLDB(ctx, version, dir) })
	if err != nil {
		return "", fmt.Errorf("get lldb %s: %w", version, err)
	}
	return filepath.Join(dir, "lldb"), nil
}

// lldbEntry names an lldb's cache entry after all that decides what is in it.
func lldbEntry(version string) string {
	return "lldb-" + version + "-" + key(append([]string{lldbSuite, runLLDB}, lldbUnused...)...)
}

// installLLDB fills a cache entry with an lldb, and shows that it starts.
func (c *cache) installLLDB(ctx context.Context, version, dir string) error {
	r, err := findSuite(lldbSuite)
	if err != nil {
		return err
	}
	if err := c.download(ctx, r, dir, []string{"lldb-" + version}); err != nil {
		return err
	}
	debs := filepath.Join(dir, "debs")
	for _, pattern := range lldbUnused {
		files, err := filepath.Glob(filepath.Join(debs, pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	if err := c.unpack(ctx, dir, filepath.Join(dir, "root")); err != nil {
		return err
	}
	if err := os.RemoveAll(debs); err != nil {
		return err
	}
	program, err := writeLLDB(dir, version)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, program, "--no-lldbinit", "--batch", "-o", "script print('python', 6*7)").CombinedOutput()
	if err == nil && !strings.Contains(string(out), "python 42") {
		err = errors.New("without python")
	}
	if err != nil {
		return fmt.Errorf("start it: %w\n%s", err, lastLines(out, 5))
	}
	return nil
}

// writeLLDB writes the script that starts an unpacked lldb.
func writeLLDB(dir, version string) (path string, err error) {
	path = filepath.Join(dir, "lldb")
	return path, os.WriteFile(path, []byte(strings.ReplaceAll(runLLDB, "VERSION", version)), 0o755)
}

func findSuite(suite string) (release, error) {
	for _, r := range releases {
		if r.Suite == suite {
			return r, nil
		}
	}
	return release{}, fmt.Errorf("suite %s is not in the lab", suite)
}

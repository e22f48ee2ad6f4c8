package lab

// The private directory of a running host. It goes away at Close; if its
// owner was killed, at the next start of another host.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

const ownerLock = "owner.lock"

// A runDir is locked by its process as long as it lives.
type runDir struct {
	path string
	lock *os.File
}

// newRunDir creates a directory, after removing those without an owner.
func (c *cache) newRunDir(ctx context.Context) (*runDir, error) {
	run := filepath.Join(c.root, "run")
	for _, dir := range []string{run, filepath.Join(c.root, "locks")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create run directory: %w", err)
		}
	}
	// Between making a directory and locking it, nobody may sweep.
	unlock, err := c.lock(ctx, filepath.Join(c.root, "locks", "run"))
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	defer unlock()
	sweep(run)
	path, err := os.MkdirTemp(run, "host-")
	if err != nil {
		return nil, fmt.Errorf("create run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, ownerLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		if err = tryLock(f); err != nil {
			f.Close()
		}
	}
	if err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	return &runDir{path: path, lock: f}, nil
}

// sweep removes the directories that nobody has locked.
func sweep(run string) {
	dirs, _ := filepath.Glob(filepath.Join(run, "host-*"))
	for _, dir := range dirs {
		if !owned(dir) {
			os.RemoveAll(dir)
		}
	}
}

// owned tells whether a living process has locked a directory.
func owned(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, ownerLock), os.O_RDWR, 0)
	if err != nil {
		return false // killed before it had a lock
	}
	defer f.Close()
	return tryLock(f) != nil
}

// Close removes the directory.
func (d *runDir) Close() error {
	defer d.lock.Close()
	return os.RemoveAll(d.path)
}

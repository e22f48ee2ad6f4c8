package lab

// The cache of downloads and built images. An entry is a directory that was
// built under another name and renamed when whole, so that one that exists is
// complete; a lock file per entry keeps two processes from building it twice.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// CacheDir is where downloads and images are kept:
// $XDG_CACHE_HOME/gdbserver-xen, by default ~/.cache/gdbserver-xen.
// It may be removed at any time when no host runs.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	return filepath.Join(base, "gdbserver-xen"), nil
}

type cache struct {
	root     string
	progress *progress
}

// get returns the directory of an entry, after calling build with an empty
// directory to fill if there is none yet.
func (c *cache) get(ctx context.Context, name string, build func(dir string) error) (string, error) {
	path := filepath.Join(c.root, name)
	if isDir(path) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Join(c.root, "locks"), 0o755); err != nil {
		return "", fmt.Errorf("create cache: %w", err)
	}
	unlock, err := c.lock(ctx, filepath.Join(c.root, "locks", name))
	if err != nil {
		return "", fmt.Errorf("lock cache entry %s: %w", name, err)
	}
	defer unlock()
	if isDir(path) {
		return path, nil
	}

	// Under the lock, whatever was begun before was abandoned.
	stale, _ := filepath.Glob(path + ".part-*")
	for _, dir := range stale {
		os.RemoveAll(dir)
	}
	tmp, err := os.MkdirTemp(c.root, name+".part-")
	if err != nil {
		return "", fmt.Errorf("create cache entry %s: %w", name, err)
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return "", err
	}
	if err := syncFS(tmp); err != nil {
		return "", fmt.Errorf("write cache entry %s: %w", name, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("finish cache entry %s: %w", name, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("finish cache entry %s: %w", name, err)
	}
	return path, nil
}

// lock takes an exclusive lock on a file, waiting for another process that
// has it.
func (c *cache) lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for told := false; ; told = true {
		err := tryLock(f)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		if !told {
			c.progress.phase("waiting for another process that builds %s", filepath.Base(path))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tryLock takes the lock of an open file, or returns EWOULDBLOCK. Closing the
// file, or the death of the process, gives it back.
func tryLock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// syncFS flushes the file system of a directory, so that a rename cannot
// reach the disk before the contents.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// key is a short hash over strings, for the names of cache entries.
func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

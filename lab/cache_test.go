package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func testCache(t *testing.T) *cache {
	return &cache{root: t.TempDir(), progress: newProgress(io.Discard)}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCacheBuildsOnce(t *testing.T) {
	c := testCache(t)
	var builds atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			// A cache of its own each, as another process has.
			c := &cache{root: c.root, progress: c.progress}
			dir, err := c.get(t.Context(), "thing", func(dir string) error {
				builds.Add(1)
				time.Sleep(50 * time.Millisecond)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "whole" {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times, want 1", n)
	}
}

func TestCacheNeverUsesHalfWritten(t *testing.T) {
	c := testCache(t)
	// What a killed process leaves.
	half := filepath.Join(c.root, "thing.part-123")
	if err := os.Mkdir(half, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(half, "file"), "ha")

	broken := errors.New("broken")
	_, err := c.get(t.Context(), "thing", func(dir string) error {
		writeFile(t, filepath.Join(dir, "file"), "hal")
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want the build's error", err)
	}
	dir, err := c.get(t.Context(), "thing", func(dir string) error {
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("build begins with %v, want nothing", entries)
		}
		return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "whole" {
		t.Errorf("got %q", b)
	}
	if rest, _ := filepath.Glob(filepath.Join(c.root, "*.part-*")); len(rest) > 0 {
		t.Errorf("left over: %v", rest)
	}
}

func TestCacheWaitsNoLongerThanAsked(t *testing.T) {
	c := testCache(t)
	held, release := make(chan bool), make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = c.get(t.Context(), "thing", func(string) error {
			close(held)
			<-release
			return nil
		})
	})
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.get(ctx, "thing", func(string) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	close(release)
	wg.Wait()
}

func TestRunDirSweepsOnlyTheDead(t *testing.T) {
	c := testCache(t)
	living, err := c.newRunDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(c.root, "run", "host-dead")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dead, ownerLock), "")
	unlocked := filepath.Join(c.root, "run", "host-unlocked")
	if err := os.Mkdir(unlocked, 0o755); err != nil {
		t.Fatal(err)
	}

	next, err := c.newRunDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !isDir(living.path) {
		t.Error("a living host's directory was swept")
	}
	for _, dir := range []string{dead, unlocked} {
		if isDir(dir) {
			t.Errorf("%s was not swept", dir)
		}
	}
	for _, d := range []*runDir{living, next} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if isDir(d.path) {
			t.Errorf("%s is still there after Close", d.path)
		}
	}
}

func TestMirrors(t *testing.T) {
	mirror, security := mirrors(`https://example.org/other stable contrib
http://near.example/debian/ bookworm contrib
http://near.example/debian/ bookworm main
http://far.example/debian/ trixie main
file:/srv/debian-security bookworm-security main
http://near.example/debian-security/ bookworm-security main
https://vendor.example/apt nodistro main
`)
	if mirror != "http://near.example/debian" || security != "http://near.example/debian-security" {
		t.Errorf("got %s and %s", mirror, security)
	}
	if mirror, security := mirrors(""); mirror != defaultMirror || security != defaultSecurityMirror {
		t.Errorf("without sources: got %s and %s", mirror, security)
	}
}

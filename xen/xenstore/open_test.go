package xenstore

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOpenSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wait := spawn(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		p := &peer{t, conn}
		m := p.get(typeRead, "/a\x00")
		p.put(typeRead, m.req, "value")
	})
	c, err := open([]string{path + ".none", path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := c.Read(t.Context(), "/a"); err != nil || got != "value" {
		t.Errorf("got %q, %v", got, err)
	}
	wait()
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none")

	if _, err := open([]string{none}, []string{none}); !errors.Is(err, ErrNoXenstore) {
		t.Errorf("nothing there: %v", err)
	}

	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := open([]string{none, stale}, []string{os.DevNull}); !errors.Is(err, ErrNoXenstore) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("socket of a dead xenstored: %v", err)
	}

	err = openError("/dev/xen/xenbus", &fs.PathError{Op: "open", Path: "/dev/xen/xenbus", Err: unix.EACCES})
	if !errors.Is(err, ErrPermission) || errors.Is(err, ErrNoXenstore) {
		t.Errorf("device that may not be opened: %v", err)
	}
}

// A FIFO stands for the kernel's device: its read waits while a write goes on.
// What is written to it comes back, so a request is its own reply. Close must
// end the read that waits.
func TestOpenDevice(t *testing.T) {
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	path := filepath.Join(dir, "xenbus")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := open([]string{filepath.Join(dir, "none")}, []string{filepath.Join(dir, "none"), path})
	if err != nil {
		t.Fatal(err)
	}
	if !c.lone {
		t.Error("not taken for a device")
	}
	if got, err := c.Read(t.Context(), "/a"); err != nil || got != "/a\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a goroutine goes on after Close")
		}
	}
}

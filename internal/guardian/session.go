// This file is the session: the lock and the journal of a domain.

package guardian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Dir is where sessions are kept. It is in memory: guests do not survive a
// reboot of their host either.
const Dir = "/run/gdbserver-xen"

var (
	// ErrInUse says that another process debugs the domain.
	ErrInUse = errors.New("is being debugged")
	// ErrUndoing says that a guardian has not come to its end yet.
	ErrUndoing = errors.New("is still being given back after its debugger was killed")
)

// patience is how long to wait for a guardian that undoes. Tests have less.
var patience = 10 * time.Second

// wordSize is the size of the word that a journal begins with.
const wordSize = 8

// A Session is a domain that this process has for itself. Its methods must not
// be called from several goroutines at once.
type Session struct {
	domain  int
	lock    *os.File
	journal *os.File
	mem     []byte // the journal, mapped
	stale   bool

	watcher *watcher      // nil without a guardian; keep's while that runs
	ending  chan struct{} // closed when no guardian is needed any more
	kept    chan struct{} // closed when keep has returned
}

// Take takes a domain, with a journal of so many bytes. The error is ErrInUse if
// another process has it, and ErrUndoing if the guardian of one that was killed
// takes too long.
func Take(ctx context.Context, dir string, domain, size int) (*Session, error) {
	s := &Session{domain: domain}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		s.lock, err = takeLock(ctx, dir, domain)
	}
	if err == nil {
		if err = s.open(filepath.Join(dir, fmt.Sprintf("domain-%d.journal", domain)), max(size, wordSize)); err != nil {
			s.lock.Close()
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: run this as root", err)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// takeLock opens and locks a domain's lock file, and writes into it who has it.
// The file stays when the lock is gone, as somebody may have just opened it.
func takeLock(ctx context.Context, dir string, domain int) (*os.File, error) {
	f, err := openFile(filepath.Join(dir, fmt.Sprintf("domain-%d.lock", domain)))
	if err != nil {
		return nil, err
	}
	if err := waitLock(ctx, f, domain); err != nil {
		f.Close()
		return nil, err
	}
	pid := os.Getpid()
	start, _ := startTime(pid)
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d %s\n", pid, start), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// waitLock locks a file, unless it is locked by a process that lives. If only a
// guardian is left, it waits for that.
func waitLock(ctx context.Context, f *os.File, domain int) error {
	for end := time.Now().Add(patience); ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		if pid, ok := owner(f); ok {
			return fmt.Errorf("domain %d %w by process %d: detach that debugger first, or end that process", domain, ErrInUse, pid)
		}
		if time.Now().After(end) {
			return fmt.Errorf("domain %d %w: try again in a moment", domain, ErrUndoing)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// owner gives the process that has written itself into a lock file, if it lives.
func owner(lock *os.File) (pid int, ok bool) {
	text := make([]byte, 64)
	n, _ := lock.ReadAt(text, 0)
	pidText, start, _ := strings.Cut(strings.TrimSpace(string(text[:n])), " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		return 0, false
	}
	now, err := startTime(pid)
	return pid, err == nil && now == start
}

var errDead = errors.New("process has ended")

// startTime gives when a process was started, which tells it from an earlier one
// with the same number: field 22 of /proc/PID/stat, see proc(5). A process that
// only waits for its parent to take note of its end counts as ended.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Field 2 is the program's name in parentheses, and may hold any character.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", errDead
	}
	return fields[19], nil
}

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// open opens and maps the journal, empty unless there is something in it that
// must be undone.
func (s *Session) open(path string, size int) error {
	f, err := openFile(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() >= wordSize {
		var word [wordSize]byte
		_, err = f.ReadAt(word[:], 0)
		s.stale = word != [wordSize]byte{}
	}
	switch {
	case err != nil:
	case s.stale:
		size = max(size, int(info.Size())) // another version's may be larger
	default:
		err = f.Truncate(0)
	}
	if err == nil {
		err = allocate(f, size)
	}
	if err == nil {
		s.mem, err = syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("journal %s: %w", path, err)
	}
	s.journal = f
	return nil
}

// allocate makes a file at least so large, with all its memory: where none is
// left, that is an error now, and not a SIGBUS later.
func allocate(f *os.File, size int) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(size))
		switch {
		case errors.Is(err, syscall.EINTR): // tmpfs, at any signal
		case errors.Is(err, syscall.EOPNOTSUPP): // ramfs
			return f.Truncate(int64(size))
		default:
			return err
		}
	}
}

// Journal gives the journal's memory, at least as large as was asked for. It
// must not be used after Close.
func (s *Session) Journal() []byte { return s.mem }

// Stale tells whether the journal is that of a former session, whose server and
// guardian were both killed before it was undone.
func (s *Session) Stale() bool { return s.stale }

// Clear empties the journal: what it was about has been undone.
func (s *Session) Clear() {
	clear(s.mem[:wordSize])
	clear(s.mem[wordSize:])
	s.stale = false
}

// Close ends a session. If the journal says that something is left to undo, the
// guardian undoes it, and Close waits for that, but not for long; without a
// guardian it is left for the next session.
func (s *Session) Close() error {
	s.dismiss()
	var errs []error
	if empty(s.mem) {
		if err := os.Remove(s.journal.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs,
		syscall.Munmap(s.mem),
		s.journal.Close(),
		s.lock.Truncate(0), // we have it no more, though a guardian may
		s.lock.Close())...)
}

// empty tells whether a journal has nothing to undo.
func empty(journal []byte) bool {
	return bytes.Equal(journal[:wordSize], make([]byte, wordSize))
}

// This file is the guardian's side: what it does from its start to its end.

package guardian

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
)

// ErrNotByServer says that Main was called in a process that no Guard started.
var ErrNotByServer = errors.New("this is for gdbserver-xen itself, which starts it with all that it needs")

// Main is the main function of a guardian. It waits until the server is gone. If
// the journal says that there is something to undo, it calls undo with it. If
// that succeeds, the journal is removed; if not, it is left for the next
// session, and Main returns the error. When it returns, the domain is free.
func Main(undo func(journal []byte) error) error {
	for fd, want := range map[int]uint32{lineFD: syscall.S_IFSOCK, lockFD: syscall.S_IFREG, journalFD: syscall.S_IFREG} {
		var stat syscall.Stat_t
		if err := syscall.Fstat(fd, &stat); err != nil || stat.Mode&syscall.S_IFMT != want {
			return ErrNotByServer
		}
	}
	// A signal that means the server may reach us too.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP)
	// Neither is needed, nor allowed everywhere. See proc(5).
	_ = os.WriteFile("/proc/self/comm", []byte(Name), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)

	line, lock, journal := os.NewFile(lineFD, "line"), os.NewFile(lockFD, "lock"), os.NewFile(journalFD, "journal")
	defer lock.Close() // after all else
	defer journal.Close()
	info, err := journal.Stat()
	if err != nil {
		return err
	}
	mem, err := syscall.Mmap(journalFD, 0, int(info.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map journal: %w", err)
	}
	defer syscall.Munmap(mem)

	// The server never writes. It is gone when there is nothing left to read or,
	// if it did not take our word, when the line is broken.
	_, _ = line.Write([]byte{0})
	_, _ = io.Copy(io.Discard, line)
	if empty(mem) {
		return nil
	}
	if err := undo(mem); err != nil {
		return err
	}
	clear(mem[:wordSize])
	return remove(journal)
}

// remove removes a file that is known by its descriptor.
func remove(f *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

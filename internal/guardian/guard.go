// This file is the server's side of a guardian: it starts one, and another if
// that dies.

package guardian

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Command is the word of the command line that makes a program call Main.
	Command = "guardian"
	// Name is what the process calls itself: who ends all that are called
	// gdbserver-xen does not end it. See also program.
	Name = "xen-guardian"
)

// The descriptors that a guardian is started with.
const (
	lineFD    = 3 + iota // a socket whose other end only the server has
	lockFD               // the lock, which so is not free before the guardian is gone
	journalFD            // the journal
	programFD            // what program gave, if it gave something
)

// startPatience is how long a guardian may take to start.
const startPatience = 30 * time.Second

// A watcher is a guardian's process.
type watcher struct {
	cmd     *exec.Cmd
	line    *os.File
	started time.Time
	ended   chan struct{} // closed when it has
}

// Guard starts a guardian, and from then on another one whenever one dies; log
// is told of that. When Guard returns, the guardian watches.
func (s *Session) Guard(log *slog.Logger) error {
	w, err := s.start()
	if err != nil {
		return err
	}
	s.watcher, s.ending, s.kept = w, make(chan struct{}), make(chan struct{})
	go s.keep(log)
	return nil
}

// start starts a guardian and waits until it watches.
func (s *Session) start() (*watcher, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("start guardian: %w", err)
	}
	line, theirs := os.NewFile(uintptr(pair[0]), "line"), os.NewFile(uintptr(pair[1]), "line")
	defer theirs.Close()

	cmd, err := s.exec(theirs)
	if err != nil {
		line.Close()
		return nil, fmt.Errorf("start guardian: %w", err)
	}
	theirs.Close() // so that its end is the line's
	w := &watcher{cmd: cmd, line: line, started: time.Now(), ended: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(w.ended)
	}()

	err = line.SetReadDeadline(time.Now().Add(startPatience))
	if err == nil {
		_, err = io.ReadFull(line, make([]byte, 1))
	}
	if err != nil {
		cmd.Process.Kill()
		<-w.ended
		line.Close()
		return nil, fmt.Errorf("start guardian: %w (%v)", err, cmd.ProcessState)
	}
	return w, nil
}

// exec starts this program as a guardian: this very file, even if another has
// taken its place meanwhile.
func (s *Session) exec(line *os.File) (*exec.Cmd, error) {
	run := func(path string, files ...*os.File) (*exec.Cmd, error) {
		cmd := exec.Command(path, Command, strconv.Itoa(s.domain))
		cmd.Args[0] = Name
		cmd.Dir = "/"
		cmd.Stderr = os.Stderr
		cmd.ExtraFiles = append([]*os.File{line, s.lock, s.journal}, files...)
		// Out of reach of the terminal, and of signals to the server's group.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd, cmd.Start()
	}
	if f, err := program(); err == nil {
		defer f.Close()
		if cmd, err := run(fmt.Sprintf("/proc/self/fd/%d", programFD), f); err == nil {
			return cmd, nil
		}
	}
	return run("/proc/self/exe")
}

// program opens this program's file on a mount of its own, which is not in the
// file system: a process that is started from it has no path, neither
// gdbserver-xen's nor another. pidof and killall of busybox and procps go by the
// path too. Linux before 5.2 cannot do it, nor can processes without
// CAP_SYS_ADMIN.
func program() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "program"), nil
}

// keep starts a new guardian when one dies, until the session ends.
func (s *Session) keep(log *slog.Logger) {
	defer close(s.kept)
	for {
		select {
		case <-s.ending:
			return
		case <-s.watcher.ended:
		}
		s.watcher.line.Close()
		log.Warn("guardian has died, another takes its place", "domain", s.domain, "pid", s.watcher.cmd.Process.Pid,
			"state", s.watcher.cmd.ProcessState)
		for again := time.Since(s.watcher.started) < time.Second; ; again = true {
			if again {
				select {
				case <-s.ending:
					return
				case <-time.After(time.Second):
				}
			}
			w, err := s.start()
			if err == nil {
				s.watcher = w
				break
			}
			log.Error("no guardian now: if this server is killed, `gdbserver-xen recover` must be run", "domain", s.domain, "err", err)
		}
	}
}

// dismiss lets the guardian know that the server is gone, and waits for its end.
func (s *Session) dismiss() {
	if s.watcher == nil {
		return
	}
	close(s.ending)
	<-s.kept
	s.watcher.line.Close()
	select {
	case <-s.watcher.ended:
	case <-time.After(patience):
		if empty(s.mem) { // it has nothing to do, and does not end
			s.watcher.cmd.Process.Kill()
			<-s.watcher.ended
		}
	}
}

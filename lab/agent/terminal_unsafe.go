package main

// A terminal for interactive shells.

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"gdbserver-xen/lab/agent/wire"
)

// A terminal is the outer side of a pseudo terminal.
type terminal struct {
	*os.File
	copied chan struct{} // closed when all output was sent
}

// drain waits until the output was sent; a process that was left behind may
// hold the terminal, so not for long.
func (t *terminal) drain() {
	select {
	case <-t.copied:
	case <-time.After(time.Second):
	}
}

// endOfInput is what Ctrl-D types.
const endOfInput = 4

// startOnTerminal starts a command in a session on a new terminal, whose
// output goes to w.
func startOnTerminal(cmd *exec.Cmd, req wire.Request, w io.Writer) (io.WriteCloser, error) {
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var unlock, number int32
	size := [4]uint16{req.Rows, req.Cols}
	for _, c := range []struct {
		request uintptr
		arg     unsafe.Pointer
	}{
		{syscall.TIOCSPTLCK, unsafe.Pointer(&unlock)},
		{syscall.TIOCGPTN, unsafe.Pointer(&number)},
		{syscall.TIOCSWINSZ, unsafe.Pointer(&size)},
	} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, outer.Fd(), c.request, uintptr(c.arg)); errno != 0 {
			outer.Close()
			return nil, fmt.Errorf("set up terminal: %w", errno)
		}
	}
	inner, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		outer.Close()
		return nil, err
	}
	defer inner.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inner, inner, inner
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		outer.Close()
		return nil, err
	}
	t := &terminal{File: outer, copied: make(chan struct{})}
	go func() {
		defer close(t.copied)
		_, _ = io.Copy(w, outer) // ends with EIO when the last user is gone
	}()
	return t, nil
}

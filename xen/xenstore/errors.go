// This file holds the errors of the package. xenstored names an error by the
// name of an errno ("ENOENT"); the names are those of the table xsd_errors in
// Xen's public io/xs_wire.h (EPERM is there since 4.17).

package xenstore

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

var (
	// ErrNotExist says that xenstore has no such path. It matches
	// fs.ErrNotExist too.
	ErrNotExist error = &sentinel{"no such path", fs.ErrNotExist}

	// ErrPermission says that the caller may not: xenstored refused the path,
	// or the kernel refused the way to xenstored. It matches fs.ErrPermission
	// too.
	ErrPermission error = &sentinel{"permission denied", fs.ErrPermission}

	// ErrNoXenstore says that no xenstored could be reached.
	ErrNoXenstore = errors.New("no xenstore (is this a Xen dom0, and is xenstored running?)")

	// ErrClosed says that the client or the watch was closed.
	ErrClosed = errors.New("closed")
)

// sentinel is an error with its own words that also matches a general one.
type sentinel struct {
	msg  string
	kind error
}

func (e *sentinel) Error() string { return e.msg }
func (e *sentinel) Unwrap() error { return e.kind }

// OpError is the error of every operation of this package.
type OpError struct {
	Op   string // "open", "read", "list" or "watch"
	Path string // the path in xenstore, or of the socket or device; may be empty
	Err  error  // what happened: one of the sentinels, a syscall.Errno, a context's error or a lost connection
}

// Error gives "xenstore: read /local/domain/7/name: no such path".
func (e *OpError) Error() string {
	if e.Path == "" {
		return "xenstore: " + e.Op + ": " + e.Err.Error()
	}
	return "xenstore: " + e.Op + " " + e.Path + ": " + e.Err.Error()
}

func (e *OpError) Unwrap() error { return e.Err }

// replyErrors gives the error for each name that xenstored may send.
var replyErrors = map[string]error{
	"ENOENT":    ErrNotExist,
	"EACCES":    ErrPermission,
	"EPERM":     ErrPermission,
	"EINVAL":    syscall.EINVAL,
	"EEXIST":    syscall.EEXIST,
	"EISDIR":    syscall.EISDIR,
	"ENOMEM":    syscall.ENOMEM,
	"ENOSPC":    syscall.ENOSPC,
	"EIO":       syscall.EIO,
	"ENOTEMPTY": syscall.ENOTEMPTY,
	"ENOSYS":    syscall.ENOSYS,
	"EROFS":     syscall.EROFS,
	"EBUSY":     syscall.EBUSY,
	"EAGAIN":    syscall.EAGAIN,
	"EISCONN":   syscall.EISCONN,
	"E2BIG":     syscall.E2BIG,
}

// replyError gives the error that an error reply's payload names. The second
// result says that the payload is not such a name at all.
func replyError(payload []byte) (named, malformed error) {
	names, err := terminated(payload)
	if err != nil {
		return nil, err
	}
	if len(names) != 1 {
		return nil, fmt.Errorf("%w: error reply of %d strings", errMalformed, len(names))
	}
	if err, ok := replyErrors[names[0]]; ok {
		return err, nil
	}
	return fmt.Errorf("xenstored answers error %.32q", names[0]), nil
}

// kernelError gives the package's sentinel for an error of the kernel where
// there is one.
func kernelError(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotExist, err)
	}
	return err
}

// This file serves files that the target makes up: what it runs, and libraries
// (GDB manual, nodes "Host I/O Packets", "General Query Packets" for qXfer, and
// "Library List Format"). They are read only, and none is one of the server's.

package rsp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"time"
)

// A FileServer is a Target that has files for the client to read.
type FileServer interface {
	// Executable names the file that the target runs, by an absolute path.
	// Clients read it if their user has given them none, and gdb compares it with
	// what its user has given it.
	Executable() (name string, err error)
	// OpenFile opens a file that Executable or Libraries has named; others do not
	// exist: fs.ErrNotExist. If the file is an io.Closer, it is closed.
	OpenFile(name string) (File, error)
}

// A File is read by a client, at the places that it needs. It is to be quick: what
// takes time belongs into OpenFile.
type File interface {
	io.ReaderAt
	Size() int64
}

// A Library is a file that the target has loaded, one of a FileServer's.
type Library struct {
	Name string
	// Sections are, for each of its sections that is in memory, in order, how far
	// it is from the address in the file. There must be all, or gdb takes none.
	Sections []uint64
}

// A Librarian is a FileServer that knows of libraries.
type Librarian interface {
	Libraries() ([]Library, error)
}

// A Relocator is a Target that knows where what it runs is.
type Relocator interface {
	// Relocation gives where the executable is. If it does not know, symbol files
	// are taken for being where they were linked to.
	Relocation() (r Relocation, ok bool)
}

// A Relocation is where an executable is.
type Relocation struct {
	First   uint64 // the address of its first segment
	Slide   uint64 // how far that is from where it was linked to
	BuildID string // the identification of its build in hexadecimal, empty if unknown
}

// Errors of files, by the protocol's numbers (GDB manual, node "Errno Values").
const (
	errnoNoEntry  = 2
	errnoBadFile  = 9
	errnoInvalid  = 22
	errnoManyOpen = 24
	errnoReadOnly = 30
	errnoUnknown  = 9999
)

// maxOpen is how many files a client may have open. gdb keeps all libraries open, of
// which a Linux may have thousands: its modules.
const maxOpen = 8192

// closeFiles closes what a client has left open.
func (s *session) closeFiles() {
	for i, f := range s.files {
		if f != nil {
			s.closeFile(f)
			s.files[i] = nil
		}
	}
}

func (s *session) closeFile(f File) {
	if c, ok := f.(io.Closer); ok {
		if err := c.Close(); err != nil {
			s.log.Error("close a file of the target", "err", err)
		}
	}
}

// keepAlive is how often gdb is told that a reply is on its way. It waits 2 seconds,
// three times, and takes what comes then for the reply to something else; anything
// that comes meanwhile makes it wait longer (gdb 13, getpkt in remote.c).
const keepAlive = time.Second

// patiently does what may take longer than gdb waits.
func (s *session) patiently(do func()) {
	if s.dialect != gdb {
		do()
		return
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(keepAlive)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.write([]byte{'+'})
			case <-done:
				return
			}
		}
	}()
	do()
	close(done)
	<-stopped
}

// executable handles qXfer:exec-file:read. All processes run the same.
func (s *session) executable(f FileServer, a *arguments) error {
	var name string
	var err error
	s.patiently(func() { name, err = f.Executable() })
	if err != nil {
		return err
	}
	s.transfer([]byte(name), a.num[0], a.num[1])
	return nil
}

// libraries handles qXfer:libraries:read. The list is made when it is read from the
// start, so that its pages fit together.
func (s *session) libraries(a *arguments) error {
	l, ok := s.target.(Librarian)
	if !ok {
		return nil // the empty reply: not known here
	}
	if len(a.annex) > 0 {
		return fmt.Errorf("no list is called %s", a.annex)
	}
	if a.num[0] == 0 || s.libraryList == nil {
		var list []Library
		var err error
		s.patiently(func() { list, err = l.Libraries() })
		if err != nil {
			return err
		}
		s.libraryList = appendLibraries(s.libraryList[:0], list)
	}
	s.transfer(s.libraryList, a.num[0], a.num[1])
	return nil
}

// appendLibraries appends a list as XML.
func appendLibraries(x []byte, list []Library) []byte {
	x = append(x, "<library-list>\n"...)
	for _, l := range list {
		x = append(appendXMLText(append(x, `<library name="`...), l.Name), "\">\n"...)
		for _, addr := range l.Sections {
			x = strconv.AppendUint(append(x, `<section address="0x`...), addr, 16)
			x = append(x, "\"/>\n"...)
		}
		x = append(x, "</library>\n"...)
	}
	return append(x, "</library-list>\n"...)
}

// result makes the reply to a vFile packet a number.
func (s *session) result(n int) {
	s.out = strconv.AppendInt(append(s.out, 'F'), int64(n), 16)
}

// fileError makes the reply to a vFile packet an error.
func (s *session) fileError(errno int64) error {
	s.out = strconv.AppendInt(append(s.out, "F-1,"...), errno, 16)
	return nil
}

// withFiles makes a handler of one for targets that have files. Others get an empty
// reply: not known here.
func withFiles(handle func(s *session, f FileServer, a *arguments) error) func(s *session, a *arguments) error {
	return func(s *session, a *arguments) error {
		f, ok := s.target.(FileServer)
		if !ok {
			return nil
		}
		return handle(s, f, a)
	}
}

// setFileSystem handles vFile:setfs. All processes see the same files.
func (s *session) setFileSystem(FileServer, *arguments) error {
	s.result(0)
	return nil
}

// open opens a file that is named in hexadecimal, or gives an error's number.
func (s *session) open(server FileServer, hexName []byte) (f File, errno int64) {
	name, ok := appendDecoded(nil, hexName)
	if !ok {
		return nil, errnoInvalid
	}
	var err error
	s.patiently(func() { f, err = server.OpenFile(string(name)) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errnoNoEntry
	case err != nil:
		s.log.Error("open a file of the target", "err", err)
		return nil, errnoUnknown
	}
	return f, 0
}

// openFile handles vFile:open.
func (s *session) openFile(server FileServer, a *arguments) error {
	const accessMode = 3 // of the flags; 0 is for reading
	if a.num[0]&accessMode != 0 {
		return s.fileError(errnoReadOnly)
	}
	i := slices.Index(s.files, nil)
	if i < 0 {
		if i = len(s.files); i == maxOpen {
			return s.fileError(errnoManyOpen)
		}
		s.files = append(s.files, nil)
	}
	f, errno := s.open(server, a.annex)
	if errno != 0 {
		return s.fileError(errno)
	}
	s.files[i] = f
	s.result(i)
	return nil
}

// withOpened makes a handler of one for files that are open, by the descriptor that
// is the first number.
func withOpened(handle func(s *session, f File, a *arguments) error) func(s *session, a *arguments) error {
	return withFiles(func(s *session, _ FileServer, a *arguments) error {
		fd := a.num[0]
		if fd >= uint64(len(s.files)) || s.files[fd] == nil {
			return s.fileError(errnoBadFile)
		}
		return handle(s, s.files[fd], a)
	})
}

// readFile handles vFile:pread.
func (s *session) readFile(f File, a *arguments) error {
	const most = 1 << 62
	if a.num[2] > most {
		return s.fileError(errnoInvalid)
	}
	const head = 16 // more than what stands before the data
	n := int(min(a.num[1], uint64(s.packetSize-head)))
	s.memory = slices.Grow(s.memory[:0], n)[:n]
	n, err := f.ReadAt(s.memory, int64(a.num[2]))
	if err != nil && err != io.EOF {
		s.log.Error("read a file of the target", "err", err)
		return s.fileError(errnoUnknown)
	}
	s.result(n)
	s.out = append(append(s.out, ';'), s.memory[:n]...)
	return nil
}

// closeOpened handles vFile:close.
func (s *session) closeOpened(f File, a *arguments) error {
	s.closeFile(f)
	s.files[a.num[0]] = nil
	s.result(0)
	return nil
}

// statOpened handles vFile:fstat.
func (s *session) statOpened(f File, _ *arguments) error {
	s.stat(f)
	return nil
}

// statFile handles vFile:stat and vFile:lstat.
func (s *session) statFile(server FileServer, a *arguments) error {
	f, errno := s.open(server, a.data)
	if errno != 0 {
		return s.fileError(errno)
	}
	defer s.closeFile(f)
	s.stat(f)
	return nil
}

// stat makes the reply a struct stat (GDB manual, node "struct stat").
func (s *session) stat(f File) {
	const (
		regular = 0o100444
		block   = 512
		size    = 64
	)
	s.result(size)
	s.out = append(s.out, ';')
	for _, v := range []uint32{0, 0, regular, 1, 0, 0, 0} { // dev, ino, mode, nlink, uid, gid, rdev
		s.out = binary.BigEndian.AppendUint32(s.out, v)
	}
	n := uint64(f.Size())
	for _, v := range []uint64{n, uint64(s.packetSize), (n + block - 1) / block} {
		s.out = binary.BigEndian.AppendUint64(s.out, v)
	}
	for range 3 { // atime, mtime, ctime
		s.out = binary.BigEndian.AppendUint32(s.out, 0)
	}
}

// readLink handles vFile:readlink: no file is a link.
func (s *session) readLink(server FileServer, a *arguments) error {
	f, errno := s.open(server, a.data)
	if errno != 0 {
		return s.fileError(errno)
	}
	s.closeFile(f)
	return s.fileError(errnoInvalid)
}

// refuseWrite handles vFile:pwrite and vFile:unlink.
func (s *session) refuseWrite(FileServer, *arguments) error { return s.fileError(errnoReadOnly) }

package lab

// Writing initramfs archives: the "newc" cpio format that Linux unpacks, as
// its Documentation/driver-api/early-userspace/buffer-format.rst describes.

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// File type bits of the mode field.
const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioSymlink = 0o120000
	cpioChar    = 0o020000
)

// A cpioWriter writes an archive to w. Files belong to root and carry no
// time, so that the same input gives the same archive. The first error sticks
// and is returned by close.
type cpioWriter struct {
	w       io.Writer
	written int64
	inode   uint32
	dirs    map[string]bool
	err     error
}

func newCpioWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{".": true}}
}

// header starts an entry whose size bytes of data follow.
func (c *cpioWriter) header(name string, mode uint32, size int64, major, minor uint32) {
	c.inode++
	links := 1
	if mode&cpioDir != 0 {
		links = 2
	}
	if size > 0xffffffff {
		c.fail(fmt.Errorf("file %s of %d bytes is too large for cpio", name, size))
		return
	}
	// magic, inode, mode, uid, gid, links, time, size, device of the file
	// system, device of the node, length of the name with its NUL, checksum.
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	c.pad(4)
}

func (c *cpioWriter) printf(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(writeCounter{c}, format, args...)
	}
}

func (c *cpioWriter) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// pad fills up with zeros to a multiple of n.
func (c *cpioWriter) pad(n int64) {
	if rest := c.written % n; rest != 0 && c.err == nil {
		_, c.err = writeCounter{c}.Write(make([]byte, n-rest))
	}
}

// dir adds a directory and those above it that are not there yet.
func (c *cpioWriter) dir(name string) {
	if c.dirs[name] {
		return
	}
	c.dir(filepath.Dir(name))
	c.dirs[name] = true
	c.header(name, cpioDir|0o755, 0, 0, 0)
}

func (c *cpioWriter) symlink(name, target string) {
	c.dir(filepath.Dir(name))
	c.header(name, cpioSymlink|0o777, int64(len(target)), 0, 0)
	c.printf("%s", target)
	c.pad(4)
}

func (c *cpioWriter) charDevice(name string, mode fs.FileMode, major, minor uint32) {
	c.dir(filepath.Dir(name))
	c.header(name, cpioChar|uint32(mode.Perm()), 0, major, minor)
}

func (c *cpioWriter) file(name string, mode fs.FileMode, data []byte) {
	c.dir(filepath.Dir(name))
	c.header(name, cpioFile|uint32(mode.Perm()), int64(len(data)), 0, 0)
	if c.err == nil {
		_, c.err = writeCounter{c}.Write(data)
	}
	c.pad(4)
}

// copyFile adds a file of this machine.
func (c *cpioWriter) copyFile(name, path string) {
	if c.err != nil {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		c.fail(err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		c.fail(err)
		return
	}
	c.dir(filepath.Dir(name))
	c.header(name, cpioFile|uint32(st.Mode().Perm()), st.Size(), 0, 0)
	if c.err == nil {
		_, c.err = io.CopyN(writeCounter{c}, f, st.Size())
	}
	c.pad(4)
}

// close ends the archive. Another one may follow in the same file: Linux
// unpacks them one over the other.
func (c *cpioWriter) close() error {
	c.inode = 0xffffffff // so that the trailer's number is 0, as by custom
	c.header("TRAILER!!!", 0, 0, 0, 0)
	c.pad(512)
	if c.err != nil {
		return fmt.Errorf("write initramfs: %w", c.err)
	}
	return nil
}

type writeCounter struct{ c *cpioWriter }

func (w writeCounter) Write(p []byte) (int, error) {
	n, err := w.c.w.Write(p)
	w.c.written += int64(n)
	return n, err
}

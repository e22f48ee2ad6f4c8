// This file is about the place where clients connect: COMM.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// A connection is a client, or all that came of waiting for one.
type connection struct {
	io.ReadWriteCloser
	peer string // who it is, for people
}

// A listener is a place where clients connect, one after the other.
type listener interface {
	// Accept waits for a client. io.EOF says that none can come any more.
	Accept() (connection, error)
	// Close gives the place free.
	Close() error
	// Address is what the client has to be told, as "127.0.0.1:1234"; empty if
	// it is connected already.
	Address() string
	// Open tells whether other machines can connect.
	Open() bool
}

// listen opens the place that comm names: [HOST]:PORT, unix:PATH or stdio.
func listen(ctx context.Context, comm string) (listener, error) {
	if comm == "stdio" || comm == "-" {
		return &stdio{}, nil
	}
	if path, ok := strings.CutPrefix(comm, "unix:"); ok {
		if path == "" {
			return nil, usagef("cannot listen on %q: it has no path", comm)
		}
		return listenUnix(ctx, path)
	}
	host, port, err := net.SplitHostPort(comm)
	if err != nil {
		hint := "it is none of [HOST]:PORT, unix:PATH and stdio"
		if _, err := strconv.ParseUint(comm, 10, 16); err == nil {
			hint = "is it :" + comm + "?"
		}
		return nil, usagef("cannot listen on %q: %s", comm, hint)
	}
	if host == "" {
		host = "localhost"
	}
	if _, err := new(net.Resolver).LookupPort(ctx, "tcp", port); err != nil {
		return nil, usagef("cannot listen on %q: no port %q", comm, port)
	}
	// "tcp" would take 0.0.0.0 for all addresses of IPv6, too.
	network := "tcp"
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is4() {
		network = "tcp4"
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, net.JoinHostPort(host, port))
	if err != nil {
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			err = fmt.Errorf("%w: HOST is to be an address of this machine, or empty", err)
		case errors.Is(err, syscall.EADDRINUSE):
			err = fmt.Errorf("%w, perhaps by another gdbserver-xen: choose another port, or 0 for any that is free", err)
		}
		return nil, err
	}
	return &socket{Listener: l}, nil
}

func listenUnix(ctx context.Context, path string) (listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s: it is there already, and is no socket", path)
		}
		// A socket that nobody listens on is left from a server that was killed.
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			conn.Close()
			return nil, fmt.Errorf("%s: another server listens there", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Only the owner may connect, from the first moment on.
	old := syscall.Umask(0o177)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	return &socket{Listener: l}, nil
}

// socket listens on TCP or on a Unix socket.
type socket struct{ net.Listener }

func (s *socket) Accept() (connection, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return connection{}, err
	}
	peer := conn.RemoteAddr().String()
	if peer == "" || peer == "@" {
		peer = "a client on " + s.Address()
	}
	return connection{conn, peer}, nil
}

func (s *socket) Address() string { return s.Addr().String() }

func (s *socket) Open() bool {
	addr, ok := s.Addr().(*net.TCPAddr)
	return ok && !addr.IP.IsLoopback()
}

// stdio is a client at the other end of standard input and output, as with
// gdb's `target remote | gdbserver-xen attach --listen stdio DOMAIN`.
type stdio struct{ used bool }

func (s *stdio) Accept() (connection, error) {
	if s.used {
		return connection{}, io.EOF
	}
	s.used = true
	in, feed := io.Pipe()
	go func() {
		_, err := io.Copy(feed, os.Stdin)
		feed.CloseWithError(err)
	}()
	return connection{stdioConn{in}, "the client on standard input"}, nil
}

func (s *stdio) Close() error    { return nil }
func (s *stdio) Address() string { return "" }
func (s *stdio) Open() bool      { return false }

// A stdioConn reads standard input by a pipe, for Close to end a Read: a terminal, or
// a pipe of a shell's, goes on blocking when it is closed.
type stdioConn struct{ in *io.PipeReader }

func (c stdioConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (stdioConn) Write(p []byte) (int, error)  { return os.Stdout.Write(p) }
func (c stdioConn) Close() error {
	return errors.Join(c.in.Close(), os.Stdin.Close(), os.Stdout.Close())
}

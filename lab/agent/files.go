package main

// Files in and out.

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"gdbserver-xen/lab/agent/wire"
)

// put writes a file beside its place and renames it when whole.
func put(conn net.Conn, req wire.Request) error {
	part := req.Path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, os.FileMode(req.Mode).Perm())
	if err != nil {
		return err
	}
	err = receive(conn, f)
	if err == nil {
		err = f.Chmod(os.FileMode(req.Mode).Perm()) // whatever the umask
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, req.Path)
	}
	if err != nil {
		os.Remove(part)
	}
	return err
}

func receive(conn net.Conn, f *os.File) error {
	var failed error // kept until the sender is through
	for {
		kind, payload, err := wire.Read(conn)
		switch {
		case err != nil:
			return err
		case kind == wire.KindEnd:
			return failed
		case kind != wire.KindData:
			return fmt.Errorf("frame of kind %d within a file", kind)
		case failed == nil:
			_, failed = f.Write(payload)
		}
	}
}

func get(conn net.Conn, req wire.Request) error {
	f, err := os.Open(req.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if st.IsDir() {
		return fmt.Errorf("%s is a directory", req.Path)
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := wire.Write(conn, wire.KindData, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return wire.Write(conn, wire.KindEnd, nil)
		}
		if err != nil {
			return err
		}
	}
}

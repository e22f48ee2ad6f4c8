package lab

// The lab's side of the agent's protocol.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"gdbserver-xen/lab/agent/wire"
)

type agentClient struct {
	Addr  string
	Token string
}

// dial opens a connection with a request on it. The end of ctx closes it.
func (a agentClient) dial(ctx context.Context, req wire.Request) (conn net.Conn, release func(), err error) {
	var d net.Dialer
	conn, err = d.DialContext(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	release = func() {
		stop()
		conn.Close()
	}
	req.Token = a.Token
	if err := wire.WriteJSON(conn, wire.KindRequest, req); err != nil {
		release()
		return nil, nil, contextError(ctx, err)
	}
	return conn, release, nil
}

// contextError prefers the reason why ctx ended to an error it caused.
func contextError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the agent closed the connection")
	}
	return err
}

func decodeExit(payload []byte) (int, error) {
	var e wire.Exit
	if err := json.Unmarshal(payload, &e); err != nil {
		return 0, fmt.Errorf("read exit: %w", err)
	}
	if e.Error != "" {
		return e.Code, errors.New(e.Error)
	}
	return e.Code, nil
}

// ping asks for an answer.
func (a agentClient) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, release, err := a.dial(ctx, wire.Request{Op: wire.Ping})
	if err != nil {
		return err
	}
	defer release()
	_, payload, err := wire.Read(conn)
	if err != nil {
		return contextError(ctx, err)
	}
	_, err = decodeExit(payload)
	return err
}

// put sends what r holds into a file.
func (a agentClient) put(ctx context.Context, r io.Reader, path string, mode os.FileMode) error {
	conn, release, err := a.dial(ctx, wire.Request{Op: wire.Put, Path: path, Mode: uint32(mode.Perm())})
	if err != nil {
		return err
	}
	defer release()
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := wire.Write(conn, wire.KindData, buf[:n]); err != nil {
				return contextError(ctx, err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := wire.Write(conn, wire.KindEnd, nil); err != nil {
		return contextError(ctx, err)
	}
	_, payload, err := wire.Read(conn)
	if err != nil {
		return contextError(ctx, err)
	}
	_, err = decodeExit(payload)
	return err
}

// get writes a file's contents to w.
func (a agentClient) get(ctx context.Context, path string, w io.Writer) error {
	conn, release, err := a.dial(ctx, wire.Request{Op: wire.Get, Path: path})
	if err != nil {
		return err
	}
	defer release()
	for {
		kind, payload, err := wire.Read(conn)
		switch {
		case err != nil:
			return contextError(ctx, err)
		case kind == wire.KindData:
			if _, err := w.Write(payload); err != nil {
				return err
			}
		case kind == wire.KindExit:
			_, err := decodeExit(payload)
			return err
		}
	}
}

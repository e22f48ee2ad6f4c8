// This file turns a client away.

package rsp

import (
	"context"
	"errors"
	"io"
	"time"
)

// refusalTime is how long a client that is turned away has to say something.
const refusalTime = 5 * time.Second

// Refuse answers a client's first request with an error that gives the reason,
// which gdb prints as "warning: Remote failure reply", and closes conn.
func Refuse(ctx context.Context, conn io.ReadWriteCloser, reason string) error {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, refusalTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := NewReader(conn, DefaultPacketSize)
	for {
		kind, _, err := r.Next(nil)
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
		if kind == Packet {
			_, err := conn.Write(AppendPacket([]byte{'+'}, []byte("E."+errorText(errors.New(reason)))))
			return err
		}
	}
}

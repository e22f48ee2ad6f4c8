package bench

// What no server can be faster than: bytes that go to and fro over the same
// loopback, bytes that are copied through it, and replies that need not be made.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"time"

	"gdbserver-xen/rsp"
)

// copyChunk is what is written and read at once.
const copyChunk = 128 << 10

// echoSize is that of a small read's packet.
const echoSize = len("$mffffffff81000000,8#00")

// readySize is how much memory a ready reply has, as much as a packet of ours.
const readySize = (rsp.DefaultPacketSize - 1) &^ (pageSize - 1)

// What a connection to ServeLimit begins with, in 8 bytes; anything else is the number
// of bytes to send at once.
const (
	wantEcho  = 0              // what comes is sent back
	wantReady = math.MaxUint64 // each packet is answered by the same random bytes
)

// ServeLimit serves those who measure the limit, until accepting fails.
func ServeLimit(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = serveLimit(conn) // it ends with the connection
		}()
	}
}

func serveLimit(conn net.Conn) error {
	buf := make([]byte, copyChunk)
	if _, err := io.ReadFull(conn, buf[:8]); err != nil {
		return err
	}
	rest := binary.LittleEndian.Uint64(buf)
	switch rest {
	case wantEcho:
		return answer(conn, buf, func(request []byte) []byte { return request })
	case wantReady:
		payload := make([]byte, 1+readySize)
		_, _ = rand.NewChaCha8([32]byte{}).Read(payload) // never fails
		payload[0] = 'b'
		reply := rsp.AppendPacket(nil, payload)
		return answer(conn, buf, func([]byte) []byte { return reply })
	}
	for rest > 0 {
		n, err := conn.Write(buf[:min(rest, copyChunk)])
		if err != nil {
			return err
		}
		rest -= uint64(n)
	}
	return nil
}

// answer answers each request, which comes whole.
func answer(conn net.Conn, buf []byte, reply func([]byte) []byte) error {
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if _, err := conn.Write(reply(buf[:n])); err != nil {
			return err
		}
	}
}

// MeasureLimit measures what a small read and a bulk read compare to.
func MeasureLimit(network, addr string, p Params) (results []Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("limit: %w", err)
		}
	}()
	dial := func(want uint64) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		if err != nil {
			return nil, err
		}
		_, err = conn.Write(binary.LittleEndian.AppendUint64(nil, want))
		return conn, err
	}
	conn, err := dial(wantEcho)
	if err != nil {
		return nil, err
	}
	echo := Result{Work: Echo}
	buf := make([]byte, copyChunk)
	for range p.Times {
		start := time.Now()
		if _, err := conn.Write(buf[:echoSize]); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, buf[:echoSize]); err != nil {
			return nil, err
		}
		echo.Samples = append(echo.Samples, time.Since(start))
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	plain := Result{Work: Copy, Bytes: packetsPerSample * copyChunk}
	samples := max(p.Bulk.Size/plain.Bytes, 1)
	if conn, err = dial(uint64(samples * plain.Bytes)); err != nil {
		return nil, err
	}
	for range samples {
		start := time.Now()
		for done := 0; done < plain.Bytes; {
			n, err := conn.Read(buf[:min(copyChunk, plain.Bytes-done)])
			if err != nil {
				return nil, err
			}
			done += n
		}
		plain.Samples = append(plain.Samples, time.Since(start))
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	if conn, err = dial(wantReady); err != nil {
		return nil, err
	}
	ready := Result{Work: Ready, Bytes: packetsPerSample * readySize}
	c := &Conn{conn: conn, reader: rsp.NewReader(conn, replyLimit)}
	err = timed(c, p, &ready, max(p.Bulk.Size/ready.Bytes, 1), func(int) error {
		for range packetsPerSample {
			if err := c.readBinary(0, readySize); err != nil {
				return err
			}
		}
		return nil
	})
	return []Result{echo, plain, ready}, errors.Join(err, conn.Close())
}

package bench

// What no server can be faster than: bytes that go to and fro over the same
// loopback, and bytes that are copied through it.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// copyChunk is what is written and read at once.
const copyChunk = 128 << 10

// echoSize is that of a small read's packet.
const echoSize = len("$mffffffff81000000,8#00")

// ServeLimit serves those who measure the limit, until accepting fails. A connection
// begins with the number of bytes to send at once. If that is 0, what comes is sent
// back.
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
	if rest == 0 {
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return err
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				return err
			}
		}
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

// MeasureLimit measures what a small read and a bulk read compare to.
func MeasureLimit(network, addr string, p Params) (results []Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("limit: %w", err)
		}
	}()
	dial := func(size int) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		if err != nil {
			return nil, err
		}
		_, err = conn.Write(binary.LittleEndian.AppendUint64(nil, uint64(size)))
		return conn, err
	}
	conn, err := dial(0)
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
	if conn, err = dial(samples * plain.Bytes); err != nil {
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
	return []Result{echo, plain}, errors.Join(err, conn.Close())
}

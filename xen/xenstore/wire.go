// This file is the wire format of xenstored, as Xen's public header
// io/xs_wire.h (4.4 to 4.22) and docs/misc/xenstore.txt describe it: a message
// is a header of four little-endian words (type, req_id, tx_id, len) and len
// bytes of payload, at most 4096, in both directions.

package xenstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	headerSize = 16   // struct xsd_sockmsg
	payloadMax = 4096 // XENSTORE_PAYLOAD_MAX
	pathMax    = 3072 // XENSTORE_ABS_PATH_MAX
)

// msgType is enum xsd_sockmsg_type. A reply has the type of its request, or
// typeError.
type msgType uint32

const (
	typeDirectory  msgType = 1  // PATH NUL; the reply: NAME NUL for each child
	typeRead       msgType = 2  // PATH NUL; the reply: the value, any bytes
	typeWatch      msgType = 4  // PATH NUL TOKEN NUL; the reply: "OK" NUL
	typeUnwatch    msgType = 5  // PATH NUL TOKEN NUL; the reply: "OK" NUL
	typeWatchEvent msgType = 15 // unasked: PATH NUL TOKEN NUL
	typeError      msgType = 16 // the name of an errno and a NUL
)

// message is one message in either direction. The transaction id is carried for
// completeness of the format; this package uses no transactions, so it is 0.
type message struct {
	typ     msgType
	req, tx uint32
	payload []byte
}

// errMalformed is in the chain of every error for bytes that no xenstored sends.
var errMalformed = errors.New("malformed message")

// append adds the message's wire form to b.
func (m message) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.typ))
	b = binary.LittleEndian.AppendUint32(b, m.req)
	b = binary.LittleEndian.AppendUint32(b, m.tx)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.payload)))
	return append(b, m.payload...)
}

// readMessage reads one message. The error is io.EOF itself when r ends between
// two messages, and has io.ErrUnexpectedEOF in its chain when it ends in one.
func readMessage(r io.Reader) (message, error) {
	var h [headerSize]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if n == 0 {
			return message{}, err
		}
		return message{}, fmt.Errorf("header: %w", err)
	}
	m := message{
		typ: msgType(binary.LittleEndian.Uint32(h[0:])),
		req: binary.LittleEndian.Uint32(h[4:]),
		tx:  binary.LittleEndian.Uint32(h[8:]),
	}
	n := binary.LittleEndian.Uint32(h[12:])
	if n > payloadMax {
		return message{}, fmt.Errorf("%w: payload of %d bytes, the limit is %d", errMalformed, n, payloadMax)
	}
	m.payload = make([]byte, n)
	if _, err := io.ReadFull(r, m.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, fmt.Errorf("payload: %w", err)
	}
	return m, nil
}

// terminated gives the NUL-terminated strings of a payload, without their NULs.
func terminated(payload []byte) ([]string, error) {
	if len(payload) == 0 {
		return nil, nil
	}
	s, ok := strings.CutSuffix(string(payload), "\x00")
	if !ok {
		return nil, fmt.Errorf("%w: string without its NUL", errMalformed)
	}
	return strings.Split(s, "\x00"), nil
}

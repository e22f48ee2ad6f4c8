// This file is the framing of packets on the wire: $payload#checksum, the
// escape }, acknowledgements and the interrupt byte (GDB manual, nodes
// "Overview" of the remote protocol, "Packet Acknowledgment" and
// "Interrupts"). Run lengths are in rle.go.

package rsp

import (
	"io"
)

// Bytes with a meaning in the framing.
const (
	packetStart   = '$'
	packetEnd     = '#'
	escape        = '}'
	escapeXOR     = 0x20
	runMark       = '*'
	interruptByte = 0x03
)

// A Kind tells what a Reader found on the wire.
type Kind int

// What a Reader finds.
const (
	Packet    Kind = iota // a packet with a good checksum
	Ack                   // +
	Nack                  // -
	Interrupt             // 0x03 outside a packet
	Corrupt               // a packet with a wrong checksum
	Malformed             // a packet with a good checksum and a bad escape or run
	Oversize              // a packet longer than the limit; its rest was skipped
)

// readChunk is how much a Reader asks of its source at once.
const readChunk = 64 << 10

// A Reader takes packets, acknowledgements and interrupts from a byte stream.
// Anything else between packets is skipped. It never holds more than its limit
// and one chunk in memory, whatever the peer sends.
type Reader struct {
	src      io.Reader
	limit    int
	chunk    []byte
	pos, end int
}

// NewReader returns a Reader of src whose packets are at most limit bytes long,
// both on the wire (without the frame) and decoded.
func NewReader(src io.Reader, limit int) *Reader {
	return &Reader{src: src, limit: limit, chunk: make([]byte, readChunk)}
}

// Next returns the next thing on the wire. The payload of a Packet, decoded, is
// in the returned slice, which reuses buf if it is large enough.
func (r *Reader) Next(buf []byte) (Kind, []byte, error) {
	buf = buf[:0]
	for {
		c, err := r.readByte()
		if err != nil {
			return 0, buf, err
		}
		switch c {
		case packetStart:
			return r.packet(buf)
		case '+':
			return Ack, buf, nil
		case '-':
			return Nack, buf, nil
		case interruptByte:
			return Interrupt, buf, nil
		}
	}
}

// packet reads what follows a $. Another $ starts the packet anew: it cannot
// stand in a payload, so the end of the packet before it was lost.
func (r *Reader) packet(buf []byte) (Kind, []byte, error) {
	d := decoder{out: buf, limit: r.limit}
	var check byte
	for {
		n := d.copy(r.chunk[r.pos:r.end])
		check += sum(r.chunk[r.pos:][:n])
		r.pos += n
		c, err := r.readByte()
		if err != nil {
			return 0, d.out, err
		}
		switch c {
		case packetStart:
			d = decoder{out: d.out[:0], limit: r.limit}
			check = 0
			continue
		case packetEnd:
			want, err := r.checksum()
			switch {
			case err != nil:
				return 0, d.out, err
			case want != int(check):
				return Corrupt, d.out, nil
			case d.oversize:
				return Oversize, d.out, nil
			case !d.done():
				return Malformed, d.out, nil
			}
			return Packet, d.out, nil
		}
		check += c
		d.add(c)
	}
}

// checksum reads the two digits after a #. It returns -1 if they are none.
func (r *Reader) checksum() (int, error) {
	sum := 0
	for range 2 {
		c, err := r.readByte()
		if err != nil {
			return 0, err
		}
		digit, ok := hexDigit(c)
		if !ok {
			if c == packetStart {
				r.pos-- // the next packet begins here
			}
			return -1, nil
		}
		sum = sum<<4 | digit
	}
	return sum, nil
}

func (r *Reader) readByte() (byte, error) {
	for r.pos == r.end {
		n, err := r.src.Read(r.chunk)
		r.pos, r.end = 0, n
		if n == 0 && err != nil {
			return 0, err
		}
	}
	c := r.chunk[r.pos]
	r.pos++
	return c, nil
}

// A decoder undoes the escapes and run lengths of a payload, byte by byte.
type decoder struct {
	out      []byte
	limit    int
	wire     int  // bytes seen
	last     byte // the byte on the wire that a run would repeat
	escaped  bool // the last byte was an unfinished escape
	run      bool // the last byte was a run mark
	bad      bool
	oversize bool
}

// done reports whether what was added is a whole payload.
func (d *decoder) done() bool { return !d.bad && !d.escaped && !d.run }

// copy takes bytes at the start of p that stand for themselves, as many as are clear of
// the limits, and tells how many. What is next is for add, if anything is.
func (d *decoder) copy(p []byte) int {
	if d.oversize || !d.done() {
		return 0
	}
	room := d.limit - max(d.wire, len(d.out))
	n := ordinary(p[:min(len(p), room)])
	if n > 0 {
		d.out = append(d.out, p[:n]...)
		d.wire += n
		d.last = p[n-1]
	}
	return n
}

// add takes a byte of the wire.
func (d *decoder) add(c byte) {
	d.wire++
	switch {
	case d.oversize || d.bad:
	case d.wire > d.limit:
		d.oversize = true
	case d.run:
		d.run = false
		n, ok := runLength(c)
		if !ok {
			d.bad = true
			return
		}
		for range n {
			d.put(d.last)
		}
	case c == runMark:
		if d.wire == 1 || d.escaped {
			d.bad = true // nothing to repeat
			return
		}
		d.run = true
	case d.escaped:
		d.escaped = false
		d.last = c
		d.put(c ^ escapeXOR)
	case c == escape:
		d.escaped = true
	default:
		d.last = c
		d.put(c)
	}
}

func (d *decoder) put(c byte) {
	if len(d.out) == d.limit {
		d.oversize = true
		return
	}
	d.out = append(d.out, c)
}

// AppendPacket appends to dst the frame of a reply: escaped, with run lengths
// where they make it shorter.
func AppendPacket(dst, payload []byte) []byte {
	dst = append(dst, packetStart)
	start := len(dst)
	return appendChecksum(appendRuns(dst, payload), start)
}

// AppendRequest appends to dst the frame of a request: escaped, without run
// lengths, which the protocol has for replies only.
func AppendRequest(dst, payload []byte) []byte {
	dst = append(dst, packetStart)
	start := len(dst)
	for len(payload) > 0 {
		n := ordinary(payload)
		dst = append(dst, payload[:n]...)
		if n < len(payload) {
			dst = append(dst, escape, payload[n]^escapeXOR)
			n++
		}
		payload = payload[n:]
	}
	return appendChecksum(dst, start)
}

func appendChecksum(dst []byte, start int) []byte {
	check := sum(dst[start:])
	return appendHexByte(append(dst, packetEnd), check)
}

// special tells which bytes cannot stand for themselves in a payload.
var special = [256]bool{packetStart: true, packetEnd: true, escape: true, runMark: true}

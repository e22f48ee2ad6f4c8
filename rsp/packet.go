// This file is the framing of packets on the wire: $payload#checksum, the
// escape }, acknowledgements and the interrupt byte (GDB manual, nodes
// "Overview" of the remote protocol, "Packet Acknowledgment" and
// "Interrupts"). Run lengths are in rle.go.

package rsp

import (
	"bytes"
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
		if err := r.fill(); err != nil {
			return 0, d.out, err
		}
		body, _, ended := bytes.Cut(r.chunk[r.pos:r.end], []byte{packetEnd})
		if bytes.IndexByte(body, packetStart) >= 0 {
			r.pos += bytes.LastIndexByte(body, packetStart) + 1
			d = decoder{out: d.out[:0], limit: r.limit}
			check = 0
			continue
		}
		d.write(body)
		check += sum(body)
		r.pos += len(body)
		if !ended {
			continue
		}
		r.pos++
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
	if err := r.fill(); err != nil {
		return 0, err
	}
	c := r.chunk[r.pos]
	r.pos++
	return c, nil
}

// fill reads if nothing is left of what was read.
func (r *Reader) fill() error {
	for r.pos == r.end {
		n, err := r.src.Read(r.chunk)
		r.pos, r.end = 0, n
		if n == 0 && err != nil {
			return err
		}
	}
	return nil
}

// A decoder undoes the escapes and run lengths of a payload.
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

// write takes bytes of the wire.
func (d *decoder) write(p []byte) {
	room := d.limit - d.wire
	d.wire += min(len(p), room)
	marks := find(p[:min(len(p), room)], escape, runMark)
	for i := 0; i < len(marks.text) && !d.bad && !d.oversize; {
		if next := marks.next(i); next > i && !d.escaped && !d.run {
			d.put(p[i:next])
			d.last = p[next-1]
			i = next
			continue
		}
		d.add(p[i])
		i++
	}
	d.oversize = d.oversize || len(p) > room && !d.bad
}

// add takes a byte of the wire that stands for something else.
func (d *decoder) add(c byte) {
	switch {
	case d.run:
		d.run = false
		n, ok := runLength(c)
		if !ok {
			d.bad = true
			return
		}
		var run [maxRun]byte
		d.put(fill(run[:n], d.last))
	case c == runMark:
		d.run = true
		d.bad = len(d.out) == 0 || d.escaped // nothing to repeat
	case d.escaped:
		d.escaped = false
		d.last = c
		d.put([]byte{c ^ escapeXOR})
	default:
		d.escaped = true
	}
}

// put adds to the payload.
func (d *decoder) put(p []byte) {
	room := d.limit - len(d.out)
	d.out = append(d.out, p[:min(len(p), room)]...)
	d.oversize = len(p) > room
}

// fill makes all of p one byte.
func fill(p []byte, c byte) []byte {
	for i := range p {
		p[i] = c
	}
	return p
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
	marks := findSpecial(payload)
	return appendChecksum(appendEscaped(dst, &marks, 0, len(payload)), start)
}

// appendEscaped appends a part of a text, escaped.
func appendEscaped(dst []byte, special *finder, from, to int) []byte {
	for {
		next := min(special.next(from), to)
		dst = append(dst, special.text[from:next]...)
		if next == to {
			return dst
		}
		dst = append(dst, escape, special.text[next]^escapeXOR)
		from = next + 1
	}
}

func appendChecksum(dst []byte, start int) []byte {
	check := sum(dst[start:])
	return appendHexByte(append(dst, packetEnd), check)
}

// special tells which bytes cannot stand for themselves in a payload.
var special = [256]bool{packetStart: true, packetEnd: true, escape: true, runMark: true}

// findSpecial makes a finder of those.
func findSpecial(text []byte) finder { return find(text, packetStart, packetEnd, escape, runMark) }

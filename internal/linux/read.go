// This file reads numbers, names and lists from a guest's memory.

package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// readFull reads all of p.
func readFull(mem Memory, addr uint64, p []byte) error {
	for done := 0; done < len(p); {
		n, err := mem.Read(addr+uint64(done), p[done:])
		if err != nil || n <= 0 {
			return fmt.Errorf("nothing is mapped at %#x", addr+uint64(done))
		}
		done += n
	}
	return nil
}

func readWord(mem Memory, addr uint64) (uint64, error) {
	r := reader{mem: mem}
	return r.word(addr), r.err
}

// A reader reads from a guest's memory until the first error.
type reader struct {
	mem Memory
	err error
}

func (r *reader) read(addr uint64, p []byte) {
	if r.err == nil && len(p) > 0 {
		r.err = readFull(r.mem, addr, p)
	}
}

func (r *reader) word(addr uint64) uint64 {
	var b [8]byte
	r.read(addr, b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (r *reader) half(addr uint64) uint32 {
	var b [4]byte
	r.read(addr, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func (r *reader) short(addr uint64) uint16 {
	var b [2]byte
	r.read(addr, b[:])
	return binary.LittleEndian.Uint16(b[:])
}

// name reads a name that ends with a zero, or where n bytes do.
func (r *reader) name(addr uint64, n int) string {
	b := make([]byte, n)
	r.read(addr, b)
	b, _, _ = bytes.Cut(b, []byte{0})
	return printable(string(b))
}

// list follows a struct list_head to the end, for at most most entries, until do says that it
// has had enough. Lists that do not lead back to their head are an error.
func (r *reader) list(head uint64, most int, do func(entry uint64) (more bool)) {
	seen := map[uint64]bool{}
	for at := r.word(head); r.err == nil && at != head; at = r.word(at) {
		switch {
		case seen[at]:
			r.err = fmt.Errorf("the list at %#x leads back to %#x, not to its head", head, at)
		case len(seen) == most:
			r.err = fmt.Errorf("the list at %#x has over %d entries", head, most)
		}
		if r.err != nil || !do(at) {
			return
		}
		seen[at] = true
	}
}

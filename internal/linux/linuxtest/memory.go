// Package linuxtest makes guests' memory in which there is a Linux kernel: for tests of
// what reads it, here and in rooms above. It knows how Linux lays out what it says of
// itself, and nothing of package linux, whose own tests import it.
package linuxtest

import "errors"

// A Space is memory made of one piece.
type Space struct {
	Addr  uint64
	Bytes []byte
}

// Read reads up to the end of the piece.
func (s Space) Read(addr uint64, p []byte) (int, error) {
	if addr < s.Addr || addr >= s.Addr+uint64(len(s.Bytes)) {
		return 0, errors.New("nothing is mapped")
	}
	return copy(p, s.Bytes[addr-s.Addr:]), nil
}

// Spaces are memory made of pieces.
type Spaces []Space

// Read reads from the first piece that has the address.
func (s Spaces) Read(addr uint64, p []byte) (int, error) {
	for _, one := range s {
		if n, err := one.Read(addr, p); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("nothing is mapped")
}

const pageSize = 4096

func alignUp(n, to int) int { return (n + to - 1) &^ (to - 1) }

// padded adds zeros up to a whole number of pieces of a size.
func padded(b []byte, size int) []byte {
	return append(b, make([]byte, alignUp(len(b), size)-len(b))...)
}

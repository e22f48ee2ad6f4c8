// This file is the packets that read and write memory: m, x, M and X (GDB
// manual, node "Packets"; for lldb's x its document "GDB Remote Protocol
// Extensions").

package rsp

import (
	"fmt"
	"math"
	"slices"
)

// A read that cannot be had whole returns what stands before the first
// unreadable byte. The length that a client asks for is only an upper bound:
// it is cut to what a packet holds and to the end of the address space.

// readHex handles m.
func (s *session) readHex(a *arguments) error {
	n := clipRead(a.num[0], a.num[1], s.packetSize/2)
	s.memory = slices.Grow(s.memory[:0], n)[:n]
	n, err := s.readMemory(a.num[0], s.memory)
	s.out = appendHex(s.out, s.memory[:n])
	return err
}

// readBinary handles x. gdb's form marks data with a b; lldb's does not, and
// asks for nothing to see whether the packet is known.
func (s *session) readBinary(a *arguments) error {
	if s.bareBinary {
		if a.num[1] == 0 {
			return s.ok()
		}
	} else {
		s.out = append(s.out, 'b')
	}
	start := len(s.out)
	n := clipRead(a.num[0], a.num[1], s.packetSize-start)
	s.out = slices.Grow(s.out, n)[:start+n]
	n, err := s.readMemory(a.num[0], s.out[start:])
	s.out = s.out[:start+n]
	return err
}

// clipRead cuts a read's length.
func clipRead(addr, length uint64, most int) int {
	length = min(length, uint64(most))
	if length > 0 && addr > math.MaxUint64-(length-1) {
		length = math.MaxUint64 - addr + 1
	}
	return int(length)
}

// readMemory reads as much as there is.
func (s *session) readMemory(addr uint64, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.target.ReadMemory(s.general, addr, p)
	switch {
	case n > 0:
		return n, nil
	case err != nil:
		return 0, err
	}
	return 0, fmt.Errorf("%w: %#x", ErrUnmapped, addr)
}

// writeHex handles M.
func (s *session) writeHex(a *arguments) error {
	data, ok := appendDecoded(s.memory[:0], a.data)
	s.memory = data
	if !ok {
		return fmt.Errorf("%w: data is not hexadecimal", errMalformed)
	}
	return s.writeMemory(a.num[0], a.num[1], data)
}

// writeBinary handles X.
func (s *session) writeBinary(a *arguments) error {
	return s.writeMemory(a.num[0], a.num[1], a.data)
}

// writeMemory writes data, which must be as long as the packet says it is.
func (s *session) writeMemory(addr, length uint64, data []byte) error {
	if uint64(len(data)) != length {
		return fmt.Errorf("%w: %d bytes of data where %d are announced", errMalformed, len(data), length)
	}
	if length > 0 {
		if addr > math.MaxUint64-(length-1) {
			return fmt.Errorf("%w: write of %d bytes at %#x runs past the end of memory", ErrUnmapped, length, addr)
		}
		if err := s.target.WriteMemory(s.general, addr, data); err != nil {
			return err
		}
	}
	return s.ok()
}

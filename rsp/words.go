// This file looks at the bytes of packets eight at a time: much of a long packet
// stands for itself on the wire.

package rsp

import (
	"encoding/binary"
	"math/bits"
)

const (
	wordSize = 8
	ones     = 0x0101010101010101
	highs    = ones << 7
	evens    = 0x00ff00ff00ff00ff // every second byte
)

// zeros has the high bit set of the first byte of w that is zero, and none before.
// What it has behind it means nothing. Without a zero byte it has no high bits.
func zeros(w uint64) uint64 { return (w - ones) &^ w }

// specials is zeros for bytes that cannot stand for themselves.
func specials(w uint64) uint64 {
	return zeros(w^packetStart*ones) | zeros(w^packetEnd*ones) | zeros(w^escape*ones) | zeros(w^runMark*ones)
}

// ordinary gives how many bytes at the start of p stand for themselves.
func ordinary(p []byte) int {
	i := 0
	for ; i+wordSize <= len(p); i += wordSize {
		if found := specials(binary.LittleEndian.Uint64(p[i:])) & highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(p) && !special[p[i]] {
		i++
	}
	return i
}

// single gives how many bytes at the start of p stand for themselves before a run
// that pays begins.
func single(p []byte) int {
	i := 0
	for ; i+wordSize+minRun <= len(p); i += wordSize {
		w := binary.LittleEndian.Uint64(p[i:])
		// Bytes that are like the three behind them.
		run := (w ^ binary.LittleEndian.Uint64(p[i+1:])) |
			(w ^ binary.LittleEndian.Uint64(p[i+2:])) |
			(w ^ binary.LittleEndian.Uint64(p[i+3:]))
		if found := (specials(w) | zeros(run)) & highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(p) && !special[p[i]] && !runAt(p, i) {
		i++
	}
	return i
}

// sum gives the checksum of bytes: their sum, of which 8 bits count.
func sum(p []byte) byte {
	var even, odd uint64
	for ; len(p) >= wordSize; p = p[wordSize:] {
		w := binary.LittleEndian.Uint64(p)
		even = (even + w&evens) & evens
		odd = (odd + w>>8&evens) & evens
	}
	even += odd
	total := byte(even) + byte(even>>16) + byte(even>>32) + byte(even>>48)
	for _, c := range p {
		total += c
	}
	return total
}

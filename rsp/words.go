// This file looks at the bytes of packets many at a time: much of a long packet
// stands for itself on the wire.

package rsp

import (
	"bytes"
	"encoding/binary"
)

const (
	wordSize = 8
	evens    = 0x00ff00ff00ff00ff // every second byte
)

// A finder finds those of some bytes in a text that come next. It looks for each of
// them by itself, as package bytes does that fastest, and once.
type finder struct {
	text  []byte
	marks [4]byte
	at    [4]int // of each mark the next place, if that is not behind us
	n     int    // of marks
}

// find makes a finder of up to four different bytes.
func find(text []byte, marks ...byte) finder {
	f := finder{text: text, at: [4]int{-1, -1, -1, -1}}
	f.n = copy(f.marks[:], marks)
	return f
}

// next gives the first place of any of the bytes, from i on, or the text's end.
// Preconditions: i does not go back from call to call.
func (f *finder) next(i int) int {
	first := len(f.text)
	for k := range f.n {
		if f.at[k] < i {
			f.at[k] = len(f.text)
			if n := bytes.IndexByte(f.text[i:], f.marks[k]); n >= 0 {
				f.at[k] = i + n
			}
		}
		first = min(first, f.at[k])
	}
	return first
}

// alike gives a stretch of at least four bytes that are all the same, from i on: each
// that is longer than six, and shorter ones if they are where it looks. Without one
// it gives the text's end. Bytes that cannot stand for themselves have none.
func alike(p []byte, i int) (start, end int) {
	const size = minRun + 1
	for j := i; j+size <= len(p); j += size {
		w := binary.LittleEndian.Uint32(p[j:])
		if c := byte(w); w == uint32(c)*0x01010101 && !special[c] {
			for start = j; start > i && p[start-1] == c; start-- {
			}
			for end = j + size; end+size <= len(p) && binary.LittleEndian.Uint32(p[end:]) == w; end += size {
			}
			for ; end < len(p) && p[end] == c; end++ {
			}
			return start, end
		}
	}
	return len(p), len(p)
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

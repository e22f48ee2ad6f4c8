// This file reads kallsyms, the kernel's table of its own symbols
// (scripts/kallsyms.c and kernel/kallsyms.c in Linux). It is found by its
// structure: a table of 256 tokens with an index, before it the names that are
// made of them, with markers at each 256th, and the addresses before those or,
// since Linux 6.4, behind the tokens.

package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	numTokens = 256
	maxToken  = 128 // bytes of a token
	// leastSymbols and mostSymbols bound a table that is believed.
	leastSymbols = 1000
	mostSymbols  = 2 << 20
	// namesMost is how far before the tokens the names may begin.
	namesMost = 24 << 20
	perMarker = 256
	// leastImage is more than a vCPU in user mode may see of a kernel: its entry.
	leastImage = 4 << 20
)

// symbolTypes are the letters that nm prints.
const symbolTypes = "aAbBcCdDgGiIrRsStTuUvVwW?"

// findSymbols reads the symbols of a kernel that begins at an address.
func findSymbols(mem Memory, first uint64) ([]symbol, error) {
	const chunk = 1 << 20
	var image []byte
	found := 0
	for hole := 0; len(image) < imageMost && hole < holeMost; {
		size := min(chunk, int(imageEnd-first)-len(image))
		if size <= 0 {
			break
		}
		from := max(0, len(image)-numTokens*maxToken)
		image = append(image, make([]byte, size)...)
		hole += size
		if readSparse(mem, first+uint64(len(image)-size), image[len(image)-size:]) {
			hole = 0
			found += size
		}
		t, ok := findTokens(image, from)
		if !ok {
			continue
		}
		return t.symbols(mem, image, first)
	}
	if found >= leastImage {
		return nil, ErrNoKallsyms
	}
	return nil, ErrNotLinux
}

// tokens is the table of tokens.
type tokens struct {
	text            [numTokens]string
	start, indexEnd int // offsets in the image
}

// digits are the tokens of the digits, which stand for themselves.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// findTokens looks for the table of tokens from an offset on.
func findTokens(image []byte, from int) (tokens, bool) {
	for {
		i := bytes.Index(image[from:], digits)
		if i < 0 {
			return tokens{}, false
		}
		from += i + 1
		start := from - 1
		for range '0' {
			low := max(0, start-1-maxToken)
			nul := bytes.LastIndexByte(image[low:max(low, start-1)], 0)
			if nul < 0 {
				start = -1
				break
			}
			start = low + nul + 1
		}
		if start < 0 {
			continue
		}
		if t, ok := readTokens(image, start); ok {
			return t, true
		}
	}
}

// readTokens reads tokens and checks their index.
func readTokens(image []byte, start int) (t tokens, ok bool) {
	t.start = start
	var index [numTokens]uint16
	at := start
	for i := range t.text {
		n := bytes.IndexByte(image[at:min(len(image), at+maxToken)], 0)
		if n < 0 || at-start > 0xffff {
			return t, false
		}
		t.text[i], index[i] = string(image[at:at+n]), uint16(at-start)
		at += n + 1
	}
	for _, align := range []int{8, 4, 2} {
		at := alignUp(at, align)
		t.indexEnd = at + 2*numTokens
		if t.indexEnd > len(image) {
			return t, false
		}
		same := true
		for i, want := range index {
			same = same && binary.LittleEndian.Uint16(image[at+2*i:]) == want
		}
		if same {
			return t, true
		}
	}
	return t, false
}

func alignUp(n, to int) int { return (n + to - 1) &^ (to - 1) }

// symbols reads all symbols.
func (t *tokens) symbols(mem Memory, image []byte, first uint64) ([]symbol, error) {
	// The number of symbols is in a word of its own right before the names.
	for at := (t.start - 16) &^ 7; at >= 0 && at > t.start-namesMost; at -= 8 {
		n := int(min(binary.LittleEndian.Uint64(image[at:]), mostSymbols+1))
		size := t.start - at - 8
		if n < leastSymbols || n > mostSymbols || size < 2*n || size > 64*n {
			continue
		}
		names, ok := t.names(image[at+8:t.start], n)
		if !ok {
			continue
		}
		addresses := findAddresses(mem, image, first, at, t.indexEnd, n)
		if addresses == nil {
			return nil, fmt.Errorf("%w: its %d names have no addresses", ErrNotLinux, n)
		}
		list := make([]symbol, n)
		for i, name := range names {
			list[i] = symbol{addr: addresses[i], kind: name[0], name: name[1:]}
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: its table of tokens has no names", ErrNotLinux)
}

// names reads n names, each with its type in front, and checks the markers.
func (t *tokens) names(b []byte, n int) ([]string, bool) {
	if !t.beginsWithNames(b) {
		return nil, false
	}
	var names []string
	var markers []int
	var name []byte
	at := 0
	for i := range n {
		if i%perMarker == 0 {
			markers = append(markers, at)
		}
		tokens, next, ok := compressed(b, at)
		if !ok {
			return nil, false
		}
		name = name[:0]
		for _, c := range tokens {
			name = append(name, t.text[c]...)
		}
		if len(name) < 2 || len(name) > 1024 || bytes.IndexByte([]byte(symbolTypes), name[0]) < 0 {
			return nil, false
		}
		names = append(names, printable(string(name)))
		at = next
	}
	return names, hasMarkers(b, at, markers)
}

// beginsWithNames tells quickly what has no names.
func (t *tokens) beginsWithNames(b []byte) bool {
	at := 0
	for range 64 {
		tokens, next, ok := compressed(b, at)
		if !ok || len(tokens) == 0 || t.text[tokens[0]] == "" || bytes.IndexByte([]byte(symbolTypes), t.text[tokens[0]][0]) < 0 {
			return false
		}
		at = next
	}
	return true
}

// compressed gives the tokens of a name. Their number has two bytes if it is
// above 127, since Linux 6.1.
func compressed(b []byte, at int) (tokens []byte, next int, ok bool) {
	if at+2 > len(b) {
		return nil, 0, false
	}
	n := int(b[at])
	at++
	if n&0x80 != 0 {
		n = n&0x7f | int(b[at])<<7
		at++
	}
	if at+n > len(b) {
		return nil, 0, false
	}
	return b[at : at+n], at + n, true
}

// hasMarkers tells whether markers stand behind the names, as words of 4 bytes or
// of 8.
func hasMarkers(b []byte, at int, want []int) bool {
	at = alignUp(at, 8)
	for _, width := range []int{4, 8} {
		same := at+width*len(want) <= len(b)
		for i := 0; same && i < len(want); i++ {
			same = int(binary.LittleEndian.Uint32(b[at+width*i:])) == want[i]
		}
		if same {
			return true
		}
	}
	return false
}

// findAddresses reads the addresses of n symbols, whose number stands at an offset
// of the image: before that, or behind the index of the tokens.
func findAddresses(mem Memory, image []byte, first uint64, number, indexEnd, n int) []uint64 {
	size := alignUp(4*n, 8) + 8
	if number >= size {
		if list := relative(image[number-size:number], n); ascend(list, first) {
			return list
		}
	}
	behind := make([]byte, size)
	readSparse(mem, first+uint64(alignUp(indexEnd, 8)), behind)
	if list := relative(behind, n); ascend(list, first) {
		return list
	}
	if number >= 8*n {
		list := make([]uint64, n)
		for i := range list {
			list[i] = binary.LittleEndian.Uint64(image[number-8*n+8*i:])
		}
		if ascend(list, first) {
			return list
		}
	}
	return nil
}

// relative decodes n offsets of 4 bytes from a base, which is the last word. Where
// there are negative ones, those that are not are addresses of their own, within
// each processor's data (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
func relative(b []byte, n int) []uint64 {
	base := binary.LittleEndian.Uint64(b[len(b)-8:])
	list := make([]uint64, n)
	negative := false
	for i := range list {
		offset := int32(binary.LittleEndian.Uint32(b[4*i:]))
		negative = negative || offset < 0
		list[i] = uint64(int64(offset))
	}
	for i, v := range list {
		switch {
		case !negative:
			list[i] = base + v&0xffffffff
		case int64(v) < 0:
			list[i] = base - 1 - v
		}
	}
	return list
}

// ascend tells whether addresses are in order, and most of them in the image.
func ascend(list []uint64, first uint64) bool {
	inside := 0
	for i, v := range list {
		if i > 0 && v < list[i-1] {
			return false
		}
		if v >= first && v < first+imageMost {
			inside++
		}
	}
	return inside > len(list)/2
}

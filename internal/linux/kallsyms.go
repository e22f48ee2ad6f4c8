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
	"strings"
)

const (
	numTokens = 256
	maxToken  = 128 // bytes of a token
	// leastSymbols and mostSymbols bound a table that is believed.
	leastSymbols = 1000
	mostSymbols  = 2 << 20
	// mostWalked bounds the names that are gone over in the search for where they
	// begin: what a guest has put there may look like many tables in each other.
	mostWalked = 4 * mostSymbols
	// maxName is more than a name has, and mostText more than all: 250,000 names
	// have some 6 MB.
	maxName  = 1024
	mostText = 64 << 20
	// namesMost is how far before the tokens the names may begin.
	namesMost = 24 << 20
	perMarker = 256
	// leastImage is more than a vCPU in user mode may see of a kernel: its entry.
	leastImage = 4 << 20
	// usualImage is what is read of most kernels.
	usualImage = 32 << 20
)

// symbolTypes are the letters that nm prints.
const symbolTypes = "aAbBcCdDgGiIrRsStTuUvVwW?"

// findSymbols reads the symbols of a kernel that begins at an address.
func findSymbols(mem Memory, first uint64) ([]symbol, error) {
	const chunk = 1 << 20
	image := make([]byte, 0, usualImage)
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
	var index [numTokens]uint16
	at := start
	for i := range index {
		n := bytes.IndexByte(image[at:min(len(image), at+maxToken)], 0)
		if n < 0 || at-start > 0xffff {
			return t, false
		}
		index[i] = uint16(at - start)
		at += n + 1
	}
	for _, align := range []int{8, 4, 2} {
		at := alignUp(at, align)
		end := at + 2*numTokens
		if end > len(image) {
			return t, false
		}
		same := true
		for i := 0; same && i < len(index); i++ {
			same = binary.LittleEndian.Uint16(image[at+2*i:]) == index[i]
		}
		if !same {
			continue
		}
		t.start, t.indexEnd = start, end
		for i := range t.text {
			text, _, _ := bytes.Cut(image[start+int(index[i]):], []byte{0})
			t.text[i] = string(text)
		}
		return t, true
	}
	return t, false
}

func alignUp(n, to int) int { return (n + to - 1) &^ (to - 1) }

// symbols reads all symbols.
func (t *tokens) symbols(mem Memory, image []byte, first uint64) ([]symbol, error) {
	// The number of symbols is in a word of its own right before the names.
	walked := 0
	for at := (t.start - 16) &^ 7; at >= 0 && at > t.start-namesMost; at -= 8 {
		n := int(min(binary.LittleEndian.Uint64(image[at:]), mostSymbols+1))
		size := t.start - at - 8
		if n < leastSymbols || n > mostSymbols || size < 2*n || size > 64*n {
			continue
		}
		names := image[at+8 : t.start]
		tried, ok := t.walk(names, min(n, mostWalked-walked))
		if walked += tried; walked == mostWalked {
			return nil, fmt.Errorf("%w: %d of what may be names stand before its table of tokens", ErrNotLinux, walked)
		}
		if !ok {
			continue
		}
		list, err := t.expand(names, n)
		if err != nil {
			return nil, err
		}
		addresses := findAddresses(mem, image, first, at, t.indexEnd, n)
		if addresses == nil {
			return nil, fmt.Errorf("%w: its %d names have no addresses", ErrNotLinux, n)
		}
		for i, addr := range addresses {
			list[i].addr = addr
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: its table of tokens has no names", ErrNotLinux)
}

// walk goes over up to n names, each with its type in front, until one that is none,
// and tells how many it has looked at and whether markers stand behind them.
func (t *tokens) walk(b []byte, n int) (tried int, ok bool) {
	var markers []int
	at := 0
	for i := range n {
		if i%perMarker == 0 {
			markers = append(markers, at)
		}
		tokens, next, ok := compressed(b, at)
		if !ok || len(tokens) == 0 || t.text[tokens[0]] == "" || strings.IndexByte(symbolTypes, t.text[tokens[0]][0]) < 0 {
			return i + 1, false
		}
		at = next
	}
	return n, hasMarkers(b, at, markers)
}

// expand makes symbols without addresses of n names that were gone over.
func (t *tokens) expand(b []byte, n int) ([]symbol, error) {
	size, at := 0, 0
	for range n {
		tokens, next, _ := compressed(b, at)
		length := 0
		for _, c := range tokens {
			length += len(t.text[c])
		}
		if length < 2 || length > maxName {
			return nil, fmt.Errorf("%w: of its %d names one has %d bytes", ErrNotLinux, n, length)
		}
		size += length
		at = next
	}
	if size > mostText {
		return nil, fmt.Errorf("%w: its %d names have %d bytes", ErrNotLinux, n, size)
	}
	var text strings.Builder
	text.Grow(size)
	list := make([]symbol, n)
	at = 0
	for i := range list {
		tokens, next, _ := compressed(b, at)
		begin := text.Len()
		for _, c := range tokens {
			text.WriteString(t.text[c])
		}
		name := text.String()[begin:]
		list[i] = symbol{kind: name[0], name: printable(name[1:])}
		at = next
	}
	return list, nil
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

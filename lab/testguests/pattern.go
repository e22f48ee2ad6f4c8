package testguests

// The pattern in memory: what a guest fills it with, and what can be seen of it
// at a virtual address.

import "slices"

// Where the guests fill their memory with the pattern.
const (
	lowEnd       = 0x8000 // from 0
	patternStart = 4 << 20
	patternEnd   = 12 << 20
)

const pageSize = 4096

// Pattern gives the byte at a physical address. Each aligned word of the
// pattern tells its address, for both steps of the hash can be undone.
func Pattern(physical uint64) byte {
	a := uint32(physical&^3) * 0x9e3779b1
	return byte((a ^ a>>15) >> (8 * (physical & 3)))
}

// A Range is virtual memory that shows the pattern. Next to it is another range
// or a hole, unless it is open there: then it is memory of unknown content.
type Range struct {
	Virtual  uint64
	Physical uint64
	Size     uint64
	PageSize uint64 // of the pages that map it
	OpenLow  bool
	OpenHigh bool
}

// Last is the last address of the range.
func (r Range) Last() uint64 { return r.Virtual + r.Size - 1 }

func (r Range) contains(addr uint64) bool { return addr-r.Virtual < r.Size }

// Want gives what a read of n bytes at an address must give: up to the first
// hole or the end of the address space.
//
// Preconditions: the n bytes touch no memory of unknown content.
func (g *Guest) Want(addr uint64, n int) []byte {
	var want []byte
	for len(want) < n {
		r, ok := g.find(addr)
		if !ok {
			break
		}
		want = append(want, Pattern(r.Physical+addr-r.Virtual))
		addr++
		if addr == 0 {
			break
		}
	}
	return want
}

func (g *Guest) find(addr uint64) (Range, bool) {
	for _, r := range g.Ranges {
		if r.contains(addr) {
			return r, true
		}
	}
	return Range{}, false
}

// Edges gives the addresses at which pages meet, or a page and a hole: of small
// pages all, of a large one those around its first, middle and last 4 KB.
func (g *Guest) Edges() []uint64 {
	var edges []uint64
	for _, r := range g.Ranges {
		end := r.Virtual + r.Size
		var all []uint64
		if r.PageSize == pageSize {
			for edge := r.Virtual; edge != end; edge += pageSize {
				all = append(all, edge)
			}
			all = append(all, end)
		} else {
			middle := r.Virtual + r.Size/2&^(pageSize-1)
			all = []uint64{r.Virtual, r.Virtual + pageSize, middle, end - pageSize, end}
		}
		for _, edge := range all {
			open := edge == r.Virtual && r.OpenLow || edge == end && r.OpenHigh
			if !open && !slices.Contains(edges, edge) {
				edges = append(edges, edge)
			}
		}
	}
	return edges
}

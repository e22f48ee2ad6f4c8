// This file is the way from a frame to its page in the file. Frames mostly
// follow each other in the file as they do in memory, so runs of them are kept,
// not single ones.

package xencore

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// noFrame stands in the table for a page that could not be dumped.
const noFrame = math.MaxUint64

// Limits of the index. A frame number has at most 40 bits, since an x86 physical
// address has at most 52. 1<<24 runs are 256 MiB.
const (
	maxFrame = 1 << 40
	maxRuns  = 1 << 24
	maxPages = math.MaxUint32
)

// run says that the frames from frame on, count of them, have the pages from
// page on. It is 16 bytes long.
type run struct {
	frame       uint64
	page, count uint32
}

// end is the first frame past the run.
func (r run) end() uint64 { return r.frame + uint64(r.count) }

// index is runs in the order of their frames that do not overlap.
type index []run

// page gives the number of the page that frame has.
func (ix index) page(frame uint64) (uint32, bool) {
	i, _ := slices.BinarySearchFunc(ix, frame, func(r run, frame uint64) int {
		if r.end() <= frame {
			return -1
		}
		return 1
	})
	if i == len(ix) || frame < ix[i].frame {
		return 0, false
	}
	return ix[i].page + uint32(frame-ix[i].frame), true
}

// add notes that frame has page, which is higher than any before.
func (ix *index) add(frame uint64, page uint32) error {
	if frame == noFrame {
		return nil
	}
	if frame >= maxFrame {
		return fmt.Errorf("%w: page %d has frame %#x", ErrMalformed, page, frame)
	}
	if n := len(*ix); n > 0 {
		last := &(*ix)[n-1]
		if frame == last.end() && page == last.page+last.count {
			last.count++
			return nil
		}
		if n == maxRuns {
			return fmt.Errorf("guest memory is in more than %d pieces: %w", maxRuns, errors.ErrUnsupported)
		}
	}
	*ix = append(*ix, run{frame, page, 1})
	return nil
}

// finish puts the runs in order. A frame that has several pages keeps one of
// them: a PV guest may say that one machine frame is two of its own, and the
// same memory was dumped twice.
func (ix *index) finish() {
	slices.SortFunc(*ix, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.frame, b.frame), cmp.Compare(a.page, b.page))
	})
	out := (*ix)[:0]
	for _, r := range *ix {
		if len(out) > 0 {
			end := out[len(out)-1].end()
			if r.end() <= end {
				continue
			}
			if r.frame < end {
				cut := uint32(end - r.frame)
				r = run{end, r.page + cut, r.count - cut}
			}
		}
		out = append(out, r)
	}
	*ix = slices.Clone(out) // without the room that add left
}

// readP2M reads the section .xen_p2m: {u64 pfn, u64 gmfn} for each page.
func readP2M(r io.ReaderAt, table section) (pfns, mfns index, err error) {
	err = eachEntry(r, table, 16, func(page uint32, b []byte) error {
		if err := pfns.add(binary.LittleEndian.Uint64(b), page); err != nil {
			return err
		}
		return mfns.add(binary.LittleEndian.Uint64(b[8:]), page)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("section .xen_p2m: %w", err)
	}
	pfns.finish()
	mfns.finish()
	return pfns, mfns, nil
}

// readPFN reads the section .xen_pfn: u64 pfn for each page.
func readPFN(r io.ReaderAt, table section) (gfns index, err error) {
	err = eachEntry(r, table, 8, func(page uint32, b []byte) error {
		return gfns.add(binary.LittleEndian.Uint64(b), page)
	})
	if err != nil {
		return nil, fmt.Errorf("section .xen_pfn: %w", err)
	}
	gfns.finish()
	return gfns, nil
}

// eachEntry calls f with each entry of a table, which has size bytes.
func eachEntry(r io.ReaderAt, table section, size int64, f func(page uint32, b []byte) error) error {
	n := table.size / size
	if n > maxPages {
		return fmt.Errorf("%w: %d pages", ErrMalformed, n)
	}
	in := bufio.NewReaderSize(io.NewSectionReader(r, table.offset, table.size), 64<<10)
	b := make([]byte, size)
	for i := range n {
		if _, err := io.ReadFull(in, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := f(uint32(i), b); err != nil {
			return err
		}
	}
	return nil
}

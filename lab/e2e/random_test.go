// This file reads at random and compares with a core file, through page-table
// walks of its own that share no code with the product's.

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xencore"
)

// A witness reads memory by virtual address from a core file.
type witness struct {
	core *xencore.Core
	kind lab.Kind
	// Page tables, for the upper and the lower half of the address space.
	kernel, user uint64
	clock        uint64 // the frame with the time of day, once it is seen to change
}

// newWitness takes the page tables out of a vCPU's context in the core file.
func newWitness(t *testing.T, core *xencore.Core, kind lab.Kind, vcpu int) *witness {
	t.Helper()
	b, err := core.VCPUContext(vcpu)
	if err != nil {
		t.Fatal(err)
	}
	// struct vcpu_guest_context: flags @512, ctrlreg @4984.
	word := func(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
	w := &witness{core: core, kind: kind, kernel: word(4984 + 3*8), user: word(4984 + 3*8)}
	if inKernel := word(512)&4 != 0; kind == lab.PV && !inKernel && word(4984+8) != 0 {
		w.user = word(4984 + 8)
	}
	return w
}

// frame reads a frame as the guest's page tables name it.
func (w *witness) frame(n uint64) ([]byte, bool) {
	p := make([]byte, xen.PageSize)
	var err error
	if w.kind == lab.PV {
		err = w.core.PageByMFN(xen.MFN(n), p)
	} else {
		err = w.core.PageByGFN(xen.GFN(n), p)
	}
	return p, err == nil
}

// entry reads entry i of the table in a frame.
func (w *witness) entry(frame uint64, i uint64) uint64 {
	p, ok := w.frame(frame)
	if !ok {
		return 0
	}
	return binary.LittleEndian.Uint64(p[8*i:])
}

const addressBits = 0x000f_ffff_ffff_f000

// translate walks four levels. It gives the frame, or false for a hole.
func (w *witness) translate(va uint64) (uint64, bool) {
	if top := int64(va) >> 47; top != 0 && top != -1 {
		return 0, false
	}
	e := w.user
	if va>>63 == 1 {
		e = w.kernel
	}
	for level := 3; level >= 0; level-- {
		shift := 12 + 9*level
		e = w.entry(e&addressBits>>12, va>>shift&511)
		if e&1 == 0 {
			return 0, false
		}
		if level > 0 && e&0x80 != 0 {
			if level == 3 {
				return 0, false
			}
			size := uint64(1) << shift
			return (e&addressBits&^(size-1) | va&(size-1)) >> 12, true
		}
	}
	return e & addressBits >> 12, true
}

// read reads up to the first byte that cannot be had. It tells whether that is
// because the core file lacks a frame that the guest maps.
func (w *witness) read(va uint64, n int) (mem []byte, lacking bool) {
	for len(mem) < n {
		at := va + uint64(len(mem))
		if len(mem) > 0 && at == 0 {
			break
		}
		frame, ok := w.translate(at)
		if !ok {
			break
		}
		p, ok := w.frame(frame)
		if !ok {
			return mem, true
		}
		p = p[at%xen.PageSize:]
		mem = append(mem, p[:min(len(p), n-len(mem))]...)
	}
	return mem, false
}

// mapped lists pages that the guest maps, at most some thousands of each part
// of the address space, and the pages just before and after each run of them.
func (w *witness) mapped() []uint64 {
	var pages []uint64
	var visit func(frame uint64, level int, base uint64, budget *int)
	visit = func(frame uint64, level int, base uint64, budget *int) {
		p, ok := w.frame(frame)
		for i := uint64(0); ok && i < 512 && *budget > 0; i++ {
			e := binary.LittleEndian.Uint64(p[8*i:])
			va := base | i<<(12+9*level)
			switch {
			case e&1 == 0:
			case level == 0 || level < 3 && e&0x80 != 0:
				pages = append(pages, va-xen.PageSize, va, va+1<<(12+9*level))
				*budget--
			default:
				visit(e&addressBits>>12, level-1, va, budget)
			}
		}
	}
	for slot := range uint64(512) {
		if w.kind == lab.PV && slot >= 256 && slot < 272 {
			continue // the hypervisor's own
		}
		root, base := w.user, slot<<39
		if slot >= 256 {
			root, base = w.kernel, slot<<39|0xffff<<48
		}
		if e := w.entry(root&addressBits>>12, slot); e&1 != 0 {
			budget := 5000
			visit(e&addressBits>>12, 2, base, &budget)
		}
	}
	return pages
}

// addresses gives where a kernel has mapped all of physical memory, and where its
// text begins, if it has chosen both by chance (Linux,
// Documentation/x86/x86_64/mm.rst): the map comes first of all in the upper half,
// and the text is in the gigabyte from the last but two on.
func (w *witness) addresses(t *testing.T) (physical, text uint64) {
	t.Helper()
	const (
		lower, upper = 0xffff_8000_0000_0000, 0xffff_ffff_8000_0000
		size         = 1 << 30
	)
	for _, va := range w.mapped() {
		frame, ok := w.translate(va)
		if !ok || va < lower {
			continue
		}
		if physical == 0 {
			physical = va - frame*xen.PageSize
		}
		if va >= upper && va < upper+size {
			return physical, va
		}
	}
	t.Fatalf("the kernel's text is not mapped; physical memory is at %#x", physical)
	return 0, 0
}

// onlyClock tells whether two readings of memory differ only in the time of day in
// one page, which must be the one that the guest shares with the hypervisor: that
// writes it there when dom0 sets its clock, whether the guest is paused or not
// (Xen public header xen.h: struct shared_info, from wc_version at 3072 to
// wc_sec_hi).
func (w *witness) onlyClock(va uint64, a, b []byte) bool {
	const start, end = 3072, 3072 + 16
	for i := range a {
		at := va + uint64(i)
		if a[i] == b[i] {
			continue
		}
		frame, ok := w.translate(at)
		if !ok || at%xen.PageSize < start || at%xen.PageSize >= end || w.clock != 0 && w.clock != frame {
			return false
		}
		w.clock = frame
	}
	return true
}

// A read is a request for bytes.
type read struct {
	addr uint64
	n    int
}

// batch is how many reads are under way at once, which saves the way there and
// back for each.
const batch = 32

// readAll makes reads, each up to the first byte that cannot be had.
func (c *client) readAll(reads []read) [][]byte {
	c.t.Helper()
	for _, r := range reads {
		if err := c.Post(fmt.Sprintf("x%x,%x", r.addr, r.n)); err != nil {
			c.t.Fatal(err)
		}
	}
	var all [][]byte
	for range reads {
		reply, err := c.Receive()
		if err != nil {
			c.t.Fatal(err)
		}
		data, ok := strings.CutPrefix(reply, "b")
		if !ok {
			data = "" // an error
		}
		all = append(all, []byte(data))
	}
	return all
}

// compareRandomReads reads at random, in kernel and user memory, from 1 byte to
// 16 KB. Each read equals the same bytes of the core file, up to the same hole.
func compareRandomReads(t *testing.T, c *client, g *lab.Guest, core *xencore.Core, reads int) {
	random := rand.New(rand.NewPCG(2006, 4))
	begin := time.Now()
	mismatches, lacking, empty, clock, user, total := 0, 0, 0, 0, 0, 0
	for vcpu := range g.Config().VCPUs {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		w := newWitness(t, core, g.Config().Kind, vcpu)
		// A process has few pages beside those of the kernel.
		var halves [2][]uint64
		for _, va := range w.mapped() {
			halves[va>>63] = append(halves[va>>63], va)
		}
		if len(halves[1]) < 1000 {
			t.Fatalf("the kernel of vCPU %d maps only %d pages", vcpu, len(halves[1]))
		}
		for left := reads / g.Config().VCPUs; left > 0; left -= batch {
			var asked []read
			for range min(left, batch) {
				pages := halves[1]
				if random.IntN(4) == 0 && len(halves[0]) > 0 {
					pages = halves[0]
				}
				r := read{pages[random.IntN(len(pages))] + random.Uint64N(xen.PageSize), 1 + random.IntN(16<<10)}
				if random.IntN(10) == 0 {
					r.addr = random.Uint64()
				}
				asked = append(asked, r)
			}
			for i, got := range c.readAll(asked) {
				va, n := asked[i].addr, asked[i].n
				want, lacks := w.read(va, n)
				total += len(got)
				if va>>63 == 0 && len(got) > 0 {
					user++
				}
				switch {
				case bytes.Equal(got, want) && len(want) > 0:
				case lacks && len(got) >= len(want) && bytes.Equal(got[:len(want)], want):
					lacking++
				case len(got) == len(want) && w.onlyClock(va, got, want):
					clock++
				case !bytes.Equal(got, want):
					mismatches++
					if mismatches <= 10 {
						t.Errorf("vCPU %d: %d bytes at %#x: got %d, want %d, which differ at %d",
							vcpu, n, va, len(got), len(want), firstDifference(got, want))
					}
				case len(want) == 0:
					empty++
				}
			}
		}
	}
	t.Logf("%.1f s: %d reads, %d bytes, %d mismatches; %d of user memory, %d in holes, %d into frames that the core file lacks, %d of a clock that went on",
		time.Since(begin).Seconds(), reads, total, mismatches, user, empty, lacking, clock)
	if lacking > reads/10 || empty > reads/2 {
		t.Error("too few reads were compared")
	}
}

// This file reads at random and compares with a core file, through page-table
// walks of its own that share no code with the product's.

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

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

// compareRandomReads reads at random, in kernel and user memory, from 1 byte to
// 16 KB. Each read equals the same bytes of the core file, up to the same hole.
func compareRandomReads(t *testing.T, c *client, g *lab.Guest, core *xencore.Core, reads int) {
	random := rand.New(rand.NewPCG(2006, 4))
	mismatches, lacking, empty, total := 0, 0, 0, 0
	for vcpu := range g.Config().VCPUs {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		w := newWitness(t, core, g.Config().Kind, vcpu)
		pages := w.mapped()
		if len(pages) < 1000 {
			t.Fatalf("vCPU %d maps only %d pages", vcpu, len(pages))
		}
		for range reads / g.Config().VCPUs {
			va := pages[random.IntN(len(pages))] + random.Uint64N(xen.PageSize)
			if random.IntN(10) == 0 {
				va = random.Uint64()
			}
			n := 1 + random.IntN(16<<10)
			want, lacks := w.read(va, n)
			got := c.read(va, n)
			total += len(got)
			switch {
			case lacks && len(got) >= len(want) && bytes.Equal(got[:len(want)], want):
				lacking++
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
	t.Logf("%d reads, %d bytes, %d mismatches; %d in holes, %d into frames that the core file lacks",
		reads, total, mismatches, empty, lacking)
	if lacking > reads/10 || empty > reads/2 {
		t.Error("too few reads were compared")
	}
}

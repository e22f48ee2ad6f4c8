// This file compares memory through the server with witnesses that know nothing
// of it.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xencore"
)

// Where a Debian kernel without KASLR has its memory (Linux,
// Documentation/x86/x86_64/mm.rst).
const (
	directMap = 0xffff888000000000 // physical address 0
	textStart = 0xffffffff81000000 // physical address 16 MB
	textFrame = 0x1000
)

// dumpCore makes xl dump a guest's memory.
func dumpCore(t *testing.T, g *lab.Guest) *xencore.Core {
	t.Helper()
	path := filepath.Join(t.TempDir(), "core")
	if err := g.DumpCore(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	core, err := xencore.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return core
}

// page gives a page of a dump by the guest's own numbering.
func page(core *xencore.Core, kind lab.Kind, pfn uint64, p []byte) error {
	if kind == lab.PV {
		return core.PageByPFN(pfn, p)
	}
	return core.PageByGFN(xen.GFN(pfn), p)
}

// Memory through the server equals xl dump-core's, byte for byte: 64 MB of a
// paused guest and random reads of kernel and user memory by the plain protocol,
// and 4 MB of kernel text, dumped by real gdb.
func TestMemoryEqualsDumpCore(t *testing.T) {
	reads := 2_000
	if os.Getenv(labtest.EnvAll) == "1" {
		reads = 100_000
	}
	for _, kind := range lab.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			guest := inSystemCalls
			if kind == lab.PV {
				guest = spinning
			}
			h, g := guestOf(t, machine, guest, kind)
			s := attach(t, h, g, "--once")
			begin := time.Now()
			core := dumpCore(t, g)
			t.Logf("xl dump-core took %.1f s", time.Since(begin).Seconds())
			c := s.dial()
			w := newWitness(t, core, kind, 0)
			physical, text := uint64(directMap), uint64(textStart)
			if kind == lab.HVM {
				physical, text = w.addresses(t)
				t.Logf("kernel has physical memory at %#x and its text at %#x", physical, text)
				if physical == directMap && text == textStart {
					t.Error("the kernel is where it was linked: want KASLR")
				}
			}
			compareDirectMap(t, c, core, kind, physical)
			compareRandomReads(t, c, g, core, reads)
			c.Close()
			s.exit()

			s = attach(t, h, g)
			compareText(t, s, core, kind, w, text)
			s.exit()
			// Its log may tell of a soft lockup: it was paused that long.
			ticks(t, g)
		})
	}
}

// compareDirectMap compares the guest's first 64 MB, where its kernel maps all
// of its memory, with the dump.
func compareDirectMap(t *testing.T, c *client, core *xencore.Core, kind lab.Kind, start uint64) {
	const (
		pages = 64 << 20 / xen.PageSize
		chunk = 8
	)
	equal, holes, lacking := 0, 0, 0
	for pfn := uint64(0); pfn < pages; {
		n := int(min(chunk, pages-pfn)) * xen.PageSize
		mem := c.read(start+pfn*xen.PageSize, n)
		if len(mem)%xen.PageSize != 0 {
			t.Fatalf("pfn %#x: %d bytes are not whole pages", pfn, len(mem))
		}
		for part := range slices.Chunk(mem, xen.PageSize) {
			// xl dump-core leaves out where a PC has its display, whatever a PVH
			// guest has there (Xen, xc_core_x86.c).
			if kind == lab.PVH && pfn >= 0xa0 && pfn < 0xc0 {
				lacking++
			} else {
				comparePage(t, core, kind, pfn, part)
				equal++
			}
			pfn++
		}
		if len(mem) < n { // the guest does not map this one
			holes++
			pfn++
		}
	}
	t.Logf("%d pages equal, %d not mapped, %d not in the dump", equal, holes, lacking)
	if equal < pages*9/10 {
		t.Errorf("only %d of %d pages could be compared", equal, pages)
	}
}

// compareText makes gdb dump kernel text and compares it with the dump. The
// server makes fewer than 100 system calls for it, as strace counts them.
func compareText(t *testing.T, s *server, core *xencore.Core, kind lab.Kind, w *witness, start uint64) {
	const size = 4 << 20
	pid := strings.TrimSpace(labtest.Output(t, s.host, "pidof gdbserver-xen"))
	trace, err := s.host.Command(t.Context(), "exec strace -f -c -e trace=mmap,ioctl,munmap -p "+pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := trace.WaitOutput(t.Context(), "attached"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "text")
	// Without what looks for the kernel, which reads 30 MB.
	s.gdb(append(slices.Clone(noFiles), "-ex", fmt.Sprintf("dump binary memory %s %#x %#x", path, start, start+size), "-ex", "detach")...)
	res, err := trace.Wait()
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]int{}
	for line := range strings.Lines(string(res.Stderr)) {
		if f := strings.Fields(line); len(f) >= 5 {
			calls[f[len(f)-1]], _ = strconv.Atoi(f[3])
		}
	}
	// Each mapping is one ioctl; the others are hypercalls.
	mapping := 2*calls["mmap"] + calls["munmap"]
	t.Logf("%d system calls for mapping in the session:\n%s", mapping, res.Stderr)
	if calls["mmap"] == 0 || calls["ioctl"] < calls["mmap"] || mapping >= 100 {
		t.Errorf("got %d system calls for mapping, want some, and fewer than 100", mapping)
	}

	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != size {
		t.Fatalf("got %d bytes, want %d", len(got), size)
	}
	for i, part := range slices.Collect(slices.Chunk(got, xen.PageSize)) {
		pfn := textFrame + uint64(i)
		if kind == lab.HVM {
			ok := false
			if pfn, ok = w.translate(start + uint64(i)*xen.PageSize); !ok {
				t.Fatalf("the guest does not map its text at %#x", start+uint64(i)*xen.PageSize)
			}
		}
		comparePage(t, core, kind, pfn, part)
	}
}

// comparePage compares a page with the dump's.
func comparePage(t *testing.T, core *xencore.Core, kind lab.Kind, pfn uint64, got []byte) {
	t.Helper()
	var want [xen.PageSize]byte
	if err := page(core, kind, pfn, want[:]); err != nil {
		t.Fatalf("pfn %#x: the server reads it, the dump does not have it: %v", pfn, err)
	}
	if i := firstDifference(got, want[:]); i >= 0 {
		t.Fatalf("pfn %#x differs at byte %#x: got %#x, want %#x", pfn, i, got[i], want[i])
	}
}

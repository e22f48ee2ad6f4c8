// This file checks without Xen that the guests are as described.

package testguests

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"testing"

	"gdbserver-xen/x86"
)

// image is a guest's memory as its file has it.
type image []byte

const imageStart = 1 << 20

func (m image) Table(frame uint64) ([]byte, error) {
	at := frame*pageSize - imageStart
	if at >= uint64(len(m)) {
		return nil, fmt.Errorf("frame %#x is not in the file", frame)
	}
	table := make([]byte, pageSize)
	copy(table, m[at:])
	return table, nil
}

// The page tables in each guest's file lead where the description says, and
// nowhere else.
func TestTables(t *testing.T) {
	for _, program := range []string{"as", "ld"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs binutils: %v", err)
		}
	}
	for _, g := range Guests() {
		t.Run(g.Name, func(t *testing.T) {
			p, err := g.Build(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if p.ParkEnd != p.Park+4 || p.ProbesEnd <= p.Probes {
				t.Errorf("bad addresses %+v", p)
			}
			f, err := elf.Open(p.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			mem := make(image, f.Progs[0].Filesz)
			if _, err := f.Progs[0].ReadAt(mem, 0); err != nil {
				t.Fatal(err)
			}
			if f.Progs[0].Paddr != imageStart || len(mem) > imageStart {
				t.Errorf("program is at %#x, %#x bytes", f.Progs[0].Paddr, len(mem))
			}
			mode := x86.ModeOf(g.Values["cr0"], g.Values["cr4"], g.Values["efer"])
			root := x86.RootOf[uint64](mode, p.Root)
			check := func(addr uint64, want uint64, mapped bool) {
				t.Helper()
				tr, err := x86.Walk(mode, root, addr, x86.Tables[uint64](mem))
				if got := err == nil && tr.Frame < uint64(g.MemoryMB)<<20/pageSize; got != mapped || mapped && tr.Frame != want/pageSize {
					t.Errorf("%#x leads to frame %#x, %v, want %#x (mapped: %v)", addr, tr.Frame, err, want/pageSize, mapped)
				}
			}
			for _, r := range g.Ranges {
				for offset := uint64(0); offset < r.Size; offset += pageSize {
					check(r.Virtual+offset, r.Physical+offset, true)
				}
				if next := r.Virtual + r.Size; !r.OpenHigh && next != 0 {
					if _, ok := g.find(next); !ok {
						check(next, 0, false)
					}
				}
				if before := r.Virtual - 1; !r.OpenLow && r.Virtual != 0 {
					if _, ok := g.find(before); !ok {
						check(before, 0, false)
					}
				}
			}
			for _, hole := range g.Holes {
				check(hole, 0, false)
			}
			for _, a := range g.Aliases {
				ra, _ := g.find(a.A)
				rb, _ := g.find(a.B)
				if ra.Physical+a.A-ra.Virtual != rb.Physical+a.B-rb.Virtual {
					t.Errorf("%#x and %#x are no aliases", a.A, a.B)
				}
			}
		})
	}
}

// No two words of the pattern are the same, so a wrong translation shows.
func TestPattern(t *testing.T) {
	seen := make(map[uint32]uint64, (patternEnd-patternStart)/4)
	for at := uint64(patternStart); at < patternEnd; at += 4 {
		word := uint32(Pattern(at)) | uint32(Pattern(at+1))<<8 | uint32(Pattern(at+2))<<16 | uint32(Pattern(at+3))<<24
		if other, ok := seen[word]; ok {
			t.Fatalf("%#x and %#x both hold %#x", other, at, word)
		}
		seen[word] = at
	}
}

func TestWant(t *testing.T) {
	g := &Guest{Ranges: []Range{
		{Virtual: 0, Physical: 0x5000, Size: pageSize, PageSize: pageSize},
		{Virtual: ^uint64(0xfff), Physical: 0x9000, Size: pageSize, PageSize: pageSize},
	}}
	for _, tt := range []struct {
		addr uint64
		n    int
		want []byte
	}{
		{0xffe, 4, []byte{Pattern(0x5ffe), Pattern(0x5fff)}},
		{0x1000, 4, nil},
		{^uint64(1), 4, []byte{Pattern(0x9ffe), Pattern(0x9fff)}}, // 0 does not follow
	} {
		if got := g.Want(tt.addr, tt.n); string(got) != string(tt.want) {
			t.Errorf("%#x: got %x, want %x", tt.addr, got, tt.want)
		}
	}
	if got, want := fmt.Sprintf("%x", g.Edges()), "[0 1000 fffffffffffff000]"; got != want {
		t.Errorf("got edges %s, want %s", got, want)
	}
}

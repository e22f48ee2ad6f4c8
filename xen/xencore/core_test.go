package xencore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/xen"
)

// open opens a dump that must open.
func open(t *testing.T, b []byte) *Core {
	t.Helper()
	c, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The synthetic dump is an ELF file for others too.
func TestBuilder(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(pvDump().bytes(t)))
	if err != nil {
		t.Fatal(err)
	}
	if s := f.Section(".xen_pages"); s == nil || s.Offset%xen.PageSize != 0 || s.Size != 6*xen.PageSize {
		t.Errorf("got %+v", s)
	}
}

func TestPV(t *testing.T) {
	c := open(t, pvDump().bytes(t))
	if want := (Header{Kind: PV, Width: 8, VCPUs: 2, Pages: 6}); c.Header != want {
		t.Errorf("got %+v, want %+v", c.Header, want)
	}
	want := XenVersion{4, 17, ".7-rc1", "xen-3.0-x86_64 hvm-3.0-x86_64 ", "git:0123456789"}
	if c.XenVersion != want || c.XenVersion.String() != "4.17.7-rc1" {
		t.Errorf("got %+v, %v", c.XenVersion, c.XenVersion)
	}
	for i := range 2 {
		if got, err := c.VCPUContext(i); err != nil || !bytes.Equal(got, context(i)) {
			t.Errorf("context %d: %v", i, err)
		}
	}
	for _, i := range []int{-1, 2} {
		if _, err := c.VCPUContext(i); err == nil {
			t.Errorf("context %d is there", i)
		}
	}
	byMFN := map[xen.MFN]byte{0x1000: 10, 0x1001: 11, 0x0fff: 12, 0x2000: 19, 0x2001: 15}
	for f, fill := range byMFN {
		page(t, fill, func(p []byte) error { return c.PageByMFN(f, p) })
	}
	byPFN := map[uint64]byte{0: 10, 1: 11, 2: 12, 9: 19, 5: 15}
	for f, fill := range byPFN {
		page(t, fill, func(p []byte) error { return c.PageByPFN(f, p) })
	}
	p := make([]byte, xen.PageSize)
	for _, f := range []uint64{3, 0x0ffe, 0x1002, 0x2002, maxFrame, noFrame} {
		if err := c.PageByMFN(xen.MFN(f), p); !errors.Is(err, ErrNoPage) {
			t.Errorf("mfn %#x: %v", f, err)
		}
		if err := c.PageByPFN(f, p); !errors.Is(err, ErrNoPage) {
			t.Errorf("pfn %#x: %v", f, err)
		}
	}
	if err := c.PageByGFN(0, p); !errors.Is(err, ErrKind) {
		t.Errorf("gfn of a PV guest: %v", err)
	}
	if err := c.PageByMFN(0x1000, p[1:]); err == nil {
		t.Error("a short buffer is taken")
	}
}

func TestHVM(t *testing.T) {
	c := open(t, hvmDump().bytes(t))
	if want := (Header{Kind: HVM, Width: 8, VCPUs: 1, Pages: 6}); c.Header != want {
		t.Errorf("got %+v, want %+v", c.Header, want)
	}
	byGFN := map[xen.GFN]byte{0: 10, 1: 11, 0xc0: 20, 0xc1: 21, 0x100000: 30}
	for f, fill := range byGFN {
		page(t, fill, func(p []byte) error { return c.PageByGFN(f, p) })
	}
	p := make([]byte, xen.PageSize)
	for _, f := range []xen.GFN{2, 0xbf, 0xc2, 0x100001, noFrame} {
		if err := c.PageByGFN(f, p); !errors.Is(err, ErrNoPage) {
			t.Errorf("%v: %v", f, err)
		}
	}
	if err := c.PageByMFN(0, p); !errors.Is(err, ErrKind) {
		t.Errorf("mfn of an HVM guest: %v", err)
	}
	if err := c.PageByPFN(0, p); !errors.Is(err, ErrKind) {
		t.Errorf("pfn of an HVM guest: %v", err)
	}
}

// page reads a page and checks that fill fills it.
func page(t *testing.T, fill byte, read func([]byte) error) {
	t.Helper()
	p := make([]byte, xen.PageSize)
	if err := read(p); err != nil {
		t.Error(err)
	} else if want := bytes.Repeat([]byte{fill}, xen.PageSize); !bytes.Equal(p, want) {
		t.Errorf("page of %d, want %d", p[0], fill)
	}
}

func TestPV32(t *testing.T) {
	d := pvDump()
	d.machine = elf.EM_386
	if c := open(t, d.bytes(t)); c.Header.Width != 4 {
		t.Errorf("width %d", c.Header.Width)
	}
}

// put gives a change of the built file: words of 2, 4 or 8 bytes at an offset.
func put(offset int, v any) func([]byte) []byte {
	return func(b []byte) []byte {
		if _, err := binary.Encode(b[offset:], binary.LittleEndian, v); err != nil {
			panic(err)
		}
		return b
	}
}

// sh is the offset of a field of the i-th section header.
func sh(i, field int) int { return headerSize + i*sectionHeaderSize + field }

// Fields of Elf64_Shdr.
const (
	shName = 0
	shOff  = 24
	shSize = 32
)

func TestDamagedFiles(t *testing.T) {
	const huge = 1 << 50
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	tests := []struct {
		name   string
		damage func([]byte) []byte
		want   error
	}{
		{"empty", cut(0), ErrFormat},
		{"half a header", cut(63), ErrFormat},
		{"no magic", put(0, uint32(0)), ErrFormat},
		{"ELF32", put(4, uint8(elf.ELFCLASS32)), ErrFormat},
		{"big endian", put(5, uint8(elf.ELFDATA2MSB)), ErrFormat},
		{"not a core", put(16, uint16(elf.ET_EXEC)), ErrFormat},
		{"other machine", put(18, uint16(elf.EM_ARM)), ErrFormat},
		{"no sections, as a process's core", put(60, uint16(0)), ErrFormat},
		{"other sections", put(sh(1, shName), uint32(1+len(".note.Xen")-1)), ErrFormat},
		{"65535 sections", put(60, uint16(65535)), ErrMalformed},
		{"other section headers", put(58, uint16(40)), ErrMalformed},
		{"names nowhere", put(62, uint16(7)), ErrMalformed},
		{"section headers past the end", put(40, uint64(huge)), ErrMalformed},
		{"section headers at -1", put(40, ^uint64(0)), ErrMalformed},
		{"names huge", put(sh(6, shSize), uint64(huge)), ErrMalformed},
		{"names past the end", put(sh(6, shOff), uint64(huge)), ErrMalformed},
		{"name past the names", put(sh(3, shName), uint32(9999)), ErrMalformed},
		{"two of a name", put(sh(3, shName), uint32(1)), ErrMalformed},
		{"notes huge", put(sh(1, shSize), uint64(maxNotes+1)), ErrMalformed},
		{"contexts huge", put(sh(2, shSize), uint64(huge)), ErrMalformed},
		{"contexts and a byte", put(sh(2, shSize), uint64(2*ContextSize+1)), ErrMalformed},
		{"pages past the end", put(sh(4, shOff), uint64(huge)), ErrMalformed},
		{"a page too few", put(sh(4, shSize), uint64(5*xen.PageSize)), ErrMalformed},
		{"table at -16", put(sh(5, shOff), ^uint64(15)), ErrMalformed},
		{"table of 2^64-1", put(sh(5, shSize), ^uint64(0)), ErrMalformed},
		{"cut in the table", func(b []byte) []byte { return b[:len(b)-100] }, ErrMalformed},
		{"cut in the pages", func(b []byte) []byte { return b[:len(b)-2*xen.PageSize] }, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.damage(pvDump().bytes(t))
			if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	header := headerNote(magicPV, 2, 6, xen.PageSize)
	tests := []struct {
		name  string
		notes []byte
		want  error
	}{
		{"other order, one unknown", join(formatNote(1), note(0x2000009, []byte("later")), versionNote(), header), nil},
		{"later minor version", join(header, versionNote(), formatNote(7)), nil},
		{"later major version", join(header, versionNote(), formatNote(1<<32)), errors.ErrUnsupported},
		{"none", nil, ErrMalformed},
		{"no header", join(versionNote(), formatNote(1)), ErrMalformed},
		{"no version", join(header, formatNote(1)), ErrMalformed},
		{"no format", join(header, versionNote()), ErrMalformed},
		{"two headers", join(header, header, versionNote(), formatNote(1)), ErrMalformed},
		{"short version", join(header, note(noteXenVersion, make([]byte, 1279)), formatNote(1)), ErrMalformed},
		{"cut", join(header, versionNote(), formatNote(1)[:23]), ErrMalformed},
		{"rest", join(header, versionNote(), formatNote(1), []byte{4}), ErrMalformed},
		{"other name", join(header, versionNote(), formatNote(1), []byte("\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00GNU\x00")), ErrMalformed},
		{"magic", join(headerNote(0xF00FEBEF, 2, 6, xen.PageSize), versionNote(), formatNote(1)), ErrMalformed},
		{"page size", join(headerNote(magicPV, 2, 6, 16384), versionNote(), formatNote(1)), ErrMalformed},
		{"vcpus", join(headerNote(magicPV, 1<<60, 6, xen.PageSize), versionNote(), formatNote(1)), ErrMalformed},
		{"pages", join(headerNote(magicPV, 2, 1<<60, xen.PageSize), versionNote(), formatNote(1)), ErrMalformed},
		// 2^52+6 pages of 4096 bytes are 6 pages, modulo 2^64.
		{"pages that wrap", join(headerNote(magicPV, 2, 1<<52+6, xen.PageSize), versionNote(), formatNote(1)), ErrMalformed},
		{"PV table of an HVM guest", join(headerNote(magicHVM, 2, 6, xen.PageSize), versionNote(), formatNote(1)), ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := pvDump()
			d.notes = append([]byte{}, tt.notes...)
			b := d.bytes(t)
			if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFrameTooBig(t *testing.T) {
	d := hvmDump()
	d.table[2] = maxFrame
	b := d.bytes(t)
	if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

// shrunk is a file that became shorter after it was opened.
type shrunk struct {
	b []byte
}

func (s *shrunk) ReadAt(p []byte, offset int64) (int, error) {
	return bytes.NewReader(s.b).ReadAt(p, offset)
}

func TestShrunkFile(t *testing.T) {
	f := &shrunk{hvmDump().bytes(t)}
	c, err := Open(f, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	f.b = f.b[:headerSize]
	if err := c.PageByGFN(0, make([]byte, xen.PageSize)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("page: %v", err)
	}
	if _, err := c.VCPUContext(0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("context: %v", err)
	}
}

// sparse is a file of zeros after b.
type sparse struct{ b []byte }

func (s sparse) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	if offset < int64(len(s.b)) {
		copy(p, s.b[offset:])
	}
	return len(p), nil
}

// A sparse file can back any claim of its headers at no cost to who made it.
// Here 2^20 pages all say that they are frame 0.
func TestSparseFile(t *testing.T) {
	const pages = 1 << 20
	d := hvmDump()
	d.notes = bytes.Join([][]byte{headerNote(magicHVM, 1, pages, xen.PageSize), versionNote(), formatNote(1)}, nil)
	b := d.bytes(t)
	put(sh(4, shOff), uint64(1<<40))(b)
	put(sh(4, shSize), uint64(pages*xen.PageSize))(b)
	put(sh(5, shOff), uint64(1<<30))(b)
	put(sh(5, shSize), uint64(pages*8))(b)
	var c *Core
	var err error
	// While the runs are collected: 16 bytes for each page, and the growth.
	if n := allocated(func() { c, err = Open(sparse{b}, 1<<41) }); n > 10*16*pages {
		t.Errorf("%d bytes allocated", n)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(c.gfns) != 1 || c.gfns[0].count != 1 {
		t.Errorf("got %v", c.gfns)
	}
	page(t, 0, func(p []byte) error { return c.PageByGFN(0, p) })
}

// allocated gives how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// FuzzOpen checks that a damaged dump opens or gives an error, that what opens
// can be read, and that neither costs more than the file is worth.
func FuzzOpen(f *testing.F) {
	for _, d := range []*dump{pvDump(), hvmDump()} {
		d.pages = d.pages[:2]
		d.table = d.table[:len(d.table)/3]
		f.Add(d.bytes(f), uint16(0))
		f.Add(d.bytes(f), uint16(40))
	}
	f.Add([]byte(elf.ELFMAG), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, more uint16) {
		var r io.ReaderAt = bytes.NewReader(b)
		size := int64(len(b))
		if more > 0 {
			r, size = sparse{b}, size+int64(more)*xen.PageSize
		}
		var c *Core
		var err error
		if n := allocated(func() { c, err = Open(r, size) }); n > 1<<20+16*uint64(size) {
			t.Fatalf("%d bytes allocated for a file of %d", n, size)
		}
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v, %v", c, err)
		}
		if err != nil {
			return
		}
		if int64(c.Header.Pages)*xen.PageSize > size || int64(c.Header.VCPUs)*ContextSize > size {
			t.Fatalf("%+v in %d bytes", c.Header, size)
		}
		for i := range c.Header.VCPUs {
			if _, err := c.VCPUContext(i); err != nil {
				t.Fatal(err)
			}
		}
		p := make([]byte, xen.PageSize)
		for _, run := range c.mfns {
			if err := c.PageByMFN(xen.MFN(run.frame), p); err != nil {
				t.Fatal(err)
			}
		}
		for _, run := range c.pfns {
			if err := c.PageByPFN(run.end()-1, p); err != nil {
				t.Fatal(err)
			}
		}
		for _, run := range c.gfns {
			if err := c.PageByGFN(xen.GFN(run.end()-1), p); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestErrorText(t *testing.T) {
	c := open(t, pvDump().bytes(t))
	p := make([]byte, xen.PageSize)
	got := []string{
		c.PageByMFN(0xabc, p).Error(),
		c.PageByPFN(0xabc, p).Error(),
		c.PageByGFN(0xabc, p).Error(),
	}
	want := []string{
		"xencore: mfn 0xabc: page is not in the dump",
		"xencore: pfn 0xabc: page is not in the dump",
		"xencore: gfn 0xabc: no such frames in a dump of this kind of guest",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

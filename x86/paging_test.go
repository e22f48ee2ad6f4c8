package x86

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pfn is the kind of frame number of these tests.
type pfn uint64

// machine is memory in frames. Frames not in it cannot be read.
type machine map[pfn][]byte

var errNoFrame = errors.New("no such frame")

func (m machine) Table(f pfn) ([]byte, error) {
	if mem, ok := m[f]; ok {
		return mem, nil
	}
	return nil, fmt.Errorf("frame %#x: %w", uint64(f), errNoFrame)
}

// set writes an entry of 4 or 8 bytes, making the frame if need be.
func (m machine) set(f pfn, offset, size int, entry uint64) {
	if m[f] == nil {
		m[f] = make([]byte, PageSize)
	}
	if size == 4 {
		binary.LittleEndian.PutUint32(m[f][offset:], uint32(entry))
	} else {
		binary.LittleEndian.PutUint64(m[f][offset:], entry)
	}
}

// build lays tables for one address, with frames 0x100, 0x101 and on as tables
// below root, and the last entry given. depth is how many levels are walked.
func build(m machine, mode Mode, root Root[pfn], addr uint64, depth int, last uint64) {
	g := geometries[mode]
	table, offset := root.Frame, int(root.Offset)
	for i, l := range g.levels[:depth] {
		entry := last
		if i < depth-1 {
			entry = uint64(0x100+i)<<12 | pteP | pteRW | pteUS
		}
		index := int(addr >> l.shift & (1<<l.bits - 1))
		m.set(table, offset+index*int(g.entry), int(g.entry), entry)
		table, offset = pfn(0x100+i), 0
	}
}

func TestWalk(t *testing.T) {
	const flags = pteP | pteRW | pteUS
	ok := func(f pfn, size uint64) Translation[pfn] {
		return Translation[pfn]{Frame: f, PageSize: size, Writable: true, User: true, Execute: true}
	}
	tests := []struct {
		name  string
		mode  Mode
		addr  uint64
		cr3   uint64
		depth int
		last  uint64
		want  Translation[pfn]
	}{
		{"4-level 4K", FourLevel, 0xffffffff81000123, 0x5000, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level 4K, lowest address", FourLevel, 0, 0x5000, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level 4K, highest address", FourLevel, ^uint64(0), 0x5000, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level 4K, last of the lower half", FourLevel, 0x00007fffffffffff, 0x5000, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level, frame 0 as page", FourLevel, 0x1000, 0x5000, 4, flags, ok(0, 4<<10)},
		{"4-level, frame 0 as root", FourLevel, 0x1000, 0, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level, low bits of CR3 are not address", FourLevel, 0x1000, 0x5fff, 4, 0x77000 | flags, ok(0x77, 4<<10)},
		{"4-level, software bits", FourLevel, 0x1000, 0x5000, 4, 0x7ff0_0000_0007_7e00 | flags, ok(0x77, 4<<10)},
		{"4-level 52-bit frame", FourLevel, 0x1000, 0x5000, 4, 0x000f_ffff_ffff_f000 | flags, ok(0xff_ffff_ffff, 4<<10)},
		{"4-level PTE's PAT bit is not page size", FourLevel, 0x1000, 0x5000, 4, 0x77080 | flags, ok(0x77, 4<<10)},
		{"4-level 2M", FourLevel, 0xffff888000345678, 0x5000, 3, 0x4000_0000 | flags | ptePS, ok(0x40145, 2<<20)},
		{"4-level 2M with PAT", FourLevel, 0xffff888000345678, 0x5000, 3, 0x4000_1000 | flags | ptePS, ok(0x40145, 2<<20)},
		{"4-level 1G", FourLevel, 0xffff888012345678, 0x5000, 2, 0x1_4000_0000 | flags | ptePS, ok(0x152345, 1<<30)},
		{"5-level 4K", FiveLevel, 0x00123456789abcde, 0x5000, 5, 0x77000 | flags, ok(0x77, 4<<10)},
		{"5-level 1G", FiveLevel, 0xff11888012345678, 0x5000, 3, 0x1_4000_0000 | flags | ptePS, ok(0x152345, 1<<30)},
		{"PAE 4K", PAE, 0xc0123456, 0x5fe0, 3, 0x77000 | flags, ok(0x77, 4<<10)},
		{"PAE 4K above 4G", PAE, 0xc0123456, 0x5020, 3, 0x12_3456_7000 | flags, ok(0x1234567, 4<<10)},
		{"PAE 2M", PAE, 0xffffffff, 0x5000, 2, 0x4000_0000 | flags | ptePS, ok(0x401ff, 2<<20)},
		{"2-level 4K", TwoLevel4M, 0xc0123456, 0x5000, 2, 0x77000 | flags, ok(0x77, 4<<10)},
		{"2-level 4M", TwoLevel4M, 0xc0123456, 0x5000, 1, 0x0840_0000 | flags | ptePS, ok(0x8523, 4<<20)},
		{"2-level 4M by PSE-36", TwoLevel4M, 0xc0123456, 0x5000, 1, 0x0841_e000 | flags | ptePS, ok(0xf08523, 4<<20)},
		{"2-level without PSE ignores the bit", TwoLevel, 0xc0123456, 0x5000, 2, 0x77000 | flags, ok(0x77, 4<<10)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := machine{}
			root := RootOf[pfn](tt.mode, tt.cr3)
			build(m, tt.mode, root, tt.addr, tt.depth, tt.last)
			got, err := Walk(tt.mode, root, tt.addr, Tables[pfn](m))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A page-size bit in a directory without PSE leads on to a page table.
func TestWalkTwoLevelWithoutPSE(t *testing.T) {
	m := machine{}
	m.set(5, 0, 4, 0x100000|pteP|ptePS)
	m.set(0x100, 4, 4, 0x77000|pteP)
	tr, err := Walk(TwoLevel, Root[pfn]{Frame: 5}, 0x1000, Tables[pfn](m))
	if err != nil || tr.Frame != 0x77 {
		t.Fatalf("got %+v, %v, want frame 0x77", tr, err)
	}
}

func TestWalkUnpaged(t *testing.T) {
	tr, err := Walk(Unpaged, RootOf[pfn](Unpaged, 0x5000), 0xfffff123, Tables[pfn](machine{}))
	if err != nil || tr.Frame != 0xfffff {
		t.Fatalf("got %+v, %v, want frame 0xfffff", tr, err)
	}
}

// Permissions are those that all levels give.
func TestWalkPermissions(t *testing.T) {
	const addr = 0x1000
	for level := range 4 {
		for _, tt := range []struct {
			name       string
			clear, set uint64
			want       Translation[pfn]
		}{
			{"R/W", pteRW, 0, Translation[pfn]{Frame: 0x77, PageSize: PageSize, User: true, Execute: true}},
			{"U/S", pteUS, 0, Translation[pfn]{Frame: 0x77, PageSize: PageSize, Writable: true, Execute: true}},
			{"NX", 0, pteNX, Translation[pfn]{Frame: 0x77, PageSize: PageSize, Writable: true, User: true}},
		} {
			t.Run(fmt.Sprint(tt.name, " at level ", level), func(t *testing.T) {
				m := machine{}
				root := Root[pfn]{Frame: 5}
				build(m, FourLevel, root, addr, 4, 0x77000|pteP|pteRW|pteUS)
				table := []pfn{5, 0x100, 0x101, 0x102}[level]
				l := geometries[FourLevel].levels[level]
				offset := int(addr>>l.shift&511) * 8
				entry := binary.LittleEndian.Uint64(m[table][offset:])
				m.set(table, offset, 8, entry&^tt.clear|tt.set)
				got, err := Walk(FourLevel, root, addr, Tables[pfn](m))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestWalkErrors(t *testing.T) {
	const flags = pteP | pteRW
	tests := []struct {
		name  string
		mode  Mode
		addr  uint64
		depth int
		last  uint64
		level string
		want  error
	}{
		{"not canonical, just above", FourLevel, 0x0000800000000000, 4, flags, "", ErrNonCanonical},
		{"not canonical, just below", FourLevel, 0xffff7fffffffffff, 4, flags, "", ErrNonCanonical},
		{"5-level, not canonical", FiveLevel, 0x0100000000000000, 5, flags, "", ErrNonCanonical},
		{"PAE above 4G", PAE, 0x1_0000_0000, 3, flags, "", ErrNonCanonical},
		{"2-level above 4G", TwoLevel4M, 0x1_0000_0000, 2, flags, "", ErrNonCanonical},
		{"PML5E not present", FiveLevel, 0x1000, 1, 0x77000, "PML5E", ErrNotPresent},
		{"PML4E not present", FourLevel, 0x1000, 1, 0x77000, "PML4E", ErrNotPresent},
		{"PDPTE not present", FourLevel, 0x1000, 2, 0x77000, "PDPTE", ErrNotPresent},
		{"PDE not present", FourLevel, 0x1000, 3, 0x77000, "PDE", ErrNotPresent},
		{"PTE not present", FourLevel, 0x1000, 4, 0x77000, "PTE", ErrNotPresent},
		{"PAE PDPTE not present", PAE, 0x1000, 1, 0x77000, "PDPTE", ErrNotPresent},
		{"2-level PDE not present", TwoLevel, 0x1000, 1, 0x77000, "PDE", ErrNotPresent},
		{"page size bit in a PML4E", FourLevel, 0x1000, 1, 0x4000_0000 | flags | ptePS, "PML4E", ErrReserved},
		{"2M page not aligned", FourLevel, 0x1000, 3, 0x4010_0000 | flags | ptePS, "PDE", ErrReserved},
		{"1G page not aligned", FourLevel, 0x1000, 2, 0x4020_0000 | flags | ptePS, "PDPTE", ErrReserved},
		{"4M page not aligned", TwoLevel4M, 0x1000, 1, 0x0860_0000 | flags | ptePS, "PDE", ErrReserved},
		{"PDPTE's table cannot be read", FourLevel, 0x1000, 1, 0x9999000 | flags, "PDPTE", ErrTable},
		{"PTE's table cannot be read", FourLevel, 0x1000, 3, 0x9999000 | flags, "PTE", ErrTable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := machine{}
			root := Root[pfn]{Frame: 5}
			build(m, tt.mode, root, tt.addr, tt.depth, tt.last)
			_, err := Walk(tt.mode, root, tt.addr, Tables[pfn](m))
			var walk *WalkError
			if !errors.As(err, &walk) || !errors.Is(err, tt.want) {
				t.Fatalf("got error %v, want %v", err, tt.want)
			}
			if walk.Level != tt.level || walk.Addr != tt.addr {
				t.Errorf("got level %q and address %#x, want %q and %#x", walk.Level, walk.Addr, tt.level, tt.addr)
			}
			if tt.want == ErrTable && !errors.Is(err, errNoFrame) {
				t.Errorf("error %v does not carry the cause", err)
			}
		})
	}
}

// A table that is too short is an error, not a read past its end.
func TestWalkShortTable(t *testing.T) {
	m := machine{5: make([]byte, 4088)}
	if _, err := Walk(FourLevel, Root[pfn]{Frame: 5}, ^uint64(0), Tables[pfn](m)); !errors.Is(err, ErrTable) {
		t.Errorf("got error %v, want %v", err, ErrTable)
	}
	if _, err := Walk(PAE, Root[pfn]{Frame: 5, Offset: 4095}, 0xffffffff, Tables[pfn](m)); !errors.Is(err, ErrTable) {
		t.Errorf("got error %v, want %v", err, ErrTable)
	}
}

// A table may refer to itself, as Windows' does: the walk takes as many steps
// as the mode has levels, and ends.
func TestWalkLoop(t *testing.T) {
	m := machine{}
	for i := range 512 {
		m.set(5, 8*i, 8, 0x5000|pteP)
	}
	for _, mode := range []Mode{PAE, FourLevel, FiveLevel} {
		counted := &counter{machine: m}
		tr, err := Walk(mode, Root[pfn]{Frame: 5}, 0x12345678, Tables[pfn](counted))
		if err != nil || tr.Frame != 5 {
			t.Errorf("%v: got %+v, %v, want frame 5", mode, tr, err)
		}
		if want := len(geometries[mode].levels); counted.n != want {
			t.Errorf("%v: got %d tables read, want %d", mode, counted.n, want)
		}
	}
}

type counter struct {
	machine
	n int
}

func (c *counter) Table(f pfn) ([]byte, error) {
	c.n++
	return c.machine.Table(f)
}

func TestModeOf(t *testing.T) {
	const paging = CR0PE | CR0PG
	tests := []struct {
		cr0, cr4, efer uint64
		want           Mode
	}{
		{0x10, 0, 0, Unpaged},
		{CR0PE, CR4PAE, EFERLMA, Unpaged},
		{paging, 0, 0, TwoLevel},
		{paging, CR4PSE, 0, TwoLevel4M},
		{paging, CR4PAE, 0, PAE},
		{paging, CR4PAE | CR4PSE, 0, PAE},
		{paging, CR4PAE, EFERLMA, FourLevel},
		{paging, CR4PAE | CR4LA57, EFERLMA, FiveLevel},
		{paging, CR4LA57, 0, TwoLevel},
	}
	for _, tt := range tests {
		if got := ModeOf(tt.cr0, tt.cr4, tt.efer); got != tt.want {
			t.Errorf("cr0 %#x cr4 %#x efer %#x: got %v, want %v", tt.cr0, tt.cr4, tt.efer, got, tt.want)
		}
	}
}

// Whatever the tables hold, a walk reads at most one entry a level, ends, and
// gives either a frame within 52 bits or an error that says where.
func FuzzWalk(f *testing.F) {
	f.Add(uint8(FourLevel), uint64(0x5067), uint64(0xffffffff81000000), []byte{0x67, 0x10, 0, 0, 0, 0, 0, 0})
	f.Add(uint8(PAE), uint64(0x5020), uint64(0xc0000000), []byte{0xe7, 0, 0, 0, 0, 0, 0, 0x80})
	f.Add(uint8(TwoLevel4M), uint64(0), uint64(0x00400000), []byte{0x87, 0, 0x40, 0})
	f.Add(uint8(FiveLevel), ^uint64(0), ^uint64(0), []byte{0xff})
	f.Add(uint8(99), uint64(0), uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, mode uint8, cr3, addr uint64, seed []byte) {
		m := &chaos{seed: seed}
		tr, err := Walk(Mode(mode), RootOf[pfn](Mode(mode), cr3), addr, Tables[pfn](m))
		if m.n > 5 {
			t.Errorf("%d tables read", m.n)
		}
		if err == nil && tr.Frame>>40 != 0 {
			t.Errorf("frame %#x is wider than 40 bits", uint64(tr.Frame))
		}
		if err == nil && tr.PageSize%PageSize != 0 {
			t.Errorf("page of %d bytes", tr.PageSize)
		}
	})
}

// chaos is memory full of a pattern; frames whose number ends in 3 are missing.
type chaos struct {
	seed []byte
	n    int
}

func (c *chaos) Table(f pfn) ([]byte, error) {
	c.n++
	if f&15 == 3 {
		return nil, errNoFrame
	}
	mem := make([]byte, PageSize)
	for i := range mem {
		if len(c.seed) > 0 {
			mem[i] = c.seed[(i+int(f&7))%len(c.seed)]
		}
	}
	return mem, nil
}

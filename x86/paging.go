// This file walks page tables: all of x86's paging modes by one loop over a
// table of levels (SDM vol. 3A, chapter 4).

package x86

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PageSize is the size in bytes of a frame and of a page table (but the 32-byte
// page-directory-pointer table of PAE paging, which lies within a frame).
const PageSize = 4096

// Errors of a walk, wrapped in a *WalkError.
var (
	// ErrNotPresent says that a table entry's present bit is clear.
	ErrNotPresent = errors.New("not present")
	// ErrNonCanonical says that the address's upper bits are not copies of its
	// highest translated bit, or lie above 32 bits where addresses have 32.
	ErrNonCanonical = errors.New("address is not canonical")
	// ErrReserved says that an entry has the page-size bit where the mode has
	// no such page, or maps a large page that is not aligned.
	ErrReserved = errors.New("reserved bit set")
	// ErrTable says that the frame of a table cannot be read.
	ErrTable = errors.New("table cannot be read")
)

// Mode is a paging mode.
type Mode uint8

// The paging modes (SDM vol. 3A, section 4.1.1, table 4-1).
const (
	Unpaged    Mode = iota // linear addresses are physical addresses
	TwoLevel               // 32-bit paging, CR4.PSE clear: 4 KB pages only
	TwoLevel4M             // 32-bit paging, CR4.PSE set: 4 KB and 4 MB pages
	PAE                    // 3 levels: 4 KB and 2 MB pages
	FourLevel              // 4 levels: 4 KB, 2 MB and 1 GB pages
	FiveLevel              // 5 levels: 4 KB, 2 MB and 1 GB pages
)

var modeNames = [...]string{"unpaged", "2-level", "2-level with 4M pages", "PAE", "4-level", "5-level"}

// String names the mode, as "4-level".
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ModeOf gives the paging mode that a CPU with these control registers is in.
// It holds for hardware and for hardware-virtualized guests. It does not hold
// for paravirtual guests, which always page and whose control registers need
// not say so.
func ModeOf(cr0, cr4, efer uint64) Mode {
	switch {
	case cr0&CR0PG == 0:
		return Unpaged
	case efer&EFERLMA != 0 && cr4&CR4LA57 != 0:
		return FiveLevel
	case efer&EFERLMA != 0:
		return FourLevel
	case cr4&CR4PAE != 0:
		return PAE
	case cr4&CR4PSE != 0:
		return TwoLevel4M
	default:
		return TwoLevel
	}
}

// Bits of a page-table entry (SDM vol. 3A, section 4.5, table 4-15 and on).
const (
	pteP   uint64 = 1 << 0
	pteRW  uint64 = 1 << 1
	pteUS  uint64 = 1 << 2
	ptePS  uint64 = 1 << 7
	pteNX  uint64 = 1 << 63
	frame  uint64 = 0x000f_ffff_ffff_f000 // bits 12 to 51
	frame4 uint64 = 0xffff_f000           // 32-bit paging: bits 12 to 31
)

// level is one step of a walk.
type level struct {
	name  string
	shift uint // of the index within the linear address
	bits  uint // of the index
	super bool // whether the page-size bit may be set
	plain bool // entry carries no R/W, U/S and NX bits (PAE's PDPTE)
}

// geometry is how a mode walks. Its levels run from the root down.
type geometry struct {
	width  uint // translated bits of a linear address
	signed bool // upper bits must be copies of the highest; else zero
	entry  uint // bytes of an entry
	levels []level
}

var (
	pml5e = level{"PML5E", 48, 9, false, false}
	pml4e = level{"PML4E", 39, 9, false, false}
	pdpte = level{"PDPTE", 30, 9, true, false}
	pde   = level{"PDE", 21, 9, true, false}
	pte   = level{"PTE", 12, 9, false, false}

	geometries = [...]geometry{
		Unpaged:    {32, false, 0, nil},
		TwoLevel:   {32, false, 4, []level{{"PDE", 22, 10, false, false}, {"PTE", 12, 10, false, false}}},
		TwoLevel4M: {32, false, 4, []level{{"PDE", 22, 10, true, false}, {"PTE", 12, 10, false, false}}},
		PAE:        {32, false, 8, []level{{"PDPTE", 30, 2, false, true}, pde, pte}},
		FourLevel:  {48, true, 8, []level{pml4e, pdpte, pde, pte}},
		FiveLevel:  {57, true, 8, []level{pml5e, pml4e, pdpte, pde, pte}},
	}
)

// Tables reads the frames that hold page tables. F is the kind of frame number
// that the entries hold.
type Tables[F ~uint64] interface {
	// Table gives the PageSize bytes of a frame. They are only read, and only
	// until the next call.
	Table(f F) ([]byte, error)
}

// A Root is where a walk starts: the frame and, in PAE mode, the byte offset of
// the top table within it (a multiple of 32).
type Root[F ~uint64] struct {
	Frame  F
	Offset uint16
}

// RootOf takes the root out of a CR3 value in a mode (SDM vol. 3A, tables 4-3,
// 4-7 and 4-12).
func RootOf[F ~uint64](m Mode, cr3 uint64) Root[F] {
	switch m {
	case Unpaged:
		return Root[F]{}
	case PAE:
		return Root[F]{Frame: F(cr3 & frame4 >> 12), Offset: uint16(cr3 & 0xfe0)}
	case TwoLevel, TwoLevel4M:
		return Root[F]{Frame: F(cr3 & frame4 >> 12)}
	default:
		return Root[F]{Frame: F(cr3 & frame >> 12)}
	}
}

// A Translation is where a linear address leads.
type Translation[F ~uint64] struct {
	Frame    F      // the 4 KB frame that holds the address
	PageSize uint64 // of the page, in bytes: 4 KB to 1 GB
	Writable bool   // by the R/W bits of all levels
	User     bool   // by the U/S bits of all levels
	Execute  bool   // by the NX bits of all levels, taking EFER.NXE as set
}

// A WalkError says at which level of the tables a walk ended, and why.
type WalkError struct {
	Addr  uint64 // linear address
	Mode  Mode
	Level string // PML5E, PML4E, PDPTE, PDE or PTE; empty: before the first
	Entry uint64 // the entry read, where one was
	Err   error  // ErrNotPresent, ErrNonCanonical, ErrReserved or ErrTable
}

// Error gives the sentence, as "walk 0x1000 (4-level): PDE 0x0: not present".
func (e *WalkError) Error() string {
	if e.Level == "" {
		return fmt.Sprintf("walk %#x (%v): %v", e.Addr, e.Mode, e.Err)
	}
	return fmt.Sprintf("walk %#x (%v): %s %#x: %v", e.Addr, e.Mode, e.Level, e.Entry, e.Err)
}

// Unwrap gives Err.
func (e *WalkError) Unwrap() error { return e.Err }

// Walk translates a linear address by the tables at root. It reads one entry a
// level and so always ends, also in tables that refer to themselves, which
// x86 allows. Errors are of type *WalkError.
func Walk[F ~uint64](m Mode, root Root[F], addr uint64, tables Tables[F]) (Translation[F], error) {
	if int(m) >= len(geometries) {
		return Translation[F]{}, fmt.Errorf("walk: unknown paging mode %d", m)
	}
	g := &geometries[m]
	fail := func(level string, entry uint64, err error) (Translation[F], error) {
		return Translation[F]{}, &WalkError{Addr: addr, Mode: m, Level: level, Entry: entry, Err: err}
	}
	if !g.canonical(addr) {
		return fail("", 0, ErrNonCanonical)
	}
	tr := Translation[F]{PageSize: PageSize, Writable: true, User: true, Execute: true}
	if len(g.levels) == 0 {
		tr.Frame = F(addr >> 12)
		return tr, nil
	}

	table, offset := root.Frame, uint64(root.Offset)
	var entry uint64
	for i := range g.levels {
		l := &g.levels[i]
		mem, err := tables.Table(table)
		if err != nil {
			return fail(l.name, entry, fmt.Errorf("%w: %w", ErrTable, err))
		}
		offset += addr >> l.shift & (1<<l.bits - 1) * uint64(g.entry)
		if offset+uint64(g.entry) > uint64(len(mem)) {
			return fail(l.name, entry, fmt.Errorf("%w: entry beyond its end", ErrTable))
		}
		entry = g.load(mem[offset:])
		offset = 0

		if entry&pteP == 0 {
			return fail(l.name, entry, ErrNotPresent)
		}
		if !l.plain {
			tr.Writable = tr.Writable && entry&pteRW != 0
			tr.User = tr.User && entry&pteUS != 0
			tr.Execute = tr.Execute && (g.entry == 4 || entry&pteNX == 0)
		}
		last := i == len(g.levels)-1
		if !last && entry&ptePS != 0 && m != TwoLevel && !l.plain {
			if !l.super {
				return fail(l.name, entry, ErrReserved)
			}
			tr.PageSize = 1 << l.shift
			base, ok := g.superpage(entry, l.shift)
			if !ok {
				return fail(l.name, entry, ErrReserved)
			}
			tr.Frame = F((base | addr&(tr.PageSize-1)) >> 12)
			return tr, nil
		}
		table = F(g.frame(entry))
	}
	tr.Frame = table
	return tr, nil
}

// canonical tells whether a mode with this geometry can translate the address.
func (g *geometry) canonical(addr uint64) bool {
	if g.signed {
		unused := 64 - g.width
		return uint64(int64(addr<<unused)>>unused) == addr
	}
	return addr>>g.width == 0
}

func (g *geometry) load(p []byte) uint64 {
	if g.entry == 4 {
		return uint64(binary.LittleEndian.Uint32(p))
	}
	return binary.LittleEndian.Uint64(p)
}

func (g *geometry) frame(entry uint64) uint64 {
	if g.entry == 4 {
		return entry & frame4 >> 12
	}
	return entry & frame >> 12
}

// superpage gives the physical address of the page that an entry with the
// page-size bit maps, and whether the bits below it, but for the PAT bit 12,
// are clear as they must be. In 32-bit paging, bits 13 to 20 of the entry are
// bits 32 to 39 of the address (PSE-36; SDM vol. 3A, table 4-4).
func (g *geometry) superpage(entry uint64, shift uint) (base uint64, ok bool) {
	if g.entry == 4 {
		return entry&0xffc0_0000 | entry>>13&0xff<<32, entry&(1<<21) == 0
	}
	below := frame & (1<<shift - 1) &^ (1 << 12)
	return entry & frame &^ (1<<shift - 1), entry&below == 0
}

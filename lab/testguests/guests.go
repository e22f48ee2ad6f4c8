package testguests

// The guests: what each one maps and what it loads.

import (
	"encoding/binary"
	"fmt"
	"maps"
)

// A Guest is a test guest and what there is to be seen of it.
type Guest struct {
	Name     string // also of its source file
	Mode     string
	MemoryMB int
	Bits     int  // of its program: 32, or 0 for 64
	VCPUs    int  // only vCPU 0 is ever started
	User     bool // it stays in user mode
	Ranges   []Range
	Holes    []uint64          // addresses where nothing is, besides those next to ranges
	Aliases  []Alias           // pairs of addresses of the same byte
	Values   map[string]uint64 // registers by GDB's names; rip, cr3: see Program
	Vectors  map[string][]byte // those of more than 64 bits
}

// An Alias is two virtual addresses of one physical.
type Alias struct{ A, B uint64 }

// Guests gives all of them.
func Guests() []*Guest {
	return []*Guest{realMode(), flat(), twoLevel(), pae(), long(), compat()}
}

// Vectors gives a PV guest that checks its own vector registers, for ever, and
// counts in Program.Rounds and Program.Failures. Nothing else of it is described.
func Vectors() *Guest {
	g := &Guest{Name: "vectors", Mode: "64-bit PV", MemoryMB: memoryMB, VCPUs: 1, Vectors: map[string][]byte{}}
	g.vectors(16)
	return g
}

// PV32 gives a PV guest of 32 bits: PAE tables of machine frames. Program.Pattern
// is where it has a pattern.
func PV32() *Guest {
	g := &Guest{Name: "pv32", Mode: "32-bit PV", MemoryMB: memoryMB, VCPUs: 1, Bits: 32, Values: map[string]uint64{
		"cs": 0xe019, "ss": 0xe021, "ds": 0xe021, "es": 0xe021,
	}}
	g.general(8, func(v uint64) uint64 { return v & 0xffff_ffff })
	return g
}

const memoryMB = 32

// base is what the modes have in common.
func base(name, mode string) *Guest {
	g := &Guest{Name: name, Mode: mode, MemoryMB: memoryMB, VCPUs: 1}
	g.Values = map[string]uint64{
		"eflags": 0x3cd7, // CF PF AF ZF SF DF OF and IOPL 3
		"cs":     0x08, "ss": 0x10, "ds": 0x10, "es": 0x50, "fs": 0x2b, "gs": 0x33,
		"fs_base": 0x12345678, "gs_base": 0x9abcdef0, "k_gs_base": 0x00007f0011223344,
		"cr0": 0x10033, "cr2": 0xc2c3c4c5, "cr4": 0x40600, "efer": 0,
		"dr0": patternStart + 0x10, "dr1": patternStart + 0x11, "dr2": patternStart + 0x1012, "dr3": patternStart + 0x2013,
		"dr6": 0xffff0ff1, "dr7": 0x481,
		"fctrl": 0xb7f, "fstat": 0, "ftag": 0, "mxcsr": 0x1fa0,
	}
	g.general(8, func(v uint64) uint64 { return v & 0xffff_ffff })
	g.Vectors = map[string][]byte{}
	for n := range 8 {
		st := binary.LittleEndian.AppendUint64(nil, 0xc90fdaa22168c235+uint64(n))
		g.Vectors[fmt.Sprintf("st%d", n)] = binary.LittleEndian.AppendUint16(st, 0x4000+uint16(n))
	}
	g.vectors(8)
	return g
}

// general expects values in the first n general registers, and zero in the
// others, as at the start of the CPU.
func (g *Guest) general(n int, width func(uint64) uint64) {
	for i, name := range []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"} {
		g.Values[name] = 0
		if i < n {
			g.Values[name] = width(0x0123456789abcdef ^ uint64(i)*0x1111111111111111)
		}
	}
}

// vectors expects values in the first n vector registers, and zero in the
// others.
func (g *Guest) vectors(n int) {
	for i := range 16 {
		b := make([]byte, 32)
		for j := range b {
			if k := 32*i + j; i < n {
				b[j] = byte(k*167 + k>>8*59 + 13)
			}
		}
		g.Vectors[fmt.Sprintf("xmm%d", i)] = b[:16]
		g.Vectors[fmt.Sprintf("ymm%dh", i)] = b[16:]
	}
}

func (g *Guest) values(values map[string]uint64) { maps.Copy(g.Values, values) }

// unpaged sees physical memory. What lies beyond it is no memory, and the local
// APIC (11.4.1) is none either.
func (g *Guest) unpaged() {
	end := uint64(g.MemoryMB) << 20
	g.Ranges = []Range{
		{Virtual: 0, Size: lowEnd, PageSize: pageSize, OpenHigh: true},
		{Virtual: patternStart, Physical: patternStart, Size: patternEnd - patternStart, PageSize: patternEnd - patternStart, OpenLow: true, OpenHigh: true},
		{Virtual: end - pageSize, Physical: end - pageSize, Size: pageSize, PageSize: pageSize, OpenLow: true},
	}
	g.Holes = []uint64{end + pageSize, 0x80000000, 0xfee00000, 0xfffffffe, 0x100000000, 0x100000000 + patternStart, 1 << 63, ^uint64(0) - 1}
}

func realMode() *Guest {
	g := base("real", "real mode")
	g.unpaged()
	g.values(map[string]uint64{
		"cs": 0x803, "ss": 0x900, "ds": 0x1234, "es": 0x2345, "fs": 0x3456, "gs": 0x4567,
		"fs_base": 0x34560, "gs_base": 0x45670, "cr0": 0x10032,
	})
	return g
}

func flat() *Guest {
	g := base("flat", "32-bit, unpaged")
	g.VCPUs = 2
	g.unpaged()
	return g
}

// low maps the first pages at their own addresses.
func (g *Guest) low() {
	g.Ranges = append(g.Ranges, Range{Virtual: 0, Size: lowEnd, PageSize: pageSize})
	g.Holes = append(g.Holes, lowEnd, 0xff000, 0x200000, 0x400000)
}

// window maps small pages that are no neighbours in physical memory, the last
// one right before size.
func (g *Guest) window(at, size uint64) {
	page := func(n, frame uint64) {
		g.Ranges = append(g.Ranges, Range{Virtual: at + n*pageSize, Physical: frame * pageSize, Size: pageSize, PageSize: pageSize})
	}
	page(0, 0x400)
	page(1, 0x7ff) // read-only, for the kernel
	page(2, 0x401)
	page(4, 0x402)
	page(5, 0x400) // as page 0
	page(6, 0)
	page(8, 0x403) // page 7 is not present, but names a frame
	page(9, 0xbff) // page 10 is present, but has no memory
	page(size/pageSize-1, 0x404)
	g.Holes = append(g.Holes, at-1, at+3*pageSize, at+7*pageSize+8, at+10*pageSize, at+11*pageSize, at+size-pageSize-1)
	g.Aliases = append(g.Aliases, Alias{at + 0x20, at + 5*pageSize + 0x20}, Alias{at + 6*pageSize + 8, 8})
}

// large maps a large page of the pattern.
func (g *Guest) large(at, physical, size uint64) {
	g.Ranges = append(g.Ranges, Range{Virtual: at, Physical: physical, Size: size, PageSize: size})
}

// top maps the two pages that end at last.
func (g *Guest) top(last uint64) {
	g.Ranges = append(g.Ranges, Range{Virtual: last - 2*pageSize + 1, Physical: 0x405000, Size: 2 * pageSize, PageSize: pageSize})
	g.Holes = append(g.Holes, last-2*pageSize)
}

func twoLevel() *Guest {
	const window, mb4 = 0x80000000, 4 << 20
	g := base("twolevel", "2-level paging")
	g.low()
	g.window(window, mb4)
	g.large(window+mb4, 8<<20, mb4)
	g.large(window+2*mb4, 4<<20, mb4)
	g.top(0xffffffff)
	g.Holes = append(g.Holes, window+3*mb4, window+5*mb4, 0x100000000, 0x100000000+window, 1<<63, ^uint64(0))
	g.Aliases = append(g.Aliases, Alias{window + 0x30, window + 2*mb4 + 0x30}, Alias{window + 9*pageSize, window + 2*mb4 - pageSize})
	g.values(map[string]uint64{"cr0": 0x80010033, "cr4": 0x40610})
	return g
}

// window2M is a window, and the pages of 2 MB that follow it.
func (g *Guest) window2M(window uint64) {
	const mb2 = 2 << 20
	g.window(window, mb2)
	g.large(window+mb2, 10<<20, mb2)
	g.large(window+2*mb2, 4<<20, mb2)
	g.Holes = append(g.Holes, window+3*mb2, window+5*mb2)
	g.Aliases = append(g.Aliases, Alias{window + 0x30, window + 2*mb2 + 0x30}, Alias{window + 9*pageSize, window + 2*mb2 - pageSize})
}

func pae() *Guest {
	g := base("pae", "PAE paging")
	g.low()
	g.window2M(0x80000000)
	g.top(0xffffffff)
	g.Holes = append(g.Holes, 0x40000000, 0xc0000000, 0x100000000, 0x180000000, 1<<63, ^uint64(0))
	g.values(map[string]uint64{"cr0": 0x80010033, "cr4": 0x40620, "efer": 0x800})
	return g
}

// Where the guests with four levels have their window, and after it a page of
// 1 GB from physical address 0.
const (
	window64 = 0xffff900000000000
	giga     = window64 + 1<<30
)

func (g *Guest) fourLevel() {
	g.low()
	g.window2M(0x80000000)
	g.window2M(window64)
	g.top(0xffffffff)
	g.top(0x00007fffffffffff)
	g.top(^uint64(0))
	g.Ranges = append(g.Ranges,
		Range{Virtual: giga, Size: lowEnd, PageSize: 1 << 30, OpenHigh: true},
		Range{Virtual: giga + patternStart, Physical: patternStart, Size: patternEnd - patternStart, PageSize: 1 << 30, OpenLow: true, OpenHigh: true})
	g.Holes = append(g.Holes, 0x40000000, 0xc0000000, 0x100000000, 0x180000000, giga-1, giga+1<<30, giga+2<<30,
		0x0000800000000000, 0xffff7fffffffffff, 0x1000000000000000+window64&(1<<48-1), 1<<63)
	g.Aliases = append(g.Aliases, Alias{0x80000020, window64 + 0x20}, Alias{window64 + 0x40, giga + patternStart + 0x40}, Alias{0x10, giga + 0x10},
		Alias{0x00007fffffffffff, ^uint64(0)}, Alias{0xfffff000, ^uint64(0xfff)})
	g.values(map[string]uint64{"cr0": 0x80010033, "cr4": 0x40620, "efer": 0xd01})
	g.vectors(16)
}

func long() *Guest {
	g := base("long", "64-bit, 4-level paging")
	g.MemoryMB = 1024 + 32
	g.fourLevel()
	g.Ranges = append(g.Ranges,
		Range{Virtual: giga + 1<<29 - pageSize, Physical: 1<<29 - pageSize, Size: 2 * pageSize, PageSize: 1 << 30, OpenLow: true, OpenHigh: true},
		Range{Virtual: giga + 1<<30 - pageSize, Physical: 1<<30 - pageSize, Size: pageSize, PageSize: 1 << 30, OpenLow: true})
	g.values(map[string]uint64{
		"cs": 0x38, "fs_base": 0x0000123456789abc, "gs_base": 0xffff8a0bcdef0123,
		"cr2": 0xffffc2c3c4c5c6c7, "dr2": window64 + 0x20,
	})
	g.general(16, func(v uint64) uint64 { return v })
	return g
}

func compat() *Guest {
	g := base("compat", "compatibility mode")
	g.User = true
	g.fourLevel()
	end := uint64(g.MemoryMB) << 20
	g.Ranges = append(g.Ranges,
		Range{Virtual: giga + end - pageSize, Physical: end - pageSize, Size: pageSize, PageSize: 1 << 30, OpenLow: true})
	g.Holes = append(g.Holes, giga+1<<29, giga+1<<30-1)
	g.values(map[string]uint64{"cs": 0x43, "ss": 0x4b, "ds": 0x4b, "es": 0x4b})
	g.general(16, func(v uint64) uint64 { return v })
	for _, name := range []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"} {
		g.Values[name] &= 0xffff_ffff
	}
	return g
}

// This file reads ORC tables (arch/x86/include/asm/orc_types.h and
// Documentation/arch/x86/orc-unwinder.rst in Linux): for each piece of code, where
// the caller's stack pointer and frame pointer are.

package linux

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// orc is a kernel's ORC tables. They are sorted when the kernel is built.
type orc struct {
	start   uint64 // address of offsets
	offsets []byte // int32, each from its own address to where an entry begins to hold
	entries []byte // orcSize each
	flags   func(b byte) (orcType, bool)
	// offsetFirst says that the offset of orcSPIndirect is added before the stack
	// is read: before Linux 5.13.
	offsetFirst bool
}

const (
	orcSize = 6
	mostORC = 8 << 20 // entries
)

// orcType is where the caller's registers are.
type orcType uint8

const (
	orcUndefined orcType = iota
	orcCall              // below the base is a return address
	orcRegs              // at the base are all registers, a struct pt_regs
	orcFrame             // at the base is what the processor pushes for an interrupt
)

// Registers that a base is counted from (ORC_REG_* in orc_types.h).
const (
	orcNone = iota
	orcPrevSP
	orcDX
	orcDI
	orcBP
	orcSP
	orcR10
	orcR13
	orcBPIndirect
	orcSPIndirect
)

// An orcEntry holds for some code.
type orcEntry struct {
	spOffset, bpOffset int16
	spReg, bpReg       uint8
	orcType
	end bool // the stack ends here
}

// The layouts of an entry's last byte. Which one a kernel has shows where its
// system calls enter, for there the stack ends.
var orcLayouts = map[byte]func(b byte) (orcType, bool){
	// Until Linux 6.2: the type in two bits, then the end.
	0x04: func(b byte) (orcType, bool) { return orcType(b&3) + orcCall, b&4 != 0 },
	// Linux 6.3: a bit before the end says that it is a signal's frame.
	0x08: func(b byte) (orcType, bool) { return orcType(b&3) + orcCall, b&8 != 0 },
	// Since Linux 6.4: the type in three bits, the first two of which are undefined
	// and the end.
	0x01: func(b byte) (orcType, bool) { return orcType(max(b&7, 1)) - 1, b&7 == 1 },
}

// findORC reads the tables.
func (k *Kernel) findORC(mem Memory) (*orc, error) {
	var at [4]uint64
	for i, name := range []string{"__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind"} {
		var ok bool
		if at[i], ok = k.Lookup(name); !ok {
			return nil, ErrNoORC
		}
	}
	n := (at[1] - at[0]) / 4
	if at[1] <= at[0] || n > mostORC || at[3]-at[2] != n*orcSize {
		return nil, fmt.Errorf("%w: they are from %#x to %#x and from %#x to %#x", ErrNoORC, at[0], at[1], at[2], at[3])
	}
	o := &orc{start: at[0], offsets: make([]byte, n*4), entries: make([]byte, n*orcSize)}
	readSparse(mem, at[0], o.offsets)
	readSparse(mem, at[2], o.entries)

	entry, _ := k.Lookup("entry_SYSCALL_64")
	end := o.raw(o.index(entry))
	if end != nil {
		o.flags = orcLayouts[end[orcSize-1]]
	}
	if o.flags == nil {
		return nil, fmt.Errorf("%w in a layout that is known: where system calls enter is % x", ErrNoORC, end)
	}
	var major, minor int
	if n, _ := fmt.Sscanf(k.Banner, "Linux version %d.%d", &major, &minor); n == 2 {
		o.offsetFirst = major < 5 || major == 5 && minor < 13
	}
	return o, nil
}

// begin gives where an entry begins to hold.
func (o *orc) begin(i int) uint64 {
	return o.start + uint64(4*i) + uint64(int64(int32(binary.LittleEndian.Uint32(o.offsets[4*i:]))))
}

// index gives the number of the entry that holds at an address, or -1.
func (o *orc) index(addr uint64) int {
	return sort.Search(len(o.offsets)/4, func(i int) bool { return o.begin(i) > addr }) - 1
}

// raw gives the bytes of an entry, or nil for -1.
func (o *orc) raw(i int) []byte {
	if i < 0 {
		return nil
	}
	return o.entries[orcSize*i:][:orcSize]
}

// at gives the entry that holds at an address.
func (o *orc) at(addr uint64) (e orcEntry, ok bool) { return o.entry(o.index(addr)) }

// entry gives an entry by its number.
func (o *orc) entry(i int) (e orcEntry, ok bool) {
	b := o.raw(i)
	if b == nil {
		return e, false
	}
	e = orcEntry{
		spOffset: int16(binary.LittleEndian.Uint16(b)), bpOffset: int16(binary.LittleEndian.Uint16(b[2:])),
		spReg: b[4] & 0xf, bpReg: b[4] >> 4,
	}
	e.orcType, e.end = o.flags(b[5])
	if e.orcType > orcFrame {
		return e, false
	}
	return e, e.end || e.orcType != orcUndefined && e.spReg != orcNone
}

// unwindAt gives the entry that holds at an address, and whether it is in code that
// is known, the kernel's own or a module's.
func (k *Kernel) unwindAt(addr uint64) (e orcEntry, ok, known bool) {
	tables := k.orc
	if !k.isText(addr) {
		m := k.module(addr)
		if m == nil {
			return e, false, false
		}
		tables = m.orc
	}
	if tables == nil {
		return e, false, true
	}
	e, ok = tables.at(addr)
	return e, ok, true
}

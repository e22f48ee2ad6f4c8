// This file makes a kernel's image: its code, ORC tables, banner, notes and kallsyms.

package linuxtest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// A Layout says how a kernel lays out its tables.
type Layout struct {
	Name       string
	Version    string // the kernel's release
	behind     bool   // addresses are behind the tokens: since 6.4
	absolute   bool   // they are of 8 bytes, without a base
	PerCPU     bool   // addresses of each processor's data are absolute
	wideMarker bool   // markers have 8 bytes: before 4.20
	end        byte   // last byte of an ORC entry where the stack ends
}

// Layouts are those that kernels had.
var Layouts = []Layout{
	{Name: "4.19", Version: "4.19.0", wideMarker: true, PerCPU: true, end: 4},
	{Name: "absolute", Version: "4.19.0", absolute: true, wideMarker: true, end: 4},
	{Name: "6.1", Version: "6.1.0-56-amd64", PerCPU: true, end: 4},
	{Name: "6.3", Version: "6.3.0", PerCPU: true, end: 8},
	{Name: "6.12", Version: "6.12.1", behind: true, PerCPU: true, end: 1},
	{Name: "6.15", Version: "6.15.1", behind: true, end: 1},
}

// BuildID is the identification of each kernel's build.
const BuildID = "a build id, 20 bytes"

const (
	// Base is where an image begins, moved by KASLR: with its code.
	Base = 0xffffffff81200000
	// FunctionSize is that of each function.
	FunctionSize = 0x40
	// Tables is where an image's tables begin.
	Tables = Base + 0x40000
)

// What tables are made of (kernel/kallsyms.c and arch/x86/include/asm/orc_types.h in
// Linux). Kinds of entries are numbered as until Linux 6.2, but from 1.
const (
	numTokens = 256
	perMarker = 256

	orcSize = 6

	orcNone       = 0
	orcPrevSP     = 1
	orcBP         = 4
	orcSP         = 5
	orcR10        = 6
	orcBPIndirect = 8
	orcSPIndirect = 9

	orcCall  = 1
	orcRegs  = 2
	orcFrame = 3

	// taskFrame is what __switch_to_asm has on the stack of a task.
	taskFrame = 7 * 8
)

// functions are those with names that matter, first in the image.
var functions = []string{"startup_xen", "entry_SYSCALL_64", "asm_exc_page_fault", "leaf", "middle", "irq_stack", "aligned",
	"xen_asm_exc_page_fault", "__x86_indirect_thunk_r11", "__switch_to_asm", "ret_from_fork",
	"switched", "saved_pointer", "asm_exc_nmi", "asm_call_on_stack", "grown", "entry_SYSCALL_64_after_hwframe"}

// code is what is at the beginning of functions.
var code = map[string][]byte{
	"xen_asm_exc_page_fault":   {0xf3, 0x0f, 0x1e, 0xfa, 0x59, 0x41, 0x5b, 0xe9}, // ENDBR64, POP RCX, POP R11, JMP
	"asm_exc_nmi":              {4: 0xe8, 9: 0x48, 0x89, 0xc4},                   // CALL, MOV RSP, RAX
	"__x86_indirect_thunk_r11": {0xe8, 0x07, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x4c, 0x89, 0x1c, 0x24, 0xc3},
}

// Function gives the address of a function.
func Function(name string) uint64 {
	return Base + FunctionSize*uint64(slices.Index(functions, name))
}

// CallEntry makes the bytes of an ORC entry for code that was called, with the caller's
// stack pointer at an offset from its own, and with the caller's RBP at one from that.
func (l Layout) CallEntry(spOffset, bpOffset int16) [orcSize]byte {
	return l.entry(spOffset, bpOffset, orcSP, orcPrevSP, orcCall)
}

// entry makes an ORC entry's bytes.
func (l Layout) entry(spOffset, bpOffset int16, spReg, bpReg uint8, kind byte) [orcSize]byte {
	var e [orcSize]byte
	binary.LittleEndian.PutUint16(e[:], uint16(spOffset))
	binary.LittleEndian.PutUint16(e[2:], uint16(bpOffset))
	e[4] = spReg | bpReg<<4
	e[5] = kind - orcCall
	if l.end == 1 {
		e[5] = kind + 1
	}
	return e
}

// A Symbol is a variable of a kernel.
type Symbol struct {
	Addr uint64
	Name string
}

// Image makes a kernel's image, which knows variables beside its own, all of them behind
// it. Its code, its ORC tables, its banner with its notes, and kallsyms each begin a page.
func Image(l Layout, variables ...Symbol) Space {
	const count = 1300
	type sym struct {
		addr uint64
		name string
	}
	list := []sym{{Base, "T_text"}}
	if l.PerCPU {
		list = []sym{{0, "Afixed_percpu_data"}, {0x15000, "Arunqueues"}, {Base, "T_text"}}
	}
	for i := range count {
		name := fmt.Sprintf("function_%d", i)
		if i < len(functions) {
			name = functions[i]
		}
		list = append(list, sym{Base + uint64(i)*FunctionSize, "T" + name})
	}
	if l.end == 1 { // a name that needs two bytes for its length
		list = append(list, sym{Base + count*FunctionSize, "t" + strings.Repeat("long_", 40)})
	}
	end := Base + uint64(count+1)*FunctionSize
	list = append(list, sym{end, "T_etext"})

	// ORC: one entry for each function, in order.
	orcAt := uint64(Tables)
	var ips, entries []byte
	special := map[string][orcSize]byte{
		"startup_xen":              {5: l.end},
		"entry_SYSCALL_64":         {5: l.end},
		"__switch_to_asm":          l.entry(taskFrame+8, -16, orcSP, orcPrevSP, orcCall),
		"xen_asm_exc_page_fault":   {5: l.end},
		"ret_from_fork":            {5: l.end},
		"__x86_indirect_thunk_r11": {5: l.end},
		"asm_exc_page_fault":       l.entry(0, 0, orcSP, orcNone, orcRegs),
		"leaf":                     l.entry(8, 0, orcSP, orcNone, orcCall),
		"middle":                   l.entry(32, -16, orcSP, orcPrevSP, orcCall),
		"irq_stack":                l.entry(16, -16, orcBP, orcPrevSP, orcCall),
		"aligned":                  l.entry(0, 0, orcR10, orcNone, orcCall),
		"switched":                 l.entry(16, -24, orcSPIndirect, orcPrevSP, orcCall),
		"saved_pointer":            l.entry(-8, -16, orcBPIndirect, orcBP, orcCall),
		"asm_exc_nmi":              l.entry(8, 0, orcSP, orcNone, orcFrame),
		"asm_call_on_stack":        l.entry(16, -16, orcBP, orcPrevSP, orcCall),
		"grown":                    l.entry(-16, 12, orcBP, orcPrevSP, orcCall),
		// Where the stack has all registers, but only user mode has come from.
		"entry_SYSCALL_64_after_hwframe": l.entry(0, 0, orcSP, orcNone, orcRegs),
	}
	for i := range count {
		e := l.entry(8, 0, orcSP, orcNone, orcCall)
		if i < len(functions) {
			e = special[functions[i]]
		}
		ips = binary.LittleEndian.AppendUint32(ips, uint32(Base+uint64(i)*FunctionSize-orcAt-uint64(4*i)))
		entries = append(entries, e[:]...)
	}
	entriesAt := orcAt + uint64(len(ips))
	entriesEnd := entriesAt + uint64(len(entries))
	bannerAt := orcAt + uint64(alignUp(len(ips)+len(entries), pageSize))
	banner := "Linux version " + l.Version + " (someone@somewhere) #1\n\x00"
	list = append(list,
		sym{orcAt, "R__start_orc_unwind_ip"}, sym{entriesAt, "R__stop_orc_unwind_ip"},
		sym{entriesAt, "R__start_orc_unwind"}, sym{entriesEnd, "R__stop_orc_unwind"}, sym{bannerAt, "Rlinux_banner"})
	notesAt := bannerAt + uint64(alignUp(len(banner), 4))
	notes := []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00Xen\x00\x01\x02\x00\x00") // padded to words
	notes = append(notes, "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"...)
	notes = append(notes, BuildID...)
	list = append(list, sym{notesAt, "R__start_notes"}, sym{notesAt + uint64(len(notes)), "R__stop_notes"},
		sym{notesAt + 0x1000, "B__bss_start"}, sym{notesAt + 0x1000, "Bfirst_variable"}, sym{notesAt + 0x1008, "bsecond_variable"},
		sym{notesAt + 0x2000, "B__bss_stop"}, sym{notesAt + 0x3000, "B_end"})
	for _, v := range variables {
		list = append(list, sym{v.Addr, "d" + v.Name})
	}
	slices.SortStableFunc(list, func(a, b sym) int { return cmp.Compare(a.addr, b.addr) })

	image := make([]byte, Tables-Base)
	for name, code := range code {
		copy(image[Function(name)-Base:], code)
	}
	image = append(image, ips...)
	image = padded(append(image, entries...), pageSize)
	image = padded(append(image, banner...), 4)
	image = padded(append(image, notes...), pageSize)
	align := func() { image = padded(image, 8) }
	word := func(v uint64) { align(); image = binary.LittleEndian.AppendUint64(image, v) }

	addresses := func() {
		align()
		for _, s := range list {
			switch {
			case l.absolute:
				image = binary.LittleEndian.AppendUint64(image, s.addr)
			case l.PerCPU && s.addr >= Base:
				image = binary.LittleEndian.AppendUint32(image, uint32(Base-1-s.addr))
			case l.PerCPU:
				image = binary.LittleEndian.AppendUint32(image, uint32(s.addr))
			default:
				image = binary.LittleEndian.AppendUint32(image, uint32(s.addr-Base))
			}
		}
		if !l.absolute {
			word(Base)
		}
	}
	if !l.behind {
		addresses()
	}
	word(uint64(len(list)))
	var markers []int
	namesAt := len(image)
	for i, s := range list {
		if i%perMarker == 0 {
			markers = append(markers, len(image)-namesAt)
		}
		if n := len(s.name); n > 127 {
			image = append(image, byte(n)|0x80, byte(n>>7))
		} else {
			image = append(image, byte(n))
		}
		image = append(image, s.name...) // each token of a letter is that letter
	}
	align()
	for _, m := range markers {
		if l.wideMarker {
			image = binary.LittleEndian.AppendUint64(image, uint64(m))
		} else {
			image = binary.LittleEndian.AppendUint32(image, uint32(m))
		}
	}
	align()
	image = append(image, Tokens(nil)...)
	if l.behind {
		addresses()
	}
	return Space{Base, padded(image, pageSize)}
}

// Tokens makes kallsyms' table of tokens with its index: those that are given, the
// letters for themselves, and others that are in no name.
func Tokens(given map[byte]string) []byte {
	var table, index []byte
	for i := range numTokens {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(table)))
		text, ok := given[byte(i)]
		switch {
		case ok:
		case i > ' ' && i <= '~':
			text = string(rune(i))
		default:
			text = fmt.Sprintf("to_%02x", i)
		}
		table = append(append(table, text...), 0)
	}
	return append(padded(table, 8), index...)
}

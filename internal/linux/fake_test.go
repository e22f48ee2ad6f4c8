package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// space is memory made of one piece.
type space struct {
	addr uint64
	b    []byte
}

func (s space) Read(addr uint64, p []byte) (int, error) {
	if addr < s.addr || addr >= s.addr+uint64(len(s.b)) {
		return 0, errors.New("nothing is mapped")
	}
	return copy(p, s.b[addr-s.addr:]), nil
}

// spaces is memory made of pieces.
type spaces []space

func (s spaces) Read(addr uint64, p []byte) (int, error) {
	for _, one := range s {
		if n, err := one.Read(addr, p); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("nothing is mapped")
}

// fakeLayout says how a kernel lays out its tables.
type fakeLayout struct {
	name       string
	version    string
	behind     bool // addresses are behind the tokens: since 6.4
	absolute   bool // they are of 8 bytes, without a base
	percpu     bool // addresses of each processor's data are absolute
	wideMarker bool // markers have 8 bytes: before 4.20
	end        byte // last byte of an ORC entry where the stack ends
}

var fakeLayouts = []fakeLayout{
	{name: "4.19", version: "4.19.0", wideMarker: true, percpu: true, end: 4},
	{name: "absolute", version: "4.19.0", absolute: true, wideMarker: true, end: 4},
	{name: "6.1", version: "6.1.0-56-amd64", percpu: true, end: 4},
	{name: "6.3", version: "6.3.0", percpu: true, end: 8},
	{name: "6.12", version: "6.12.1", behind: true, percpu: true, end: 1},
	{name: "6.15", version: "6.15.1", behind: true, end: 1},
}

const fakeBuildID = "a build id, 20 bytes"

const (
	fakeBase = imageFirst + 0x1200000 // moved by KASLR
	fakeText = fakeBase
	// functionSize is that of each function.
	functionSize = 0x40
	fakeTables   = fakeBase + 0x40000
	fakeStack    = 0xffffc90000004000
)

// fakeFunctions are functions with names that matter, first in the text.
var fakeFunctions = []string{"startup_xen", "entry_SYSCALL_64", "asm_exc_page_fault", "leaf", "middle", "irq_stack", "aligned",
	"xen_asm_exc_page_fault", "__x86_indirect_thunk_r11", "__switch_to_asm", "ret_from_fork",
	"switched", "saved_pointer", "asm_exc_nmi", "asm_call_on_stack", "grown", "entry_SYSCALL_64_after_hwframe"}

// fakeCode is what is at the beginning of functions.
var fakeCode = map[string][]byte{
	"xen_asm_exc_page_fault":   {0xf3, 0x0f, 0x1e, 0xfa, 0x59, 0x41, 0x5b, 0xe9}, // ENDBR64, POP RCX, POP R11, JMP
	"asm_exc_nmi":              {4: 0xe8, 9: 0x48, 0x89, 0xc4},                   // CALL, MOV RSP, RAX
	"__x86_indirect_thunk_r11": {0xe8, 0x07, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x4c, 0x89, 0x1c, 0x24, 0xc3},
}

func function(name string) uint64 {
	return fakeText + functionSize*uint64(slices.Index(fakeFunctions, name))
}

// entry makes an ORC entry's bytes.
func (l fakeLayout) entry(spOffset, bpOffset int16, spReg, bpReg uint8, kind orcType) [orcSize]byte {
	var e [orcSize]byte
	binary.LittleEndian.PutUint16(e[:], uint16(spOffset))
	binary.LittleEndian.PutUint16(e[2:], uint16(bpOffset))
	e[4] = spReg | bpReg<<4
	e[5] = byte(kind - orcCall)
	if l.end == 1 {
		e[5] = byte(kind) + 1
	}
	return e
}

// foundKernel gives a kernel's image and what Find makes of it.
func foundKernel(t *testing.T, l fakeLayout) (space, *Kernel) {
	t.Helper()
	image := fakeKernel(l)
	k, err := Find(image, function("leaf"))
	if err != nil {
		t.Fatal(err)
	}
	return image, k
}

// fakeKernel makes a kernel's image.
func fakeKernel(l fakeLayout) space {
	const functions = 1300
	type sym struct {
		addr uint64
		name string
	}
	list := []sym{{fakeText, "T_text"}}
	if l.percpu {
		list = []sym{{0, "Afixed_percpu_data"}, {0x15000, "Arunqueues"}, {fakeText, "T_text"}}
	}
	for i := range functions {
		name := fmt.Sprintf("function_%d", i)
		if i < len(fakeFunctions) {
			name = fakeFunctions[i]
		}
		list = append(list, sym{fakeText + uint64(i)*functionSize, "T" + name})
	}
	if l.end == 1 { // a name that needs two bytes for its length
		list = append(list, sym{fakeText + functions*functionSize, "t" + strings.Repeat("long_", 40)})
	}
	end := fakeText + uint64(functions+1)*functionSize
	list = append(list, sym{end, "T_etext"})

	// ORC: one entry for each function, in order.
	orcAt := uint64(fakeTables)
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
	for i := range functions {
		e := l.entry(8, 0, orcSP, orcNone, orcCall)
		if i < len(fakeFunctions) {
			e = special[fakeFunctions[i]]
		}
		ips = binary.LittleEndian.AppendUint32(ips, uint32(fakeText+uint64(i)*functionSize-orcAt-uint64(4*i)))
		entries = append(entries, e[:]...)
	}
	entriesAt := orcAt + uint64(len(ips))
	bannerAt := entriesAt + uint64(len(entries))
	banner := "Linux version " + l.version + " (someone@somewhere) #1\n\x00"
	list = append(list,
		sym{orcAt, "R__start_orc_unwind_ip"}, sym{entriesAt, "R__stop_orc_unwind_ip"},
		sym{entriesAt, "R__start_orc_unwind"}, sym{bannerAt, "R__stop_orc_unwind"}, sym{bannerAt, "Rlinux_banner"})
	notesAt := bannerAt + uint64(alignUp(len(banner), 4))
	notes := []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00Xen\x00\x01\x02\x00\x00") // padded to words
	notes = append(notes, "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"...)
	notes = append(notes, fakeBuildID...)
	list = append(list, sym{notesAt, "R__start_notes"}, sym{notesAt + uint64(len(notes)), "R__stop_notes"},
		sym{notesAt + 0x1000, "B__bss_start"}, sym{notesAt + 0x1000, "Bfirst_variable"}, sym{notesAt + 0x1008, "bsecond_variable"},
		sym{notesAt + 0x2000, "B__bss_stop"}, sym{notesAt + 0x3000, "B_end"})

	image := make([]byte, fakeTables-fakeBase)
	for name, code := range fakeCode {
		copy(image[function(name)-fakeBase:], code)
	}
	image = append(image, ips...)
	image = append(image, entries...)
	image = append(image, banner...)
	image = append(image, make([]byte, int(notesAt-bannerAt)-len(banner))...)
	image = append(image, notes...)
	align := func() { image = append(image, make([]byte, alignUp(len(image), 8)-len(image))...) }
	word := func(v uint64) { align(); image = binary.LittleEndian.AppendUint64(image, v) }

	addresses := func() {
		align()
		for _, s := range list {
			switch {
			case l.absolute:
				image = binary.LittleEndian.AppendUint64(image, s.addr)
			case l.percpu && s.addr >= imageFirst:
				image = binary.LittleEndian.AppendUint32(image, uint32(fakeBase-1-s.addr))
			case l.percpu:
				image = binary.LittleEndian.AppendUint32(image, uint32(s.addr))
			default:
				image = binary.LittleEndian.AppendUint32(image, uint32(s.addr-fakeBase))
			}
		}
		if !l.absolute {
			word(fakeBase)
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
	var index []byte
	start := len(image)
	for i := range numTokens {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(image)-start))
		if i > ' ' && i <= '~' {
			image = append(image, byte(i), 0)
		} else {
			image = append(image, fmt.Sprintf("to_%02x\x00", i)...)
		}
	}
	align()
	image = append(image, index...)
	if l.behind {
		addresses()
	}
	image = append(image, make([]byte, alignUp(len(image), pageSize)-len(image))...)
	return space{fakeBase, image}
}

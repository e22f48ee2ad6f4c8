package xencore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"gdbserver-xen/xen"
)

// dump is a dump to build. What the fields leave out is as xl dump-core has it.
type dump struct {
	kind    Kind
	machine elf.Machine // EM_X86_64 if 0
	vcpus   int
	table   []uint64 // pfn and gmfn in turn, or pfn
	pages   []byte   // of each page, the byte that fills it
	notes   []byte   // the notes that standard gives if nil
}

// note gives one note.
func note(typ uint32, desc []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, typ)
	return append(append(b, "Xen\x00"...), desc...)
}

// words gives little-endian words.
func words(v ...uint64) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return b
}

// headerNote, versionNote and formatNote give the notes of a dump.
func headerNote(magic, vcpus, pages, pageSize uint64) []byte {
	return note(noteHeader, words(magic, vcpus, pages, pageSize))
}

func versionNote() []byte {
	desc := make([]byte, 1280)
	copy(desc, words(4, 17))
	copy(desc[16:], ".7-rc1")
	copy(desc[176:], "xen-3.0-x86_64 hvm-3.0-x86_64 ")
	copy(desc[1200:], "git:0123456789")
	return note(noteXenVersion, desc)
}

func formatNote(v uint64) []byte { return note(noteFormatVersion, words(v)) }

// standard gives the notes of d.
func (d *dump) standard() []byte {
	magic := uint64(magicPV)
	if d.kind == HVM {
		magic = magicHVM
	}
	return bytes.Join([][]byte{
		note(0x2000000, nil),
		headerNote(magic, uint64(d.vcpus), uint64(len(d.pages)), xen.PageSize),
		versionNote(),
		formatNote(1),
	}, nil)
}

// context gives the i-th context of a dump.
func context(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, ContextSize) }

// bytes lays the dump out as xl dump-core does: headers, section headers, notes,
// contexts, padding, pages, table, names.
func (d *dump) bytes(t testing.TB) []byte {
	t.Helper()
	if d.notes == nil {
		d.notes = d.standard()
	}
	if d.machine == 0 {
		d.machine = elf.EM_X86_64
	}
	table := ".xen_p2m"
	if d.kind == HVM {
		table = ".xen_pfn"
	}
	var contexts, pages []byte
	for i := range d.vcpus {
		contexts = append(contexts, context(i)...)
	}
	for _, fill := range d.pages {
		pages = append(pages, bytes.Repeat([]byte{fill}, xen.PageSize)...)
	}
	const shnum = 7
	names := []byte{0}
	headers := make([]elf.Section64, 1, shnum) // the first is empty
	body := make([]byte, headerSize+shnum*sectionHeaderSize)
	add := func(name string, typ elf.SectionType, b []byte) {
		headers = append(headers, elf.Section64{
			Name: uint32(len(names)), Type: uint32(typ), Off: uint64(len(body)), Size: uint64(len(b)),
		})
		names = append(append(names, name...), 0)
		body = append(body, b...)
	}
	add(".note.Xen", elf.SHT_NOTE, d.notes)
	add(".xen_prstatus", elf.SHT_PROGBITS, contexts)
	add(".xen_shared_info", elf.SHT_PROGBITS, make([]byte, xen.PageSize))
	body = append(body, make([]byte, -len(body)&(xen.PageSize-1))...)
	add(".xen_pages", elf.SHT_PROGBITS, pages)
	add(table, elf.SHT_PROGBITS, words(d.table...))
	names = append(names, ".shstrtab\x00"...)
	headers = append(headers, elf.Section64{
		Name: uint32(len(names) - len(".shstrtab\x00")), Type: uint32(elf.SHT_STRTAB),
		Off: uint64(len(body)), Size: uint64(len(names)),
	})
	body = append(body, names...)

	h := elf.Header64{
		Type: uint16(elf.ET_CORE), Machine: uint16(d.machine), Version: uint32(elf.EV_CURRENT),
		Shoff: headerSize, Ehsize: headerSize, Phentsize: 56, Shentsize: sectionHeaderSize,
		Shnum: shnum, Shstrndx: shnum - 1,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	for offset, v := range map[int]any{0: h, headerSize: headers} {
		if _, err := binary.Encode(body[offset:], binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return body
}

// pvDump is a small PV guest whose frames are in no order: its last page could
// not be dumped.
func pvDump() *dump {
	return &dump{
		kind:  PV,
		vcpus: 2,
		table: []uint64{
			0, 0x1000,
			1, 0x1001,
			2, 0x0fff,
			9, 0x2000,
			5, 0x2001,
			noFrame, noFrame,
		},
		pages: []byte{10, 11, 12, 19, 15, 0},
	}
}

// hvmDump is a small HVM guest with a hole.
func hvmDump() *dump {
	return &dump{
		kind:  HVM,
		vcpus: 1,
		table: []uint64{0, 1, 0xc0, 0xc1, 0x100000, noFrame},
		pages: []byte{10, 11, 20, 21, 30, 0},
	}
}

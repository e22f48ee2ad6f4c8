// This file makes files for debuggers of what a kernel says of itself: one that
// stands for its symbol file, one with call-frame information only, for what the
// kernel's own symbol file says nothing of, and one for each module. They have
// addresses as they are in the guest, or as far from a module's, and no code: that is
// in the guest's memory.

package linux

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// linkBase is where kernels are linked to that do not say how far KASLR has moved them
// (CONFIG_PHYSICAL_START of 16 MB).
const linkBase = imageFirst + 16<<20

// Bounds on what is taken over, in bytes.
const (
	mostNotes   = 64 << 10
	mostBuildID = 64 // of which Linux has 20
	mostNames   = 32 << 20
)

// Release gives the kernel's release, as uname -r prints it.
func (k *Kernel) Release() string {
	rest, ok := strings.CutPrefix(k.Banner, "Linux version ")
	if !ok {
		return ""
	}
	release, _, _ := strings.Cut(rest, " ")
	return release
}

// SymbolPackage names the package that has the kernel's symbol file, for the
// distributions whose kernels can be told, and is empty for others.
func (k *Kernel) SymbolPackage() string {
	release := k.Release()
	switch {
	case release == "":
	case strings.Contains(k.Banner, "debian-kernel@"):
		return "linux-image-" + release + "-dbg"
	case strings.Contains(k.Banner, "(Ubuntu "):
		return "linux-image-" + release + "-dbgsym"
	case strings.Contains(k.Banner, "fedoraproject.org") || strings.Contains(release, ".fc"):
		return "kernel-debuginfo-" + release
	}
	return ""
}

// Base gives where the kernel's image begins.
func (k *Kernel) Base() (addr uint64, ok bool) { return k.Lookup("_text") }

// Slide gives how far KASLR has moved it.
func (k *Kernel) Slide() uint64 { return k.slide }

// findSlide finds out how far KASLR has moved it.
func (k *Kernel) findSlide(mem Memory) {
	base, ok := k.Base()
	if !ok {
		return
	}
	info, _ := k.readVMCoreInfo(mem)
	said, err := strconv.ParseUint(info["KERNELOFFSET"], 16, 64)
	if err == nil && said%pageSize == 0 && said <= base-imageFirst {
		k.slide = said
		return
	}
	k.slide = base - linkBase
}

// BuildID gives the identification of the kernel's build in hexadecimal, empty if
// there is none.
func (k *Kernel) BuildID() string { return hex.EncodeToString(k.buildID) }

const noteBuildID = 3 // NT_GNU_BUILD_ID

// findBuildID reads it from the kernel's notes.
func (k *Kernel) findBuildID(mem Memory) {
	first, ok1 := k.Lookup("__start_notes")
	end, ok2 := k.Lookup("__stop_notes")
	if !ok1 || !ok2 || end <= first || end-first > mostNotes {
		return
	}
	b := make([]byte, end-first)
	readSparse(mem, first, b)
	const head = 12
	for len(b) >= head {
		name, size := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
		kind := binary.LittleEndian.Uint32(b[8:])
		b = b[head:]
		at := (name + 3) &^ 3
		next := (at + size + 3) &^ 3
		if next > uint64(len(b)) {
			return
		}
		if kind == noteBuildID && string(b[:name]) == "GNU\x00" && size <= mostBuildID {
			k.buildID = bytes.Clone(b[at : at+size])
			return
		}
		b = b[next:]
	}
}

// Executable makes a file that stands for the kernel's symbol file: with its symbols,
// its build's identification and, if that is wanted and ReadTypes was called, its types,
// which take ten times as long as the rest. Who reads its symbols reads the byte at
// symbols, and who wants to know what file it is does not.
func (k *Kernel) Executable(types bool) (file []byte, symbols int) {
	b := &elfBuilder{}
	parts := k.parts()
	for _, p := range parts {
		b.reserve(p.name, p.flags, p.extent)
	}
	if len(parts) > 0 {
		b.segments = append(b.segments, extent{parts[0].first, parts[len(parts)-1].end})
	}
	if types && k.btf != nil {
		b.addDebugInfo(k.debugInfo())
	}
	if k.buildID != nil {
		note := binary.LittleEndian.AppendUint32(nil, 4)
		note = binary.LittleEndian.AppendUint32(note, uint32(len(k.buildID)))
		note = binary.LittleEndian.AppendUint32(note, noteBuildID)
		note = append(append(note, "GNU\x00"...), k.buildID...)
		b.contents(".note.gnu.build-id", elf.SHT_NOTE, 4, append(note, make([]byte, alignUp(len(note), 4)-len(note))...))
	}
	b.addSymbols(k.withNewTask(), parts)
	return b.file(elf.ET_EXEC)
}

// withNewTask gives the kernel's symbols with one for the byte before where a new task
// begins. Debuggers take that for the return from a call, and look at that byte.
func (k *Kernel) withNewTask() []symbol {
	addr, ok := k.Lookup("ret_from_fork_asm")
	if !ok { // before Linux 6.5
		if addr, ok = k.Lookup("ret_from_fork"); !ok {
			return k.symbols
		}
	}
	i := sort.Search(len(k.symbols), func(i int) bool { return k.symbols[i].addr >= addr })
	return slices.Concat(k.symbols[:i], []symbol{{addr: addr - 1, kind: 't', name: "new_task"}}, k.symbols[i:])
}

// Address gives where a module's code is, if it has any.
func (m *Module) Address() (addr uint64, ok bool) {
	if len(m.text) == 0 {
		return 0, false
	}
	return m.text[0].first, true
}

// File makes a file of a module: with its symbols, how to unwind its stacks and, if the
// kernel has them, its types. Its addresses count from the module's own, as gdb takes how
// far a library was moved for where it is. So many of its sections, which are the first,
// are in the guest's memory.
// Preconditions: the module is one of the last Modules, and the guest has not run since.
func (k *Kernel) File(m *Module) (file []byte, sections int) {
	k.load(m)
	b := &elfBuilder{}
	b.base, _ = m.Address()
	for _, p := range m.parts {
		b.reserve(p.name, p.flags, p.extent)
	}
	var frames []byte
	if m.orc != nil {
		frames = m.frameInfo(b.base, int(k.room))
		k.room -= min(k.room, uint64(len(frames)))
	}
	// gdb reads symbols, then types, then frames, each of all modules, and with what it reads
	// what is behind it, up to the size of a packet: in this order it reads least.
	symbols := slices.Concat(m.symbols, m.variables)
	sort.SliceStable(symbols, func(i, j int) bool { return symbols[i].addr < symbols[j].addr })
	b.addSymbols(symbols, m.parts)
	if t := k.readModuleTypes(m); t != nil {
		if d := m.debugInfo(t, b.base, int(k.room)); k.take(uint64(d.size())) {
			b.addDebugInfo(d)
		} else {
			k.room = 0 // so that it is not tried in vain for each
		}
	}
	if m.orc != nil {
		b.contents(".debug_frame", elf.SHT_PROGBITS, 8, frames)
	}
	file, _ = b.file(elf.ET_DYN)
	return file, len(m.parts)
}

// FrameInfo makes a file with nothing but how to unwind the kernel's stacks, or nil if
// the kernel does not know. It has one section that is in memory: that of marks. With
// keeps it is for where the kernel's symbol file says nothing of that, as of assembly,
// which is believed to give back the registers that functions must.
func (k *Kernel) FrameInfo(keeps bool) []byte {
	if k.orc == nil {
		return nil
	}
	b := &elfBuilder{}
	b.marks()
	b.compressed(".debug_frame", k.frameInfo(keeps))
	b.addSymbols(nil, nil)
	file, _ := b.file(elf.ET_DYN)
	return file
}

// A part is a piece of the kernel's image, or of a module's memory.
type part struct {
	name  string
	flags elf.SectionFlag
	extent
}

const (
	codeFlags = elf.SHF_ALLOC | elf.SHF_EXECINSTR
	dataFlags = elf.SHF_ALLOC | elf.SHF_WRITE
)

// parts gives the pieces of the image, in order and with no hole.
func (k *Kernel) parts() []part {
	var list []part
	for _, p := range []struct {
		name, first, end string
		flags            elf.SectionFlag
	}{
		{".text", "_text", "_etext", codeFlags},
		{".rodata", "__start_rodata", "__end_rodata", elf.SHF_ALLOC},
		{".data", "_sdata", "_edata", dataFlags},
		{".init.text", "_sinittext", "_einittext", codeFlags},
		{".bss", "__bss_start", "__bss_stop", dataFlags},
	} {
		first, ok1 := k.Lookup(p.first)
		end, ok2 := k.Lookup(p.end)
		if ok1 && ok2 && first < end && first >= imageFirst && end-first <= imageMost {
			list = append(list, part{p.name, p.flags, extent{first, end}})
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].first < list[j].first })
	if len(list) == 0 || list[0].name != ".text" {
		return nil
	}
	var all []part
	fill := func(end uint64) {
		if n := len(all); n > 0 && all[n-1].end < end && end-all[n-1].end <= imageMost {
			all = append(all, part{".data.other", dataFlags, extent{all[n-1].end, end}})
		}
	}
	for _, p := range list {
		if n := len(all); n > 0 && p.first < all[n-1].end {
			continue // they overlap
		}
		fill(p.first)
		all = append(all, p)
	}
	if end, ok := k.Lookup("_end"); ok {
		fill(end)
	}
	return all
}

// elfBuilder makes a file.
type elfBuilder struct {
	names    []byte // of sections
	sections []elf.Section64
	data     [][]byte // of sections; nil: none in the file
	segments []extent
	base     uint64 // what addresses count from; there are no segments then
	markAt   int    // section of marks, or 0
}

func (b *elfBuilder) add(name string, s elf.Section64, data []byte) int {
	if len(b.sections) == 0 {
		b.names, b.sections, b.data = []byte{0}, make([]elf.Section64, 1), make([][]byte, 1)
	}
	s.Name = uint32(len(b.names))
	b.names = append(append(b.names, name...), 0)
	b.sections, b.data = append(b.sections, s), append(b.data, data)
	return len(b.sections) - 1
}

// reserve adds a section that is in the guest's memory only.
func (b *elfBuilder) reserve(name string, flags elf.SectionFlag, e extent) int {
	return b.add(name, elf.Section64{
		Type: uint32(elf.SHT_NOBITS), Flags: uint64(flags), Addr: e.first - b.base, Size: e.end - e.first, Addralign: 1,
	}, nil)
}

// contents adds a section that is in the file only.
func (b *elfBuilder) contents(name string, kind elf.SectionType, align uint64, data []byte) int {
	return b.add(name, elf.Section64{Type: uint32(kind), Size: uint64(len(data)), Addralign: align}, data)
}

// mostCompressed is how many times larger than its file gdb lets a section become; one
// that would be larger it takes for damaged (bfd_section_size_insane in binutils).
const mostCompressed = 10

// compressed adds a section of debug information, which debuggers decompress: they may
// be far away. To do it better takes longer than it saves.
func (b *elfBuilder) compressed(name string, data []byte) {
	const align = 8
	var file bytes.Buffer
	binary.Write(&file, binary.LittleEndian, elf.Chdr64{Type: uint32(elf.COMPRESS_ZLIB), Size: uint64(len(data)), Addralign: align})
	w, _ := zlib.NewWriterLevel(&file, zlib.BestSpeed)
	w.Write(data)
	w.Close()
	if len(data)/mostCompressed > file.Len() {
		b.contents(name, elf.SHT_PROGBITS, align, data)
		return
	}
	at := b.contents(name, elf.SHT_PROGBITS, align, file.Bytes())
	b.sections[at].Flags = uint64(elf.SHF_COMPRESSED)
}

// addDebugInfo adds the sections of types. gdb looks at the beginning of each when it
// opens a file, so the small one is first, with that of the next behind it.
func (b *elfBuilder) addDebugInfo(d debugInfo) {
	b.compressed(".debug_abbrev", d.abbrev)
	b.compressed(".debug_info", d.info)
	b.compressed(".debug_str", d.names)
}

// marks adds the section that frames without code are in.
func (b *elfBuilder) marks() {
	e := extent{marks, marksEnd}
	b.markAt = b.reserve(".text.marks", elf.SHF_ALLOC|elf.SHF_EXECINSTR, e)
	b.segments = append(b.segments, e)
}

// addSymbols adds symbols, which are in order, and those of marks. Of several names
// at one address the first gets the size, so that debuggers take that one.
func (b *elfBuilder) addSymbols(list []symbol, parts []part) {
	var local, others []elf.Sym64
	names := []byte{0}
	add := func(name string, s elf.Sym64, bind elf.SymBind, kind elf.SymType) {
		if len(names) > mostNames {
			return
		}
		s.Name, s.Info = uint32(len(names)), elf.ST_INFO(bind, kind)
		names = append(append(names, name...), 0)
		if bind == elf.STB_LOCAL {
			local = append(local, s)
			return
		}
		others = append(others, s)
	}
	if b.markAt != 0 {
		for addr := uint64(marks); addr < marksEnd; addr += markSize {
			add(markNames[addr], elf.Sym64{Shndx: uint16(b.markAt), Value: addr, Size: markSize}, elf.STB_LOCAL, elf.STT_FUNC)
		}
	}
	sizes := symbolSizes(list, parts)
	for i := range list {
		s := &list[i]
		bind, kind, section := elf.STB_LOCAL, elf.STT_OBJECT, elf.SHN_ABS
		switch {
		case strings.IndexByte("wWvV", s.kind) >= 0:
			bind = elf.STB_WEAK
		case s.kind >= 'A' && s.kind <= 'Z':
			bind = elf.STB_GLOBAL
		}
		if s.isText() {
			kind = elf.STT_FUNC
		}
		if p := partOf(parts, s.addr); p >= 0 && s.kind != 'a' && s.kind != 'A' {
			section = elf.SectionIndex(p + 1)
		} else {
			kind = elf.STT_NOTYPE
		}
		add(s.name, elf.Sym64{Shndx: uint16(section), Value: s.addr - b.base, Size: sizes[i]}, bind, kind)
	}
	table := make([]byte, elf.Sym64Size, elf.Sym64Size*(1+len(local)+len(others)))
	for _, l := range [][]elf.Sym64{local, others} {
		for _, s := range l {
			table = binary.LittleEndian.AppendUint32(table, s.Name)
			table = append(table, s.Info, s.Other)
			table = binary.LittleEndian.AppendUint16(table, s.Shndx)
			table = binary.LittleEndian.AppendUint64(table, s.Value)
			table = binary.LittleEndian.AppendUint64(table, s.Size)
		}
	}
	symtab := b.contents(".symtab", elf.SHT_SYMTAB, 8, table)
	strtab := b.contents(".strtab", elf.SHT_STRTAB, 1, names)
	s := &b.sections[symtab]
	s.Link, s.Info, s.Entsize = uint32(strtab), uint32(1+len(local)), elf.Sym64Size
}

// partOf gives the part that an address is in, or -1.
func partOf(parts []part, addr uint64) int {
	return slices.IndexFunc(parts, func(p part) bool { return addr >= p.first && addr < p.end })
}

// symbolSizes gives the sizes of symbols, which kallsyms does not have: up to the
// next, of functions up to the next function.
func symbolSizes(list []symbol, parts []part) []uint64 {
	var nextText, nextAny uint64
	sizes := make([]uint64, len(list))
	for i := len(list) - 1; i >= 0; i-- {
		s := &list[i]
		if i > 0 && list[i-1].addr == s.addr && list[i-1].isText() == s.isText() {
			continue
		}
		next := &nextAny
		if s.isText() {
			next = &nextText
		}
		if p := partOf(parts, s.addr); p >= 0 {
			end := parts[p].end
			if *next > s.addr {
				end = min(end, *next)
			}
			sizes[i] = end - s.addr
		}
		nextAny, *next = s.addr, s.addr
	}
	return sizes
}

// file puts the file together, and gives where the middle of its symbols is. What gdb
// reads to see what a file is comes first, since with all that it reads it reads what is
// behind it, up to the size of a packet.
func (b *elfBuilder) file(kind elf.Type) (file []byte, symbols int) {
	names := b.contents(".shstrtab", elf.SHT_STRTAB, 1, nil)
	b.data[names], b.sections[names].Size = b.names, uint64(len(b.names))
	const headerSize, segmentSize, sectionSize = 64, 56, 64
	table := headerSize + segmentSize*len(b.segments)
	at := table + sectionSize*len(b.sections)
	place := func(i int) {
		s := &b.sections[i]
		at = alignUp(at, int(max(s.Addralign, 1)))
		s.Off = uint64(at)
		at += len(b.data[i])
	}
	first := func(i int) bool { return i == names || elf.SectionType(b.sections[i].Type) == elf.SHT_NOTE }
	for _, early := range []bool{true, false} {
		for i := 1; i < len(b.sections); i++ {
			if first(i) == early {
				place(i)
			}
		}
	}
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(kind), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: uint64(table), Ehsize: headerSize,
		Shentsize: sectionSize, Shnum: uint16(len(b.sections)), Shstrndx: uint16(names),
	}
	if n := len(b.segments); n > 0 {
		h.Phoff, h.Phentsize, h.Phnum = headerSize, segmentSize, uint16(n)
	}
	file = make([]byte, 0, at)
	file, _ = binary.Append(file, binary.LittleEndian, h)
	for _, e := range b.segments {
		file, _ = binary.Append(file, binary.LittleEndian, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Off: headerSize,
			Vaddr: e.first, Paddr: e.first, Memsz: e.end - e.first, Align: 1,
		})
	}
	for _, s := range b.sections {
		file, _ = binary.Append(file, binary.LittleEndian, s)
	}
	file = file[:at]
	for i, s := range b.sections {
		copy(file[s.Off:], b.data[i])
		if elf.SectionType(s.Type) == elf.SHT_SYMTAB {
			symbols = int(s.Off + s.Size/2)
		}
	}
	return file, symbols
}

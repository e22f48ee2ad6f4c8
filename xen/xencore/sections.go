// This file finds the sections of the ELF file. It uses the structures of
// debug/elf and not its reader, which would load a string table of any size that
// the file claims.

package xencore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Limits of what is read of an ELF file; xl dump-core writes 8 sections and 100
// bytes of names.
const (
	maxSections = 64
	maxNames    = 64 << 10
)

const (
	headerSize        = 64 // Elf64_Ehdr
	sectionHeaderSize = 64 // Elf64_Shdr
)

// section is a piece of the file: it lies in it whole.
type section struct {
	offset, size int64
}

// file is the ELF file as far as this package needs it.
type file struct {
	width    int // of the guest's words in bytes: 8 or 4
	sections map[string]section
}

// readSections reads the headers of a file of size bytes.
func readSections(r io.ReaderAt, size int64) (*file, error) {
	b := make([]byte, headerSize)
	if err := readAt(r, b, 0); err != nil {
		if err == io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("%w: no ELF header", ErrFormat)
		}
		return nil, err
	}
	if string(b[:len(elf.ELFMAG)]) != elf.ELFMAG ||
		elf.Class(b[elf.EI_CLASS]) != elf.ELFCLASS64 ||
		elf.Data(b[elf.EI_DATA]) != elf.ELFDATA2LSB ||
		elf.Version(b[elf.EI_VERSION]) != elf.EV_CURRENT {
		return nil, fmt.Errorf("%w: not a little-endian ELF64 file", ErrFormat)
	}
	var h elf.Header64
	decode(b, &h)
	if elf.Type(h.Type) != elf.ET_CORE {
		return nil, fmt.Errorf("%w: ELF type %v", ErrFormat, elf.Type(h.Type))
	}
	f := &file{sections: make(map[string]section)}
	switch m := elf.Machine(h.Machine); m {
	case elf.EM_X86_64:
		f.width = 8
	case elf.EM_386:
		f.width = 4
	default:
		return nil, fmt.Errorf("%w: machine %v", ErrFormat, m)
	}
	if h.Shnum == 0 {
		// The core of a process has segments only.
		return nil, fmt.Errorf("%w: no sections", ErrFormat)
	}
	if h.Shnum > maxSections || h.Shentsize != sectionHeaderSize || h.Shstrndx >= h.Shnum {
		return nil, fmt.Errorf("%w: %d section headers of %d bytes, names in the %d-th", ErrMalformed, h.Shnum, h.Shentsize, h.Shstrndx)
	}

	headers := make([]elf.Section64, h.Shnum)
	table, err := within(size, h.Shoff, uint64(h.Shnum)*sectionHeaderSize)
	if err != nil {
		return nil, fmt.Errorf("section headers: %w", err)
	}
	b = make([]byte, table.size)
	if err := readAt(r, b, table.offset); err != nil {
		return nil, fmt.Errorf("section headers: %w", err)
	}
	decode(b, headers)

	names, err := readNames(r, size, headers[h.Shstrndx])
	if err != nil {
		return nil, fmt.Errorf("section names: %w", err)
	}
	for i, sh := range headers {
		switch elf.SectionType(sh.Type) {
		case elf.SHT_NOTE, elf.SHT_PROGBITS:
		default:
			continue
		}
		name, ok := nameAt(names, sh.Name)
		if !ok {
			return nil, fmt.Errorf("%w: section %d has no name", ErrMalformed, i)
		}
		s, err := within(size, sh.Off, sh.Size)
		if err != nil {
			return nil, fmt.Errorf("section %.32q: %w", name, err)
		}
		if _, ok := f.sections[name]; ok {
			return nil, fmt.Errorf("%w: two sections %.32q", ErrMalformed, name)
		}
		f.sections[name] = s
	}
	if _, ok := f.sections[".note.Xen"]; !ok {
		return nil, fmt.Errorf("%w: no section .note.Xen", ErrFormat)
	}
	return f, nil
}

// readNames reads the string table of the sections' names.
func readNames(r io.ReaderAt, size int64, sh elf.Section64) ([]byte, error) {
	if sh.Size > maxNames {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, sh.Size, maxNames)
	}
	s, err := within(size, sh.Off, sh.Size)
	if err != nil {
		return nil, err
	}
	b := make([]byte, s.size)
	return b, readAt(r, b, s.offset)
}

// nameAt gives the string at an offset of a string table.
func nameAt(names []byte, offset uint32) (string, bool) {
	if uint64(offset) >= uint64(len(names)) {
		return "", false
	}
	name, _, ok := bytes.Cut(names[offset:], []byte{0})
	return string(name), ok
}

// within gives a piece of a file of size bytes, if it lies in it.
func within(size int64, offset, length uint64) (section, error) {
	if offset > math.MaxInt64 || length > math.MaxInt64 || int64(offset) > size || int64(length) > size-int64(offset) {
		return section{}, fmt.Errorf("%w: %d bytes at %d, the file ends at %d (is it whole?)", ErrMalformed, length, offset, size)
	}
	return section{int64(offset), int64(length)}, nil
}

// array gives the section of that name, which must hold just n elements of
// elem bytes.
func (f *file) array(name string, n uint64, elem int64) (section, error) {
	s, ok := f.sections[name]
	if !ok {
		return section{}, fmt.Errorf("%w: no section %s", ErrMalformed, name)
	}
	if s.size%elem != 0 || uint64(s.size/elem) != n {
		return section{}, fmt.Errorf("%w: section %s of %d bytes for %d entries of %d", ErrMalformed, name, s.size, n, elem)
	}
	return s, nil
}

// decode fills the structure or slice v from b, which has at least its size.
func decode(b []byte, v any) {
	// The only error is a short b.
	_, _ = binary.Decode(b, binary.LittleEndian, v)
}

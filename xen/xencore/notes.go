// This file reads the section .note.Xen: ELF notes of the name "Xen", one after
// the other without padding. Their types are those of Xen's public elfnote.h,
// their contents those of tools/libs/guest/xg_core.h; xen_version's parts are
// those of public/version.h (Xen 4.4 to 4.22).

package xencore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"gdbserver-xen/xen"
)

// Note types, XEN_ELFNOTE_DUMPCORE_*. There is a fourth, NONE (0x2000000), that
// is empty.
const (
	noteHeader        = 0x2000001 // u64 magic, vcpus, pages, page size
	noteXenVersion    = 0x2000002 // struct xen_dumpcore_elfnote_xen_version_desc
	noteFormatVersion = 0x2000003 // u64: major in the upper half, minor in the lower
)

// The header's magic numbers, XC_CORE_MAGIC and XC_CORE_MAGIC_HVM.
const (
	magicPV  = 0xF00FEBED
	magicHVM = 0xF00FEBEE
)

// maxNotes is how long the section may be; xl dump-core writes 1384 bytes.
const maxNotes = 64 << 10

// XenVersion is the version of the Xen that the guest ran on. The texts are as
// the hypervisor gave them, cut off where its old interface cuts them off; in a
// forged dump they can be any bytes.
type XenVersion struct {
	Major, Minor uint64
	Extra        string // what follows the minor number: ".4-pre"
	Capabilities string // "xen-3.0-x86_64 hvm-3.0-x86_64 "
	Changeset    string // "Wed Nov 22 12:00:00 2023 +0000 git:0123456789"
}

// String gives "4.17.3".
func (v XenVersion) String() string { return fmt.Sprintf("%d.%d%s", v.Major, v.Minor, v.Extra) }

// notes is what the notes say.
type notes struct {
	kind         Kind
	vcpus, pages uint64
	xen          XenVersion
}

// readNotes reads the section s.
func readNotes(r io.ReaderAt, s section) (*notes, error) {
	if s.size > maxNotes {
		return nil, fmt.Errorf("%w: section .note.Xen of %d bytes, the limit is %d", ErrMalformed, s.size, maxNotes)
	}
	b := make([]byte, s.size)
	if err := readAt(r, b, s.offset); err != nil {
		return nil, fmt.Errorf("section .note.Xen: %w", err)
	}
	var n notes
	found := make(map[uint32]bool)
	for len(b) > 0 {
		typ, desc, rest, err := cutNote(b)
		if err != nil {
			return nil, err
		}
		b = rest
		read, ok := noteReaders[typ]
		switch {
		case !ok:
			continue // of a later minor version
		case found[typ]:
			return nil, fmt.Errorf("%w: two notes of type %#x", ErrMalformed, typ)
		case len(desc) < read.size:
			return nil, fmt.Errorf("%w: note of type %#x of %d bytes, need %d", ErrMalformed, typ, len(desc), read.size)
		}
		found[typ] = true
		if err := read.read(&n, desc); err != nil {
			return nil, err
		}
	}
	for typ := range noteReaders {
		if !found[typ] {
			return nil, fmt.Errorf("%w: no note of type %#x", ErrMalformed, typ)
		}
	}
	return &n, nil
}

// noteReaders has the notes that must be there: how long they are, and how to
// read them.
var noteReaders = map[uint32]struct {
	size int
	read func(*notes, []byte) error
}{
	noteHeader:        {32, (*notes).header},
	noteXenVersion:    {1280, (*notes).xenVersion},
	noteFormatVersion: {8, (*notes).formatVersion},
}

// cutNote cuts the first note off b: namesz, descsz and type, 4 bytes each, the
// name, the contents.
func cutNote(b []byte) (typ uint32, desc, rest []byte, err error) {
	const head = 12 + len("Xen\x00")
	if len(b) < head || binary.LittleEndian.Uint32(b) != 4 || string(b[12:head]) != "Xen\x00" {
		return 0, nil, nil, fmt.Errorf("%w: note without the name Xen", ErrMalformed)
	}
	size := binary.LittleEndian.Uint32(b[4:])
	typ = binary.LittleEndian.Uint32(b[8:])
	b = b[head:]
	if uint64(size) > uint64(len(b)) {
		return 0, nil, nil, fmt.Errorf("%w: note of type %#x of %d bytes, %d are left", ErrMalformed, typ, size, len(b))
	}
	return typ, b[:size], b[size:], nil
}

func (n *notes) header(b []byte) error {
	switch magic := binary.LittleEndian.Uint64(b); magic {
	case magicPV:
		n.kind = PV
	case magicHVM:
		n.kind = HVM
	default:
		return fmt.Errorf("%w: magic number %#x", ErrMalformed, magic)
	}
	n.vcpus = binary.LittleEndian.Uint64(b[8:])
	n.pages = binary.LittleEndian.Uint64(b[16:])
	if size := binary.LittleEndian.Uint64(b[24:]); size != xen.PageSize {
		return fmt.Errorf("%w: pages of %d bytes", ErrMalformed, size)
	}
	return nil
}

// xenVersion reads u64 major, u64 minor, char extra[16], char compile_info[144],
// char capabilities[1024], char changeset[64]; two more words follow that are of
// no use.
func (n *notes) xenVersion(b []byte) error {
	n.xen = XenVersion{
		Major:        binary.LittleEndian.Uint64(b),
		Minor:        binary.LittleEndian.Uint64(b[8:]),
		Extra:        text(b[16:32]),
		Capabilities: text(b[176:1200]),
		Changeset:    text(b[1200:1264]),
	}
	return nil
}

// formatVersion refuses a major version other than 0: only the minor one counts
// additions.
func (n *notes) formatVersion(b []byte) error {
	if v := binary.LittleEndian.Uint64(b); v>>32 != 0 {
		return fmt.Errorf("dump-core format version %d.%d: %w", v>>32, uint32(v), errors.ErrUnsupported)
	}
	return nil
}

// text gives a C string in a field of fixed size.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// This file reads the file format of `xl dump-core`, as Xen's
// docs/misc/dump-core-format.txt describes it and tools/libs/guest/xg_core.c
// writes it (unchanged from 4.4 to 4.22): an ELF64 file of type ET_CORE that has
// sections and no segments.
//
//	.note.Xen         notes: header, Xen version, format version (notes.go)
//	.xen_prstatus     a struct vcpu_guest_context for each vCPU
//	.xen_shared_info  the shared info page (optional, not read here)
//	.xen_pages        the pages
//	.xen_p2m          PV: {u64 pfn, u64 gmfn} for each page
//	.xen_pfn          HVM and PVH: u64 pfn for each page
//
// The entry of a page that could not be dumped is all ones, and the page is
// zeros. The format promises no order of the entries.

// Package xencore reads the memory and the vCPUs of a guest from the file that
// `xl dump-core` makes.
//
// The file is not trusted. Its claims are checked against its size, and what it
// costs is bounded whatever it says: see Open.
package xencore

import (
	"errors"
	"fmt"
	"io"

	"gdbserver-xen/xen"
)

// ContextSize is the size in bytes of a vCPU's context: struct
// vcpu_guest_context of public/arch-x86/xen.h in its 64-bit layout. A 32-bit PV
// guest has its own, smaller layout at the beginning of that space.
const ContextSize = 5168

var (
	// ErrFormat says that a file is something else than an xl dump-core file.
	ErrFormat = errors.New("not an xl dump-core file")

	// ErrMalformed says that a file is an xl dump-core file that contradicts
	// itself or ends too early.
	ErrMalformed = errors.New("malformed xl dump-core file")

	// ErrNoPage says that the file has no page for a frame.
	ErrNoPage = errors.New("page is not in the dump")

	// ErrKind says that a dump of this kind of guest has no frames of that
	// sort.
	ErrKind = errors.New("no such frames in a dump of this kind of guest")
)

// Kind is how a guest's memory is numbered.
type Kind int

const (
	PV  Kind = iota // page tables hold machine frames
	HVM             // HVM and PVH: page tables hold guest frames
)

func (k Kind) String() string {
	if k == PV {
		return "PV"
	}
	return "HVM"
}

// Header is what a dump says of its guest.
type Header struct {
	Kind Kind

	// Width is the size in bytes of a PV guest's words and so says which layout
	// its contexts have: 8 or 4. It is 8 for every HVM guest.
	Width int

	// VCPUs is the number of contexts. vCPUs that were never brought up have
	// none, so the index of a context need not be the vCPU's number.
	VCPUs int

	// Pages is the number of pages, those that could not be dumped included.
	Pages uint64
}

// Core is an open dump. Its methods may be called by several goroutines at once
// if its reader's may.
type Core struct {
	Header     Header
	XenVersion XenVersion

	r        io.ReaderAt
	contexts section
	pages    section

	// Which page of the section a frame has. mfns and pfns are a PV guest's,
	// gfns an HVM guest's.
	mfns, pfns, gfns index
}

// Open reads the headers and the table of frames of a dump of size bytes. The
// error has in its chain ErrFormat, ErrMalformed, errors.ErrUnsupported (for a
// format version that is not known, or the limit below), or the error of r.
//
// It takes time in proportion to the number of pages (the table has 16 bytes
// for each page of a PV guest, 8 for one of an HVM guest) and memory in
// proportion to the number of runs of frames that follow each other in the file:
// 16 bytes for each. A guest of 64 GB in one piece costs nothing to speak of;
// were its frames scattered one by one, 256 MiB. That is also the limit for each
// of a PV guest's two indices, past which Open fails; while it runs it may hold
// about twice that.
func Open(r io.ReaderAt, size int64) (*Core, error) {
	c := &Core{r: r}
	if err := c.open(size); err != nil {
		return nil, fmt.Errorf("xencore: %w", err)
	}
	return c, nil
}

func (c *Core) open(size int64) error {
	f, err := readSections(c.r, size)
	if err != nil {
		return err
	}
	n, err := readNotes(c.r, f.sections[".note.Xen"])
	if err != nil {
		return err
	}
	c.Header = Header{Kind: n.kind, Width: f.width, Pages: n.pages}
	c.XenVersion = n.xen

	c.contexts, err = f.array(".xen_prstatus", n.vcpus, ContextSize)
	if err != nil {
		return err
	}
	c.Header.VCPUs = int(n.vcpus) // it fits: as many are in the file
	c.pages, err = f.array(".xen_pages", n.pages, xen.PageSize)
	if err != nil {
		return err
	}
	if n.kind == PV {
		table, err := f.array(".xen_p2m", n.pages, 16)
		if err != nil {
			return err
		}
		c.pfns, c.mfns, err = readP2M(c.r, table)
		return err
	}
	table, err := f.array(".xen_pfn", n.pages, 8)
	if err != nil {
		return err
	}
	c.gfns, err = readPFN(c.r, table)
	return err
}

// VCPUContext gives the i-th context, of ContextSize bytes.
func (c *Core) VCPUContext(i int) ([]byte, error) {
	if i < 0 || i >= c.Header.VCPUs {
		return nil, fmt.Errorf("xencore: vCPU context %d of %d", i, c.Header.VCPUs)
	}
	p := make([]byte, ContextSize)
	if err := readAt(c.r, p, c.contexts.offset+int64(i)*ContextSize); err != nil {
		return nil, fmt.Errorf("xencore: vCPU context %d: %w", i, err)
	}
	return p, nil
}

// PageByMFN reads the page of a PV guest that is in machine frame f into p,
// which has xen.PageSize bytes. The error has ErrNoPage in its chain where the
// dump lacks the page, and ErrKind for an HVM guest.
func (c *Core) PageByMFN(f xen.MFN, p []byte) error {
	if c.Header.Kind != PV {
		return fmt.Errorf("xencore: %v: %w", f, ErrKind)
	}
	return c.page(f, c.mfns, uint64(f), p)
}

// PageByGFN reads the page of an HVM guest that is in guest frame f into p, as
// PageByMFN does. The error for a PV guest has ErrKind in its chain.
func (c *Core) PageByGFN(f xen.GFN, p []byte) error {
	if c.Header.Kind != HVM {
		return fmt.Errorf("xencore: %v: %w", f, ErrKind)
	}
	return c.page(f, c.gfns, uint64(f), p)
}

// PageByPFN reads the page of a PV guest that the guest itself numbers pfn into
// p, as PageByMFN does. No page table holds such a number.
func (c *Core) PageByPFN(pfn uint64, p []byte) error {
	name := pfnName(pfn)
	if c.Header.Kind != PV {
		return fmt.Errorf("xencore: %v: %w", name, ErrKind)
	}
	return c.page(name, c.pfns, pfn, p)
}

// pfnName is a PV guest's own frame number in an error.
type pfnName uint64

func (f pfnName) String() string { return fmt.Sprintf("pfn %#x", uint64(f)) }

// page reads the page that ix has for frame.
func (c *Core) page(name fmt.Stringer, ix index, frame uint64, p []byte) error {
	if len(p) != xen.PageSize {
		return fmt.Errorf("xencore: %v: buffer of %d bytes for a page of %d", name, len(p), xen.PageSize)
	}
	i, ok := ix.page(frame)
	if !ok {
		return fmt.Errorf("xencore: %v: %w", name, ErrNoPage)
	}
	if err := readAt(c.r, p, c.pages.offset+int64(i)*xen.PageSize); err != nil {
		return fmt.Errorf("xencore: %v: %w", name, err)
	}
	return nil
}

// readAt fills p. The file may have become shorter since it was opened.
func readAt(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// This file reads and writes memory by virtual address, through caches of
// mapped frames and of translations.

package guest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// ErrUnmapped says that no memory can be had at an address.
var ErrUnmapped = errors.New("memory is not mapped")

const (
	// maxBatch is how many frames one call maps at the most.
	maxBatch = 512
	// maxMapped is how many frames stay mapped at the most: 256 MB of address
	// space. Beyond it the caches start anew.
	maxMapped = 1 << 16
	// maxWritable is how many frames stay mapped for writing at the most.
	maxWritable = 8
	// maxUntold is how many written frames are kept account of, until the hypervisor is
	// told.
	maxUntold = 1 << 16
	// maxMappings is how many mappings they may come from: a page table is
	// mapped alone, and the kernel allows a process 65530 areas.
	maxMappings = 1 << 13
)

// view is how a vCPU sees memory.
type view struct {
	mode   x86.Mode
	kernel root // for the upper half of the address space
	user   root // for the lower half
}

// ofKernel gives how the vCPU's kernel sees memory.
func (v view) ofKernel() view {
	v.user = v.kernel
	return v
}

// root is where a walk starts, in the kind of frame that the guest has.
type root = x86.Root[uint64]

// root gives the table that translates an address.
func (v *view) root(addr uint64) root {
	if int64(addr) < 0 {
		return v.kernel
	}
	return v.user
}

// memory is the memory of a guest, whatever kind its frames are.
type memory interface {
	read(v *view, addr uint64, p []byte) (int, error)
	write(v *view, addr uint64, p []byte) error
	writable(v *view, addr uint64) error
	region(v *view, addr uint64) (x86.Region, error)
	// hasTable tells why a frame is not the guest's memory, or nil if it is.
	hasTable(r root) error
	// locate gives the frame that holds an address.
	locate(v *view, addr uint64) (frame uint64, err error)
	// peek reads what is in a frame, planted bytes and all.
	peek(frame uint64, offset int, p []byte) error
	// poke writes into a frame, planted bytes or not.
	poke(frame uint64, offset int, p []byte) error
	// hide makes reads and writes treat planted bytes as if they were not there.
	hide(p *Plant)
	// show ends that.
	show(p *Plant)
	// planted gives what is planted at a byte of a frame, or nil.
	planted(frame uint64, offset int) *Plant
	// forget forgets translations, and unmaps frames that are mapped for writing,
	// unless they are to be kept. Others stay mapped: what is in them is seen as it
	// changes.
	forget(keepWriting bool) error
	// drop also unmaps all frames.
	drop() error
	// noteWrite notes that a frame was written at an offset, of which the hypervisor is to be
	// told.
	noteWrite(frame uint64, offset int)
	// untold tells whether there are such frames.
	untold() bool
	// tell tells it.
	tell() error
}

// frames is a memory of one kind of frame.
type frames[F xen.Frame] struct {
	mapFrames func(fs []F, write bool) (*xen.Mapping, error)
	modified  func(fs []F, offsets []int) error // tells the hypervisor that they were written

	pages    map[F][]byte             // mapped frames, for reading
	mappings []*xen.Mapping           // what pages point into
	writing  map[F]*xen.Mapping       // of single frames, until the guest runs
	tlb      map[translation]place[F] // pages by virtual address
	next     translation              // where a sequential read would go on
	window   int                      // pages to map ahead, doubled while reads are sequential
	plants   map[F][]*Plant           // hidden planted bytes
	written  map[F]int                // frames that the hypervisor is to be told of: where they were last written
}

// place is a mapped frame.
type place[F xen.Frame] struct {
	frame F
	page  []byte
}

// translation names a virtual page within an address space.
type translation struct {
	root root
	mode x86.Mode
	page uint64 // virtual page number
}

func newFrames[F xen.Frame](mapFrames func(fs []F, write bool) (*xen.Mapping, error), modified func(fs []F, offsets []int) error) *frames[F] {
	return &frames[F]{
		mapFrames: mapFrames, modified: modified, pages: map[F][]byte{}, writing: map[F]*xen.Mapping{},
		tlb: map[translation]place[F]{}, plants: map[F][]*Plant{}, written: map[F]int{},
	}
}

func (m *frames[F]) forget(keepWriting bool) error {
	clear(m.tlb)
	m.window, m.next = 0, translation{}
	if keepWriting {
		return nil
	}
	return m.endWriting()
}

// endWriting unmaps what is mapped for writing: the guest could not use it for page
// tables.
func (m *frames[F]) endWriting() error {
	var errs []error
	for _, mapping := range m.writing {
		errs = append(errs, mapping.Close())
	}
	clear(m.writing)
	return errors.Join(errs...)
}

func (m *frames[F]) drop() error {
	errs := []error{m.forget(false)}
	for _, mapping := range m.mappings {
		errs = append(errs, mapping.Close())
	}
	clear(m.pages)
	m.mappings = m.mappings[:0]
	return errors.Join(errs...)
}

// Table gives the bytes of a frame: it makes frames an x86.Tables.
func (m *frames[F]) Table(f F) ([]byte, error) {
	if page, ok := m.pages[f]; ok {
		return page, nil
	}
	first, err := m.add([]F{f})
	if err := errors.Join(err, first); err != nil {
		return nil, err
	}
	return m.pages[f], nil
}

// add maps frames and puts those that can be mapped into the cache. first tells
// why the first is not among them.
func (m *frames[F]) add(fs []F) (first, err error) {
	mapping, err := m.mapFrames(fs, false)
	if err != nil {
		return nil, err
	}
	used := false
	for i, f := range fs {
		if page, err := mapping.Page(i); err == nil {
			m.pages[f] = page
			used = true
		}
	}
	_, first = mapping.Page(0)
	if !used {
		return first, mapping.Close()
	}
	m.mappings = append(m.mappings, mapping)
	return first, nil
}

// makeRoom starts the caches anew if they hold too much.
func (m *frames[F]) makeRoom() error {
	if len(m.pages) > maxMapped || len(m.mappings) > maxMappings {
		return m.drop()
	}
	return nil
}

func (m *frames[F]) walk(v *view, addr uint64) (x86.Translation[F], error) {
	r := v.root(addr)
	return x86.Walk(v.mode, x86.Root[F]{Frame: F(r.Frame), Offset: r.Offset}, addr, x86.Tables[F](m))
}

// read reads up to the first byte that cannot be had, and gives an error only
// if that is the first one.
func (m *frames[F]) read(v *view, addr uint64, p []byte) (int, error) {
	done := 0
	for done < len(p) {
		at := addr + uint64(done)
		if done > 0 && at == 0 {
			break // past the end of the address space
		}
		to, ok := m.tlb[translation{v.root(at), v.mode, at / xen.PageSize}]
		if !ok {
			var err error
			if to, err = m.fill(v, at, uint64(len(p)-done)); err != nil {
				if done > 0 {
					break
				}
				return 0, err
			}
		}
		offset := int(at % xen.PageSize)
		n := copy(p[done:], to.page[offset:])
		for _, plant := range m.plants[to.frame] {
			plant.conceal(p[done:done+n], offset)
		}
		done += n
	}
	return done, nil
}

// fill translates and maps the page at addr, those after it that the next n
// bytes touch, and, while reads are sequential, more. It gives the first.
func (m *frames[F]) fill(v *view, addr, n uint64) (place[F], error) {
	if err := m.makeRoom(); err != nil {
		return place[F]{}, err
	}
	first := translation{v.root(addr), v.mode, addr / xen.PageSize}
	if first == m.next {
		m.window = min(max(2*m.window, 16), maxBatch)
	} else {
		m.window = 0
	}
	last := (addr + n - 1) / xen.PageSize
	if last < first.page {
		last = ^uint64(0) / xen.PageSize
	}
	count := min(max(int(min(last-first.page, maxBatch))+1, m.window), maxBatch)

	var (
		keys    []translation
		targets []F
		missing []F
	)
	for i := range count {
		at := addr
		if i > 0 {
			at = (first.page + uint64(i)) * xen.PageSize
		}
		if at < addr {
			break
		}
		tr, err := m.walk(v, at)
		if err != nil {
			if i == 0 {
				return place[F]{}, fmt.Errorf("%w: %w", ErrUnmapped, err)
			}
			break
		}
		keys = append(keys, translation{v.root(at), v.mode, at / xen.PageSize})
		targets = append(targets, tr.Frame)
		if _, ok := m.pages[tr.Frame]; !ok {
			missing = append(missing, tr.Frame)
		}
	}
	if len(missing) > 0 {
		unmapped, err := m.add(missing)
		if err != nil {
			return place[F]{}, err
		}
		if unmapped != nil && missing[0] == targets[0] {
			m.next = translation{} // what follows is hardly there
			return place[F]{}, fmt.Errorf("%w: %#x: %w", ErrUnmapped, addr, unmapped)
		}
	}
	for i, f := range targets {
		if page, ok := m.pages[f]; ok {
			m.tlb[keys[i]] = place[F]{f, page}
		}
	}
	m.next = keys[len(keys)-1]
	m.next.page++
	return place[F]{targets[0], m.pages[targets[0]]}, nil
}

// write writes all of p, or nothing: no byte is touched before every frame is
// mapped for writing.
func (m *frames[F]) write(v *view, addr uint64, p []byte) (err error) {
	if len(p) == 0 {
		return nil
	}
	mapping, targets, err := m.mapForWriting(v, addr, uint64(len(p)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.wrote(mapping)) }()
	offset := int(addr % xen.PageSize)
	for i, f := range targets {
		page, _ := mapping.Page(i)
		part := p[:min(len(p), xen.PageSize-offset)]
		p = p[len(part):]
		for _, plant := range m.plants[f] {
			part = plant.divert(part, page, offset)
		}
		copy(page[offset:], part)
		m.written[f] = offset
		offset = 0
	}
	// The bytes may have been page-table entries.
	clear(m.tlb)
	if len(m.written) > maxUntold {
		return m.tell()
	}
	return nil
}

func (m *frames[F]) noteWrite(frame uint64, offset int) { m.written[F(frame)] = offset }

func (m *frames[F]) untold() bool { return len(m.written) > 0 }

func (m *frames[F]) tell() error {
	fs := slices.Collect(maps.Keys(m.written))
	offsets := make([]int, len(fs))
	for i, f := range fs {
		offsets[i] = m.written[f]
	}
	if err := m.modified(fs, offsets); err != nil {
		return err
	}
	clear(m.written)
	return nil
}

// writable tells whether the byte at addr can be written, and leaves it alone.
func (m *frames[F]) writable(v *view, addr uint64) error {
	mapping, _, err := m.mapForWriting(v, addr, 1)
	if err != nil {
		return err
	}
	return m.wrote(mapping)
}

// mapWritable maps frames for writing, or finds that it is.
func (m *frames[F]) mapWritable(fs []F) (*xen.Mapping, error) {
	if len(fs) > 1 {
		return m.mapFrames(fs, true)
	}
	if mapping, ok := m.writing[fs[0]]; ok {
		return mapping, nil
	}
	mapping, err := m.mapFrames(fs, true)
	if err != nil {
		return nil, err
	}
	if _, bad := mapping.Page(0); bad != nil {
		return mapping, nil
	}
	if len(m.writing) == maxWritable {
		err = m.endWriting()
	}
	m.writing[fs[0]] = mapping
	return mapping, err
}

// wrote ends the use of what mapWritable gave.
func (m *frames[F]) wrote(mapping *xen.Mapping) error {
	if _, bad := mapping.Page(0); mapping.Len() == 1 && bad == nil {
		return nil // until the guest runs
	}
	return mapping.Close()
}

// mapForWriting maps the pages of n bytes, all of them or none, and names their
// frames.
// Preconditions: n > 0.
func (m *frames[F]) mapForWriting(v *view, addr, n uint64) (*xen.Mapping, []F, error) {
	last := addr + n - 1
	if last < addr {
		return nil, nil, fmt.Errorf("write %#x: %w: end of the address space", addr, ErrUnmapped)
	}
	if err := m.makeRoom(); err != nil {
		return nil, nil, err
	}
	var targets []F
	for at := addr &^ (xen.PageSize - 1); ; at += xen.PageSize {
		tr, err := m.walk(v, max(at, addr))
		if err != nil {
			return nil, nil, fmt.Errorf("write %#x: %w: %w", max(at, addr), ErrUnmapped, err)
		}
		targets = append(targets, tr.Frame)
		if last-at < xen.PageSize {
			break
		}
	}
	mapping, err := m.mapWritable(targets)
	if err != nil {
		return nil, nil, fmt.Errorf("write %#x: %w", addr, err)
	}
	for i := range targets {
		if _, err := mapping.Page(i); err != nil {
			if errors.Is(err, xen.ErrBadFrame) {
				err = fmt.Errorf("%w: %w", ErrUnmapped, err)
			}
			at := max(addr, (addr/xen.PageSize+uint64(i))*xen.PageSize)
			return nil, nil, errors.Join(fmt.Errorf("write %#x: %w", at, err), m.wrote(mapping))
		}
	}
	return mapping, targets, nil
}

// This file lays page tables into a domain's memory.

package xentest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// Bits of a page-table entry.
const (
	EntryPresent  uint64 = 1 << 0
	EntryWritable uint64 = 1 << 1
	EntryUser     uint64 = 1 << 2
	EntrySuper    uint64 = 1 << 7
)

const entryFlags = EntryPresent | EntryWritable | EntryUser

// PageTables are page tables in a domain's memory. Their entries hold what the
// domain's frames are numbered by: machine frames in a PV domain, else guest
// frames. In a PV domain they cannot be mapped writable.
type PageTables struct {
	d      *Domain
	levels []tableLevel
	entry  int // bytes
	mode   x86.Mode
	root   uint64
}

type tableLevel struct{ shift, bits uint }

var tableLevels = map[x86.Mode][]tableLevel{
	x86.Unpaged:    nil,
	x86.TwoLevel:   {{22, 10}, {12, 10}},
	x86.TwoLevel4M: {{22, 10}, {12, 10}},
	x86.PAE:        {{30, 2}, {21, 9}, {12, 9}},
	x86.FourLevel:  {{39, 9}, {30, 9}, {21, 9}, {12, 9}},
	x86.FiveLevel:  {{48, 9}, {39, 9}, {30, 9}, {21, 9}, {12, 9}},
}

// NewPageTables makes empty page tables.
func (d *Domain) NewPageTables(mode x86.Mode) *PageTables {
	d.x.t.Helper()
	levels, ok := tableLevels[mode]
	if !ok {
		d.x.t.Fatalf("xentest: no paging mode %v", mode)
	}
	pt := &PageTables{d: d, levels: levels, entry: 8, mode: mode}
	if mode == x86.TwoLevel || mode == x86.TwoLevel4M {
		pt.entry = 4
	}
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	pt.root = pt.allocTable()
	return pt
}

// UsePageTables makes all vCPUs of the domain use these tables, in kernel and
// user mode, and sets the control registers of an HVM or PVH domain to their
// mode.
func (d *Domain) UsePageTables(pt *PageTables) {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	for _, v := range d.vcpus {
		cr := &v.Context.ControlRegs
		cr[3] = pt.CR3()
		if d.Kind == xen.PV {
			continue
		}
		cr[0] |= 1 << 31
		cr[4] &^= 1<<4 | 1<<5 | 1<<12
		v.HVM.EFER &^= 1<<8 | 1<<10
		switch pt.mode {
		case x86.Unpaged:
			cr[0] &^= 1 << 31
		case x86.TwoLevel4M:
			cr[4] |= 1 << 4
		case x86.PAE:
			cr[4] |= 1 << 5
		case x86.FourLevel:
			cr[4] |= 1 << 5
			v.HVM.EFER |= 1<<8 | 1<<10
		case x86.FiveLevel:
			cr[4] |= 1<<5 | 1<<12
			v.HVM.EFER |= 1<<8 | 1<<10
		}
	}
}

// CR3 gives the value of CR3 for the tables.
func (pt *PageTables) CR3() uint64 { return pt.root << 12 }

// MapPage puts contents into a new frame and maps it at a virtual address, which
// is rounded down to a page. It gives the frame.
func (pt *PageTables) MapPage(va uint64, contents []byte) uint64 {
	pt.d.x.t.Helper()
	f := pt.d.Alloc()
	copy(pt.d.Frame(f), contents)
	pt.Map(va, f, xen.PageSize)
	return f
}

// Map maps the page of a size at a virtual address: 4 KB, or what else the mode
// has. frame is its first; whether it and those after it exist is up to the
// caller.
func (pt *PageTables) Map(va, frame, size uint64) {
	pt.d.x.t.Helper()
	for level := range pt.levels {
		if uint64(1)<<pt.levels[level].shift == size {
			entry := frame<<12 | entryFlags
			if level < len(pt.levels)-1 {
				entry |= EntrySuper
			}
			pt.SetEntry(va, level, entry)
			return
		}
	}
	pt.d.x.t.Fatalf("xentest: no pages of %#x bytes in %v", size, pt.mode)
}

// SetEntry sets the entry that translates a virtual address at a level, 0 being
// the root's, and makes the tables above it.
func (pt *PageTables) SetEntry(va uint64, level int, entry uint64) {
	pt.d.x.t.Helper()
	pt.d.x.mu.Lock()
	defer pt.d.x.mu.Unlock()
	table := pt.table(va, level, true)
	pt.put(pt.slot(table, va, level), entry)
}

// Entry gives the entry that translates a virtual address at a level, or 0.
func (pt *PageTables) Entry(va uint64, level int) uint64 {
	pt.d.x.t.Helper()
	pt.d.x.mu.Lock()
	defer pt.d.x.mu.Unlock()
	table := pt.table(va, level, false)
	if table == ^uint64(0) {
		return 0
	}
	return pt.get(pt.slot(table, va, level))
}

// Table gives the frame of the table that translates a virtual address at a
// level, which must exist.
func (pt *PageTables) Table(va uint64, level int) uint64 {
	pt.d.x.t.Helper()
	pt.d.x.mu.Lock()
	defer pt.d.x.mu.Unlock()
	table := pt.table(va, level, false)
	if table == ^uint64(0) {
		pt.d.x.t.Fatalf("xentest: no table for %#x at level %d", va, level)
	}
	return table
}

// table finds the table for an address at a level, and makes those on the way.
// It gives ^0 for one that does not exist.
func (pt *PageTables) table(va uint64, level int, grow bool) uint64 {
	pt.d.x.t.Helper()
	table := pt.root
	for l := range level {
		slot := pt.slot(table, va, l)
		entry := pt.get(slot)
		if entry&EntryPresent == 0 {
			if !grow {
				return ^uint64(0)
			}
			entry = pt.allocTable()<<12 | EntryPresent
			if pt.mode != x86.PAE || l > 0 {
				entry |= entryFlags
			}
			pt.put(slot, entry)
		}
		table = entry & 0x000f_ffff_ffff_f000 >> 12
	}
	return table
}

func (pt *PageTables) allocTable() uint64 {
	f := pt.d.alloc()
	if pt.d.Kind == xen.PV {
		pt.d.frames[f].writeErrno = unix.EBUSY
	}
	return f
}

// slot gives the bytes of an entry.
func (pt *PageTables) slot(table, va uint64, level int) []byte {
	l := pt.levels[level]
	index := va >> l.shift & (1<<l.bits - 1)
	return pt.d.frame(table)[int(index)*pt.entry:][:pt.entry]
}

func (pt *PageTables) get(slot []byte) uint64 {
	if pt.entry == 4 {
		return uint64(binary.LittleEndian.Uint32(slot))
	}
	return binary.LittleEndian.Uint64(slot)
}

func (pt *PageTables) put(slot []byte, entry uint64) {
	if pt.entry == 4 {
		binary.LittleEndian.PutUint32(slot, uint32(entry))
	} else {
		binary.LittleEndian.PutUint64(slot, entry)
	}
}

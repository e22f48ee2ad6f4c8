package x86_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"gdbserver-xen/x86"
)

// regionTables are frames of page tables by number; others cannot be read.
type regionTables map[uint64][]byte

func (r regionTables) Table(f uint64) ([]byte, error) {
	if b := r[f]; b != nil {
		return b, nil
	}
	return nil, errors.New("no such frame")
}

func (r regionTables) set(f uint64, i int, entry uint64) {
	if r[f] == nil {
		r[f] = make([]byte, x86.PageSize)
	}
	binary.LittleEndian.PutUint64(r[f][8*i:], entry)
}

func TestRegionAt(t *testing.T) {
	const p, rw, us, ps, nx = 1, 2, 4, 0x80, 1 << 63
	tables := regionTables{}
	tables.set(1, 0, 2<<12|p|rw|us)      // PML4E
	tables.set(1, 511, 0x77<<12|p|rw|us) // whose table cannot be read
	tables.set(2, 0, 3<<12|p|rw|us)      // PDPTE
	tables.set(2, 2, 1<<30|ps|p|rw|us)   // 1 GB
	tables.set(3, 0, 4<<12|p|rw|us)      // PDE
	tables.set(3, 1, 2<<20|ps|p|us)      // 2 MB, read-only
	tables.set(4, 0, 0x100<<12|p|us)
	tables.set(4, 1, 0x300<<12|p|us)
	tables.set(4, 2, 0x101<<12|p|rw|us|nx)
	for i := 510; i < 512; i++ {
		tables.set(4, i, uint64(i)<<12|p|us)
	}
	root := func(uint64) x86.Root[uint64] { return x86.Root[uint64]{Frame: 1} }
	for _, tt := range []struct {
		addr uint64
		want x86.Region
	}{
		{0, x86.Region{Start: 0, Last: 0x1fff, Mapped: true, User: true, Execute: true}},
		{0x1234, x86.Region{Start: 0x1000, Last: 0x1fff, Mapped: true, User: true, Execute: true}},
		{0x2fff, x86.Region{Start: 0x2000, Last: 0x2fff, Mapped: true, Writable: true, User: true}},
		{0x3000, x86.Region{Start: 0x3000, Last: 0x1fdfff}},
		{0x1fe001, x86.Region{Start: 0x1fe000, Last: 0x3fffff, Mapped: true, User: true, Execute: true}},
		{0x400000, x86.Region{Start: 0x400000, Last: 0x7fffffff}},
		{0x80001000, x86.Region{Start: 0x80000000, Last: 0xbfffffff, Mapped: true, Writable: true, User: true, Execute: true}},
		{0xc0000000, x86.Region{Start: 0xc0000000, Last: 0xffffffff_ffffffff}},
		{0x12345678_00000000, x86.Region{Start: 0x8000_0000_0000, Last: 0xffffffff_ffffffff}},
		{0xffffffff_ffffffff, x86.Region{Start: 0xffffffff_c0000000, Last: 0xffffffff_ffffffff}},
	} {
		got, err := x86.RegionAt(x86.FourLevel, root, tt.addr, tables)
		if err != nil || got != tt.want {
			t.Errorf("%#x: got %+v, %v, want %+v", tt.addr, got, err, tt.want)
		}
	}
	unpaged, err := x86.RegionAt(x86.Unpaged, root, 0x1000, tables)
	if want := (x86.Region{Start: 0x1000, Last: 0x1001fff, Mapped: true, Writable: true, User: true, Execute: true}); err != nil || unpaged != want {
		t.Errorf("unpaged: got %+v, %v, want %+v", unpaged, err, want)
	}
	if got, err := x86.RegionAt(x86.PAE, root, 1<<40, tables); err != nil || got != (x86.Region{Start: 1 << 32, Last: ^uint64(0)}) {
		t.Errorf("PAE: got %+v, %v", got, err)
	}
	if _, err := x86.RegionAt(x86.Mode(99), root, 0, tables); err == nil {
		t.Error("an unknown mode has a region")
	}
}

package rsp_test

import (
	"errors"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// mapper is a target that knows what is mapped where.
type mapper struct {
	*rsptest.Target
	regions map[uint64]rsp.MemoryRegion
}

func (m *mapper) MemoryRegion(_ rsp.ThreadID, addr uint64) (rsp.MemoryRegion, error) {
	r, ok := m.regions[addr]
	if !ok {
		return r, errors.New("no vCPU")
	}
	return r, nil
}

func TestMemoryRegion(t *testing.T) {
	m := &mapper{rsptest.NewTarget(1), map[uint64]rsp.MemoryRegion{
		0x1234: {Start: 0x1000, Last: 0x2fff, Mapped: true, Executable: true},
		0x3000: {Start: 0x3000, Last: 0x3fff, Mapped: true, Writable: true},
		0x4000: {Start: 0x4000, Last: ^uint64(0)},
		0:      {Last: ^uint64(0)},
	}}
	rsptest.Script{
		{"qMemoryRegionInfo:1234", "start:1000;size:2000;permissions:rx;"},
		{"qMemoryRegionInfo:3000", "start:3000;size:1000;permissions:rw;"},
		{"qMemoryRegionInfo:4000", "start:4000;size:ffffffffffffc000;"},
		{"qMemoryRegionInfo:0", "start:0;size:ffffffffffffffff;"},
		{"qMemoryRegionInfo:5", "E01"},
		{"qMemoryRegionInfo:x", "E22"},
		{"qMemoryRegionInfo", ""},
	}.Run(t, dial(t, m, rsp.Config{}, gdb13))
	rsptest.Script{{"qMemoryRegionInfo:0", ""}}.Run(t, dial(t, rsptest.NewTarget(1), rsp.Config{}, gdb13))
}

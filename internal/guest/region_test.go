package guest_test

import (
	"testing"

	"gdbserver-xen/xen"
)

func TestRegion(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		f.pt.MapPage(text, nil)
		f.pt.MapPage(text+xen.PageSize, nil)
		f.pt.MapPage(0x400000, nil)
		g := f.attach(t)
		for _, tt := range []struct {
			addr, start, last uint64
			mapped            bool
		}{
			{text + 5, text, text + 2*xen.PageSize - 1, true},
			{0x400000, 0x400000, 0x400fff, true},
			{0x401234, 0x401000, text - 1, false}, // over the addresses that are not canonical
		} {
			r, err := g.Region(0, tt.addr)
			if err != nil || r.Start != tt.start || r.Last != tt.last || r.Mapped != tt.mapped {
				t.Errorf("%#x: got %+v, %v, want %+v", tt.addr, r, err, tt)
			}
		}
		if _, err := g.Region(7, text); err == nil {
			t.Error("a vCPU that is not there has memory")
		}
	})
}

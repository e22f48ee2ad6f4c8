package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Page tables of a guest are the guest's to write. Whatever they hold and
// whatever is asked: no panic, no frame of another domain, no byte beyond what
// was asked, and nothing stays mapped.
func FuzzHostilePageTables(f *testing.F) {
	entry := func(frame uint64) []byte { return binary.LittleEndian.AppendUint64(nil, frame<<12|7) }
	at := func(b []byte, offset int) []byte { return append(make([]byte, offset), b...) }
	f.Add(uint8(0), uint64(0), uint16(64), []byte{}, []byte{1})
	f.Add(uint8(0), uint64(0), uint16(9000), entry(fuzzFrame), []byte("tables that are their own"))
	f.Add(uint8(1), uint64(0), uint16(9000), entry(fuzzFrame), []byte{1})
	f.Add(uint8(1), uint64(0), uint16(64), entry(fuzzFrame|1<<40), []byte{1})
	f.Add(uint8(2), uint64(0x1000), uint16(64), entry(fuzzFrame), []byte{1})
	f.Add(uint8(3), uint64(0), uint16(4097), entry(fuzzFrame), []byte{1})
	f.Add(uint8(4), uint64(0xfff), uint16(4097), []byte{}, bytes.Repeat([]byte{1}, 5000))
	f.Add(uint8(0), ^uint64(0)-100, uint16(1000), at(entry(fuzzFrame), 4088), []byte{1, 2, 3})
	f.Add(uint8(0), uint64(0), uint16(5000), append(entry(fuzzFrame), entry(fuzzOther)...), []byte{1})
	f.Add(uint8(0), uint64(0x1000), uint16(64), append(entry(fuzzFrame), entry(fuzzOther)...), []byte{1})
	f.Add(uint8(1), uint64(0xffe), uint16(64), append(entry(fuzzFrame), entry(fuzzFrame+1)...), entry(fuzzOther))
	f.Add(uint8(1), uint64(0), uint16(64), bytes.Repeat(entry(0x40000|1<<7>>12), 512), []byte{1}) // large pages
	f.Fuzz(func(t *testing.T, mode uint8, addr uint64, length uint16, tables, data []byte) {
		x := xentest.New(t, xentest.Config{})
		config := xentest.DomainConfig{ID: 3, Kind: xen.HVM}
		paging := x86.FourLevel
		switch mode % 6 {
		case 0:
			config.Kind = xen.PV
		case 1:
		case 2:
			paging = x86.PAE
		case 3:
			paging = x86.TwoLevel4M
		case 4:
			paging = x86.Unpaged
		case 5:
			paging = x86.FiveLevel
		}
		d := x.AddDomain(config)
		other := x.AddDomain(xentest.DomainConfig{ID: 4, Kind: config.Kind})
		pt := d.NewPageTables(paging)
		d.UsePageTables(pt)
		// Three frames of hostile bytes, the last of them the root: the same in
		// all, or the input in pieces if it is long.
		frames := []uint64{fuzzFrame, fuzzFrame + 1, pt.CR3() >> 12}
		d.AllocAt(fuzzFrame)
		d.AllocAt(fuzzFrame + 1)
		for i, frame := range frames {
			from := 0
			if len(tables) > xen.PageSize {
				from = min(len(tables), (i+1)%3*xen.PageSize)
			}
			copy(d.Frame(frame), tables[from:])
		}
		// A frame next to them belongs to somebody else.
		secret := bytes.Repeat([]byte("secret! "), xen.PageSize/8)
		other.AllocAt(fuzzOther)
		copy(other.Frame(fuzzOther), secret)

		g, err := guest.Attach(x.Host(), 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		room := bytes.Repeat([]byte{0xa5}, int(length)+16)
		p := room[:length]
		n, err := g.Read(0, addr, p)
		switch {
		case n < 0 || n > len(p):
			t.Errorf("read %d bytes of %d", n, len(p))
		case err != nil && (n != 0 || !errors.Is(err, guest.ErrUnmapped)):
			t.Errorf("read %d bytes, %v", n, err)
		case err == nil && n == 0 && len(p) > 0:
			t.Error("read nothing, and no error")
		case bytes.Contains(p[:max(n, 0)], []byte("secret! ")) && !bytes.Contains(tables, []byte("secret! ")) && !bytes.Contains(data, []byte("secret! ")):
			t.Error("read another domain's memory")
		}
		if !bytes.Equal(room[length:], bytes.Repeat([]byte{0xa5}, 16)) {
			t.Error("wrote beyond the buffer")
		}

		var before [][]byte
		for _, frame := range frames {
			before = append(before, bytes.Clone(d.Frame(frame)))
		}
		if err := g.Write(0, addr, data); err != nil {
			for i, frame := range frames {
				if !bytes.Equal(d.Frame(frame), before[i]) {
					t.Errorf("a write that failed changed frame %#x: %v", frame, err)
				}
			}
		}
		if !bytes.Equal(other.Frame(fuzzOther), secret) {
			t.Error("wrote another domain's memory")
		}
		// Again, with warm caches and tables that may have changed.
		if again, err := g.Read(0, addr, p); again > len(p) || again < 0 || err != nil && again != 0 {
			t.Errorf("second read: %d bytes of %d, %v", again, len(p), err)
		}
		for _, c := range x.MapCalls() {
			if c.Domain != 3 {
				t.Errorf("mapped frames of domain %d", c.Domain)
			}
		}
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if n := x.Mapped(); n != 0 {
			t.Errorf("%d mappings are left", n)
		}
	})
}

// Frames of the fuzz target: of the guest, and of another domain.
const (
	fuzzFrame = 0x3000
	fuzzOther = 0x3002
)

package guest_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// pattern gives n bytes that tell their place.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed + i + i/251)
	}
	return b
}

func TestRead(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		want := pattern(1, 3*xen.PageSize)
		for i := range 3 {
			f.pt.MapPage(text+uint64(i)*xen.PageSize, want[i*xen.PageSize:][:xen.PageSize])
		}
		last := pattern(9, xen.PageSize)
		f.pt.MapPage(^uint64(0), last)
		f.pt.MapPage(0, pattern(5, xen.PageSize))
		f.pt.MapPage(0x00007ffffffff000, pattern(6, xen.PageSize))

		tests := []struct {
			name string
			addr uint64
			n    int
			want []byte
		}{
			{"nothing", text, 0, nil},
			{"first byte", text, 1, want[:1]},
			{"within a page", text + 100, 50, want[100:150]},
			{"last byte of a page", text + 0xfff, 1, want[0xfff:0x1000]},
			{"over an edge", text + 0xffe, 4, want[0xffe:0x1002]},
			{"a whole page", text + 0x1000, 0x1000, want[0x1000:0x2000]},
			{"all pages", text, 0x3000, want},
			{"over two edges", text + 0xfff, 0x1002, want[0xfff:0x2001]},
			{"into a hole", text + 0x2ff0, 0x100, want[0x2ff0:]},
			{"up to a hole", text + 0x2ff0, 0x10, want[0x2ff0:]},
			{"to the end of the address space", 0xfffffffffffffff0, 16, last[0xff0:]},
			{"beyond the end of the address space", 0xfffffffffffffff0, 32, last[0xff0:]},
			{"last byte of the address space", ^uint64(0), 2, last[0xfff:]},
			{"from the last page and on", 0xfffffffffffff000, 0x3000, last},
			{"address 0", 0, 4, pattern(5, 4)},
			{"to where addresses are not canonical", 0x00007ffffffffff8, 16, pattern(6, xen.PageSize)[0xff8:]},
		}
		g := f.attach(t)
		// Cold, warm, and with the caches dropped in between.
		for round := range 3 {
			for _, tt := range tests {
				p := make([]byte, tt.n)
				n, err := g.Read(0, tt.addr, p)
				if err != nil || !bytes.Equal(p[:n], tt.want) {
					t.Errorf("round %d, %s: %d bytes, want %d, right: %v, %v", round, tt.name, n, len(tt.want), bytes.Equal(p[:n], tt.want), err)
				}
				if slices.ContainsFunc(p[n:], func(b byte) bool { return b != 0 }) {
					t.Errorf("%s: bytes after the end are written", tt.name)
				}
			}
			if round == 1 {
				if err := errors.Join(g.Resume(), g.Pause()); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// What cannot be read gives an error that says at which level, or which frame.
func TestReadErrors(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		frameName := map[xen.Kind]string{xen.PV: "mfn", xen.PVH: "gfn"}[kind]
		f := newFixture(t, kind, 1)
		f.pt.MapPage(text, nil)
		f.pt.Map(text+0x1000, 0x3ff00, xen.PageSize) // no such frame
		paged := f.pt.MapPage(text+0x2000, nil)
		f.d.FailMapping(paged, unix.ENOENT)
		const noTable = 0xffff888000000000
		f.pt.SetEntry(noTable, 2, 0x3ff01<<12|1)
		tests := []struct {
			addr uint64
			text string
		}{
			{0x1000, "memory is not mapped: walk 0x1000 (4-level): PML4E 0x0: not present"},
			{text + 1<<30, "memory is not mapped: walk 0xffffffffc1000000 (4-level): PDPTE 0x0: not present"},
			{text + 1<<21, "memory is not mapped: walk 0xffffffff81200000 (4-level): PDE 0x0: not present"},
			{text + 0x5000, "memory is not mapped: walk 0xffffffff81005000 (4-level): PTE 0x0: not present"},
			{0x800000000000, "memory is not mapped: walk 0x800000000000 (4-level): address is not canonical"},
			{text + 0x1008, fmt.Sprintf("memory is not mapped: 0xffffffff81001008: map %s 0x3ff00: no such frame: invalid argument", frameName)},
			{text + 0x2000, fmt.Sprintf("memory is not mapped: 0xffffffff81002000: map %s %#x: frame is paged out: no such file or directory", frameName, paged)},
			{noTable, fmt.Sprintf("memory is not mapped: walk 0xffff888000000000 (4-level): PTE 0x3ff01001: table cannot be read: map %s 0x3ff01: no such frame: invalid argument", frameName)},
		}
		g := f.attach(t)
		for range 2 {
			for _, tt := range tests {
				n, err := g.Read(0, tt.addr, make([]byte, 8))
				if n != 0 || !errors.Is(err, guest.ErrUnmapped) || err.Error() != tt.text {
					t.Errorf("read %#x: %d, %v\nwant %s", tt.addr, n, err, tt.text)
				}
				if err := g.Write(0, tt.addr, []byte{1}); err == nil {
					t.Errorf("write %#x succeeds", tt.addr)
				}
			}
		}
		// Failures leave nothing mapped that is of no use: tables and one page.
		if n := f.Mapped(); n > 8 {
			t.Errorf("%d mappings are held", n)
		}
		// The frame comes back in: no failure is remembered.
		f.d.FailMapping(paged, 0)
		if _, err := g.Read(0, text+0x2000, make([]byte, 8)); err != nil {
			t.Error(err)
		}
	})
}

// An unreadable page beyond the first ends a read there, also one within a batch
// whose other frames can be mapped.
func TestReadEndsAtUnmappableFrame(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		want := pattern(3, 5*xen.PageSize)
		for i := range 5 {
			f.pt.MapPage(text+uint64(i)*xen.PageSize, want[i*xen.PageSize:][:xen.PageSize])
		}
		f.d.Free(f.pt.Entry(text+3*xen.PageSize, 3) &^ (1<<63 | 0xfff) >> 12)
		g := f.attach(t)
		for range 2 {
			p := make([]byte, len(want))
			if n, err := g.Read(0, text+8, p); err != nil || !bytes.Equal(p[:n], want[8:3*xen.PageSize]) {
				t.Errorf("%d bytes, %v, want %d", n, err, 3*xen.PageSize-8)
			}
			if n, err := g.Read(0, text+4*xen.PageSize, p[:8]); err != nil || !bytes.Equal(p[:n], want[4*xen.PageSize:][:8]) {
				t.Errorf("after the hole: %d, %v", n, err)
			}
		}
	})
}

func TestHVMSuperpages(t *testing.T) {
	f := newFixture(t, xen.HVM, 1)
	const two, one = 0xffff888040000000, 0xffff888080000000
	f.pt.Map(two, 0x200, 2<<20)     // gfns 0x200 to 0x3ff
	f.pt.Map(one, 0x40000, 1<<30)   // gfns 0x40000 to 0x7ffff
	f.pt.Map(one+1<<30, 0x2, 4<<10) // and a plain one after
	for gfn, seed := range map[uint64]int{0x200: 1, 0x2ff: 2, 0x300: 3, 0x3ff: 4, 0x40000: 5, 0x7ffff: 6, 2: 7} {
		f.d.AllocAt(gfn)
		copy(f.d.Frame(gfn), pattern(seed, xen.PageSize))
	}
	g := f.attach(t)
	for _, tt := range []struct {
		addr uint64
		want []byte
	}{
		{two, pattern(1, 16)},
		{two + 0xff<<12 + 0xff8, append(slices.Clone(pattern(2, xen.PageSize)[0xff8:]), pattern(3, 8)...)},
		{two + 0x1ff<<12 + 0xff8, pattern(4, xen.PageSize)[0xff8:]}, // nothing after it
		{one, pattern(5, 16)},
		{one + 1<<30 - 8, append(slices.Clone(pattern(6, xen.PageSize)[0xff8:]), pattern(7, 8)...)},
	} {
		p := make([]byte, 16)
		if n, err := g.Read(0, tt.addr, p); err != nil || !bytes.Equal(p[:n], tt.want) {
			t.Errorf("%#x: % x, %v, want % x", tt.addr, p[:n], err, tt.want)
		}
	}
	if err := g.Write(0, one+1<<30-2, []byte("edge")); err != nil {
		t.Fatal(err)
	}
	if got := string(f.d.Frame(0x7ffff)[0xffe:]) + string(f.d.Frame(2)[:2]); got != "edge" {
		t.Errorf("a write over the edge of two pages gives %q", got)
	}
}

// HVM guests page as their control registers say.
func TestHVMModes(t *testing.T) {
	for _, mode := range []x86.Mode{x86.Unpaged, x86.TwoLevel, x86.TwoLevel4M, x86.PAE, x86.FourLevel} {
		t.Run(mode.String(), func(t *testing.T) {
			x := xentest.New(t, xentest.Config{})
			d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.HVM})
			pt := d.NewPageTables(mode)
			d.UsePageTables(pt)
			const va = 0x7654_3000
			if mode == x86.Unpaged {
				d.AllocAt(va >> 12)
				copy(d.Frame(va>>12), "here")
			} else {
				pt.MapPage(va, []byte("here"))
			}
			f := &fixture{x, d, pt}
			g := f.attach(t)
			p := make([]byte, 4)
			if _, err := g.Read(0, va, p); err != nil || string(p) != "here" {
				t.Errorf("read %q, %v", p, err)
			}
		})
	}
}

func TestAliases(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		frame := f.pt.MapPage(text, []byte("old"))
		f.pt.Map(0x400000, frame, xen.PageSize)
		f.pt.Map(0x401000, frame, xen.PageSize)
		g := f.attach(t)
		p := make([]byte, 3)
		if _, err := g.Read(0, 0x400000, p); err != nil || string(p) != "old" {
			t.Fatalf("read %q, %v", p, err)
		}
		if err := g.Write(0, text, []byte("new")); err != nil {
			t.Fatal(err)
		}
		for _, addr := range []uint64{text, 0x400000, 0x401000} {
			if _, err := g.Read(0, addr, p); err != nil || string(p) != "new" {
				t.Errorf("%#x holds %q, %v", addr, p, err)
			}
		}
		// A write over both aliases: the second part wins.
		if err := g.Write(0, 0x400000, pattern(1, 2*xen.PageSize)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.d.Frame(frame), pattern(1, 2*xen.PageSize)[xen.PageSize:]) {
			t.Error("frame does not hold the second part")
		}
	})
}

func TestWrite(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		const size = 3 * xen.PageSize
		var frames []uint64
		for i := range 3 {
			frames = append(frames, f.pt.MapPage(text+uint64(i)*xen.PageSize, nil))
		}
		last := f.pt.MapPage(^uint64(0), nil)
		memory := func() []byte {
			var b []byte
			for _, frame := range frames {
				b = append(b, f.d.Frame(frame)...)
			}
			return b
		}
		g := f.attach(t)
		for _, r := range [][2]int{{0, 1}, {0, 0}, {4095, 1}, {4095, 2}, {100, 8}, {0, 4096}, {4096, 4096}, {1, size - 2}, {0, size}} {
			want := memory()
			data := pattern(r[0]+r[1], r[1])
			copy(want[r[0]:], data)
			if err := g.Write(0, text+uint64(r[0]), data); err != nil {
				t.Fatalf("%v: %v", r, err)
			}
			if !bytes.Equal(memory(), want) {
				t.Fatalf("%v: memory is not as written", r)
			}
			p := make([]byte, size)
			if _, err := g.Read(0, text, p); err != nil || !bytes.Equal(p, want) {
				t.Fatalf("%v: what is read is not what was written, %v", r, err)
			}
		}
		if err := g.Write(0, ^uint64(0)-1, []byte{1, 2}); err != nil {
			t.Error(err)
		}
		if got := f.d.Frame(last)[0xffe:]; got[0] != 1 || got[1] != 2 {
			t.Errorf("end of the address space holds % x", got)
		}
	})
}

// A write that cannot be done in full is not begun, and says where it stuck.
func TestWriteAllOrNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		var frames []uint64
		for i := range 4 {
			frames = append(frames, f.pt.MapPage(text+uint64(i)*xen.PageSize, pattern(i, xen.PageSize)))
		}
		const hole, absent = text + 4*xen.PageSize, text + 8*xen.PageSize
		f.d.FailMapping(frames[1], unix.EBUSY)
		f.d.FailMapping(f.pt.MapPage(absent, nil), unix.EINVAL)
		f.pt.MapPage(^uint64(0), pattern(7, xen.PageSize))
		low := f.pt.MapPage(0, pattern(8, xen.PageSize))
		f.d.FailMapping(low, unix.EBUSY)
		tests := []struct {
			name string
			addr uint64
			n    int
			is   error
			at   string
		}{
			{"no frame", absent + 16, 8, guest.ErrUnmapped, "write 0xffffffff81008010: "},
			{"hole in the second page", hole - 4, 8, guest.ErrUnmapped, "write 0xffffffff81004000: "},
			{"hole", hole + 16, 8, guest.ErrUnmapped, "write 0xffffffff81004010: "},
			{"busy frame", text + 0x1010, 8, xen.ErrFrameBusy, "write 0xffffffff81001010: "},
			{"busy frame second", text + 0xff8, 16, xen.ErrFrameBusy, "write 0xffffffff81001000: "},
			{"busy frame in between", text + 8, 0x2100, xen.ErrFrameBusy, "write 0xffffffff81001000: "},
			{"over the end of the address space", ^uint64(0) - 3, 8, guest.ErrUnmapped, "write 0xfffffffffffffffc: "},
		}
		g := f.attach(t)
		check := func() {
			t.Helper()
			for i, frame := range frames {
				if !bytes.Equal(f.d.Frame(frame), pattern(i, xen.PageSize)) {
					t.Errorf("page %d was written", i)
				}
			}
			if !bytes.Equal(f.d.Frame(low), pattern(8, xen.PageSize)) {
				t.Error("page 0 was written")
			}
		}
		for _, tt := range tests {
			err := g.Write(0, tt.addr, bytes.Repeat([]byte{0xcc}, tt.n))
			if !errors.Is(err, tt.is) || !strings.HasPrefix(err.Error(), tt.at) {
				t.Errorf("%s: %v, want %v at %q", tt.name, err, tt.is, tt.at)
			}
			check()
		}
		// So with a mapping that fails as a whole.
		if _, err := g.Read(0, text, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		f.Fail(xentest.OpMap, 1, unix.ENOMEM)
		if err := g.Write(0, text+8, []byte{0xcc}); !errors.Is(err, unix.ENOMEM) || !strings.HasPrefix(err.Error(), "write 0xffffffff81000008: ") {
			t.Errorf("mapping fails: %v", err)
		}
		check()
		for _, c := range f.MapCalls() {
			if c.Write && c.Domain != 3 {
				t.Errorf("mapped frames of domain %d", c.Domain)
			}
		}
	})
}

// For a step, frames that were written for it stay mapped for writing, but none that
// the client has written.
func TestWritableMappingForStep(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	g := f.attach(t)
	plant, err := g.Plant(0, text, []byte{guest.Int3})
	if err != nil {
		t.Fatal(err)
	}
	mapped := func(step func() error) int {
		t.Helper()
		before := f.Mapped()
		for _, do := range []func() error{step, g.ResumeStep, g.Pause} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		return f.Mapped() - before
	}
	if n := mapped(func() error { return nil }); n != -1 {
		t.Errorf("what was planted in: %d mappings more", n)
	}
	if n := mapped(func() error { return g.Lift(plant) }); n != 1 {
		t.Errorf("what was lifted in: %d mappings more, want 1", n)
	}
	if n := mapped(func() error { return g.Replant(plant) }); n != 0 {
		t.Errorf("planted in again: %d mappings more", n)
	}
	if n := mapped(func() error { return g.Write(0, text+8, []byte{1}) }); n != -1 {
		t.Errorf("what the client wrote to: %d mappings more", n)
	}
	if err := g.ReleaseFrames(); err != nil || f.Mapped() != 0 {
		t.Errorf("%d mappings are left, %v", f.Mapped(), err)
	}
}

// Frames are mapped writable once, and until the guest runs only.
func TestWritableMappingIsShort(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	g := f.attach(t)
	if err := g.Write(0, text, []byte{1}); err != nil {
		t.Fatal(err)
	}
	held := f.Mapped()
	if err := g.Write(0, text, []byte{2}); err != nil {
		t.Fatal(err)
	}
	if n := f.Mapped(); n != held {
		t.Errorf("%d mappings after the second write, %d after the first", n, held)
	}
	writes := 0
	for _, c := range f.MapCalls() {
		if c.Write {
			writes++
		}
	}
	if writes != 1 {
		t.Errorf("mapped for writing %d times for two writes of a page", writes)
	}
	if err := g.ResumeBriefly(); err != nil {
		t.Fatal(err)
	}
	if n := f.Mapped(); n != held-1 {
		t.Errorf("%d mappings are left of %d while the guest runs", n, held)
	}
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	// Many pages, one at a time, do not pile up.
	for i := range uint64(20) {
		f.pt.MapPage(text+0x1000*(i+1), nil)
		if err := g.Write(0, text+0x1000*(i+1), []byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Mapped(); n > held+8 {
		t.Errorf("%d mappings after writes to 20 pages", n)
	}
	for _, c := range f.MapCalls() {
		if !c.Write && slices.Contains(c.Frames, f.pt.Entry(text, 3)<<1>>13) {
			t.Error("the page was mapped for reading and stays so")
		}
	}
}

// A write to a page table is seen by later translations. (In a PV guest page
// tables cannot be written.)
func TestWriteToPageTable(t *testing.T) {
	f := newFixture(t, xen.HVM, 1)
	f.pt.MapPage(text, []byte("first"))
	other := f.d.Alloc()
	copy(f.d.Frame(other), "other")
	const tables = 0xffff888000000000
	f.pt.Map(tables, f.pt.Table(text, 3), xen.PageSize)
	g := f.attach(t)
	p := make([]byte, 5)
	if _, err := g.Read(0, text, p); err != nil || string(p) != "first" {
		t.Fatalf("read %q, %v", p, err)
	}
	entry := other<<12 | xentest.EntryPresent
	var b []byte
	for i := range 8 {
		b = append(b, byte(entry>>(8*i)))
	}
	if err := g.Write(0, tables, b); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Read(0, text, p); err != nil || string(p) != "other" {
		t.Errorf("after the entry was changed: %q, %v", p, err)
	}
	if err := g.Write(0, tables, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Read(0, text, p); !errors.Is(err, guest.ErrUnmapped) {
		t.Errorf("after the entry was cleared: %q, %v", p, err)
	}
}

func TestPVPageTableCannotBeWritten(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	const tables = 0xffff888000000000
	table := f.pt.Table(text, 3)
	f.pt.Map(tables, table, xen.PageSize)
	before := bytes.Clone(f.d.Frame(table))
	g := f.attach(t)
	if err := g.Write(0, tables, make([]byte, 8)); !errors.Is(err, xen.ErrFrameBusy) {
		t.Errorf("got %v, want ErrFrameBusy", err)
	}
	p := make([]byte, xen.PageSize)
	if n, err := g.Read(0, tables, p); err != nil || !bytes.Equal(p[:n], before) {
		t.Errorf("page table reads otherwise than it is, %v", err)
	}
}

// A batch is mapped by one call, and not again while the guest is paused.
func TestOneMappingPerBatch(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 2)
		const pages = 64
		for i := range pages {
			f.pt.MapPage(text+uint64(i)*xen.PageSize, nil)
		}
		g := f.attach(t)
		count := func() int { return f.Calls(xentest.OpMap) }
		p := make([]byte, pages*xen.PageSize)
		if _, err := g.Read(0, text, p); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != 5 {
			t.Errorf("%d calls for a first read, want 4 for the tables and 1 for all pages", n)
		}
		for vcpu := range 2 { // both use the same tables
			for _, at := range []uint64{0, 5, 4096, 40000} {
				if _, err := g.Read(vcpu, text+at, p); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := count(); n != 5 {
			t.Errorf("%d calls after reads of the same, want 5 still", n)
		}
		if err := errors.Join(g.Resume(), g.Pause()); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Read(0, text, p); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != 10 {
			t.Errorf("%d calls after a resume, want 10", n)
		}
	})
}

// Sequential reads map ahead: 4 MB in pieces of 64 KB take few mappings.
func TestSequentialReads(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		const pages = 4 << 20 / xen.PageSize
		for i := range pages {
			f.pt.MapPage(text+uint64(i)*xen.PageSize, []byte{byte(i), byte(i >> 8)})
		}
		g := f.attach(t)
		p := make([]byte, 64<<10)
		for at := uint64(0); at < 4<<20; at += uint64(len(p)) {
			if n, err := g.Read(0, text+at, p); err != nil || n != len(p) {
				t.Fatalf("read at %#x: %d, %v", at, n, err)
			}
			for i := 0; i < len(p); i += xen.PageSize {
				page := (int(at) + i) / xen.PageSize
				if p[i] != byte(page) || p[i+1] != byte(page>>8) {
					t.Fatalf("page %d holds another's bytes", page)
				}
			}
		}
		if n := f.Calls(xentest.OpMap); n >= 34 {
			t.Errorf("%d mappings, want fewer than 34", n)
		}
		// No page is mapped twice.
		seen := map[uint64]bool{}
		for _, c := range f.MapCalls() {
			for _, frame := range c.Frames {
				if seen[frame] {
					t.Fatalf("frame %#x is mapped twice", frame)
				}
				seen[frame] = true
			}
		}
	})
}

// Without paging every address translates, so what is mapped ahead may not be
// there: reads that run into the end of memory do not ask for ever more of it.
func TestNoMapAheadWhereNothingIs(t *testing.T) {
	f := newFixture(t, xen.PVH, 1)
	f.d.VCPU(0).Context.ControlRegs[0] &^= x86.CR0PG
	last := f.d.Alloc()
	end := (last + 1) * xen.PageSize
	g := f.attach(t)
	if _, err := g.Read(0, end-4, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if n, err := g.Read(0, end-4, make([]byte, 8)); n != 4 || err != nil {
			t.Fatalf("read %d bytes, %v, want 4", n, err)
		}
	}
	asked := 0
	for _, c := range f.MapCalls() {
		asked += len(c.Frames)
	}
	if asked > 60 {
		t.Errorf("10 reads asked for %d frames, want at most 60", asked)
	}
}

// Mapping ahead ends with the address space: address 0 does not follow.
func TestMapAheadEndsWithAddressSpace(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(0xffffffffffffe000, nil)
	f.pt.MapPage(0xfffffffffffff000, []byte("last"))
	low := f.pt.MapPage(0, nil)
	g := f.attach(t)
	p := make([]byte, xen.PageSize)
	for _, addr := range []uint64{0xffffffffffffe000, 0xfffffffffffff000} {
		if n, err := g.Read(0, addr, p); err != nil || n != len(p) {
			t.Errorf("%#x: %d, %v", addr, n, err)
		}
	}
	for _, c := range f.MapCalls() {
		if slices.Contains(c.Frames, low) {
			t.Error("page 0 was mapped")
		}
	}
}

// Reads here and there map no more than they need.
func TestScatteredReadsDoNotMapAhead(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	for i := range 64 {
		f.pt.MapPage(text+uint64(i)*xen.PageSize, nil)
	}
	g := f.attach(t)
	for _, i := range []uint64{40, 3, 17, 60, 9} {
		if _, err := g.Read(0, text+i*xen.PageSize, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if s := g.Stats(); s.Frames != 4+5 {
		t.Errorf("%d frames mapped, want 4 tables and 5 pages", s.Frames)
	}
}

// Sparse reads of much memory keep the number of mappings bounded: the kernel
// allows a process no more than 65530 areas.
func TestMappingsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: not with -short")
	}
	f := newFixture(t, xen.PV, 1)
	frame := make([]uint64, 0, 9000)
	for i := range cap(frame) {
		frame = append(frame, f.pt.MapPage(text+uint64(2*i)*xen.PageSize, []byte{byte(i), byte(i >> 8)}))
	}
	g := f.attach(t)
	p := make([]byte, 2)
	for i := range frame {
		if _, err := g.Read(0, text+uint64(2*i)*xen.PageSize, p); err != nil || p[0] != byte(i) || p[1] != byte(i>>8) {
			t.Fatalf("page %d holds % x, %v", i, p, err)
		}
	}
	if n := f.Mapped(); n > 8500 {
		t.Errorf("%d mappings are held", n)
	}
}

// What is cached dies with the pause: the guest changes its tables and its
// registers while it runs.
func TestCachesDieOnResume(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		f.pt.MapPage(text, []byte("before"))
		f.d.VCPU(0).Context.RIP = text
		g := f.attach(t)
		p := make([]byte, 6)
		read := func(addr uint64) string {
			t.Helper()
			if _, err := g.Read(0, addr, p); err != nil {
				return err.Error()
			}
			return string(p)
		}
		rip := func() uint64 {
			t.Helper()
			r, err := g.Registers(0)
			if err != nil {
				t.Fatal(err)
			}
			return r.RIP
		}
		if got := read(text); got != "before" || rip() != text {
			t.Fatalf("read %q, rip %#x", got, rip())
		}
		if f.Mapped() == 0 {
			t.Fatal("nothing is cached")
		}
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
		if n := f.Mapped(); n != 0 {
			t.Errorf("%d mappings are left after Resume", n)
		}
		f.pt.MapPage(text, []byte("moved!"))
		f.d.VCPU(0).Context.RIP = text + 5
		if err := g.Pause(); err != nil {
			t.Fatal(err)
		}
		if got := read(text); got != "moved!" || rip() != text+5 {
			t.Errorf("after running: %q, rip %#x", got, rip())
		}
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
		other := f.d.NewPageTables(x86.FourLevel)
		other.MapPage(text, []byte("other "))
		f.d.UsePageTables(other)
		if err := g.Pause(); err != nil {
			t.Fatal(err)
		}
		if got := read(text); got != "other " {
			t.Errorf("after a switch of tables: %q", got)
		}
	})
}

// Writing while the caches are warm, memory changed by others shows at once: a
// mapping is the memory itself.
func TestMappingsAreLive(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	frame := f.pt.MapPage(text, []byte("one"))
	g := f.attach(t)
	p := make([]byte, 3)
	if _, err := g.Read(0, text, p); err != nil {
		t.Fatal(err)
	}
	copy(f.d.Frame(frame), "two")
	if _, err := g.Read(0, text, p); err != nil || string(p) != "two" {
		t.Errorf("read %q, %v", p, err)
	}
}

// An error while dropping the caches is reported, and the guest runs on.
func TestUnmapFails(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	g := f.attach(t)
	if _, err := g.Read(0, text, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.Fail(xentest.OpUnmap, 1, unix.EINVAL)
	if err := g.Resume(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Resume gives %v, want EINVAL", err)
	}
	if n := f.d.Pauses(); n != 0 {
		t.Errorf("pause count %d, want 0", n)
	}
}

// A Reader reads on while the guest runs, and tells when its page tables have become
// something else.
func TestReader(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		want := pattern(3, xen.PageSize)
		f.pt.MapPage(text, want)
		g := f.attach(t)
		r, err := g.Reader(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, xen.PageSize)
		if n, err := r.Read(text, got); err != nil || n != len(got) || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		root := f.d.Frame(f.pt.CR3() / xen.PageSize)
		for _, tt := range []struct {
			change int // entry of the root
			want   bool
		}{{-1, false}, {0, false}, {511, true}} {
			f.Do(func() {
				if tt.change >= 0 {
					root[8*tt.change+1] ^= 0x10
				}
			})
			if outlived, err := r.Outlived(); err != nil || outlived != tt.want {
				t.Errorf("after a change of entry %d: outlived %v, %v", tt.change, outlived, err)
			}
		}
	})
}

// The hypervisor is told what was written, in time for a live migration to send it once
// more: what was planted when it is taken back, all else at the detach.
func TestModifiedFrames(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		var pages [5]uint64
		for i := range pages {
			pages[i] = f.pt.MapPage(text+uint64(i)*xen.PageSize, pattern(i, xen.PageSize))
		}
		g := f.attach(t)
		told := func() (list [5]bool) {
			for i, p := range pages {
				list[i] = f.d.Modified(p)
			}
			return list
		}
		if _, err := g.Plant(0, text+5, []byte{guest.Int3}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Read(0, text+xen.PageSize, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if err := g.Disarm(); err != nil {
			t.Fatal(err)
		}
		if got, want := told(), [5]bool{true}; got != want {
			t.Errorf("told of %v after the breakpoint was taken back, want %v", got, want)
		}
		if err := g.Write(0, text+3*xen.PageSize-4, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := g.Detach(); err != nil {
			t.Fatal(err)
		}
		if got, want := told(), [5]bool{true, false, true, true}; got != want {
			t.Errorf("told of %v after the detach, want %v", got, want)
		}
		if f.d.Pauses() != 0 {
			t.Errorf("the domain is paused %d times", f.d.Pauses())
		}
	})
}

// So it is of a breakpoint that was lifted when the server was killed.
func TestModifiedFramesTakenOver(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		frame := f.pt.MapPage(text, pattern(1, xen.PageSize))
		ledger, err := guest.NewLedger(make([]byte, guest.LedgerSize))
		if err != nil {
			t.Fatal(err)
		}
		g, err := guest.Attach(f.Host(), 3, ledger)
		if err != nil {
			t.Fatal(err)
		}
		plant, err := g.Plant(0, text+5, []byte{guest.Int3})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Lift(plant); err != nil {
			t.Fatal(err)
		}
		f.ReleaseMappings()
		heir, err := guest.TakeOver(f.Host(), ledger)
		if err != nil {
			t.Fatal(err)
		}
		if err := heir.Detach(); err != nil || !f.d.Modified(frame) || !bytes.Equal(f.d.Frame(frame), pattern(1, xen.PageSize)) {
			t.Errorf("detach: %v; told: %v", err, f.d.Modified(frame))
		}
	})
}

// That the hypervisor cannot be told is said, and holds up nothing.
func TestModifiedFramesUntold(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 1)
		frame := f.pt.MapPage(text, pattern(1, xen.PageSize))
		g := f.attach(t)
		if _, err := g.Plant(0, text+5, []byte{guest.Int3}); err != nil {
			t.Fatal(err)
		}
		f.FailAlways(xentest.OpMMUUpdate, unix.EPERM)
		f.FailAlways(xentest.OpModifiedMemory, unix.EPERM)
		if err := g.Detach(); !errors.Is(err, unix.EPERM) {
			t.Errorf("got error %v, want EPERM", err)
		}
		if f.d.Pauses() != 0 || f.d.Modified(frame) || !bytes.Equal(f.d.Frame(frame), pattern(1, xen.PageSize)) {
			t.Error("the guest is not given back")
		}
		f.ClearFaults()
	})
}

package xentest_test

import (
	"bytes"
	"errors"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// faults tells whether reading a byte faults.
func faults(p *byte) (yes bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { yes = recover() != nil }()
	runtime.KeepAlive(*p)
	return false
}

func TestMappingIsAlias(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 1, Kind: xen.PVH})
	a, b := d.Alloc(), d.Alloc()
	c := x.Transport()
	defer c.Close()

	errs := make([]int32, 4)
	mem, err := c.Map(1, []uint64{b, 0x999999, a, b}, errs, true)
	if err != nil {
		t.Fatal(err)
	}
	if want := [4]int32{0, -int32(unix.EINVAL), 0, 0}; [4]int32(errs) != want {
		t.Fatalf("errnos %v, want %v", errs, want)
	}
	copy(mem[2*xen.PageSize:], "to a")
	copy(mem, "to b")
	if got := d.Frame(a)[:4]; string(got) != "to a" {
		t.Errorf("frame holds %q", got)
	}
	if got := mem[3*xen.PageSize:][:4]; string(got) != "to b" {
		t.Errorf("alias holds %q", got)
	}
	hole, first := &mem[xen.PageSize], &mem[0]
	if !faults(hole) {
		t.Error("a frame that is not mapped can be read")
	}
	if faults(first) {
		t.Error("a mapped frame faults")
	}
	if err := c.Unmap(mem); err != nil {
		t.Fatal(err)
	}
	if !faults(first) {
		t.Error("an unmapped frame can be read")
	}
}

func TestReadOnlyMappingFaultsOnWrite(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 1, Kind: xen.PV})
	c := x.Transport()
	defer c.Close()
	mem, err := c.Map(1, []uint64{d.Alloc()}, make([]int32, 1), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Unmap(mem)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() == nil {
			t.Error("a mapping for reading can be written")
		}
	}()
	mem[0] = 1
}

func TestLeaks(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 7, Kind: xen.PV})
	h := x.Host()
	if leaks := x.Leaks(); leaks != nil {
		t.Fatalf("leaks before anything was done: %q", leaks)
	}
	if err := h.Pause(7); err != nil {
		t.Fatal(err)
	}
	m, err := h.MapMachineFrames(7, []xen.MFN{xen.MFN(d.Alloc()), 1}, false)
	if err != nil {
		t.Fatal(err)
	}
	leaks := x.Leaks()
	if len(leaks) != 2 || !strings.HasPrefix(leaks[0], "2 frames of domain 7 are still mapped") ||
		leaks[1] != "domain 7: 1 pauses more than unpauses" {
		t.Errorf("leaks %q", leaks)
	}
	if err := errors.Join(m.Close(), h.Unpause(7)); err != nil {
		t.Fatal(err)
	}
	if leaks := x.Leaks(); leaks != nil {
		t.Errorf("leaks after all was undone: %q", leaks)
	}
}

func TestFail(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 7, Kind: xen.PV, Pauses: 9})
	h := x.Host()
	x.Fail(xentest.OpUnpauseDomain, 2, unix.ENOMEM)
	var got []bool
	for range 4 {
		_, err := h.DomainInfo(7) // not counted
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, errors.Is(h.Unpause(7), unix.ENOMEM))
	}
	if want := [4]bool{1: true}; [4]bool(got) != want {
		t.Errorf("failed calls %v, want %v", got, want)
	}
	if n := x.Calls(xentest.OpUnpauseDomain); n != 4 {
		t.Errorf("counted %d calls, want 4", n)
	}
	x.FailAlways(xentest.OpAny, unix.EPERM)
	for range 2 {
		if err := h.Pause(7); !errors.Is(err, unix.EPERM) {
			t.Errorf("got %v, want EPERM", err)
		}
	}
	x.ClearFaults()
	for range 3 {
		if err := h.Pause(7); err != nil {
			t.Fatal(err)
		}
	}
}

// Entries hold what the mapping call takes, in each kind of domain.
func TestPageTablesWalk(t *testing.T) {
	for _, mode := range []x86.Mode{x86.TwoLevel, x86.TwoLevel4M, x86.PAE, x86.FourLevel, x86.FiveLevel} {
		t.Run(mode.String(), func(t *testing.T) {
			x := xentest.New(t, xentest.Config{})
			d := x.AddDomain(xentest.DomainConfig{ID: 1, Kind: xen.HVM})
			pt := d.NewPageTables(mode)
			const va = 0x7fe0_1000
			f := pt.MapPage(va, []byte("here"))
			tr, err := x86.Walk(mode, x86.RootOf[xen.GFN](mode, pt.CR3()), va+2, x86.Tables[xen.GFN](tables{d}))
			if err != nil {
				t.Fatal(err)
			}
			if uint64(tr.Frame) != f || !tr.Writable || !tr.User {
				t.Errorf("walk gives %+v, want frame %#x", tr, f)
			}
			if !bytes.HasPrefix(d.Frame(f), []byte("here")) {
				t.Error("frame does not hold what was put there")
			}
		})
	}
}

type tables struct{ d *xentest.Domain }

func (t tables) Table(f xen.GFN) ([]byte, error) { return t.d.Frame(uint64(f)), nil }

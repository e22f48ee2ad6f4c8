package xen_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

func TestMapping(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	other := x.AddDomain(xentest.DomainConfig{ID: 4, Kind: xen.PV})
	good, busy, paged, foreign := d.Alloc(), d.Alloc(), d.Alloc(), other.Alloc()
	copy(d.Frame(good), "good")
	d.FailMapping(busy, unix.EBUSY)
	d.FailMapping(paged, unix.ENOENT)
	frames := []xen.MFN{xen.MFN(paged), xen.MFN(good), 0x3fffff, xen.MFN(busy), xen.MFN(foreign), xen.MFN(good)}
	h := x.Host()

	for _, write := range []bool{false, true} {
		m, err := h.MapMachineFrames(3, frames, write)
		if err != nil {
			t.Fatal(err)
		}
		if m.Len() != len(frames) {
			t.Errorf("length %d, want %d", m.Len(), len(frames))
		}
		want := []error{xen.ErrFramePaged, nil, xen.ErrBadFrame, nil, xen.ErrBadFrame, nil}
		if write {
			want[3] = xen.ErrFrameBusy
		}
		for i, w := range want {
			page, err := m.Page(i)
			if !errors.Is(err, w) || (err == nil) != (w == nil) || (page == nil) != (w != nil) {
				t.Errorf("write %v: page %d gives %d bytes, %v, want %v", write, i, len(page), err, w)
			}
			if err == nil && (len(page) != xen.PageSize || cap(page) != xen.PageSize) {
				t.Errorf("page %d has %d bytes, room for %d", i, len(page), cap(page))
			}
		}
		if page, _ := m.Page(1); string(page[:4]) != "good" {
			t.Errorf("page holds %q", page[:4])
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if page, err := m.Page(1); !errors.Is(err, unix.EBADF) || page != nil {
			t.Errorf("after Close, Page gives %v, %v", page, err)
		}
		if n := x.Mapped(); n != 0 {
			t.Errorf("%d mappings are left", n)
		}
	}
}

// A frame that is paged out is asked for until the pager has brought it in.
func TestMapPagedOut(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH})
	first, second := d.Alloc(), d.Alloc()
	copy(d.Frame(second), "back")
	for _, write := range []bool{false, true} {
		d.PageOut(second, 3)
		m, err := x.Host().MapGuestFrames(3, []xen.GFN{xen.GFN(first), xen.GFN(second)}, write)
		if err != nil {
			t.Fatal(err)
		}
		if page, err := m.Page(1); err != nil || string(page[:4]) != "back" {
			t.Errorf("write %v: %v", write, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := x.Calls(xentest.OpMap); n != 8 {
		t.Errorf("asked %d times, want 4 for each", n)
	}

	d.PageOut(second, 3)
	x.Fail(xentest.OpUnmap, 1, unix.EINVAL)
	if _, err := x.Host().MapGuestFrames(3, []xen.GFN{xen.GFN(second)}, false); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unmapping fails: %v", err)
	}
}

func TestMapNothing(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	m, err := x.Host().MapGuestFrames(3, nil, false)
	if err != nil || m.Len() != 0 {
		t.Fatalf("got %v, %v", m, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if n := x.Calls(xentest.OpMap); n != 0 {
		t.Errorf("%d calls, want none", n)
	}
}

func TestMapMissingDomain(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	m, err := x.Host().MapGuestFrames(9, []xen.GFN{1}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Page(0); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("got %v, want ErrNoDomain", err)
	}
}

func TestMapFails(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH})
	h := x.Host()
	x.Fail(xentest.OpMap, 1, unix.ENOMEM)
	if m, err := h.MapGuestFrames(3, []xen.GFN{xen.GFN(d.Alloc())}, false); !errors.Is(err, unix.ENOMEM) || m != nil {
		t.Errorf("got %v, %v, want ENOMEM", m, err)
	}
	m, err := h.MapGuestFrames(3, []xen.GFN{xen.GFN(d.Alloc())}, false)
	if err != nil {
		t.Fatal(err)
	}
	x.Fail(xentest.OpUnmap, 1, unix.EINVAL)
	if err := m.Close(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Close gives %v, want EINVAL", err)
	}
}

package xen

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// accepting is a hypervisor that takes one version.
func accepting(version uint32, asked *[]uint32) func(uint32) error {
	return func(v uint32) error {
		*asked = append(*asked, v)
		if v != version {
			return unix.EACCES
		}
		return nil
	}
}

func TestFindRelease(t *testing.T) {
	for i, release := range headerReleases {
		var asked []uint32
		version := uint32(header(t, release, "XEN_DOMCTL_INTERFACE_VERSION"))
		r, err := findRelease(4, 14+i, accepting(version, &asked))
		if err != nil {
			t.Errorf("Xen %s: %v", release, err)
			continue
		}
		if got := fmt.Sprintf("%d.%d", r.major, r.minor); got != release {
			t.Errorf("Xen %s is taken for %s", release, got)
		}
		if len(asked) != 1 {
			t.Errorf("Xen %s: asked for %#x, although the first is its own", release, asked)
		}
	}
}

// A release that carries another's interface has the other's layout.
func TestFindReleaseCarriedBack(t *testing.T) {
	var asked []uint32
	r, err := findRelease(4, 16, accepting(0x13, &asked))
	if err != nil || r.minor != 15 || r.info != info104 {
		t.Errorf("got %+v, %v, want that of 4.15", r, err)
	}
	seen := slices.Clone(asked)
	slices.Sort(seen)
	if len(slices.Compact(seen)) != len(asked) {
		t.Errorf("asked for %#x: some twice", asked)
	}
	if asked[0] != 0x14 {
		t.Errorf("asked for %#x: its own is to be first", asked)
	}
}

// A newer release may keep the newest interface that is known.
func TestFindReleaseNewerWithKnownInterface(t *testing.T) {
	var asked []uint32
	r, err := findRelease(4, 23, accepting(0x18, &asked))
	if err != nil || r.minor != 22 {
		t.Errorf("got %+v, %v, want the row of 4.22", r, err)
	}
}

func TestFindReleaseErrors(t *testing.T) {
	tests := []struct {
		name         string
		major, minor int
		answer       error
		is           []error
		isNot        []error
		text         string
	}{
		{"newer", 4, 30, unix.EACCES, []error{ErrVersion}, []error{ErrDenied},
			"hypervisor is Xen 4.30: interface version of this Xen is not known: a newer gdbserver-xen may know it"},
		{"older", 4, 13, unix.EACCES, []error{ErrVersion}, []error{ErrDenied},
			"hypervisor is Xen 4.13: interface version of this Xen is not known: a newer gdbserver-xen may know it"},
		{"known, but all refused", 4, 17, unix.EACCES, []error{ErrDenied}, nil,
			"hypervisor is Xen 4.17: the hypervisor refuses control calls: its XSM or FLASK policy must allow them to this domain, or interface version of this Xen is not known: a newer gdbserver-xen may know it"},
		{"not privileged", 4, 17, unix.EPERM, []error{unix.EPERM}, []error{ErrDenied, ErrVersion}, "operation not permitted"},
		{"no domctl", 4, 17, unix.ENOSYS, []error{unix.ENOSYS}, []error{ErrDenied, ErrVersion}, "function not implemented"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := findRelease(tt.major, tt.minor, func(uint32) error { return tt.answer })
			if err == nil {
				t.Fatal("no error")
			}
			for _, is := range tt.is {
				if !errors.Is(err, is) {
					t.Errorf("%v is not %v", err, is)
				}
			}
			for _, not := range tt.isNot {
				if errors.Is(err, not) {
					t.Errorf("%v is %v", err, not)
				}
			}
			if err.Error() != tt.text {
				t.Errorf("text %q\nwant %q", err, tt.text)
			}
		})
	}
}

func TestQuirks(t *testing.T) {
	tests := []struct {
		minor                int
		extra                string
		loses, stale, unsure bool
	}{
		{14, ".6", false, true, true},
		{16, ".7", false, true, true},
		{17, ".5", false, true, false},
		{17, ".6-pre", false, true, false},
		{18, ".0", false, true, false},
		{20, ".1", false, true, false},
		{20, ".4", false, false, false},
		{20, ".5-pre", false, false, false},
		{21, ".0", true, true, false},
		{21, ".1", true, true, false},
		{21, ".2", false, false, false},
		{21, ".2-pre", false, false, false},
		{21, ".10", false, false, false},
		{21, "-rc1", true, true, false},
		{21, "", true, true, false},
		{22, ".0", false, false, false},
	}
	for _, tt := range tests {
		v := Version{Major: 4, Minor: tt.minor, Extra: tt.extra}
		want := Quirks{ContextLosesR8toR15: tt.loses, SVMStaleCR2: tt.stale, DebugStopsUnsure: tt.unsure}
		if got := v.quirks(); got != want {
			t.Errorf("Xen %v: %+v, want %+v", v, got, want)
		}
	}
}

func TestKnownReleases(t *testing.T) {
	oldest, newest := KnownReleases()
	if oldest != headerReleases[0] || newest != headerReleases[len(headerReleases)-1] {
		t.Errorf("got %s to %s", oldest, newest)
	}
}

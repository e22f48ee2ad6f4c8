package xen_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

func TestOpenEveryRelease(t *testing.T) {
	versions := map[string][2]uint32{
		"4.14": {0x12, 0x13}, "4.15": {0x13, 0x13}, "4.16": {0x14, 0x14},
		"4.17": {0x15, 0x15}, "4.18": {0x16, 0x15}, "4.19": {0x17, 0x15},
		"4.20": {0x17, 0x15}, "4.21": {0x17, 0x16}, "4.22": {0x18, 0x16},
	}
	for _, release := range xentest.Releases() {
		t.Run(release, func(t *testing.T) {
			x := xentest.New(t, xentest.Config{Release: release, Extra: ".3-pre"})
			x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.HVM})
			h := x.Host()
			v := h.Version()
			if got := [2]uint32{v.Domctl, v.Sysctl}; got != versions[release] {
				t.Errorf("interface versions %#x, want %#x", got, versions[release])
			}
			if v.String() != release+".3-pre" {
				t.Errorf("version %v", v)
			}
			want := []string{"xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"}
			if diff := cmp.Diff(want, v.Capabilities); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
			// The layouts fit: the emulation flags moved in 4.16.
			if info, err := h.DomainInfo(3); err != nil || info.Kind != xen.HVM || info.VCPUs != 1 {
				t.Errorf("domain 3 is %+v, %v", info, err)
			}
			infos, err := h.Domains()
			if err != nil || len(infos) != 2 || infos[1].Kind != xen.HVM {
				t.Errorf("domains %+v, %v", infos, err)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	tests := []struct {
		name   string
		config xentest.Config
		op     xentest.Op
		errno  unix.Errno
		is     error
		text   string
	}{
		{"unknown domctl", xentest.Config{Domctl: 0x99}, "", 0, xen.ErrDenied, ""},
		{"unknown sysctl", xentest.Config{Sysctl: 0x99}, "", 0, xen.ErrVersion,
			"sysctl of Xen 4.17.5: interface version of this Xen is not known: a newer gdbserver-xen may know it"},
		{"not Xen", xentest.Config{}, xentest.OpVersion, unix.ENOSYS, xen.ErrNotXen,
			"this kernel does not run on Xen: boot the host with a Xen hypervisor, and run this in dom0"},
		{"guest", xentest.Config{}, xentest.OpGetDomainInfo, unix.EPERM, xen.ErrNotDom0,
			"this is not the control domain: run this in dom0 (XEN_DOMCTL_getdomaininfo: domain 0: operation not permitted)"},
		{"FLASK", xentest.Config{}, xentest.OpGetDomainInfo, unix.EACCES, xen.ErrDenied, ""},
		{"sysctl refused", xentest.Config{}, xentest.OpGetDomainInfoList, unix.EPERM, unix.EPERM,
			"XEN_SYSCTL_getdomaininfolist: operation not permitted"},
		{"buffer out of reach", xentest.Config{}, xentest.OpGetDomainInfo, unix.EFAULT, unix.EFAULT,
			"XEN_DOMCTL_getdomaininfo: domain 0: bad address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := xentest.New(t, tt.config)
			if tt.op != "" {
				x.FailAlways(tt.op, tt.errno)
			}
			tr := x.Transport()
			defer tr.Close()
			_, err := xen.NewHost(tr)
			if !errors.Is(err, tt.is) {
				t.Fatalf("got %v, want %v", err, tt.is)
			}
			if tt.text != "" && err.Error() != tt.text {
				t.Errorf("text %q\nwant %q", err, tt.text)
			}
		})
	}
}

func TestOpenFailsAtEveryCall(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.Host()
	calls := x.Calls(xentest.OpAny)
	for n := 1; n <= calls; n++ {
		tr := x.Transport()
		x.ClearFaults()
		x.Fail(xentest.OpAny, n, unix.EIO)
		if _, err := xen.NewHost(tr); !errors.Is(err, unix.EIO) {
			t.Errorf("call %d fails: %v", n, err)
		}
		tr.Close()
	}
}

// A hypervisor may be built without sysctl: then there is no list, and all else
// works.
func TestNoSysctl(t *testing.T) {
	x := xentest.New(t, xentest.Config{Release: "4.22", NoSysctl: true})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	h := x.Host()
	if _, err := h.Domains(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Domains gives %v, want ErrUnsupported", err)
	}
	if _, err := h.DomainInfo(3); err != nil {
		t.Error(err)
	}
}

func TestStats(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH})
	h := x.Host()
	before := h.Stats()
	m, err := h.MapGuestFrames(3, []xen.GFN{xen.GFN(d.Alloc()), 1, 2}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := h.DomainInfo(3); err != nil {
		t.Fatal(err)
	}
	after := h.Stats()
	if after.Hypercalls-before.Hypercalls != 1 || after.Mappings != 1 || after.Frames != 3 {
		t.Errorf("from %+v to %+v", before, after)
	}
}

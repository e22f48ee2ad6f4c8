package xen_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

func TestDomainInfo(t *testing.T) {
	uuid := [16]byte([]byte("sixteen bytes ID"))
	for _, release := range []string{"4.14", "4.17", "4.22"} {
		t.Run(release, func(t *testing.T) {
			x := xentest.New(t, xentest.Config{Release: release})
			add := func(id xen.DomID, c xentest.DomainConfig, set func(d *xentest.Domain)) {
				c.ID = id
				d := x.AddDomain(c)
				d.AllocAt(0x20 + uint64(id))
				if set != nil {
					set(d)
				}
			}
			base := func(id xen.DomID, kind xen.Kind) xen.DomainInfo {
				return xen.DomainInfo{ID: id, Kind: kind, TotalPages: 1, MaxPages: 1 << 16,
					SharedInfoFrame: ^uint64(0), OnlineVCPUs: 1, VCPUs: 1}
			}
			add(1, xentest.DomainConfig{Kind: xen.PV}, nil)
			add(2, xentest.DomainConfig{Kind: xen.PVH, Pauses: 2}, nil)
			add(3, xentest.DomainConfig{Kind: xen.HVM, VCPUs: 4}, func(d *xentest.Domain) {
				d.VCPU(1).Online = false
				d.UUID, d.CPUTime, d.SharedInfoFrame = uuid, 3*time.Second, 0xfeff
				d.Running, d.Blocked, d.Debugged = true, true, true
			})
			add(4, xentest.DomainConfig{Kind: xen.PV}, func(d *xentest.Domain) { d.Dying, d.NoVCPUs, d.NoPages = true, true, true })
			var want []xen.DomainInfo
			want = append(want, base(1, xen.PV))
			paused := base(2, xen.PVH)
			paused.Paused = true
			full := base(3, xen.HVM)
			full.UUID, full.CPUTime, full.SharedInfoFrame = uuid, 3*time.Second, 0xfeff
			full.Running, full.Blocked, full.Debugged = true, true, true
			full.VCPUs, full.OnlineVCPUs = 4, 3
			dying := base(4, xen.PV)
			dying.Dying, dying.VCPUs, dying.OnlineVCPUs, dying.TotalPages = true, 0, 0, 0
			want = append(want, paused, full, dying)
			for id, reason := range map[xen.DomID]xen.ShutdownReason{
				10: xen.ShutdownPoweroff, 11: xen.ShutdownReboot, 12: xen.ShutdownSuspend,
				13: xen.ShutdownCrash, 14: xen.ShutdownWatchdog, 15: xen.ShutdownSoftReset,
			} {
				add(id, xentest.DomainConfig{Kind: xen.PV}, func(d *xentest.Domain) { d.Shutdown, d.ShutdownReason = true, reason })
			}
			for id := xen.DomID(10); id <= 15; id++ {
				down := base(id, xen.PV)
				down.Shutdown, down.ShutdownReason = true, xen.ShutdownReason(id-10)
				want = append(want, down)
			}

			h := x.Host()
			for _, w := range want {
				got, err := h.DomainInfo(w.ID)
				if err != nil {
					t.Errorf("domain %d: %v", w.ID, err)
				}
				if diff := cmp.Diff(w, got); diff != "" {
					t.Errorf("domain %d (-want +got):\n%s", w.ID, diff)
				}
			}
			all, err := h.Domains()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, all[1:]); diff != "" {
				t.Errorf("list after domain 0 (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]string{
		"PV": xen.PV.String(), "PVH": xen.PVH.String(), "HVM": xen.HVM.String(), "Kind(9)": xen.Kind(9).String(),
		"poweroff": xen.ShutdownPoweroff.String(), "crash": xen.ShutdownCrash.String(),
		"soft reset": xen.ShutdownSoftReset.String(), "reason 255": xen.ShutdownReason(255).String(),
		"mfn 0x12": xen.MFN(0x12).String(), "gfn 0x12": xen.GFN(0x12).String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Up to 4.17, getdomaininfo answers about the next domain if there is none of
// this number.
func TestNoSuchDomain(t *testing.T) {
	for _, release := range []string{"4.17", "4.18"} {
		t.Run(release, func(t *testing.T) {
			x := xentest.New(t, xentest.Config{Release: release})
			x.AddDomain(xentest.DomainConfig{ID: 8, Kind: xen.PV})
			h := x.Host()
			for _, id := range []xen.DomID{7, 9} {
				if info, err := h.DomainInfo(id); !errors.Is(err, xen.ErrNoDomain) {
					t.Errorf("domain %d: %+v, %v, want ErrNoDomain", id, info, err)
				}
			}
			var op *xen.OpError
			_, info := h.DomainInfo(7)
			_, size := h.AddressSize(7)
			_, gpfn := h.MaxGPFN(7)
			for name, err := range map[string]error{
				"XEN_DOMCTL_getdomaininfo":    info,
				"XEN_DOMCTL_get_address_size": size,
				"XENMEM_maximum_gpfn":         gpfn,
				"XEN_DOMCTL_pausedomain":      h.Pause(7),
				"XEN_DOMCTL_unpausedomain":    h.Unpause(7),
			} {
				if !errors.As(err, &op) || op.Op != name || op.Domain != 7 || !errors.Is(err, xen.ErrNoDomain) {
					t.Errorf("%s gives %v", name, err)
				}
			}
		})
	}
}

// More domains than one call can hold are all listed, once and in order.
func TestDomainsOverManyCalls(t *testing.T) {
	for _, release := range []string{"4.14", "4.22"} {
		x := xentest.New(t, xentest.Config{Release: release})
		want := []xen.DomID{0}
		for i := range 1300 {
			id := xen.DomID(1 + i + i/300) // few gaps
			x.AddDomain(xentest.DomainConfig{ID: id, Kind: xen.PV})
			want = append(want, id)
		}
		x.AddDomain(xentest.DomainConfig{ID: xen.FirstReserved - 1, Kind: xen.PVH})
		want = append(want, xen.FirstReserved-1)
		h := x.Host()
		before := x.Calls(xentest.OpGetDomainInfoList)
		infos, err := h.Domains()
		if err != nil {
			t.Fatal(err)
		}
		var got []xen.DomID
		for _, info := range infos {
			got = append(got, info.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("domains (-want +got):\n%s", diff)
		}
		if n := x.Calls(xentest.OpGetDomainInfoList) - before; n != 3 {
			t.Errorf("%d calls, want 3", n)
		}
		x.Fail(xentest.OpGetDomainInfoList, 2, unix.EFAULT)
		if infos, err := h.Domains(); !errors.Is(err, unix.EFAULT) || infos != nil {
			t.Errorf("a failed second call gives %d domains, %v", len(infos), err)
		}
	}
}

func TestPauseCounts(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	h := x.Host()
	paused := func() bool {
		info, err := h.DomainInfo(3)
		if err != nil {
			t.Fatal(err)
		}
		return info.Paused
	}
	if err := h.Unpause(3); !errors.Is(err, xen.ErrNotPaused) {
		t.Errorf("unpause at zero gives %v, want ErrNotPaused", err)
	}
	for range 255 {
		if err := h.Pause(3); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Pause(3); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("the 256th pause gives %v, want EOVERFLOW", err)
	}
	for range 255 {
		if !paused() {
			t.Fatal("runs while pauses are left")
		}
		if err := h.Unpause(3); err != nil {
			t.Fatal(err)
		}
	}
	if paused() || d.Pauses() != 0 {
		t.Errorf("still paused, count %d", d.Pauses())
	}
}

func TestAddressSize(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	x.AddDomain(xentest.DomainConfig{ID: 4, Kind: xen.PV, PV32: true})
	x.AddDomain(xentest.DomainConfig{ID: 5, Kind: xen.PVH})
	h := x.Host()
	for id, want := range map[xen.DomID]int{3: 64, 4: 32} {
		if got, err := h.AddressSize(id); err != nil || got != want {
			t.Errorf("domain %d: %d, %v, want %d", id, got, err, want)
		}
	}
	if _, err := h.AddressSize(5); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("of PVH: %v, want EOPNOTSUPP", err)
	}
}

func TestMaxGPFN(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH}).MaxGPFN = 0xfeffff
	if got, err := x.Host().MaxGPFN(3); err != nil || got != 0xfeffff {
		t.Errorf("got %#x, %v", got, err)
	}
}

// What the main errors say.
func TestErrorTexts(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	pv := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2})
	x.AddDomain(xentest.DomainConfig{ID: 4, Kind: xen.PVH})
	pv.VCPU(1).Uninitialised = true
	pv.AllocAt(0x55)
	pv.FailMapping(0x55, unix.EBUSY)
	h := x.Host()
	var ctx xen.VCPUContext
	_, info := h.VCPUInfo(3, 9)
	_, hvm := h.HVMCPU(4, 9)
	page := func(m *xen.Mapping, err error) error {
		if err != nil {
			return err
		}
		defer m.Close()
		_, err = m.Page(0)
		return err
	}
	x.Fail(xentest.OpMap, 4, unix.ENOMEM)
	for want, err := range map[string]error{
		"XEN_DOMCTL_pausedomain: domain 9: no such domain: no such process":                             h.Pause(9),
		"XEN_DOMCTL_unpausedomain: domain 3: the domain is not paused: invalid argument":                h.Unpause(3),
		"XEN_DOMCTL_getvcpucontext: domain 3: vCPU 1: the vCPU was never brought up: no data available": h.VCPUContext(3, 1, &ctx),
		"XEN_DOMCTL_getvcpucontext: domain 3: vCPU 9: no such vCPU: invalid argument":                   h.VCPUContext(3, 9, &ctx),
		"XEN_DOMCTL_setvcpucontext: domain 3: vCPU 9: invalid argument":                                 h.SetVCPUContext(3, 9, &ctx),
		"XEN_DOMCTL_setvcpucontext: domain 9: vCPU 0: no such domain: no such process":                  h.SetVCPUContext(9, 0, &ctx),
		"XEN_DOMCTL_getvcpuinfo: domain 3: vCPU 9: no such vCPU: invalid argument":                      info,
		"XEN_DOMCTL_gethvmcontext_partial: domain 4: vCPU 9: no such vCPU: no such file or directory":   hvm,
		"map mfn 0x99: no such frame: invalid argument":                                                 page(h.MapMachineFrames(3, []xen.MFN{0x99}, false)),
		"map gfn 0x99: no such frame: invalid argument":                                                 page(h.MapGuestFrames(4, []xen.GFN{0x99}, false)),
		"map mfn 0x55: frame is in use as a page table or descriptor table: device or resource busy":    page(h.MapMachineFrames(3, []xen.MFN{0x55}, true)),
		"IOCTL_PRIVCMD_MMAPBATCH_V2: domain 4: cannot allocate memory":                                  page(h.MapGuestFrames(4, []xen.GFN{0x99}, false)),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

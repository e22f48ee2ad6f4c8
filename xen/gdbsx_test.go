// This file tests the calls of gdbsx.

package xen_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

func TestHasGDBSX(t *testing.T) {
	for _, gdbsx := range []bool{false, true} {
		x := xentest.New(t, xentest.Config{GDBSX: gdbsx})
		x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
		x.AddDomain(xentest.DomainConfig{ID: 4, Kind: xen.PV, Pauses: 1})
		h := x.Host()
		for _, id := range []xen.DomID{3, 4} {
			if got := h.HasGDBSX(id); got != gdbsx {
				t.Errorf("domain %d, built with GDBSX %v: %v", id, gdbsx, got)
			}
		}
		if h.HasGDBSX(9) {
			t.Error("a domain that does not exist says that there is GDBSX")
		}
		// 4.14 to 4.16 pass unknown operations on to the IOMMU code.
		x.FailAlways(xentest.OpGDBSXUnpauseVCPU, unix.EOPNOTSUPP)
		if h.HasGDBSX(3) {
			t.Error("EOPNOTSUPP is taken for GDBSX")
		}
	}
}

// gdbsxDomain makes a domain with two vCPUs on a hypervisor with gdbsx.
func gdbsxDomain(t *testing.T) (*xentest.Domain, *xen.Host) {
	t.Helper()
	x := xentest.New(t, xentest.Config{GDBSX: true})
	return x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2}), x.Host()
}

func TestPauseVCPU(t *testing.T) {
	d, h := gdbsxDomain(t)
	for _, call := range []func(xen.DomID, int) error{h.PauseVCPU, h.UnpauseVCPU} {
		if err := call(3, 0); !errors.Is(err, xen.ErrNotPaused) {
			t.Errorf("in a domain that runs: %v, want ErrNotPaused", err)
		}
		if err := call(9, 0); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("in a domain that does not exist: %v, want ErrNoDomain", err)
		}
	}
	if err := h.Pause(3); err != nil {
		t.Fatal(err)
	}
	defer h.Unpause(3)
	if err := h.PauseVCPU(3, 2); !errors.Is(err, xen.ErrNoVCPU) {
		t.Errorf("a vCPU that does not exist: %v, want ErrNoVCPU", err)
	}
	for want := range 3 {
		if n := d.OwnPauses(1); n != want {
			t.Errorf("%d pauses, want %d", n, want)
		}
		if err := h.PauseVCPU(3, 1); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		if err := h.UnpauseVCPU(3, 1); err != nil {
			t.Error(err)
		}
	}
	for _, vcpu := range []int{1, 2} {
		if err := h.UnpauseVCPU(3, vcpu); !errors.Is(err, xen.ErrVCPUNotPaused) {
			t.Errorf("unpausing vCPU %d: %v, want ErrVCPUNotPaused", vcpu, err)
		}
	}
}

// Each int3 is told once, and each stop has paused the domain.
func TestDebugging(t *testing.T) {
	d, h := gdbsxDomain(t)
	next := func() int {
		t.Helper()
		vcpu, err := h.NextDebugEvent(3)
		if err != nil {
			t.Error(err)
		}
		return vcpu
	}
	if d.Int3(0) {
		t.Error("without debugging an int3 stops the domain")
	}
	if err := h.SetDebugging(3, true); err != nil {
		t.Fatal(err)
	}
	d.Int3(1)
	d.Int3(0)
	if n := d.Pauses(); n != 2 {
		t.Errorf("paused %d times by two stops", n)
	}
	if got := [3]int{next(), next(), next()}; got != [3]int{0, 1, -1} {
		t.Errorf("got events %v, want of vCPUs 0 and 1", got)
	}
	if n := d.VIRQs(); n != 0 {
		t.Errorf("%d interrupts for int3", n)
	}
	d.DebugTrap(1)
	if got := next(); got != -1 || d.VIRQs() != 1 {
		t.Errorf("#DB gives an event of vCPU %d and %d interrupts, want the interrupt alone", got, d.VIRQs())
	}
	for range 3 {
		if err := h.Unpause(3); err != nil {
			t.Error(err)
		}
	}
	if got := next(); got != -1 {
		t.Errorf("got an event of vCPU %d from a domain that runs", got)
	}
	if err := h.SetDebugging(3, false); err != nil {
		t.Error(err)
	}
	if d.Debugged || d.Int3(0) {
		t.Error("debugging is still on")
	}
	if err := h.SetDebugging(0, true); !errors.Is(err, unix.EINVAL) {
		t.Errorf("debugging ourselves: %v, want EINVAL", err)
	}
}

func TestWithoutGDBSX(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, Pauses: 1})
	h := x.Host()
	_, event := h.NextDebugEvent(3)
	for _, err := range []error{event, h.PauseVCPU(3, 0), h.UnpauseVCPU(3, 0)} {
		if !errors.Is(err, unix.ENOSYS) {
			t.Errorf("got %v, want ENOSYS", err)
		}
	}
}

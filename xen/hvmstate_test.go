package xen_test

import (
	"errors"
	"strings"
	"testing"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// A state that is written back unchanged changes nothing, whatever the vCPUs do;
// one that is changed changes that.
func TestVCPUState(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH, VCPUs: 3})
	d.VCPU(2).Online = false
	d.VCPU(1).HVM.TPR = 0x21
	d.VCPU(1).Ext[600] = 7
	h := x.Host()
	before := *d.VCPU(1)

	s, err := h.VCPUState(3, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CPU(2); !errors.Is(err, xen.ErrVCPUOffline) {
		t.Errorf("vCPU that is down: %v", err)
	}
	if err := h.SetVCPUState(3, s); err != nil {
		t.Fatal(err)
	}
	if v := d.VCPU(1); v.Context != before.Context || v.PAT != before.PAT || v.Ext[600] != 7 || v.TimerStarts != 0 || !v.Online {
		t.Error("the vCPU changed")
	}
	if d.VCPU(2).Online {
		t.Error("the vCPU that was down is up")
	}

	next := s.Clone()
	cpu, err := next.CPU(1)
	if err != nil {
		t.Fatal(err)
	}
	cpu.CR4 |= 1 << 7
	next.SetCPU(1, cpu)
	next.SetTPR(1, 0x90)
	for _, tt := range []struct {
		s   *xen.VCPUState
		cr4 uint64
		tpr uint8
	}{{next, before.Context.ControlRegs[4] | 1<<7, 0x90}, {s, before.Context.ControlRegs[4], 0x90}} {
		if err := h.SetVCPUState(3, tt.s); err != nil {
			t.Fatal(err)
		}
		if v := d.VCPU(1); v.Context.ControlRegs[4] != tt.cr4 || v.HVM.TPR != tt.tpr {
			t.Errorf("cr4 %#x, task priority %#x, want %#x, %#x", v.Context.ControlRegs[4], v.HVM.TPR, tt.cr4, tt.tpr)
		}
	}

	// With VMX there is no PAT to lose, so the MTRRs are left alone.
	if s, err = h.VCPUState(3, false); err != nil {
		t.Fatal(err)
	}
	d.VCPU(1).PAT = 5
	if err := h.SetVCPUState(3, s); err != nil || d.VCPU(1).PAT == before.PAT {
		t.Errorf("%v, PAT %#x", err, d.VCPU(1).PAT)
	}
}

// The state of many vCPUs does not fit where others do.
func TestVCPUStateOfMany(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.HVM, VCPUs: 128})
	h := x.Host()
	s, err := h.VCPUState(3, true)
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := s.CPU(127)
	if err != nil {
		t.Fatal(err)
	}
	cpu.CR2 = 0x1234
	s.SetCPU(127, cpu)
	if err := h.SetVCPUState(3, s); err != nil || d.VCPU(127).Context.ControlRegs[2] != 0x1234 || !d.VCPU(0).Online {
		t.Errorf("%v, cr2 %#x", err, d.VCPU(127).Context.ControlRegs[2])
	}
}

func TestVCPUStateErrors(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.HVM})
	x.AddDomain(xentest.DomainConfig{ID: 5, Kind: xen.HVM, VCPUs: 2000})
	h := x.Host()
	_, err := h.VCPUState(5, true)
	if err == nil || !strings.Contains(err.Error(), "bytes is too large") {
		t.Errorf("2000 vCPUs: %v", err)
	}
	if _, err := h.VCPUState(4, true); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
	if err := h.SetVCPUState(4, &xen.VCPUState{}); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
	if err := h.SetVCPUState(3, &xen.VCPUState{}); !errors.Is(err, xen.ErrBadState) {
		t.Errorf("empty state: %v", err)
	}
}

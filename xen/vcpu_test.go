package xen_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

func TestVCPUInfo(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 3})
	v := d.VCPU(1)
	v.Running, v.CPUTime, v.CPU = true, 17*time.Second, 5
	d.VCPU(2).Online, d.VCPU(2).Blocked = false, true
	d.Pause() // or it would take more time
	h := x.Host()
	for n, want := range []xen.VCPUInfo{
		{Online: true},
		{Online: true, Running: true, CPUTime: 17 * time.Second, CPU: 5},
		{Blocked: true, CPU: 2},
	} {
		if got, err := h.VCPUInfo(3, n); err != nil || got != want {
			t.Errorf("vCPU %d: %+v, %v, want %+v", n, got, err, want)
		}
	}
}

func TestNoSuchVCPU(t *testing.T) {
	for _, release := range []string{"4.21", "4.22"} { // EINVAL, ENOENT
		x := xentest.New(t, xentest.Config{Release: release})
		x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH, VCPUs: 2})
		h := x.Host()
		var ctx xen.VCPUContext
		_, info := h.VCPUInfo(3, 2)
		_, hvm := h.HVMCPU(3, 2)
		for _, err := range []error{info, hvm, h.VCPUContext(3, 2, &ctx)} {
			if !errors.Is(err, xen.ErrNoVCPU) {
				t.Errorf("Xen %s: %v, want ErrNoVCPU", release, err)
			}
		}
		if err := h.VCPUContext(9, 0, &ctx); !errors.Is(err, xen.ErrNoDomain) {
			t.Errorf("Xen %s: %v, want ErrNoDomain", release, err)
		}
	}
}

func TestVCPUOffline(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PVH, VCPUs: 2})
	d.VCPU(1).Uninitialised, d.VCPU(1).Online = true, false
	h := x.Host()
	ctx := xen.VCPUContext{RIP: 1}
	if err := h.VCPUContext(3, 1, &ctx); !errors.Is(err, xen.ErrVCPUOffline) || ctx.RIP != 1 {
		t.Errorf("got %v, rip %#x, want ErrVCPUOffline and the context untouched", err, ctx.RIP)
	}
	if _, err := h.HVMCPU(3, 1); !errors.Is(err, xen.ErrVCPUOffline) {
		t.Errorf("got %v, want ErrVCPUOffline", err)
	}
}

// What is written is what is read, for both vCPUs.
func TestContextRoundTrip(t *testing.T) {
	x := xentest.New(t, xentest.Config{NoXSAVE: true})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2})
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 2 {
		c := &d.VCPU(n).Context
		c.RAX, c.R8, c.R15, c.RIP, c.RSP = random.Uint64(), random.Uint64(), random.Uint64(), 0xffffffff81000000, 0xffffc90000000000
		for i := range c.Traps {
			c.Traps[i] = xen.TrapInfo{Vector: uint8(i), Flags: 7, CS: 0xe033, Address: 0xffffffff82000000 + uint64(i)}
		}
		c.ControlRegs[3] = random.Uint64()
		for i := range c.FPU {
			c.FPU[i] = byte(random.Uint32())
		}
	}
	h := x.Host()
	var got [2]xen.VCPUContext
	for n := range got {
		if err := h.VCPUContext(3, n, &got[n]); err != nil {
			t.Fatal(err)
		}
		want := d.VCPU(n).Context
		want.Flags |= xen.VGCFOnline
		if got[n] != want {
			t.Errorf("vCPU %d: context differs from the domain's", n)
		}
	}
	got[1].RBX, got[1].Traps[9].Address = 0x1234, 0xffffffff83000000
	if err := h.SetVCPUContext(3, 1, &got[1]); err != nil {
		t.Fatal(err)
	}
	for n := range got {
		var again xen.VCPUContext
		if err := h.VCPUContext(3, n, &again); err != nil {
			t.Fatal(err)
		}
		if again != got[n] {
			t.Errorf("vCPU %d is not what was written", n)
		}
	}
	// Without VGCFOnline, the vCPU is taken off.
	got[1].Flags &^= xen.VGCFOnline
	if err := h.SetVCPUContext(3, 1, &got[1]); err != nil {
		t.Fatal(err)
	}
	if info, err := h.VCPUInfo(3, 1); err != nil || info.Online {
		t.Errorf("vCPU is %+v, %v, want offline", info, err)
	}
}

func TestSetContextRefused(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	h := x.Host()
	var ctx xen.VCPUContext
	if err := h.VCPUContext(3, 0, &ctx); err != nil {
		t.Fatal(err)
	}
	bad := ctx
	bad.RIP = 0x8000_0000_0000_0000
	// EINVAL is about the state here, not about the vCPU.
	if err := h.SetVCPUContext(3, 0, &bad); !errors.Is(err, unix.EINVAL) || errors.Is(err, xen.ErrNoVCPU) {
		t.Errorf("rip that is not canonical: %v", err)
	}
	bad = ctx
	bad.ControlRegs[3]++
	if err := h.SetVCPUContext(3, 0, &bad); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("other page tables: %v", err)
	}
}

func TestExtState(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, VCPUs: 2})
	area := d.VCPU(0).Ext
	for i := range area {
		area[i] = byte(i * 3)
	}
	binary.LittleEndian.PutUint64(area[512:], 7)
	want := bytes.Clone(area)
	d.VCPU(1).Ext = nil // it never used XSAVE
	h := x.Host()

	// The vCPU with less is asked first: the size is the processor's, not its.
	none, err := h.VCPUExtState(3, 1)
	if err != nil || len(none.Area()) != 0 || len(none.Data) != 16 {
		t.Errorf("vCPU that never used XSAVE: %d bytes, %v", len(none.Data), err)
	}
	s, err := h.VCPUExtState(3, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.Features != 7 || !bytes.Equal(s.Area(), want) {
		t.Errorf("features %#x, area as the vCPU's: %v", s.Features, bytes.Equal(s.Area(), want))
	}
	if n := x.Calls(xentest.OpGetVCPUExtState); n != 3 {
		t.Errorf("%d calls, want one for the size and one for each vCPU", n)
	}

	// setvcpucontext resets what lies beyond SSE; writing the state back undoes it.
	var ctx xen.VCPUContext
	if err := errors.Join(h.VCPUContext(3, 0, &ctx), h.SetVCPUContext(3, 0, &ctx)); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(d.VCPU(0).Ext, want) {
		t.Error("the fake keeps AVX state, which no Xen does")
	}
	if err := h.SetVCPUExtState(3, 0, s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, d.VCPU(0).Ext); diff != "" {
		t.Errorf("state written back (-want +got):\n%s", diff)
	}
}

func TestExtStateWithoutXSAVE(t *testing.T) {
	x := xentest.New(t, xentest.Config{NoXSAVE: true})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	h := x.Host()
	for range 2 {
		s, err := h.VCPUExtState(3, 0)
		if err != nil || s.Data != nil || len(s.Area()) != 0 {
			t.Errorf("got %+v, %v, want nothing", s, err)
		}
		if err := h.SetVCPUExtState(3, 0, s); err != nil {
			t.Error(err)
		}
	}
	if n := x.Calls(xentest.OpGetVCPUExtState); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	if n := x.Calls(xentest.OpSetVCPUExtState); n != 0 {
		t.Errorf("wrote %d times, want never", n)
	}
}

// A state larger than the buffer is an error, not a write beyond it.
func TestExtStateTooLarge(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
	err := x.Host().SetVCPUExtState(3, 0, xen.ExtState{Features: 7, Data: make([]byte, 61441)})
	if err == nil || err.Error() != "XEN_DOMCTL_setvcpuextstate: domain 3: state of 61441 bytes is too large" {
		t.Errorf("got %v", err)
	}
}

func TestHVMCPU(t *testing.T) {
	x := xentest.New(t, xentest.Config{})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.HVM, VCPUs: 2})
	want := xen.HVMCPU{EFER: 0x500, TPR: 0xa0}
	d.VCPU(1).HVM = want
	h := x.Host()
	if got, err := h.HVMCPU(3, 1); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

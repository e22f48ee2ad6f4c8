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

// Offsets of a 32-bit PV guest's struct vcpu_guest_context: Xen's public headers
// of stable-4.14, stable-4.17 and stable-4.22 compiled for 32 bits.
var offsets32 = map[string]int{
	"ebx": 516, "ecx": 520, "edx": 524, "esi": 528, "edi": 532, "ebp": 536, "eax": 540,
	"eip": 548, "eflags": 556, "esp": 560, "cr0": 2716, "cr2": 2724, "cr3": 2728, "cr4": 2732,
	"dr0": 2748, "dr1": 2752, "dr2": 2756, "dr3": 2760, "dr6": 2772, "dr7": 2776,
	"cs": 552, "ss": 564, "es": 568, "ds": 572, "fs": 576, "gs": 580,
}

// newPV32 makes a 32-bit PV guest with a state of bytes that are all different
// and a page table whose frame has more than 20 bits.
func newPV32(t *testing.T) (*xentest.Hypervisor, *xentest.Domain, *xentest.PageTables) {
	t.Helper()
	x := xentest.New(t, xentest.Config{NoXSAVE: true})
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV, PV32: true, VCPUs: 1})
	pt := d.NewPageTables(x86.PAE)
	raw := make([]byte, 2800)
	for i := range raw {
		raw[i] = byte(i*7 + i>>8)
	}
	le := binary.LittleEndian
	le.PutUint32(raw[512:], uint32(xen.VGCFInKernel|xen.VGCFOnline|xen.VGCFI387Valid))
	frame := pt.CR3() >> 12
	le.PutUint32(raw[offsets32["cr3"]:], uint32(frame<<12|frame>>20))
	d.VCPU(0).Raw = raw
	return x, d, pt
}

func TestPV32Registers(t *testing.T) {
	x, d, _ := newPV32(t)
	g, err := guest.Attach(x.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Detach()
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	raw, le := d.VCPU(0).Raw, binary.LittleEndian
	for name, got := range map[string]uint64{
		"eax": r.RAX, "ebx": r.RBX, "ecx": r.RCX, "edx": r.RDX, "esi": r.RSI, "edi": r.RDI, "ebp": r.RBP, "esp": r.RSP,
		"eip": r.RIP, "eflags": r.RFLAGS, "cr0": r.CR0, "cr2": r.CR2, "cr3": r.CR3, "cr4": r.CR4,
		"dr0": r.DR0, "dr1": r.DR1, "dr2": r.DR2, "dr3": r.DR3, "dr6": r.DR6, "dr7": r.DR7,
	} {
		if want := uint64(le.Uint32(raw[offsets32[name]:])); got != want {
			t.Errorf("%s: got %#x, want %#x", name, got, want)
		}
	}
	for name, got := range map[string]uint16{"cs": r.CS, "ss": r.SS, "es": r.ES, "ds": r.DS, "fs": r.FS, "gs": r.GS} {
		if want := le.Uint16(raw[offsets32[name]:]); got != want {
			t.Errorf("%s: got %#x, want %#x", name, got, want)
		}
	}
	if !bytes.Equal(r.FX.XMM(3), raw[160+48:][:16]) {
		t.Errorf("xmm3: got %x", r.FX.XMM(3))
	}
	if r.Known&(x86.KnownHighGPRs|x86.KnownBases|x86.KnownEFER) != 0 {
		t.Errorf("known are %b: a 32-bit guest has none of these", r.Known)
	}
}

// A write changes the bytes of its register and no other.
func TestPV32SetRegisters(t *testing.T) {
	x, d, _ := newPV32(t)
	g, err := guest.Attach(x.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Detach()
	before := bytes.Clone(d.VCPU(0).Raw)
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	want := r
	want.RSI = 0x89abcdef
	if err := g.SetRegisters(0, want); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(before[offsets32["esi"]:], 0x89abcdef)
	if i := firstDifference(d.VCPU(0).Raw, before); i >= 0 {
		t.Errorf("byte %d is %#x, want %#x", i, d.VCPU(0).Raw[i], before[i])
	}

	for name, change := range map[string]func(r *x86.Registers){
		"rsi": func(r *x86.Registers) { r.RSI = 1 << 32 },
		"r8":  func(r *x86.Registers) { r.R8 = 1 },
		"cr3": func(r *x86.Registers) { r.CR3 = 0 },
	} {
		bad := want
		change(&bad)
		if err := g.SetRegisters(0, bad); !errors.Is(err, guest.ErrReadOnly) {
			t.Errorf("%s: got %v, want ErrReadOnly", name, err)
		}
	}
	if i := firstDifference(d.VCPU(0).Raw, before); i >= 0 {
		t.Errorf("a write that was refused changed byte %d", i)
	}
}

// Memory is read by PAE tables of machine frames, from a folded CR3.
func TestPV32Memory(t *testing.T) {
	x, _, pt := newPV32(t)
	pt.MapPage(0xc0123000, []byte("kernel of 32 bits"))
	pt.MapPage(0x08048000, []byte("program"))
	g, err := guest.Attach(x.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Detach()
	for addr, want := range map[uint64]string{0xc0123000: "kernel of 32 bits", 0x08048000: "program"} {
		p := make([]byte, len(want))
		if _, err := g.Read(0, addr, p); err != nil || string(p) != want {
			t.Errorf("%#x holds %q, %v, want %q", addr, p, err, want)
		}
	}
	if _, err := g.Read(0, 0x1_0000_0000, make([]byte, 1)); !errors.Is(err, guest.ErrUnmapped) {
		t.Errorf("above 4 GB: got %v, want ErrUnmapped", err)
	}
	if err := g.Write(0, 0xc0123000, []byte("K")); err != nil {
		t.Error(err)
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

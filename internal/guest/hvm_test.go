package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Where the guest of these tests has its descriptors.
const gdt = text + 0x10000

// descriptors are a GDT, by selector.
var descriptors = map[uint16]uint64{
	0x08: 0x00cf9a000000ffff, // 32-bit code, not accessed yet
	0x10: 0x00af9b000000ffff, // 64-bit code
	0x18: 0x00cf93000000ffff, // data
	0x20: 0x12c0923456789abc, // data at 0x12345678, to 0x09abcfff
	0x28: 0x00cff3000000ffff, // data of ring 3
	0x30: 0x00affb000000ffff, // 64-bit code of ring 3
	0x38: 0x0000890000000067, // a task's state
	0x40: 0x00cf13000000ffff, // data, not present
	0x48: 0x00cf91000000ffff, // data that cannot be written
	0x50: 0x00cf99000000ffff, // code that cannot be read
	0x58: 0x00ef9b000000ffff, // code of 64 and of 32 bits
	0x60: 0x00cff1000000ffff, // data of ring 3 that cannot be written
}

// hvmFixture is a PVH guest of two vCPUs with a GDT.
func hvmFixture(t *testing.T, config xentest.Config) *fixture {
	t.Helper()
	f := fixtureOn(t, config, xen.PVH, 2)
	guest.PretendAMD(t, true)
	table := make([]byte, 0x68)
	for selector, d := range descriptors {
		binary.LittleEndian.PutUint64(table[selector:], d)
	}
	f.pt.MapPage(gdt, table)
	for n := range 2 {
		v := f.d.VCPU(n)
		fill(v)
		v.Context.CS, v.Context.SS, v.Context.DS, v.Context.ES = 0x10, 0x18, 0x18, 0
		v.Saved.Bases[xen.SegGDTR], v.Saved.Limits[xen.SegGDTR] = gdt, uint32(len(table)-1)
		v.HVM.TPR = 0x23
	}
	return f
}

// known is a release whose CR2 is known on AMD's processors too.
var known = xentest.Config{Release: "4.20", Extra: ".4"}

// Each system register can be written alone, and nothing else changes.
func TestSetSystemRegisters(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(r *x86.Registers)
	}{
		{"cr0", func(r *x86.Registers) { r.CR0 ^= 1 << 3 }},
		{"cr2", func(r *x86.Registers) { r.CR2 = 0x1234 }},
		{"cr3", func(r *x86.Registers) { r.CR3 |= 1 << 3 }},
		{"cr4", func(r *x86.Registers) { r.CR4 ^= 1 << 7 }},
		{"cr8", func(r *x86.Registers) { r.CR8 = 9 }},
		{"efer", func(r *x86.Registers) { r.EFER ^= 1 << 11 }},
		{"fs_base", func(r *x86.Registers) { r.FSBase += 0x1000 }},
		{"gs_base", func(r *x86.Registers) { r.GSBase += 0x1000 }},
		{"k_gs_base", func(r *x86.Registers) { r.KernelGSBase += 0x1000 }},
		{"cs", func(r *x86.Registers) { r.CS = 0x08 }},
		{"ss", func(r *x86.Registers) { r.SS = 0x20 }},
		{"ds", func(r *x86.Registers) { r.DS = 0x2b }},
		{"es", func(r *x86.Registers) { r.ES = 0x4b }},
		{"fs", func(r *x86.Registers) { r.FS = 0x33 }},
		{"gs", func(r *x86.Registers) { r.GS = 0 }},
		{"cs and ss", func(r *x86.Registers) { r.CS, r.SS = 0x33, 0x2b }},
		{"with others", func(r *x86.Registers) {
			r.CR4 ^= 1 << 7
			r.RIP, r.R15, r.DR0 = text, 77, 0x5000
			r.FX.XMM(3)[0]++
			r.YMMH[3][0]++
		}},
	} {
		for _, config := range []xentest.Config{known, {Release: "4.21", Extra: ".1"}} {
			f := hvmFixture(t, config)
			v, other := f.d.VCPU(1), *f.d.VCPU(0)
			otherExt := bytes.Clone(other.Ext)
			g := f.attach(t)
			want, err := g.Registers(1)
			if err != nil {
				t.Fatal(err)
			}
			if want.R15 != 15 || want.Known&x86.KnownHighGPRs == 0 {
				t.Errorf("%v: r15 is %d", config, want.R15)
			}
			tt.set(&want)
			if want.Known&x86.KnownCR2 == 0 {
				want.CR2 = 0
			}
			if err := g.SetRegisters(1, want); err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if err := errors.Join(g.Resume(), g.Pause()); err != nil {
				t.Fatal(err)
			}
			if got, err := g.Registers(1); err != nil || got != want {
				t.Errorf("%s: reads back otherwise: %s differs, %v", tt.name, x86.Difference(&got, &want), err)
			}
			if v.PAT != 0x0407050600070106 || !v.Online {
				t.Errorf("%s: PAT %#x, up %v", tt.name, v.PAT, v.Online)
			}
			if starts := map[bool]int{true: 1}[tt.name == "cr8"]; v.TimerStarts != starts || v.HVM.TPR&0xf != 3 {
				t.Errorf("%s: the timer was started %d times, want %d; task priority %#x", tt.name, v.TimerStarts, starts, v.HVM.TPR)
			}
			o := f.d.VCPU(0)
			if o.Context != other.Context || !bytes.Equal(o.Ext, otherExt) || o.PAT != other.PAT || o.TimerStarts != 0 || !o.Online {
				t.Errorf("%s: the other vCPU changed", tt.name)
			}
		}
	}
}

// A selector brings its descriptor's limit, attributes and base with it; FS and
// GS keep their bases.
func TestSegmentsAreLoaded(t *testing.T) {
	f := hvmFixture(t, known)
	g := f.attach(t)
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	r.CS, r.SS, r.DS, r.ES, r.FS, r.GS = 0x08, 0x20, 0, 0x20, 0x20, 3
	if err := g.SetRegisters(0, r); err != nil {
		t.Fatal(err)
	}
	s := &f.d.VCPU(0).Saved
	for _, tt := range []struct {
		segment           int
		base              uint64
		limit, attributes uint32
	}{
		{xen.SegCS, 0, 0xffff_ffff, 0xc9b},
		{xen.SegSS, 0x12345678, 0x09abcfff, 0xc93},
		{xen.SegDS, 0, 0, 0},
		{xen.SegES, 0x12345678, 0x09abcfff, 0xc93},
		{xen.SegFS, 0x7f0000000000, 0x09abcfff, 0xc93},
		{xen.SegGS, 0xffff88807d800000, 0, 0x60},
	} {
		if i := tt.segment; s.Bases[i] != tt.base || s.Limits[i] != tt.limit || s.Attributes[i] != tt.attributes {
			t.Errorf("segment %d: base %#x, limit %#x, attributes %#x, want %+v", i, s.Bases[i], s.Limits[i], s.Attributes[i], tt)
		}
	}
}

// In real mode a segment begins at 16 times its selector.
func TestSegmentsInRealMode(t *testing.T) {
	f := hvmFixture(t, known)
	c := &f.d.VCPU(0).Context
	c.ControlRegs[0], c.RFLAGS, f.d.VCPU(0).HVM.EFER = 1<<4, 2, 0
	g := f.attach(t)
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	r.CS, r.FS = 0x1234, 0x5678
	if err := g.SetRegisters(0, r); err != nil {
		t.Fatal(err)
	}
	if s := &f.d.VCPU(0).Saved; s.Bases[xen.SegCS] != 0x12340 || s.Bases[xen.SegFS] != c.FSBase || s.Attributes[xen.SegCS] != 0xa9b {
		t.Errorf("cs %#x, fs %#x", s.Bases[xen.SegCS], s.Bases[xen.SegFS])
	}
}

// What would keep the processor from entering the guest is refused, and nothing
// is written.
func TestSetInvalidSystemRegisters(t *testing.T) {
	f := hvmFixture(t, known)
	g := f.attach(t)
	for _, tt := range []struct {
		set  func(r *x86.Registers)
		text string
	}{
		{func(r *x86.Registers) { r.CR0 &^= 1 }, "cr0: no processor takes this value: paging (PG) needs protection (PE)"},
		{func(r *x86.Registers) { r.CR0 |= 1 << 29 }, "cr0: no processor takes this value: NW needs CD"},
		{func(r *x86.Registers) { r.CR0 &^= 1 << 31 }, "efer: no processor takes this value: LMA is set if, and only if, LME and cr0's PG are"},
		{func(r *x86.Registers) { r.EFER &^= 1 << 8 }, "efer: no processor takes this value: LMA is set"},
		{func(r *x86.Registers) { r.CR4 &^= 1 << 5 }, "cr4: no processor takes this value: 64-bit mode (efer's LMA) needs PAE"},
		{func(r *x86.Registers) { r.CR8 = 16 }, "cr8: no processor takes this value: it has 4 bits"},
		{func(r *x86.Registers) { r.CR3 = 0x7777000 }, "cr3: no processor takes this value: the guest has no memory there: map gfn 0x7777: no such frame"},
		{func(r *x86.Registers) { r.CS = 0 }, "cs: no processor takes this value: it may not be null here"},
		{func(r *x86.Registers) { r.CS = 0x18 }, "cs: no processor takes this value: its descriptor 0x00cf93000000ffff is not that of code"},
		{func(r *x86.Registers) { r.CS = 0x58 }, "cs: no processor takes this value: its descriptor 0x00ef9b000000ffff is of code of 64 and of 32 bits"},
		{func(r *x86.Registers) { r.CS = 0x33 }, "cs, ss: no processor takes this value: they have to have the same privilege level"},
		{func(r *x86.Registers) { r.SS = 0x2b }, "cs, ss: "},
		{func(r *x86.Registers) { r.SS = 0x48 }, "ss: no processor takes this value: its descriptor 0x00cf91000000ffff is not that of data that can be written"},
		{func(r *x86.Registers) { r.SS = 0x10 }, "ss: "},
		{func(r *x86.Registers) { r.DS = 0x38 }, "ds: no processor takes this value: its descriptor 0x0000890000000067 is that of no present segment"},
		{func(r *x86.Registers) { r.ES = 0x40 }, "es: "},
		{func(r *x86.Registers) { r.FS = 0x50 }, "fs: no processor takes this value: its descriptor 0x00cf99000000ffff is of code that cannot be read"},
		{func(r *x86.Registers) { r.GS = 0x68 }, "gs: no processor takes this value: selector 0x68 is beyond the end of the GDT"},
		{func(r *x86.Registers) { r.GS = 0x0c }, "gs: no processor takes this value: the guest has no LDT"},
		{func(r *x86.Registers) { r.RFLAGS |= x86.RFLAGSVM; r.DS = 0x2b }, "cs_base: no processor takes this value: in virtual-8086 mode"},
	} {
		before, err := g.Registers(1)
		if err != nil {
			t.Fatal(err)
		}
		r := before
		r.RAX++
		tt.set(&r)
		err = g.SetRegisters(1, r)
		if !errors.Is(err, guest.ErrInvalid) || !strings.HasPrefix(err.Error(), "vCPU 1: "+tt.text) {
			t.Errorf("got %v, want %s", err, tt.text)
		}
		if after, err := g.Registers(1); err != nil || after != before {
			t.Errorf("%s: registers changed: %s, %v", tt.text, x86.Difference(&after, &before), err)
		}
	}
	if n := f.Calls(xentest.OpSetHVMContext) + f.Calls(xentest.OpSetVCPUContext); n != 0 {
		t.Errorf("%d calls that write", n)
	}
	f.d.VCPU(1).Saved.Bases[xen.SegGDTR] = gdt + xen.PageSize
	r, err := g.Registers(1)
	if err != nil {
		t.Fatal(err)
	}
	r.DS = 0x2b
	if err := g.SetRegisters(1, r); !errors.Is(err, guest.ErrUnmapped) || !errors.Is(err, guest.ErrInvalid) {
		t.Errorf("without a GDT: %v", err)
	}
}

// What the hypervisor refuses takes vCPUs down, before 4.19; they come up again
// as they were. A vCPU that was down stays so.
func TestSystemRegistersRollBack(t *testing.T) {
	f := hvmFixture(t, known)
	f.d.VCPU(0).Online = false
	g := f.attach(t)
	before, err := g.Registers(1)
	if err != nil {
		t.Fatal(err)
	}
	r := before
	r.CR4 |= 1 << 40
	const text = "vCPU 1: XEN_DOMCTL_sethvmcontext: domain 3: the hypervisor finds it invalid: `xl dmesg` may say why: invalid argument"
	if err := g.SetRegisters(1, r); !errors.Is(err, xen.ErrBadState) || err.Error() != text {
		t.Errorf("got %v, want %s", err, text)
	}
	if after, err := g.Registers(1); err != nil || after != before {
		t.Errorf("%s differs after, %v", x86.Difference(&after, &before), err)
	}
	if !f.d.VCPU(1).Online || f.d.VCPU(0).Online {
		t.Errorf("vCPU 1 is up: %v, vCPU 0, which was not: %v", f.d.VCPU(1).Online, f.d.VCPU(0).Online)
	}
}

// So if any call fails on the way.
func TestSetSystemRegistersFailsAtEveryCall(t *testing.T) {
	for n := 1; ; n++ {
		f := hvmFixture(t, known)
		g := f.attach(t)
		before, err := g.Registers(1)
		if err != nil {
			t.Fatal(err)
		}
		ext := bytes.Clone(f.d.VCPU(1).Ext)
		r := before
		r.CR0 ^= 1 << 3
		r.CR8, r.RAX = 9, 1
		f.Fail(xentest.OpAny, n, unix.EIO)
		err = g.SetRegisters(1, r)
		f.ClearFaults()
		if err == nil {
			if n < 8 {
				t.Errorf("only %d calls were made", n-1)
			}
			return
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("call %d fails: %v", n, err)
		}
		if err := errors.Join(g.Resume(), g.Pause()); err != nil {
			t.Fatal(err)
		}
		after, err := g.Registers(1)
		if err != nil || after != before {
			t.Errorf("call %d fails: %s differs after, %v", n, x86.Difference(&after, &before), err)
		}
		if v := f.d.VCPU(1); !bytes.Equal(v.Ext, ext) || !v.Online || !f.d.VCPU(0).Online {
			t.Errorf("call %d fails: extended state is lost or a vCPU down", n)
		}
	}
}

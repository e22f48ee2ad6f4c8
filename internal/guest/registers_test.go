package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// fill gives a vCPU registers that are all different.
func fill(v *xentest.VCPU) {
	c := &v.Context
	c.RAX, c.RBX, c.RCX, c.RDX = 0xa, 0xb, 0xc, 0xd
	c.RSI, c.RDI, c.RBP, c.RSP = 0x51, 0xd1, 0xffffc90000001000, 0xffffc90000000f00
	c.R8, c.R9, c.R10, c.R11 = 8, 9, 10, 11
	c.R12, c.R13, c.R14, c.R15 = 12, 13, 14, 15
	c.RIP, c.RFLAGS = text+0x123, 0x10246
	c.DS, c.ES, c.FS, c.GS = 0x2b, 0x2c, 0x63, 0x6b
	c.FSBase, c.GSBaseKernel, c.GSBaseUser = 0x7f0000000000, 0xffff88807d800000, 0x7f1111111000
	c.ControlRegs[2] = 0xdeadbeef000
	c.DebugRegs = [8]uint64{0x1000, 0x2000, 0x3000, 0x4000, 0, 0, 0xffff0ff0, 0x400}
	fx := x86.FXInit
	for i := range 16 {
		copy(fx.XMM(i), pattern(i, 16))
	}
	for i := range 8 {
		copy(fx.ST(i), pattern(100+i, 10))
	}
	fx.SetStatus(0x3800)
	fx.SetOpcode(0x123)
	c.FPU = fx
	if len(v.Ext) > 0 {
		copy(v.Ext, fx[:])
		copy(v.Ext[576:], pattern(77, 256)) // upper halves of ymm0 to ymm15
		binary.LittleEndian.PutUint64(v.Ext[512:], 7)
	}
}

// filled are the registers that fill gives, in kernel mode.
func filled(v *xentest.VCPU) x86.Registers {
	c := &v.Context
	r := x86.Registers{
		RAX: 0xa, RBX: 0xb, RCX: 0xc, RDX: 0xd,
		RSI: 0x51, RDI: 0xd1, RBP: 0xffffc90000001000, RSP: 0xffffc90000000f00,
		R8: 8, R9: 9, R10: 10, R11: 11, R12: 12, R13: 13, R14: 14, R15: 15,
		RIP: text + 0x123, RFLAGS: 0x10246,
		CS: c.CS, SS: c.SS, DS: 0x2b, ES: 0x2c, FS: 0x63, GS: 0x6b,
		FSBase: 0x7f0000000000, GSBase: 0xffff88807d800000, KernelGSBase: 0x7f1111111000,
		CR0: c.ControlRegs[0], CR2: 0xdeadbeef000, CR3: c.ControlRegs[3], CR4: c.ControlRegs[4],
		DR0: 0x1000, DR1: 0x2000, DR2: 0x3000, DR3: 0x4000, DR6: 0xffff0ff0, DR7: 0x400,
		FX: c.FPU, Known: x86.KnownCR2 | x86.KnownHighGPRs | x86.KnownBases,
	}
	if len(v.Ext) > 0 {
		for i := range r.YMMH {
			copy(r.YMMH[i][:], pattern(77, 256)[16*i:])
		}
		r.Known |= x86.KnownAVX
	}
	return r
}

func TestRegisters(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		for _, noXSAVE := range []bool{false, true} {
			f := fixtureOn(t, xentest.Config{NoXSAVE: noXSAVE}, kind, 2)
			kernel, user := f.d.VCPU(0), f.d.VCPU(1)
			fill(kernel)
			fill(user)
			kernel.HVM.TPR, user.HVM.TPR = 0x7f, 0x70
			user.Context.Flags &^= xen.VGCFInKernel
			if kind != xen.PV {
				user.Context.CS = 0x33
			}
			want := []x86.Registers{filled(kernel), filled(user)}
			want[1].GSBase, want[1].KernelGSBase = want[0].KernelGSBase, want[0].GSBase
			g := f.attach(t)
			for n := range want {
				if kind != xen.PV {
					want[n].EFER, want[n].CR8 = 0xd01, 7
					want[n].Known |= x86.KnownEFER | x86.KnownCR8
				}
				got, err := g.Registers(n)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want[n], got); diff != "" {
					t.Errorf("vCPU %d, no XSAVE %v (-want +got):\n%s", n, noXSAVE, diff)
				}
			}
			if _, err := g.Registers(0); err != nil {
				t.Fatal(err)
			}
			if n := f.Calls(xentest.OpGetVCPUContext); n != 2 {
				t.Errorf("%d contexts read, want each once", n)
			}
		}
	})
}

// State that the processor has in its initial configuration leaves stale bytes
// in the XSAVE area, which are not the registers.
func TestRegistersInInitialState(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	fill(f.d.VCPU(0))
	binary.LittleEndian.PutUint64(f.d.VCPU(0).Ext[512:], 0)
	r, err := f.attach(t).Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	if r.FX.Control() != 0x37f || r.FX.MXCSR() != 0x1f80 || *(*[16]byte)(r.FX.XMM(3)) != [16]byte{} {
		t.Errorf("control %#x, mxcsr %#x, xmm3 % x", r.FX.Control(), r.FX.MXCSR(), r.FX.XMM(3))
	}
}

// changes are registers that can be written, everywhere or, by setvcpucontext, in a
// PV guest only (TestSetSystemRegisters has the others).
var changes = []struct {
	name   string
	onlyPV bool
	set    func(r *x86.Registers)
}{
	{"rax", false, func(r *x86.Registers) { r.RAX = ^uint64(0) }},
	{"rbx", false, func(r *x86.Registers) { r.RBX++ }},
	{"rcx", false, func(r *x86.Registers) { r.RCX++ }},
	{"rdx", false, func(r *x86.Registers) { r.RDX++ }},
	{"rsi", false, func(r *x86.Registers) { r.RSI++ }},
	{"rdi", false, func(r *x86.Registers) { r.RDI++ }},
	{"rbp", false, func(r *x86.Registers) { r.RBP++ }},
	{"rsp", false, func(r *x86.Registers) { r.RSP += 8 }},
	{"r8", false, func(r *x86.Registers) { r.R8++ }},
	{"r9", false, func(r *x86.Registers) { r.R9++ }},
	{"r10", false, func(r *x86.Registers) { r.R10++ }},
	{"r11", false, func(r *x86.Registers) { r.R11++ }},
	{"r12", false, func(r *x86.Registers) { r.R12++ }},
	{"r13", false, func(r *x86.Registers) { r.R13++ }},
	{"r14", false, func(r *x86.Registers) { r.R14++ }},
	{"r15", false, func(r *x86.Registers) { r.R15++ }},
	{"rip", false, func(r *x86.Registers) { r.RIP = text }},
	{"eflags", false, func(r *x86.Registers) { r.RFLAGS ^= 0x8d5 }},
	{"cs", true, func(r *x86.Registers) { r.CS = 0x33 }},
	{"ss", true, func(r *x86.Registers) { r.SS = 0x2b }},
	{"ds", true, func(r *x86.Registers) { r.DS++ }},
	{"es", true, func(r *x86.Registers) { r.ES++ }},
	{"fs", true, func(r *x86.Registers) { r.FS++ }},
	{"gs", true, func(r *x86.Registers) { r.GS++ }},
	{"fs_base", true, func(r *x86.Registers) { r.FSBase += 0x1000 }},
	{"gs_base", true, func(r *x86.Registers) { r.GSBase += 0x1000 }},
	{"k_gs_base", true, func(r *x86.Registers) { r.KernelGSBase += 0x1000 }},
	{"x87 or sse state", false, func(r *x86.Registers) { r.FX.XMM(15)[15]++ }},
	{"x87 or sse state", false, func(r *x86.Registers) { r.FX.ST(7)[9] ^= 0x80 }},
	{"x87 or sse state", false, func(r *x86.Registers) { r.FX.SetControl(0x27f) }},
	{"x87 or sse state", false, func(r *x86.Registers) { r.FX.SetMXCSR(0x1f00) }},
}

// readOnly are registers that no PV guest lets be written.
var readOnly = []struct {
	name string
	set  func(r *x86.Registers)
}{
	{"cr0", func(r *x86.Registers) { r.CR0 ^= 1 }},
	{"cr2", func(r *x86.Registers) { r.CR2++ }},
	{"cr3", func(r *x86.Registers) { r.CR3 += 0x1000 }},
	{"cr4", func(r *x86.Registers) { r.CR4 ^= 1 }},
	{"cr8", func(r *x86.Registers) { r.CR8++ }},
	{"efer", func(r *x86.Registers) { r.EFER ^= 1 }},
}

// Each register can be written alone, and nothing else changes: not another
// register, not the other vCPU, not the state beyond SSE.
func TestSetRegisters(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		for _, noXSAVE := range []bool{false, true} {
			for _, user := range []bool{false, true} {
				f := fixtureOn(t, xentest.Config{NoXSAVE: noXSAVE}, kind, 2)
				fill(f.d.VCPU(0))
				fill(f.d.VCPU(1))
				if user {
					f.d.VCPU(1).Context.Flags &^= xen.VGCFInKernel
					if kind != xen.PV {
						f.d.VCPU(1).Context.CS = 0x33
					}
				}
				other := f.d.VCPU(0).Context
				g := f.attach(t)
				for _, change := range changes {
					if change.onlyPV && kind != xen.PV {
						continue
					}
					want, err := g.Registers(1)
					if err != nil {
						t.Fatal(err)
					}
					change.set(&want)
					if err := g.SetRegisters(1, want); err != nil {
						t.Errorf("%s: %v", change.name, err)
						continue
					}
					// Not from the cache, but from the domain.
					if err := errors.Join(g.Resume(), g.Pause()); err != nil {
						t.Fatal(err)
					}
					got, err := g.Registers(1)
					if err != nil {
						t.Fatal(err)
					}
					if got != want {
						t.Errorf("%s: reads back otherwise: %s differs", change.name, x86.Difference(&got, &want))
					}
					if !noXSAVE {
						if ext := f.d.VCPU(1).Ext; !bytes.Equal(ext[576:], pattern(77, 256)) || binary.LittleEndian.Uint64(ext[512:]) != 7 {
							t.Errorf("%s: AVX state is lost", change.name)
						}
					}
					if f.d.VCPU(1).Context.Flags&xen.VGCFInKernel == 0 != (user || kind != xen.PV) {
						t.Errorf("%s: mode changed", change.name)
					}
					if !f.d.VCPU(1).Online {
						t.Fatalf("%s: vCPU is taken off", change.name)
					}
				}
				if f.d.VCPU(0).Context != other {
					t.Error("the other vCPU changed")
				}
			}
		}
	})
}

// In a PV guest, a register that setvcpucontext ignores is refused. Nothing is
// written then.
func TestSetReadOnlyRegisters(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	fill(f.d.VCPU(0))
	g := f.attach(t)
	for _, tt := range readOnly {
		r, err := g.Registers(0)
		if err != nil {
			t.Fatal(err)
		}
		before := r
		r.RAX++ // one that can be
		tt.set(&r)
		err = g.SetRegisters(0, r)
		if !errors.Is(err, guest.ErrReadOnly) ||
			err.Error() != "vCPU 0: "+tt.name+": the hypervisor does not let it be changed from outside" {
			t.Errorf("%s: %v", tt.name, err)
		}
		if after, err := g.Registers(0); err != nil || after != before {
			t.Errorf("%s: registers changed: %s, %v", tt.name, x86.Difference(&after, &before), err)
		}
	}
	if n := f.Calls(xentest.OpSetVCPUContext) + f.Calls(xentest.OpSetVCPUExtState); n != 0 {
		t.Errorf("%d calls that write", n)
	}
}

func TestSetSameRegisters(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	g := f.attach(t)
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetRegisters(0, r); err != nil {
		t.Fatal(err)
	}
	if n := f.Calls(xentest.OpSetVCPUContext); n != 0 {
		t.Errorf("%d calls that write, want none for what is so already", n)
	}
}

// A value that the hypervisor changes or refuses is taken back, with all else.
func TestSetRegistersRollsBack(t *testing.T) {
	tests := []struct {
		name string
		set  func(r *x86.Registers)
		text string
	}{
		// A PV guest cannot mask interrupts by IF: the hypervisor forces it on.
		{"forced", func(r *x86.Registers) { r.RFLAGS &^= 0x200 }, "vCPU 0: eflags: the hypervisor did not take the value"},
		{"forced ring", func(r *x86.Registers) { r.CS = 0x10 }, "vCPU 0: cs: the hypervisor did not take the value"},
		{"refused", func(r *x86.Registers) { r.RIP = 1 << 63 }, "XEN_DOMCTL_setvcpucontext: domain 3: vCPU 0: invalid argument"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, xen.PV, 1)
			v := f.d.VCPU(0)
			fill(v)
			context, ext := v.Context, bytes.Clone(v.Ext)
			context.Flags |= xen.VGCFOnline // which the fake keeps apart
			g := f.attach(t)
			r, err := g.Registers(0)
			if err != nil {
				t.Fatal(err)
			}
			before := r
			r.RAX, r.R15 = 0x1111, 0x2222
			r.FX.XMM(1)[0]++
			tt.set(&r)
			if err := g.SetRegisters(0, r); err == nil || err.Error() != tt.text {
				t.Errorf("got %v, want %s", err, tt.text)
			}
			if after, err := g.Registers(0); err != nil || after != before {
				t.Errorf("%s differs after, %v", x86.Difference(&after, &before), err)
			}
			v.Context.Flags |= xen.VGCFOnline
			if diff := cmp.Diff(context, v.Context); diff != "" {
				t.Errorf("the vCPU's context differs (-before +after):\n%s", diff)
			}
			if !bytes.Equal(v.Ext, ext) {
				t.Error("the vCPU's extended state differs")
			}
		})
	}
}

// So if any call fails on the way.
func TestSetRegistersFailsAtEveryCall(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		for n := 1; ; n++ {
			f := newFixture(t, kind, 1)
			v := f.d.VCPU(0)
			fill(v)
			g := f.attach(t)
			before, err := g.Registers(0)
			if err != nil {
				t.Fatal(err)
			}
			ext := bytes.Clone(v.Ext)
			want := before
			want.RAX++
			calls := f.Calls(xentest.OpAny)
			f.Fail(xentest.OpAny, n, unix.EIO)
			err = g.SetRegisters(0, want)
			made := f.Calls(xentest.OpAny) - calls
			f.ClearFaults()
			if made < n {
				if err != nil || n < 5 {
					t.Errorf("no call fails: %v, after %d calls", err, n-1)
				}
				return
			}
			if !errors.Is(err, unix.EIO) {
				t.Errorf("call %d fails: %v", n, err)
			}
			if after, err := g.Registers(0); err != nil || after != before {
				t.Errorf("call %d fails: %s differs, %v", n, x86.Difference(&after, &before), err)
			}
			if !bytes.Equal(v.Ext, ext) {
				t.Errorf("call %d fails: extended state differs", n)
			}
		}
	})
}

// A vCPU that came in by SYSCALL would leave by SYSRET, which takes rip from rcx.
func TestSetRegistersLeavesByIRET(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.d.VCPU(0).Context.EntryVector = xen.EntryVectorSyscall | 3
	g := f.attach(t)
	r, err := g.Registers(0)
	if err != nil {
		t.Fatal(err)
	}
	r.RIP = text
	if err := g.SetRegisters(0, r); err != nil {
		t.Fatal(err)
	}
	if got := f.d.VCPU(0).Context.EntryVector; got != 3 {
		t.Errorf("entry vector %#x, want 0x3", got)
	}
}

// 4.21.0 and 4.21.1 lose r8 to r15: they are not known there, and no register
// may be written, since that would zero them.
func TestContextLosesR8toR15(t *testing.T) {
	for _, extra := range []string{".0", ".1", ".2"} {
		t.Run("4.21"+extra, func(t *testing.T) {
			f := fixtureOn(t, xentest.Config{Release: "4.21", Extra: extra}, xen.PV, 1)
			fill(f.d.VCPU(0))
			f.pt.MapPage(text, []byte("memory"))
			g := f.attach(t)
			r, err := g.Registers(0)
			if err != nil {
				t.Fatal(err)
			}
			known := r.Known&x86.KnownHighGPRs != 0
			r.RAX++
			err = g.SetRegisters(0, r)
			if extra == ".2" {
				if !known || r.R15 != 15 || err != nil {
					t.Errorf("r8 to r15 known: %v, r15 %d, write: %v", known, r.R15, err)
				}
				return
			}
			if known || !errors.Is(err, xen.ErrQuirk) {
				t.Errorf("r8 to r15 known: %v, write: %v", known, err)
			}
			if want := "vCPU 0: writing a register would zero r8 to r15: "; err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("text %v", err)
			}
			if c := f.d.VCPU(0).Context; c.R8 != 8 || c.R15 != 15 || c.RAX != 0xa {
				t.Errorf("r8 %d, r15 %d, rax %d: written", c.R8, c.R15, c.RAX)
			}
			// Memory is another matter.
			if err := g.Write(0, text, []byte("M")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRegisterErrors(t *testing.T) {
	f := newFixture(t, xen.PVH, 2)
	f.d.VCPU(1).Uninitialised, f.d.VCPU(1).Online = true, false
	g := f.attach(t)
	if _, err := g.Registers(1); !errors.Is(err, xen.ErrVCPUOffline) {
		t.Errorf("vCPU that was never up: %v", err)
	}
	if err := errors.Join(g.Resume(), g.Pause()); err != nil {
		t.Fatal(err)
	}
	for _, op := range []xentest.Op{xentest.OpGetVCPUContext, xentest.OpGetVCPUExtState, xentest.OpGetHVMContextPartial} {
		f.Fail(op, 1, unix.EIO)
		if _, err := g.Registers(0); !errors.Is(err, unix.EIO) || !strings.Contains(fmt.Sprint(err), string(op)) {
			t.Errorf("%s fails: %v", op, err)
		}
	}
	if _, err := g.Registers(0); err != nil {
		t.Errorf("after the failures: %v", err)
	}
}

// On AMD's processors, older releases of Xen do not know the CR2 of a guest that
// handles its own page faults.
func TestStaleCR2(t *testing.T) {
	for _, tt := range []struct {
		release, extra string
		kind           xen.Kind
		amd            bool
		known          bool
	}{
		{"4.17", ".7", xen.PVH, true, false},
		{"4.17", ".7", xen.PVH, false, true},
		{"4.17", ".7", xen.PV, true, true},
		{"4.20", ".3", xen.HVM, true, false},
		{"4.20", ".4", xen.HVM, true, true},
		{"4.21", ".1", xen.HVM, true, false},
		{"4.21", ".2", xen.HVM, true, true},
		{"4.22", ".0", xen.HVM, true, true},
	} {
		f := fixtureOn(t, xentest.Config{Release: tt.release, Extra: tt.extra}, tt.kind, 1)
		guest.PretendAMD(t, tt.amd)
		f.d.VCPU(0).Context.ControlRegs[2] = 0x1234
		r, err := f.attach(t).Registers(0)
		if err != nil {
			t.Fatal(err)
		}
		if known := r.Known&x86.KnownCR2 != 0; known != tt.known || known != (r.CR2 == 0x1234) {
			t.Errorf("%+v: cr2 %#x, known %v", tt, r.CR2, known)
		}
	}
}

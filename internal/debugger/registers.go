// This file says which registers a client sees, and how each is taken from and
// put into the state of a vCPU. Names, order and types of the standard features
// are GDB's (GDB manual, node "i386 Features"); the system registers are named
// as QEMU names them. The description depends on the processor alone, never on
// the guest or its CPU mode, which may change during a session.

package debugger

import (
	"fmt"

	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
)

// register is a register of the description and its place in an x86.Registers:
// a number of at most 64 bits, or wide bytes.
type register struct {
	rsp.Register
	load  func(r *x86.Registers) uint64
	store func(r *x86.Registers, v uint64)
	wide  func(r *x86.Registers) []byte
	known x86.Known // 0: always
}

// u64 describes a register that is a field of 64 bits.
func u64(name, typ string, field func(r *x86.Registers) *uint64) register {
	return register{
		Register: rsp.Register{Name: name, Bits: 64, Type: typ},
		load:     func(r *x86.Registers) uint64 { return *field(r) },
		store:    func(r *x86.Registers, v uint64) { *field(r) = v },
	}
}

// selector describes a segment register, for which GDB has 32 bits.
func selector(name string, field func(r *x86.Registers) *uint16) register {
	return register{
		Register: rsp.Register{Name: name, Bits: 32, Type: "int32"},
		load:     func(r *x86.Registers) uint64 { return uint64(*field(r)) },
		store:    func(r *x86.Registers, v uint64) { *field(r) = uint16(v) },
	}
}

// x87 describes a register of the FPU's environment, for which GDB has 32 bits.
func x87(name string, load func(fx *x86.FXSave) uint64, store func(fx *x86.FXSave, v uint64)) register {
	return register{
		Register: rsp.Register{Name: name, Bits: 32, Type: "int", Group: "float"},
		load:     func(r *x86.Registers) uint64 { return load(&r.FX) },
		store:    func(r *x86.Registers, v uint64) { store(&r.FX, v) },
	}
}

// only marks a register that is not known everywhere.
func (r register) only(known x86.Known) register {
	r.known = known
	return r
}

// system marks a register of the processor's control.
func (r register) system() register {
	r.Group = "system"
	return r
}

var coreRegisters = func() []register {
	rs := []register{
		u64("rax", "int64", func(r *x86.Registers) *uint64 { return &r.RAX }),
		u64("rbx", "int64", func(r *x86.Registers) *uint64 { return &r.RBX }),
		u64("rcx", "int64", func(r *x86.Registers) *uint64 { return &r.RCX }),
		u64("rdx", "int64", func(r *x86.Registers) *uint64 { return &r.RDX }),
		u64("rsi", "int64", func(r *x86.Registers) *uint64 { return &r.RSI }),
		u64("rdi", "int64", func(r *x86.Registers) *uint64 { return &r.RDI }),
		u64("rbp", "data_ptr", func(r *x86.Registers) *uint64 { return &r.RBP }),
		u64("rsp", "data_ptr", func(r *x86.Registers) *uint64 { return &r.RSP }),
		u64("r8", "int64", func(r *x86.Registers) *uint64 { return &r.R8 }).only(x86.KnownHighGPRs),
		u64("r9", "int64", func(r *x86.Registers) *uint64 { return &r.R9 }).only(x86.KnownHighGPRs),
		u64("r10", "int64", func(r *x86.Registers) *uint64 { return &r.R10 }).only(x86.KnownHighGPRs),
		u64("r11", "int64", func(r *x86.Registers) *uint64 { return &r.R11 }).only(x86.KnownHighGPRs),
		u64("r12", "int64", func(r *x86.Registers) *uint64 { return &r.R12 }).only(x86.KnownHighGPRs),
		u64("r13", "int64", func(r *x86.Registers) *uint64 { return &r.R13 }).only(x86.KnownHighGPRs),
		u64("r14", "int64", func(r *x86.Registers) *uint64 { return &r.R14 }).only(x86.KnownHighGPRs),
		u64("r15", "int64", func(r *x86.Registers) *uint64 { return &r.R15 }).only(x86.KnownHighGPRs),
		u64("rip", "code_ptr", func(r *x86.Registers) *uint64 { return &r.RIP }),
		{
			Register: rsp.Register{Name: "eflags", Bits: 32, Type: "i386_eflags"},
			load:     func(r *x86.Registers) uint64 { return r.RFLAGS },
			store:    func(r *x86.Registers, v uint64) { r.RFLAGS = r.RFLAGS&^0xffff_ffff | v },
		},
		selector("cs", func(r *x86.Registers) *uint16 { return &r.CS }),
		selector("ss", func(r *x86.Registers) *uint16 { return &r.SS }),
		selector("ds", func(r *x86.Registers) *uint16 { return &r.DS }),
		selector("es", func(r *x86.Registers) *uint16 { return &r.ES }),
		selector("fs", func(r *x86.Registers) *uint16 { return &r.FS }),
		selector("gs", func(r *x86.Registers) *uint16 { return &r.GS }),
	}
	for i := range 8 {
		rs = append(rs, register{
			Register: rsp.Register{Name: fmt.Sprintf("st%d", i), Bits: 80, Type: "i387_ext"},
			wide:     func(r *x86.Registers) []byte { return r.FX.ST(i) },
		})
	}
	// GDB splits the two 64-bit pointers of FXSAVE64 into segment and offset.
	ip, dp := (*x86.FXSave).InstructionPointer, (*x86.FXSave).DataPointer
	return append(rs,
		x87("fctrl", func(fx *x86.FXSave) uint64 { return uint64(fx.Control()) },
			func(fx *x86.FXSave, v uint64) { fx.SetControl(uint16(v)) }),
		x87("fstat", func(fx *x86.FXSave) uint64 { return uint64(fx.Status()) },
			func(fx *x86.FXSave, v uint64) { fx.SetStatus(uint16(v)) }),
		x87("ftag", func(fx *x86.FXSave) uint64 { return uint64(fx.Tags()) },
			func(fx *x86.FXSave, v uint64) { fx.SetTags(uint16(v)) }),
		x87("fiseg", func(fx *x86.FXSave) uint64 { return ip(fx) >> 32 },
			func(fx *x86.FXSave, v uint64) { fx.SetInstructionPointer(v<<32 | ip(fx)&0xffff_ffff) }),
		x87("fioff", func(fx *x86.FXSave) uint64 { return ip(fx) & 0xffff_ffff },
			func(fx *x86.FXSave, v uint64) { fx.SetInstructionPointer(ip(fx)>>32<<32 | v&0xffff_ffff) }),
		x87("foseg", func(fx *x86.FXSave) uint64 { return dp(fx) >> 32 },
			func(fx *x86.FXSave, v uint64) { fx.SetDataPointer(v<<32 | dp(fx)&0xffff_ffff) }),
		x87("fooff", func(fx *x86.FXSave) uint64 { return dp(fx) & 0xffff_ffff },
			func(fx *x86.FXSave, v uint64) { fx.SetDataPointer(dp(fx)>>32<<32 | v&0xffff_ffff) }),
		x87("fop", func(fx *x86.FXSave) uint64 { return uint64(fx.Opcode()) },
			func(fx *x86.FXSave, v uint64) { fx.SetOpcode(uint16(v)) }),
	)
}()

var sseRegisters = func() []register {
	var rs []register
	for i := range 16 {
		rs = append(rs, register{
			Register: rsp.Register{Name: fmt.Sprintf("xmm%d", i), Bits: 128, Type: "vec128"},
			wide:     func(r *x86.Registers) []byte { return r.FX.XMM(i) },
		})
	}
	return append(rs, register{
		Register: rsp.Register{Name: "mxcsr", Bits: 32, Type: "i386_mxcsr", Group: "vector"},
		load:     func(r *x86.Registers) uint64 { return uint64(r.FX.MXCSR()) },
		store:    func(r *x86.Registers, v uint64) { r.FX.SetMXCSR(uint32(v)) },
	})
}()

var segmentRegisters = []register{
	u64("fs_base", "int64", func(r *x86.Registers) *uint64 { return &r.FSBase }).only(x86.KnownBases),
	u64("gs_base", "int64", func(r *x86.Registers) *uint64 { return &r.GSBase }).only(x86.KnownBases),
}

var systemRegisters = []register{
	u64("k_gs_base", "int64", func(r *x86.Registers) *uint64 { return &r.KernelGSBase }).only(x86.KnownBases).system(),
	u64("cr0", "x64_cr0", func(r *x86.Registers) *uint64 { return &r.CR0 }).system(),
	u64("cr2", "int64", func(r *x86.Registers) *uint64 { return &r.CR2 }).only(x86.KnownCR2).system(),
	u64("cr3", "int64", func(r *x86.Registers) *uint64 { return &r.CR3 }).system(),
	u64("cr4", "x64_cr4", func(r *x86.Registers) *uint64 { return &r.CR4 }).system(),
	u64("cr8", "int64", func(r *x86.Registers) *uint64 { return &r.CR8 }).only(x86.KnownCR8).system(),
	u64("efer", "x64_efer", func(r *x86.Registers) *uint64 { return &r.EFER }).only(x86.KnownEFER).system(),
	u64("dr0", "int64", func(r *x86.Registers) *uint64 { return &r.DR0 }).system(),
	u64("dr1", "int64", func(r *x86.Registers) *uint64 { return &r.DR1 }).system(),
	u64("dr2", "int64", func(r *x86.Registers) *uint64 { return &r.DR2 }).system(),
	u64("dr3", "int64", func(r *x86.Registers) *uint64 { return &r.DR3 }).system(),
	u64("dr6", "x64_dr6", func(r *x86.Registers) *uint64 { return &r.DR6 }).system(),
	u64("dr7", "x64_dr7", func(r *x86.Registers) *uint64 { return &r.DR7 }).system(),
}

// vector describes a register of bytes that some vCPUs have.
func vector(name string, bits int, typ string, known x86.Known, field func(r *x86.Registers) []byte) register {
	return register{Register: rsp.Register{Name: name, Bits: bits, Type: typ}, wide: field, known: known}
}

var avxRegisters = func() []register {
	var rs []register
	for i := range 16 {
		rs = append(rs, vector(fmt.Sprintf("ymm%dh", i), 128, "uint128", x86.KnownAVX,
			func(r *x86.Registers) []byte { return r.YMMH[i][:] }))
	}
	return rs
}()

var avx512Registers = func() []register {
	var rs []register
	add := func(format string, from, n, bits int, typ string, field func(r *x86.Registers, i int) []byte) {
		for i := range n {
			rs = append(rs, vector(fmt.Sprintf(format, from+i), bits, typ, x86.KnownAVX512,
				func(r *x86.Registers) []byte { return field(r, i) }))
		}
	}
	add("k%d", 0, 8, 64, "uint64", func(r *x86.Registers, i int) []byte { return r.K[8*i:][:8] })
	add("zmm%dh", 0, 16, 256, "v2ui128", func(r *x86.Registers, i int) []byte { return r.ZMMH[i][:] })
	add("xmm%d", 16, 16, 128, "vec128", func(r *x86.Registers, i int) []byte { return r.XMM16[i][:] })
	add("ymm%dh", 16, 16, 128, "uint128", func(r *x86.Registers, i int) []byte { return r.YMMH16[i][:] })
	add("zmm%dh", 16, 16, 256, "v2ui128", func(r *x86.Registers, i int) []byte { return r.ZMMH[16+i][:] })
	return rs
}()

var pkeysRegisters = []register{
	vector("pkru", 32, "int", x86.KnownPKRU, func(r *x86.Registers) []byte { return r.PKRU[:] }),
}

// A layout is the registers of a description, in its order.
type layout struct {
	registers   []register
	description *rsp.Description
}

// newLayout chooses the registers of a processor with these state components.
func newLayout(features x86.Feature) layout {
	l := layout{description: &rsp.Description{Architecture: "i386:x86-64"}}
	add := func(name string, rs []register, types ...rsp.FlagsType) {
		f := rsp.Feature{Name: name, Types: types}
		for i := range rs {
			f.Registers = append(f.Registers, rs[i].Register)
		}
		l.registers = append(l.registers, rs...)
		l.description.Features = append(l.description.Features, f)
	}
	add("org.gnu.gdb.i386.core", coreRegisters, eflagsType)
	add("org.gnu.gdb.i386.sse", sseRegisters, mxcsrType)
	add("org.gnu.gdb.i386.segments", segmentRegisters)
	add("org.gdbserver-xen.i386.system", systemRegisters,
		cr0Type, cr4Type, eferType, dr6Type, dr7Type)
	if features&x86.FeatureAVX != 0 {
		add("org.gnu.gdb.i386.avx", avxRegisters)
	}
	if features&x86.FeatureAVX512 == x86.FeatureAVX512 {
		add("org.gnu.gdb.i386.avx512", avx512Registers)
	}
	if features&x86.FeaturePKRU != 0 {
		add("org.gnu.gdb.i386.pkeys", pkeysRegisters)
	}
	return l
}

// toClient puts a vCPU's registers into those of the protocol.
func (l *layout) toClient(r *x86.Registers, out *rsp.Registers) {
	for i := range l.registers {
		reg := &l.registers[i]
		switch {
		case r.Known&reg.known != reg.known:
		case reg.wide != nil:
			out.Set(i, reg.wide(r))
		default:
			out.SetUint(i, reg.load(r))
		}
	}
}

// fromClient puts those registers of the protocol that are known into a vCPU's.
// One that the vCPU does not have gives its name.
func (l *layout) fromClient(in *rsp.Registers, r *x86.Registers) (unknown string) {
	for i := range l.registers {
		reg := &l.registers[i]
		value, ok := in.Bytes(i)
		switch {
		case !ok:
		case r.Known&reg.known != reg.known:
			return reg.Name
		case reg.wide != nil:
			copy(reg.wide(r), value)
		default:
			v, _ := in.Uint(i)
			reg.store(r, v)
		}
	}
	return ""
}

// This file holds a CPU's registers as one value, and the x87 and SSE state in
// the layout that the FXSAVE instruction gives them.

package x86

import (
	"encoding/binary"
	"reflect"
	"strings"
)

// Known is a set of those registers that cannot be read everywhere.
type Known uint16

// The registers that may be unknown.
const (
	KnownEFER Known = 1 << iota
	KnownCR8
	KnownCR2
	KnownHighGPRs // r8 to r15
	KnownBases    // FSBase, GSBase, KernelGSBase
	KnownAVX      // YMMH
	KnownAVX512   // K, ZMMH, XMM16, YMMH16
	KnownPKRU
)

// Registers is the state of a CPU as a debugger sees it.
type Registers struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64

	CS, SS, DS, ES, FS, GS uint16
	FSBase, GSBase         uint64
	KernelGSBase           uint64 // the GS base that SWAPGS would bring in

	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64

	DR0, DR1, DR2, DR3, DR6, DR7 uint64

	FX FXSave

	YMMH   [16][16]byte // bits 128 to 255 of ymm0 to ymm15
	K      [64]byte     // k0 to k7, 8 bytes each
	ZMMH   [32][32]byte // bits 256 to 511 of zmm0 to zmm31
	XMM16  [16][16]byte // xmm16 to xmm31
	YMMH16 [16][16]byte // bits 128 to 255 of ymm16 to ymm31
	PKRU   [4]byte

	// Known tells which of the registers it names hold values.
	Known Known
}

// Difference names the first register in which two states differ, as "cr3", or
// gives "" if they are the same.
func Difference(a, b *Registers) string {
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range va.NumField() {
		if !va.Field(i).Equal(vb.Field(i)) {
			return registerNames[i]
		}
	}
	return ""
}

// registerNames are the fields of Registers, as GDB names them.
var registerNames = func() []string {
	special := map[string]string{
		"RFLAGS": "eflags", "FSBase": "fs_base", "GSBase": "gs_base",
		"KernelGSBase": "k_gs_base", "FX": "x87 or SSE state", "YMMH": "AVX state",
		"ZMMH": "AVX-512 state", "XMM16": "AVX-512 state", "YMMH16": "AVX-512 state",
		"K": "AVX-512 mask", "Known": "set of known registers",
	}
	var names []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Registers]()) {
		name, ok := special[field.Name]
		if !ok {
			name = strings.ToLower(field.Name)
		}
		names = append(names, name)
	}
	return names
}()

// FXSave is the x87 and SSE state as FXSAVE64 stores it (SDM vol. 1, section
// 10.5.1, table 10-2).
type FXSave [512]byte

// FXInit is the state after FNINIT, with MXCSR at its reset value.
var FXInit = func() (fx FXSave) {
	fx.SetControl(0x37f)
	fx.SetMXCSR(0x1f80)
	return fx
}()

// Control gives the x87 control word.
func (fx *FXSave) Control() uint16 { return binary.LittleEndian.Uint16(fx[0:]) }

// SetControl sets the x87 control word.
func (fx *FXSave) SetControl(v uint16) { binary.LittleEndian.PutUint16(fx[0:], v) }

// Status gives the x87 status word.
func (fx *FXSave) Status() uint16 { return binary.LittleEndian.Uint16(fx[2:]) }

// SetStatus sets the x87 status word.
func (fx *FXSave) SetStatus(v uint16) { binary.LittleEndian.PutUint16(fx[2:], v) }

// Opcode gives the last x87 opcode.
func (fx *FXSave) Opcode() uint16 { return binary.LittleEndian.Uint16(fx[6:]) }

// SetOpcode sets the last x87 opcode.
func (fx *FXSave) SetOpcode(v uint16) { binary.LittleEndian.PutUint16(fx[6:], v) }

// InstructionPointer gives the address of the last x87 instruction.
func (fx *FXSave) InstructionPointer() uint64 { return binary.LittleEndian.Uint64(fx[8:]) }

// SetInstructionPointer sets the address of the last x87 instruction.
func (fx *FXSave) SetInstructionPointer(v uint64) { binary.LittleEndian.PutUint64(fx[8:], v) }

// DataPointer gives the address of the last x87 operand.
func (fx *FXSave) DataPointer() uint64 { return binary.LittleEndian.Uint64(fx[16:]) }

// SetDataPointer sets the address of the last x87 operand.
func (fx *FXSave) SetDataPointer(v uint64) { binary.LittleEndian.PutUint64(fx[16:], v) }

// MXCSR gives the SSE control and status register.
func (fx *FXSave) MXCSR() uint32 { return binary.LittleEndian.Uint32(fx[24:]) }

// SetMXCSR sets the SSE control and status register.
func (fx *FXSave) SetMXCSR(v uint32) { binary.LittleEndian.PutUint32(fx[24:], v) }

// ST gives the 10 bytes of ST(i), to read or to write.
// Preconditions: 0 <= i < 8.
func (fx *FXSave) ST(i int) []byte { return fx[32+16*i:][:10:10] }

// XMM gives the 16 bytes of XMM i, to read or to write.
// Preconditions: 0 <= i < 16.
func (fx *FXSave) XMM(i int) []byte { return fx[160+16*i:][:16:16] }

// Tags gives the x87 tag word, two bits for each physical register, which
// FXSAVE stores as one bit: in use or not (SDM vol. 1, section 10.5.1.1).
func (fx *FXSave) Tags() uint16 {
	top := int(fx.Status() >> 11 & 7)
	var tags uint16
	for physical := range 8 {
		tag := uint16(tagEmpty)
		if fx[4]>>physical&1 != 0 {
			tag = tagOf(fx.ST((physical - top) & 7))
		}
		tags |= tag << (2 * physical)
	}
	return tags
}

// SetTags sets the x87 tag word. Only whether a register is empty counts; the
// rest follows from its value.
func (fx *FXSave) SetTags(tags uint16) {
	fx[4] = 0
	for physical := range 8 {
		if tags>>(2*physical)&3 != tagEmpty {
			fx[4] |= 1 << physical
		}
	}
}

// The x87 tags (SDM vol. 1, section 8.1.7).
const (
	tagValid = iota
	tagZero
	tagSpecial
	tagEmpty
)

// tagOf gives the tag of a register in use, from its 10 bytes.
func tagOf(st []byte) uint16 {
	mantissa := binary.LittleEndian.Uint64(st)
	switch exponent := binary.LittleEndian.Uint16(st[8:]) & 0x7fff; {
	case exponent == 0 && mantissa == 0:
		return tagZero
	case exponent == 0 || exponent == 0x7fff || mantissa>>63 == 0:
		return tagSpecial
	default:
		return tagValid
	}
}

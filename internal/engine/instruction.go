// This file tells those instructions apart that cannot simply be stepped with
// RFLAGS.TF in an HVM or PVH guest.

package engine

// class is what an instruction does that matters to a step with RFLAGS.TF.
type class uint8

const (
	ordinary class = iota
	// emulated: the hypervisor may execute it in the vCPU's place, and then
	// gives the trap of a step to the guest, and to no monitor.
	emulated
	// gated: it goes to a handler of the guest's kernel, by the interrupt
	// descriptor table, and pushes the flags.
	gated
	// syscall: it goes to the guest's kernel, and keeps the flags in r11.
	syscall
	// sysret: it takes the flags from r11, and rip from rcx.
	sysret
	pushesFlags
	popsFlags // into RFLAGS, with what TF the guest wants
)

// instruction is what is known of an instruction.
type instruction struct {
	class  class
	length int   // of emulated and gated ones
	vector uint8 // of gated ones
}

// decode looks at the instruction that code begins with (SDM vol. 2, appendix A).
// long says that it is 64-bit code. What is cut off is ordinary.
func decode(code []byte, long bool) instruction {
	n := 0
	repeat := false
	address32 := false
prefixes:
	for ; n < len(code) && n < 14; n++ {
		switch b := code[n]; {
		case b == 0xf3:
			repeat = true
		case b == 0x67:
			address32 = true
		case b == 0x66, b == 0xf2, b == 0x2e, b == 0x36, b == 0x3e, b == 0x26, b == 0x64, b == 0x65, b == 0xf0:
		case long && b&0xf0 == 0x40: // REX, which the opcode follows
			n++
			break prefixes
		default:
			break prefixes
		}
	}
	if n >= len(code) {
		return instruction{}
	}
	rest := code[n:]
	is := func(c class, length int) instruction {
		if length > len(rest) {
			return instruction{}
		}
		return instruction{class: c, length: n + length}
	}
	switch b := rest[0]; b {
	case 0x9c:
		return is(pushesFlags, 1)
	case 0x9d, 0xcf: // POPF, IRET
		return is(popsFlags, 1)
	case 0xf4, 0xec, 0xed, 0xee, 0xef, 0x6c, 0x6d, 0x6e, 0x6f: // HLT, IN, OUT, INS, OUTS
		return is(emulated, 1)
	case 0xe4, 0xe5, 0xe6, 0xe7: // IN, OUT
		return is(emulated, 2)
	case 0x90:
		if repeat { // PAUSE
			return is(emulated, 1)
		}
	case 0xcc, 0xce, 0xf1: // INT3, INTO, INT1
		i := is(gated, 1)
		i.vector = map[byte]uint8{0xcc: 3, 0xce: 4, 0xf1: 1}[b]
		return i
	case 0xcd: // INT
		i := is(gated, 2)
		if i.class == gated {
			i.vector = rest[1]
		}
		return i
	case 0x0f:
		return decode0F(rest, is, address32 && !long)
	}
	return instruction{}
}

// decode0F is decode for the opcodes that begin with 0F.
func decode0F(rest []byte, is func(class, int) instruction, address16 bool) instruction {
	if len(rest) < 2 {
		return instruction{}
	}
	switch rest[1] {
	case 0x05:
		return is(syscall, 2)
	case 0x07:
		return is(sysret, 2)
	case 0x06, 0x08, 0x09, 0x30, 0x31, 0x32, 0x33, 0xa2: // CLTS, INVD, WBINVD, WRMSR, RDTSC, RDMSR, RDPMC, CPUID
		return is(emulated, 2)
	case 0x20, 0x22: // MOV of control registers
		return is(emulated, 3)
	case 0x01:
		if len(rest) < 3 {
			return instruction{}
		}
		modrm := rest[2]
		switch modrm {
		case 0xf8: // SWAPGS
			return instruction{}
		case 0xc0, 0xc1, 0xc8, 0xc9, 0xd1, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xf9, 0xfa, 0xfb, 0xfd:
			// VMCALL, MONITOR, MWAIT, XSETBV, VMRUN to INVLPGA, RDTSCP, MONITORX,
			// MWAITX, RDPRU
			return is(emulated, 3)
		}
		switch modrm >> 3 & 7 {
		case 4, 6, 7: // SMSW, LMSW, INVLPG
			return is(emulated, 2+modrmLength(rest[2:], address16))
		}
	}
	return instruction{}
}

// modrmLength gives the length of a ModRM byte with what belongs to it (SDM vol.
// 2A, tables 2-1 to 2-3).
// Preconditions: len(b) > 0.
func modrmLength(b []byte, address16 bool) int {
	mod, rm := b[0]>>6, b[0]&7
	if mod == 3 {
		return 1
	}
	if address16 {
		switch {
		case mod == 0 && rm == 6, mod == 2:
			return 3
		case mod == 1:
			return 2
		}
		return 1
	}
	n := 1
	if rm == 4 {
		n++
		if mod == 0 && len(b) > 1 && b[1]&7 == 5 {
			n += 4
		}
	}
	switch {
	case mod == 1:
		n++
	case mod == 2, mod == 0 && rm == 5:
		n += 4
	}
	return n
}

// This file knows the instructions that functions begin with well enough to do
// their work in a CPU's stead.

package x86

// Skip does what the instruction at RIP does, if it is one that functions often
// begin with and that 64-bit code always executes the same way: a NOP (as is
// patched in for tracing), ENDBR64, PUSH of a register, or MOV RBP, RSP. It
// changes r, and gives what is to be written at RSP, if anything. ok is false,
// and nothing changed, for all others.
//
// Instructions are in SDM vol. 2, the forms of NOP under "NOP".
func Skip(r *Registers, code []byte) (push *uint64, ok bool) {
	if n := nopLength(code); n > 0 {
		r.RIP += uint64(n)
		return nil, true
	}
	switch {
	case hasPrefix(code, 0xf3, 0x0f, 0x1e, 0xfa): // ENDBR64
		r.RIP += 4
		return nil, true
	case hasPrefix(code, 0x48, 0x89, 0xe5): // MOV RBP, RSP
		r.RBP = r.RSP
		r.RIP += 3
		return nil, true
	}
	low := [8]*uint64{&r.RAX, &r.RCX, &r.RDX, &r.RBX, &r.RSP, &r.RBP, &r.RSI, &r.RDI}
	high := [8]*uint64{&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15}
	regs, length := low, 1
	if hasPrefix(code, 0x41) {
		regs, length, code = high, 2, code[1:]
	}
	if len(code) == 0 || code[0] < 0x50 || code[0] > 0x57 { // PUSH r64
		return nil, false
	}
	v := *regs[code[0]-0x50]
	r.RSP -= 8
	r.RIP += uint64(length)
	return &v, true
}

// nopLength gives the length of the NOP that code begins with, or 0.
func nopLength(code []byte) int {
	n := 0
	for n < len(code) && n < 4 && (code[n] == 0x66 || code[n] == 0x2e) {
		n++
	}
	rest := code[n:]
	if hasPrefix(rest, 0x90) {
		return n + 1
	}
	if !hasPrefix(rest, 0x0f, 0x1f) || len(rest) < 3 || rest[2]&0x38 != 0 {
		return 0
	}
	mod, rm := rest[2]>>6, rest[2]&7
	size := 3
	if mod != 3 && rm == 4 {
		if len(rest) < 4 {
			return 0
		}
		size++ // SIB
		if mod == 0 && rest[3]&7 == 5 {
			size += 4
		}
	}
	switch {
	case mod == 1:
		size++
	case mod == 2, mod == 0 && rm == 5:
		size += 4
	}
	if n+size > len(code) {
		return 0
	}
	return n + size
}

func hasPrefix(code []byte, want ...byte) bool {
	if len(code) < len(want) {
		return false
	}
	for i, b := range want {
		if code[i] != b {
			return false
		}
	}
	return true
}

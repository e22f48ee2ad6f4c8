// This file knows code of which ORC does not tell where the caller is: it calls it
// the end of a stack where Xen enters a PV kernel and leaves it, and in retpolines
// of kernels before 6.4; what fills the return stack buffer it does not follow; and
// at one instruction of entries it is wrong.

package linux

import (
	"bytes"
	"strings"
)

// stub gives an entry for such code, if the vCPU is there.
func (u *unwinder) stub() (orcEntry, bool) {
	name, _, _ := u.k.Function(u.r.RIP)
	switch {
	case u.call:
	case strings.HasPrefix(name, "__x86_indirect_"):
		return orcEntry{spReg: orcSP, spOffset: u.retpoline(name), orcType: orcCall}, true
	case strings.HasPrefix(name, "xen_asm_"), strings.HasPrefix(name, "xen_entry_"), name == "xen_iret":
		offset, ok := u.bounced()
		return orcEntry{spReg: orcSP, spOffset: offset, orcType: orcFrame}, ok
	}
	return orcEntry{}, false
}

// code reads what the vCPU is to execute.
func (u *unwinder) code() []byte {
	b := make([]byte, 8)
	n, _ := u.mem.Read(u.r.RIP, b)
	return b[:n]
}

// retpoline gives where the return address ends, counted from RSP. There may be
// one more word: the address of the loop that speculation is caught in, or the
// target that has replaced it and RET takes.
func (u *unwinder) retpoline(name string) int16 {
	const ret = 0xc3
	if inner, _, ok := u.k.Function(u.word(u.r.RSP)); ok && inner == name || bytes.HasPrefix(u.code(), []byte{ret}) {
		return 16
	}
	return 8
}

// taskFrame is what __switch_to_asm has on the stack of a task: six registers and
// the return address (struct inactive_task_frame in Linux).
const taskFrame = 7 * 8

// unstuff corrects an entry in __switch_to_asm. Where that changes stacks, calls
// within it fill the processor's return stack buffer (FILL_RETURN_BUFFER in
// nospec-branch.h). One or two of their return addresses are on the stack, and ORC
// knows of one at the most.
func (u *unwinder) unstuff(e *orcEntry) {
	name, _, _ := u.k.Function(u.r.RIP)
	if u.call || name != "__switch_to_asm" || e.spReg != orcSP || e.spOffset < taskFrame {
		return
	}
	e.spOffset = taskFrame
	for range 2 {
		inner, _, ok := u.k.Function(u.word(u.r.RSP + uint64(e.spOffset-taskFrame)))
		if !ok || inner != name {
			break
		}
		e.spOffset += 8
	}
}

// padding is what a function may begin with: ENDBR64, and what may replace it.
var padding = [][]byte{{0xf3, 0x0f, 0x1e, 0xfa}, {0x0f, 0x1f, 0x40, 0x00}}

const popRCX = 0x59

var popR11 = []byte{0x41, 0x5b}

// bounced gives where a frame is that Xen has pushed, or is to take, counted from
// RSP. Above it are RCX and R11 until the kernel pops them, and above the return
// address for some exceptions an error code (create_bounce_frame in Xen's
// x86_64/entry.S, arch/x86/xen/xen-asm.S in Linux).
func (u *unwinder) bounced() (offset int16, ok bool) {
	code := u.code()
	for _, first := range padding {
		code = bytes.TrimPrefix(code, first)
	}
	switch {
	case bytes.HasPrefix(code, append([]byte{popRCX}, popR11...)):
		offset = 16
	case bytes.HasPrefix(code, popR11):
		offset = 8
	}
	for range 2 {
		if isSelector(u.word(u.r.RSP + uint64(offset) + frameCS)) {
			return offset, true
		}
		offset += 8
	}
	return 0, false
}

// pushedEntry is for code that has a struct pt_regs at RSP.
var pushedEntry = orcEntry{spReg: orcSP, bpReg: orcNone, orcType: orcRegs}

// CALL with a displacement.
const (
	callCode = 0xe8
	callSize = 5
)

// What changes to a task's stack, and what a PV guest has in its place, which is on that
// already.
var (
	movRSPRAX = []byte{0x48, 0x89, 0xc4}
	nop3      = []byte{0x0f, 0x1f, 0x00}
)

// changesToTask tells whether code begins with a CALL and what entries have behind
// that of error_entry. That function has pushed a struct pt_regs, but of the
// instruction behind it ORC says what holds before the call (idtentry_body in
// arch/x86/entry/entry_64.S, since Linux 5.19).
func changesToTask(code []byte) bool {
	return len(code) > callSize && code[0] == callCode &&
		(bytes.HasPrefix(code[callSize:], movRSPRAX) || bytes.HasPrefix(code[callSize:], nop3))
}

// registersPushed tells whether a vCPU is about to execute that instruction.
func (u *unwinder) registersPushed() bool {
	code := make([]byte, callSize+len(movRSPRAX))
	n, _ := u.mem.Read(u.r.RIP-callSize, code)
	return u.scratch && !u.call && changesToTask(code[:n])
}

// isSelector tells CS as Xen pushes it, with the event mask in the upper half, from
// an address.
func isSelector(v uint64) bool { return v&^selectorBits == 0 && uint16(v) != 0 }

const selectorBits = 1<<32 | 0xffff

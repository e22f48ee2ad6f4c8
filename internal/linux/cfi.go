// This file makes of ORC tables the call-frame information that debuggers read
// (DWARF 4, section 6.4, as .debug_frame).
//
// Code that an interrupt or exception has entered is given two frames: its own,
// which has a name, and above it one of no real code, which is a signal
// trampoline to a debugger (augmentation "S"): it then takes the address that was
// interrupted for where an instruction begins, not for one behind a call. So is
// code that has changed to another stack, since gdb follows a stack to lower
// addresses from a trampoline only.

package linux

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sort"
	"strings"
)

// Where frames are that have no code, the address of which is in no use (Linux,
// mm.rst: the hole at the end). Each is behind a piece of that size, since
// debuggers look at the byte before.
const (
	marks     = 0xffffffffffe00000
	markSize  = 16
	markRegs  = marks + 0*markSize // at RSP is a struct pt_regs
	markFrame = marks + 1*markSize // at RSP is what the processor pushes
	markCall  = marks + 2*markSize // below RSP is a return address
	markUser  = marks + 3*markSize // user mode
	marksEnd  = marks + 4*markSize
)

// markNames are the names of marks, for debuggers that show them.
var markNames = map[uint64]string{
	markRegs: "interrupt_or_exception", markFrame: "interrupt_or_exception", markCall: "stack_switch", markUser: "user_mode",
}

// Numbers of registers in DWARF (System V ABI for x86-64, figure 3.36).
const (
	dwarfRDX = 1
	dwarfRDI = 5
	dwarfRBP = 6
	dwarfRSP = 7
	dwarfR10 = 10
	dwarfR13 = 13
	dwarfRIP = 16
)

// Instructions and operators (DWARF 4, sections 7.7 and 7.23).
const (
	cfaAdvance       = 0x40 // with the distance
	cfaOffset        = 0x80 // with the register
	cfaRestore       = 0xc0 // with the register
	cfaAdvance1      = 0x02
	cfaAdvance2      = 0x03
	cfaAdvance4      = 0x04
	cfaUndefined     = 0x07
	cfaSameValue     = 0x08
	cfaDef           = 0x0c
	cfaDefRegister   = 0x0d
	cfaDefOffset     = 0x0e
	cfaDefExpression = 0x0f
	cfaExpression    = 0x10
	cfaOffsetSF      = 0x11 // offset_extended_sf
	cfaValExpression = 0x16
	opDeref          = 0x06
	opConst1u        = 0x08
	opConst8u        = 0x0e
	opConstU         = 0x10
	opAnd            = 0x1a
	opMinus          = 0x1c
	opMul            = 0x1e
	opPlus           = 0x22
	opPlusUconst     = 0x23
	opShl            = 0x24
	opShr            = 0x25
	opEq             = 0x29
	opNe             = 0x2e
	opLit            = 0x30 // with the number
	opBreg           = 0x70 // with the register
	opDerefSize      = 0x94
)

// frameKind is a common information entry: what holds for all code that refers to
// it.
type frameKind int

const (
	kindEnd       frameKind = iota // nothing has called it
	kindCall                       // below the CFA is a return address
	kindRegs                       // at the CFA is a struct pt_regs
	kindFrame                      // at the CFA is what the processor pushes
	kindSwitch                     // it has called a function on another stack
	kindTrapRegs                   // the mark above kindRegs
	kindTrapFrame                  // the mark above kindFrame
	kindTrapCall                   // the mark above kindSwitch
	numKinds
)

// ptRegs are the registers in a struct pt_regs, in order, by their numbers in
// DWARF; -1 is what is none.
var ptRegs = []int{15, 14, 13, 12, dwarfRBP, 3, 11, dwarfR10, 9, 8, 0, 2, dwarfRDX, 4, dwarfRDI, -1, dwarfRIP, 51, 49, dwarfRSP, 52}

const framePtRegs = regRIP / 8 // where in ptRegs what the processor pushes begins

// A rule says where the caller's registers are.
type rule struct {
	kind   frameKind
	reg    uint8  // the CFA is that register,
	offset uint64 // and an offset,
	expr   string // or an expression's value
	sp     string // instructions for RSP and RIP; empty: RSP is the CFA
	bp     string // instruction for RBP; empty: it is the same
}

const (
	// dataAlign is what offsets are given in.
	dataAlign = -8
	// mostFrameInfo bounds what a table that is not to be trusted grows to.
	mostFrameInfo = 64 << 20
	// mostRules bounds the rules that are kept for entries that are alike.
	mostRules = 1 << 14
)

// frameInfo makes .debug_frame.
type frameInfo struct {
	b    []byte
	base uint64 // what addresses count from
	most int    // no entry is begun behind so many bytes
	cies [numKinds]uint32

	start int    // of the entry that is written
	first uint64 // what it holds from
	at    uint64 // where the last row begins
	last  rule
	open  bool
}

// newFrameInfo begins call-frame information. With keeps, code is believed to give
// back the registers that functions must, of which ORC says nothing.
func newFrameInfo(keeps bool, most int) *frameInfo {
	f := &frameInfo{most: most}
	for kind := range numKinds {
		f.common(kind, keeps)
	}
	return f
}

// frameInfo makes call-frame information for the kernel's code.
func (k *Kernel) frameInfo(keeps bool) []byte {
	f := newFrameInfo(keeps, mostFrameInfo)
	head := len(f.b)
	if k.frames == nil {
		k.addFrames(f)
		k.frames = f.b[head:]
	}
	return append(f.b[:head:head], k.frames...)
}

// addFrames adds what is said of marks and of the kernel's code.
func (k *Kernel) addFrames(f *frameInfo) {
	f.row(markRegs, rule{kind: kindTrapRegs, reg: dwarfRSP})
	f.row(markFrame, rule{kind: kindTrapFrame, reg: dwarfRSP})
	f.row(markCall, rule{kind: kindTrapCall, reg: dwarfRSP})
	f.row(markUser, rule{kind: kindEnd, reg: dwarfRSP, offset: 8})
	f.close(marksEnd)
	f.code(k.orc, k.code, k.specials, len(k.text), func(i int) *symbol { return &k.symbols[k.text[i]] })
}

// frameInfo makes call-frame information for a module's code, with addresses that
// count from a base. It takes up to so many bytes, and no more than an entry beyond.
// The kernel's has the marks.
func (m *Module) frameInfo(base uint64, most int) []byte {
	f := newFrameInfo(false, most)
	f.base = base
	f.code(m.orc, m.text, nil, len(m.symbols), func(i int) *symbol { return &m.symbols[i] })
	return f.b
}

// code adds what ORC says of code, with an entry for each of its functions, which
// are n in order, and what specials say in its place, which are in order too.
func (f *frameInfo) code(o *orc, code []extent, specials []special, n int, function func(i int) *symbol) {
	rules := map[orcEntry]rule{} // most entries are like others; ok follows from an entry
	for _, e := range code {
		next := sort.Search(n, func(i int) bool { return function(i).addr >= e.first })
		i := sort.Search(len(specials), func(i int) bool { return specials[i].end > e.first })
		o.each(e, func(first, end uint64, entry orcEntry, ok bool) {
			for first < end && len(f.b) < f.most {
				stop, r := end, rule{}
				for i < len(specials) && specials[i].end <= first {
					i++
				}
				if i < len(specials) && specials[i].first <= first {
					stop, r = min(stop, specials[i].end), specials[i].rule(o, entry, ok)
				} else {
					if i < len(specials) {
						stop = min(stop, specials[i].first)
					}
					var known bool
					if r, known = rules[entry]; !known {
						if r = o.rule(entry, ok); len(rules) < mostRules {
							rules[entry] = r
						}
					}
				}
				for next < n && function(next).addr < first {
					next++
				}
				if next < n && function(next).addr == first {
					f.close(first)
				}
				f.row(first, r)
				first = stop
			}
		})
		f.close(e.end)
	}
}

// each calls fn for all entries that hold in an extent, in order.
func (o *orc) each(e extent, fn func(first, end uint64, entry orcEntry, ok bool)) {
	n := len(o.offsets) / 4
	i := max(0, sort.Search(n, func(i int) bool { return o.begin(i) > e.first })-1)
	for at := e.first; i < n && at < e.end; i++ {
		end := e.end
		if i+1 < n {
			end = min(end, o.begin(i+1))
		}
		if end <= at {
			continue // none, or not in order
		}
		if at = max(at, o.begin(i)); at >= end {
			continue
		}
		entry, ok := o.entry(i)
		fn(at, end, entry, ok)
		at = end
	}
}

// rule gives the rule of an entry.
func (o *orc) rule(e orcEntry, ok bool) rule {
	r := rule{reg: dwarfRSP, offset: 8}
	if !ok || e.end {
		return r
	}
	switch e.spReg {
	case orcSP:
		r.setBase(dwarfRSP, e.spOffset)
	case orcBP:
		r.setBase(dwarfRBP, e.spOffset)
	case orcDX:
		r.setBase(dwarfRDX, 0)
	case orcDI:
		r.setBase(dwarfRDI, 0)
	case orcR10:
		r.setBase(dwarfR10, 0)
	case orcR13:
		r.setBase(dwarfR13, 0)
	case orcBPIndirect:
		r.expr = string(append(breg(dwarfRBP, int64(e.spOffset)), opDeref))
	case orcSPIndirect:
		if o.offsetFirst {
			r.expr = string(append(breg(dwarfRSP, int64(e.spOffset)), opDeref))
			break
		}
		r.expr = string(add(append(breg(dwarfRSP, 0), opDeref), int64(e.spOffset)))
	default:
		return r
	}
	switch e.orcType {
	case orcCall:
		r.kind = kindCall
	case orcRegs:
		r.kind = kindRegs
	case orcFrame:
		r.kind = kindFrame
	}
	switch e.bpReg {
	case orcPrevSP:
		r.bp = string(saved(dwarfRBP, int64(e.bpOffset)))
	case orcBP:
		r.bp = string(block([]byte{cfaExpression, dwarfRBP}, breg(dwarfRBP, int64(e.bpOffset))))
	}
	if e.spReg == orcSPIndirect {
		return r.switched(e)
	}
	return r
}

// switched makes of a rule one for code that has changed stacks: its CFA is on the
// new one, and the mark above it is on the old one.
func (r rule) switched(e orcEntry) rule {
	base := []byte(r.expr)
	if r.expr == "" {
		base = breg(int(r.reg), int64(r.offset))
	}
	r.reg, r.offset, r.expr = dwarfRSP, 8, ""
	r.sp = string(block([]byte{cfaValExpression, dwarfRSP}, base))
	if r.kind != kindCall { // there is a mark already
		r.sp += string(block([]byte{cfaValExpression, dwarfRIP}, trapped(base, r.kind)))
	} else {
		r.kind = kindSwitch
	}
	if e.bpReg == orcPrevSP {
		r.bp = string(block([]byte{cfaExpression, dwarfRBP}, add(base, int64(e.bpOffset))))
	}
	return r
}

// setBase makes the CFA a register and an offset. Negative ones need an
// expression.
func (r *rule) setBase(reg uint8, offset int16) {
	r.reg, r.offset, r.expr = reg, uint64(offset), ""
	if offset < 0 {
		r.reg, r.offset, r.expr = 0, 0, string(breg(int(reg), int64(offset)))
	}
}

// A special is code of which ORC does not tell all: see stub.go.
type special struct {
	extent
	rule func(o *orc, e orcEntry, ok bool) rule
}

// mostEntry is more than an entry has before it changes to a task's stack.
const mostEntry = 64

// findSpecials gives them in order.
func (k *Kernel) findSpecials(mem Memory) []special {
	var list []special
	next := 0 // the first function behind
	for _, n := range k.text {
		s := &k.symbols[n]
		for next < len(k.text) && k.symbols[k.text[next]].addr <= s.addr {
			next++
		}
		if next == len(k.text) {
			break
		}
		const most = 4096
		end := k.symbols[k.text[next]].addr
		if end-s.addr > most || !k.isText(s.addr) || len(list) > 0 && s.addr < list[len(list)-1].end {
			continue
		}
		whole := extent{s.addr, end}
		code := func() []byte {
			b := make([]byte, min(mostEntry, end-s.addr))
			readSparse(mem, s.addr, b)
			return b
		}
		switch name := s.name; {
		case strings.HasPrefix(name, "__x86_indirect_"):
			list = append(list, retpolineRules(whole, code())...)
		case strings.HasPrefix(name, "xen_asm_"), strings.HasPrefix(name, "xen_entry_"), name == "xen_iret":
			list = append(list, bouncedRules(whole, code())...)
		case name == "__switch_to_asm":
			list = append(list, special{whole, unstuffed(s.addr)})
		case strings.HasPrefix(name, "asm_call_") && strings.HasSuffix(name, "on_stack"):
			list = append(list, special{whole, changesStack})
		case strings.HasPrefix(name, "entry_SYS"), strings.HasPrefix(name, "entry_INT80"), name == "syscall_return_via_sysret":
			list = append(list, special{whole, onlyFromUser})
		case strings.HasPrefix(name, "asm_"):
			list = append(list, pushedRules(s.addr, code())...)
		case name == "ret_from_fork", name == "ret_from_fork_asm":
			// A new task returns here from no call, but debuggers look before it.
			if n := len(list); n > 0 && list[n-1].end == s.addr {
				list[n-1].end--
			}
			list = append(list, special{extent{s.addr - 1, s.addr}, func(o *orc, _ orcEntry, _ bool) rule { return o.rule(orcEntry{}, false) }})
		}
	}
	return slices.DeleteFunc(list, func(s special) bool { return s.first >= s.end })
}

// onlyFromUser ends stacks where system calls enter.
func onlyFromUser(o *orc, e orcEntry, ok bool) rule {
	return o.rule(e, ok && e.orcType == orcCall)
}

// changesStack is for kernels before 5.12, where assembly does that for functions and
// keeps the old stack in RBP.
func changesStack(o *orc, e orcEntry, ok bool) rule {
	r := o.rule(e, ok)
	if r.kind == kindCall && r.expr == "" && r.reg == dwarfRBP {
		return r.switched(e)
	}
	return r
}

// ifEnd gives a rule for code that ORC calls the end of a stack.
func ifEnd(end rule) func(o *orc, e orcEntry, ok bool) rule {
	return func(o *orc, e orcEntry, ok bool) rule {
		if ok && e.end {
			return end
		}
		return o.rule(e, ok)
	}
}

// retpolineRules are those of a retpoline. Where it begins with a call, there is a
// word more behind that.
func retpolineRules(e extent, code []byte) []special {
	outer := ifEnd(rule{kind: kindCall, reg: dwarfRSP, offset: 8})
	if len(code) <= callSize || code[0] != callCode {
		return []special{{e, outer}}
	}
	inside := ifEnd(rule{kind: kindCall, reg: dwarfRSP, offset: 16})
	return []special{{extent{e.first, e.first + callSize}, outer}, {extent{e.first + callSize, e.end}, inside}}
}

// pushedRules are those of an entry that begins at an address: see changesToTask.
func pushedRules(addr uint64, code []byte) []special {
	for i := range code {
		if changesToTask(code[i:]) {
			at := addr + uint64(i) + callSize
			return []special{{extent{at, at + uint64(len(movRSPRAX))}, pushed}}
		}
	}
	return nil
}

func pushed(o *orc, e orcEntry, ok bool) rule {
	if ok && e.orcType == orcFrame {
		e = pushedEntry
	}
	return o.rule(e, ok)
}

// bouncedRules are those of code that Xen has entered or is to take a frame from.
func bouncedRules(e extent, code []byte) []special {
	at := e.first
	for _, first := range padding {
		if bytes.HasPrefix(code, first) {
			code, at = code[len(first):], at+uint64(len(first))
		}
	}
	var list []special
	add := func(end uint64, offset int64) {
		list = append(list, special{extent{e.first, end}, ifEnd(rule{kind: kindFrame, expr: bouncedBase(offset)})})
		e.first = end
	}
	if bytes.HasPrefix(code, append([]byte{popRCX}, popR11...)) {
		code, at = code[1:], at+1
		add(at, 16)
	}
	if bytes.HasPrefix(code, popR11) {
		add(at+uint64(len(popR11)), 8)
	}
	add(e.end, 0)
	return list
}

// bouncedBase is where a frame is whose return address stands at an offset from
// RSP, or behind an error code there: an error code is followed by an address, a
// return address by a selector.
func bouncedBase(offset int64) string {
	b := append(breg(dwarfRSP, offset), breg(dwarfRSP, offset+frameCS)...)
	b = append(b, opDeref, opConst8u)
	b = binary.LittleEndian.AppendUint64(b, ^uint64(selectorBits))
	return string(append(b, opAnd, opLit+0, opNe, opLit+3, opShl, opPlus))
}

// unstuffed corrects __switch_to_asm, which begins at an address: see unstuff.
func unstuffed(addr uint64) func(o *orc, e orcEntry, ok bool) rule {
	return func(o *orc, e orcEntry, ok bool) rule {
		r := o.rule(e, ok)
		if !ok || e.end || e.spReg != orcSP || e.spOffset < taskFrame {
			return r
		}
		inside := func(b []byte, offset int64) []byte { // 1 if the word there is an address of the function's
			b = append(append(b, breg(dwarfRSP, offset)...), opDeref, opConst8u)
			b = binary.LittleEndian.AppendUint64(b, addr)
			return append(b, opMinus, opLit+8, opShr, opLit+0, opEq)
		}
		// One such word, a, or two, a and b: a*8 + a*b*8.
		b := breg(dwarfRSP, taskFrame)
		b = append(inside(b, 0), opLit+3, opShl, opPlus)
		b = append(inside(inside(b, 0), 8), opMul, opLit+3, opShl, opPlus)
		r.reg, r.offset, r.expr = 0, 0, string(b)
		return r
	}
}

// common writes a common information entry.
func (f *frameInfo) common(kind frameKind, keeps bool) {
	f.cies[kind] = uint32(len(f.b))
	b := binary.LittleEndian.AppendUint32([]byte{0, 0, 0, 0}, 0xffffffff)
	b = append(b, 1) // version
	if kind >= kindTrapRegs {
		b = append(b, 'S')
	}
	b = append(b, 0)
	b = appendSigned(append(b, 1), dataAlign)
	b = append(b, dwarfRIP)
	b = append(b, cfaDef, dwarfRSP, 8)

	undefined := func(regs ...byte) {
		for _, r := range regs {
			b = append(b, cfaUndefined, r)
		}
	}
	const rax, rcx, rbx, rsi = 0, 2, 3, 4
	if kind == kindCall || kind == kindSwitch || kind == kindEnd {
		undefined(rax, dwarfRDX, rcx, rsi, dwarfRDI, 8, 9, dwarfR10, 11)
		kept := []byte{rbx, 12, dwarfR13, 14, 15}
		if keeps {
			b = append(b, make([]byte, 2*len(kept))...) // does nothing, so that all is where it is without
		} else {
			undefined(kept...)
		}
	}
	switch kind {
	case kindEnd:
		undefined(dwarfRIP)
	case kindCall, kindTrapCall:
		b = append(b, saved(dwarfRIP, -8)...)
	case kindSwitch:
		e := binary.LittleEndian.AppendUint64([]byte{opConst8u}, markCall+markSize/2)
		b = block(append(b, cfaValExpression, dwarfRIP), e)
	case kindRegs, kindFrame:
		b = block(append(b, cfaValExpression, dwarfRIP), trapped(nil, kind))
	case kindTrapRegs, kindTrapFrame:
		regs := ptRegs
		if kind == kindTrapFrame {
			regs = regs[framePtRegs:]
		}
		for i, reg := range regs {
			if reg >= 0 {
				b = append(b, saved(reg, int64(8*i))...)
			}
		}
	}
	f.b = append(f.b, pad(b)...)
	binary.LittleEndian.PutUint32(f.b[f.cies[kind]:], uint32(len(f.b))-f.cies[kind]-4)
}

// trapped is the expression for the mark above code that an interrupt or exception
// has entered. At the base, which is the CFA if none is given, is what tells whether
// that came from user mode: the selector.
func trapped(base []byte, kind frameKind) []byte {
	mark, cs := uint64(markRegs), uint64(regRIP+frameCS)
	if kind == kindFrame {
		mark, cs = markFrame, frameCS
	}
	e := appendUnsigned(append(bytes.Clone(base), opPlusUconst), cs)
	e = append(e, opDerefSize, 1, opLit+3, opAnd, opLit+0, opNe)
	e = append(appendUnsigned(append(e, opConst1u), markUser-mark), opMul, opConst8u)
	return append(binary.LittleEndian.AppendUint64(e, mark+markSize/2), opPlus)
}

// row says what holds from an address on, until the next.
func (f *frameInfo) row(at uint64, r rule) {
	if f.open && f.last.kind != r.kind {
		f.close(at)
	}
	if !f.open {
		f.start, f.first, f.at, f.open = len(f.b), at, at, true
		f.b = binary.LittleEndian.AppendUint32(append(f.b, 0, 0, 0, 0), f.cies[r.kind])
		f.b = binary.LittleEndian.AppendUint64(f.b, at-f.base)
		f.b = append(f.b, make([]byte, 8)...)
		f.last = rule{kind: r.kind, reg: dwarfRSP, offset: 8}
	}
	if f.last == r {
		return
	}
	switch n := at - f.at; {
	case n == 0:
	case n < 0x40:
		f.b = append(f.b, cfaAdvance|byte(n))
	case n < 1<<8:
		f.b = append(f.b, cfaAdvance1, byte(n))
	case n < 1<<16:
		f.b = binary.LittleEndian.AppendUint16(append(f.b, cfaAdvance2), uint16(n))
	default:
		f.b = binary.LittleEndian.AppendUint32(append(f.b, cfaAdvance4), uint32(n))
	}
	f.at = at
	last := f.last
	switch {
	case r.expr != "":
		if r.expr != last.expr {
			f.b = block(append(f.b, cfaDefExpression), []byte(r.expr))
		}
	case last.expr != "" || r.reg != last.reg && r.offset != last.offset:
		f.b = appendUnsigned(append(f.b, cfaDef, r.reg), r.offset)
	case r.reg != last.reg:
		f.b = append(f.b, cfaDefRegister, r.reg)
	case r.offset != last.offset:
		f.b = appendUnsigned(append(f.b, cfaDefOffset), r.offset)
	}
	switch {
	case r.sp == last.sp:
	case r.sp == "":
		f.b = append(f.b, cfaRestore|dwarfRSP, cfaRestore|dwarfRIP)
	default:
		f.b = append(f.b, r.sp...)
	}
	switch {
	case r.bp == last.bp:
	case r.bp == "":
		f.b = append(f.b, cfaSameValue, dwarfRBP)
	default:
		f.b = append(f.b, r.bp...)
	}
	f.last = r
}

// close ends the entry that is written.
func (f *frameInfo) close(end uint64) {
	if !f.open {
		return
	}
	f.open = false
	f.b = append(f.b[:f.start], pad(f.b[f.start:])...)
	binary.LittleEndian.PutUint32(f.b[f.start:], uint32(len(f.b)-f.start-4))
	binary.LittleEndian.PutUint64(f.b[f.start+16:], end-f.first)
}

// pad makes an entry's size a multiple of 8, without its length, with instructions
// that do nothing.
func pad(b []byte) []byte {
	for (len(b)-4)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// saved is the instruction for a register that stands at an offset from the CFA.
func saved(reg int, offset int64) []byte {
	switch {
	case offset%dataAlign != 0:
		return block([]byte{cfaExpression, byte(reg)}, add(nil, offset))
	case offset/dataAlign < 0:
		return appendSigned([]byte{cfaOffsetSF, byte(reg)}, offset/dataAlign)
	}
	return appendUnsigned([]byte{cfaOffset | byte(reg)}, uint64(offset/dataAlign))
}

// breg is the expression for a register and an offset.
func breg(reg int, offset int64) []byte { return appendSigned([]byte{opBreg + byte(reg)}, offset) }

// add adds a number to what an expression has on its stack.
func add(expr []byte, n int64) []byte {
	expr = bytes.Clone(expr)
	if n < 0 {
		return append(appendUnsigned(append(expr, opConstU), uint64(-n)), opMinus)
	}
	return appendUnsigned(append(expr, opPlusUconst), uint64(n))
}

// block appends an expression with its length.
func block(b, expr []byte) []byte { return append(appendUnsigned(b, uint64(len(expr))), expr...) }

// appendUnsigned appends a number in LEB128.
func appendUnsigned(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

// appendSigned appends a signed number in LEB128.
func appendSigned(b []byte, v int64) []byte {
	for ; v < -64 || v > 63; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v)&0x7f)
}

package linux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux/linuxtest"
)

// A cfiEntry is a frame description entry with its common one.
type cfiEntry struct {
	extent
	signal bool
	code   []byte // instructions of both
	common int    // how many of them are of the common one
}

// readCFI reads .debug_frame of a file.
func readCFI(t testing.TB, file []byte) []cfiEntry {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.Section(".debug_frame").Data()
	if err != nil {
		t.Fatal(err)
	}
	var list []cfiEntry
	commons := map[int]cfiEntry{}
	for at := 0; at < len(b); {
		size := int(binary.LittleEndian.Uint32(b[at:]))
		id := binary.LittleEndian.Uint32(b[at+4:])
		body := b[at+8 : at+4+size]
		if id == 0xffffffff {
			nul := bytes.IndexByte(body[1:], 0)
			e := cfiEntry{signal: string(body[1:1+nul]) == "S"}
			if !bytes.Equal(body[2+nul:5+nul], []byte{1, 0x78, dwarfRIP}) {
				t.Fatalf("a common entry has % x", body)
			}
			e.code = body[5+nul:]
			e.common = len(e.code)
			commons[at] = e
		} else {
			e := commons[int(id)]
			first := binary.LittleEndian.Uint64(body)
			e.extent = extent{first, first + binary.LittleEndian.Uint64(body[8:])}
			e.code = append(slices.Clip(e.code), body[16:]...)
			if n := len(list); n > 3 && list[n-1].end > first && list[n-1].first < marks {
				t.Fatalf("entries overlap at %#x", first)
			}
			list = append(list, e)
		}
		at += 4 + size
	}
	return list
}

// cfiState is a frame that call-frame information is followed from. Registers that
// are not known are not there.
type cfiState struct {
	pc   uint64
	regs map[int]uint64
	call bool // pc is behind a call
}

// up goes to the caller; not ok: there is none.
func (s cfiState) up(entries []cfiEntry, mem Memory) (up cfiState, ok bool, err error) {
	at := s.pc
	if s.call {
		at--
	}
	i := slices.IndexFunc(entries, func(e cfiEntry) bool { return at >= e.first && at < e.end })
	if i < 0 {
		return s, false, fmt.Errorf("nothing is said of %#x", at)
	}
	e := entries[i]
	var cfa func() uint64
	rules := map[int]func() (uint64, bool){}
	var initial map[int]func() (uint64, bool)
	var failed error
	word := func(addr uint64, size int) uint64 {
		var b [8]byte
		if n, err := mem.Read(addr, b[:size]); err != nil || n < size {
			failed = fmt.Errorf("nothing is mapped at %#x", addr)
		}
		return binary.LittleEndian.Uint64(b[:])
	}
	r := &cfiReader{b: e.code}
	reg := func(n int) uint64 {
		v, ok := s.regs[n]
		if !ok {
			failed = fmt.Errorf("register %d is not known", n)
		}
		return v
	}
	base := func(n int, offset uint64) func() uint64 { return func() uint64 { return reg(n) + offset } }
	saved := func(offset int64) func() (uint64, bool) {
		return func() (uint64, bool) { return word(cfa()+uint64(offset), 8), true }
	}
	var baseReg int
	var baseOffset uint64
	for place := e.first; r.at < len(r.b); {
		if r.at == e.common {
			initial = map[int]func() (uint64, bool){}
			for n, f := range rules {
				initial[n] = f
			}
		}
		op := r.byte()
		advance := uint64(0)
		switch {
		case op&0xc0 == cfaAdvance:
			advance = uint64(op & 0x3f)
		case op&0xc0 == cfaOffset:
			rules[int(op&0x3f)] = saved(int64(r.unsigned()) * dataAlign)
		case op&0xc0 == cfaRestore:
			n := int(op & 0x3f)
			delete(rules, n)
			if f, ok := initial[n]; ok {
				rules[n] = f
			}
		case op == 0:
		case op == cfaAdvance1:
			advance = uint64(r.byte())
		case op == cfaAdvance2:
			advance = uint64(binary.LittleEndian.Uint16(r.bytes(2)))
		case op == cfaAdvance4:
			advance = uint64(binary.LittleEndian.Uint32(r.bytes(4)))
		case op == cfaUndefined:
			rules[int(r.unsigned())] = func() (uint64, bool) { return 0, false }
		case op == cfaSameValue:
			delete(rules, int(r.unsigned()))
		case op == cfaDef:
			baseReg, baseOffset = int(r.unsigned()), r.unsigned()
			cfa = base(baseReg, baseOffset)
		case op == cfaDefRegister:
			baseReg = int(r.unsigned())
			cfa = base(baseReg, baseOffset)
		case op == cfaDefOffset:
			baseOffset = r.unsigned()
			cfa = base(baseReg, baseOffset)
		case op == cfaDefExpression:
			expr := r.bytes(int(r.unsigned()))
			cfa = func() uint64 { return evaluate(expr, nil, reg, word) }
		case op == cfaExpression, op == cfaValExpression:
			n := int(r.unsigned())
			expr := r.bytes(int(r.unsigned()))
			rules[n] = func() (uint64, bool) {
				v := evaluate(expr, []uint64{cfa()}, reg, word)
				if op == cfaExpression {
					v = word(v, 8)
				}
				return v, true
			}
		case op == cfaOffsetSF:
			n := int(r.unsigned())
			rules[n] = saved(r.signed() * dataAlign)
		default:
			return s, false, fmt.Errorf("instruction %#x", op)
		}
		if place += advance; place > at {
			break
		}
	}
	up = cfiState{regs: map[int]uint64{}, call: !e.signal}
	for n, v := range s.regs {
		up.regs[n] = v
	}
	if _, ok := rules[dwarfRSP]; !ok {
		up.regs[dwarfRSP] = cfa()
	}
	for n, rule := range rules {
		v, known := rule()
		if up.regs[n] = v; !known {
			delete(up.regs, n)
		}
	}
	up.pc, ok = up.regs[dwarfRIP]
	return up, ok, failed
}

type cfiReader struct {
	b  []byte
	at int
}

func (r *cfiReader) byte() byte { r.at++; return r.b[r.at-1] }

func (r *cfiReader) bytes(n int) []byte { r.at += n; return r.b[r.at-n : r.at] }

func (r *cfiReader) unsigned() uint64 {
	v, n := binary.Uvarint(r.b[r.at:])
	r.at += n
	return v
}

func (r *cfiReader) signed() (v int64) {
	for shift := 0; ; shift += 7 {
		c := r.byte()
		v |= int64(c&0x7f) << shift
		if c&0x80 == 0 {
			if c&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
}

// evaluate gives an expression's value.
func evaluate(expr []byte, stack []uint64, reg func(int) uint64, word func(uint64, int) uint64) uint64 {
	r := &cfiReader{b: expr}
	push := func(v uint64) { stack = append(stack, v) }
	pop := func() uint64 { v := stack[len(stack)-1]; stack = stack[:len(stack)-1]; return v }
	isTrue := map[bool]uint64{true: 1}
	for r.at < len(expr) {
		switch op := r.byte(); {
		case op >= opBreg && op < opBreg+32:
			push(reg(int(op-opBreg)) + uint64(r.signed()))
		case op >= opLit && op < opLit+32:
			push(uint64(op - opLit))
		case op == opConst1u:
			push(uint64(r.byte()))
		case op == opConst8u:
			push(binary.LittleEndian.Uint64(r.bytes(8)))
		case op == opConstU:
			push(r.unsigned())
		case op == opDeref:
			push(word(pop(), 8))
		case op == opDerefSize:
			push(word(pop(), int(r.byte())))
		case op == opPlusUconst:
			push(pop() + r.unsigned())
		default:
			b, a := pop(), pop()
			push(map[byte]uint64{
				opAnd: a & b, opMinus: a - b, opMul: a * b, opPlus: a + b, opShl: a << b, opShr: a >> b,
				opEq: isTrue[a == b], opNe: isTrue[a != b],
			}[op])
		}
	}
	return pop()
}

// firstState is that of a vCPU.
func firstState(r Registers) cfiState {
	return cfiState{pc: r.RIP, regs: map[int]uint64{
		dwarfRSP: r.RSP, dwarfRBP: r.RBP, dwarfRDX: r.RDX, dwarfRDI: r.RDI, dwarfR10: r.R10, dwarfR13: r.R13,
	}}
}

// checkFrameInfo checks that call-frame information leads where the unwinder went.
// What came from user mode ends with a mark for that, but for system calls.
func checkFrameInfo(t *testing.T, k *Kernel, mem Memory, r Registers, want []Frame) {
	t.Helper()
	entries := readCFI(t, k.FrameInfo(false))
	for _, m := range k.modules {
		base, _ := m.Address()
		file, _ := k.File(m)
		for _, e := range readCFI(t, file) {
			e.extent = extent{e.first + base, e.end + base}
			entries = append(entries, e)
		}
	}
	s := firstState(r)
	var got []Frame
	for ok := true; ok && len(got) <= len(want); {
		switch {
		case s.pc == markUser+markSize/2:
			got = append(got, Frame{RIP: want[len(want)-1].RIP, UserMode: true})
		case s.pc < marks || s.pc >= marksEnd:
			got = append(got, Frame{RIP: s.pc, Call: s.call, Interrupted: !s.call && len(got) > 0})
		}
		var err error
		if s, ok, err = s.up(entries, mem); err != nil {
			t.Errorf("%#x: %v", s.pc, err)
			return
		}
	}
	for i := range want {
		want := &want[i]
		if k.threadBegins(want.RIP) && i < len(got) {
			got[i].Call = want.Call // debuggers do not know that
		}
		// Behind a mark of a change of stacks they take it for interrupted.
		if name, _, _ := k.Function(want.RIP); i > 0 && i < len(got) && name != "" && want.Call && got[i].Interrupted {
			got[i].Call, got[i].Interrupted = true, false
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("by call-frame information (-want +got):\n%s", diff)
	}
}

// For each piece of code, call-frame information says what ORC says.
func TestFrameInfo(t *testing.T) {
	for _, l := range linuxtest.Layouts {
		t.Run(l.Name, func(t *testing.T) {
			kernel, k := foundKernel(t, l)
			checkAgainstORC(t, k, kernel, readCFI(t, k.FrameInfo(false)), fakeStack, rand.New(rand.NewPCG(1, 2)))
			checkAgainstORC(t, k, kernel, readCFI(t, k.FrameInfo(true)), fakeStack, rand.New(rand.NewPCG(1, 2)))
		})
	}
}

// checkAgainstORC takes one step from each place where an entry begins to hold, with
// a stack and registers made up.
func checkAgainstORC(t *testing.T, k *Kernel, kernel Memory, entries []cfiEntry, stackAt uint64, rnd *rand.Rand) {
	t.Helper()
	checked := map[orcType]int{}
	for i := range len(k.orc.offsets) / 4 {
		at := k.orc.begin(i)
		if name, _, _ := k.Function(at); !k.isText(at) || slices.ContainsFunc(k.specials, func(s special) bool { return at >= s.first && at < s.end }) && name != "asm_call_on_stack" {
			continue
		}
		stack := linuxtest.Space{Addr: stackAt, Bytes: make([]byte, 2*pageSize)}
		for at := 0; at < len(stack.Bytes); at += 8 { // pointers to the stack, and never to user mode
			binary.LittleEndian.PutUint64(stack.Bytes[at:], (stackAt+uint64(0x400+rnd.IntN(0x1800)))&^7)
		}
		inside := func() uint64 { return (stackAt + uint64(0x400+rnd.IntN(0x400))) &^ 7 }
		r := Registers{RIP: at, RSP: inside(), RBP: inside(), RDX: inside(), RDI: inside(), R10: inside(), R13: inside()}
		mem := memories{kernel, stack}
		u := &unwinder{k: k, mem: mem, r: r, scratch: true}
		done, _ := u.step(at)
		if u.err != nil {
			continue
		}
		s, ok, err := firstState(r).up(entries, mem)
		if ok && s.pc >= marks && s.pc < markUser {
			s, ok, err = s.up(entries, mem)
		}
		if err != nil || ok == done {
			t.Errorf("%#x: ok is %v, %v", at, ok, err)
			continue
		}
		e, _ := k.orc.at(at)
		checked[e.orcType]++
		if done {
			continue
		}
		got := Registers{RIP: s.pc, RSP: s.regs[dwarfRSP], RBP: s.regs[dwarfRBP]}
		if want := (Registers{RIP: u.r.RIP, RSP: u.r.RSP, RBP: u.r.RBP}); got != want {
			t.Fatalf("%#x, %+v: got %x, want %x", at, e, got, want)
		}
	}
	if checked[orcCall] == 0 || checked[orcRegs] == 0 {
		t.Errorf("checked %v", checked)
	}
}

// memories is memory made of several.
type memories []Memory

func (m memories) Read(addr uint64, p []byte) (int, error) {
	for _, one := range m[:len(m)-1] {
		if n, err := one.Read(addr, p); err == nil {
			return n, nil
		}
	}
	return m[len(m)-1].Read(addr, p)
}

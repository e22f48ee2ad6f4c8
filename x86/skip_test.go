package x86

import (
	"testing"

	"golang.org/x/arch/x86/x86asm"
)

func TestSkip(t *testing.T) {
	start := Registers{RIP: 0x1000, RSP: 0x2000, RBP: 3, RBX: 4, R12: 5}
	at := func(rip uint64, change func(r *Registers)) Registers {
		r := start
		r.RIP = rip
		if change != nil {
			change(&r)
		}
		return r
	}
	pushed := func(r *Registers) { r.RSP -= 8 }
	five := func(v uint64) *uint64 { return &v }
	for _, tt := range []struct {
		name string
		code []byte
		want Registers
		push *uint64
	}{
		{"nop", []byte{0x90}, at(0x1001, nil), nil},
		{"xchg ax, ax", []byte{0x66, 0x90}, at(0x1002, nil), nil},
		{"5-byte nop of ftrace", []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}, at(0x1005, nil), nil},
		{"longest nop of gas", []byte{0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}, at(0x100a, nil), nil},
		{"nop (rax)", []byte{0x0f, 0x1f, 0x00}, at(0x1003, nil), nil},
		{"endbr64", []byte{0xf3, 0x0f, 0x1e, 0xfa}, at(0x1004, nil), nil},
		{"mov rbp, rsp", []byte{0x48, 0x89, 0xe5}, at(0x1003, func(r *Registers) { r.RBP = 0x2000 }), nil},
		{"push rbp", []byte{0x55}, at(0x1001, pushed), five(3)},
		{"push rsp", []byte{0x54}, at(0x1001, pushed), five(0x2000)},
		{"push r12", []byte{0x41, 0x54}, at(0x1002, pushed), five(5)},
	} {
		got := start
		push, ok := Skip(&got, append(tt.code, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc))
		if !ok || got != tt.want || (push == nil) != (tt.push == nil) || push != nil && *push != *tt.push {
			t.Errorf("%s: got %v, pushed %v, differs in %q", tt.name, ok, push, Difference(&got, &tt.want))
		}
	}
	for _, code := range [][]byte{
		nil, {0x0f}, {0x0f, 0x1f}, {0x0f, 0x1f, 0x44}, {0x0f, 0x1f, 0x48, 0}, {0x41}, {0x41, 0x90},
		{0xf3, 0x0f, 0x1e, 0xfb}, {0xf3, 0x90}, {0x48, 0x89, 0xe0}, {0xcc}, {0x66, 0x50}, {0x9c},
	} {
		got := start
		if _, ok := Skip(&got, code); ok || got != start {
			t.Errorf("% x: skipped", code)
		}
	}
}

// What Skip takes to be an instruction, a disassembler takes to be the same.
func FuzzSkip(f *testing.F) {
	f.Add([]byte{0x0f, 0x1f, 0x44, 0x00, 0x00})
	f.Add([]byte{0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0})
	f.Add([]byte{0x41, 0x57})
	f.Add([]byte{0x48, 0x89, 0xe5})
	f.Fuzz(func(t *testing.T, code []byte) {
		r := Registers{RIP: 0x1000, RSP: 0x2000}
		push, ok := Skip(&r, code)
		if !ok || code[0] == 0xf3 { // x86asm does not know ENDBR64
			return
		}
		in, err := x86asm.Decode(code, 64)
		if err != nil {
			t.Fatalf("% x: not an instruction: %v", code, err)
		}
		if r.RIP != 0x1000+uint64(in.Len) {
			t.Errorf("% x: %v has %d bytes, %d were skipped", code, in, in.Len, r.RIP-0x1000)
		}
		want := map[bool][]x86asm.Op{true: {x86asm.PUSH}, false: {x86asm.NOP, x86asm.XCHG, x86asm.MOV}}[push != nil]
		for _, op := range want {
			if in.Op == op {
				return
			}
		}
		t.Errorf("% x: %v was skipped", code, in)
	})
}

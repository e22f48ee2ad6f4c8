package engine

import (
	"encoding/hex"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		code string
		want instruction
	}{
		{"90", instruction{}},
		{"f3 90", instruction{class: emulated, length: 2}}, // pause
		{"55", instruction{}},
		{"c3", instruction{}},
		{"f4", instruction{class: emulated, length: 1}},
		{"0f 01 d9", instruction{class: emulated, length: 3}}, // vmmcall
		{"0f 01 c1", instruction{class: emulated, length: 3}}, // vmcall
		{"0f a2", instruction{class: emulated, length: 2}},
		{"0f 30", instruction{class: emulated, length: 2}},
		{"0f 20 d8", instruction{class: emulated, length: 3}},
		{"44 0f 22 c0", instruction{class: emulated, length: 4}}, // mov cr8,rax
		{"0f 01 f8", instruction{}},                              // swapgs
		{"0f 01 f9", instruction{class: emulated, length: 3}},    // rdtscp
		{"0f 01 3f", instruction{class: emulated, length: 3}},    // invlpg [rdi]
		{"0f 01 7c 24 08", instruction{class: emulated, length: 5}},
		{"0f 01 3c 25 00 00 00 00", instruction{class: emulated, length: 8}},
		{"0f 01 3d 00 00 00 00", instruction{class: emulated, length: 7}},
		{"0f 01 f0", instruction{class: emulated, length: 3}}, // lmsw ax
		{"0f 01 1d 00 00 00 00", instruction{}},               // lidt
		{"e4 80", instruction{class: emulated, length: 2}},
		{"ee", instruction{class: emulated, length: 1}},
		{"f3 6e", instruction{class: emulated, length: 2}}, // rep outsb
		{"66 ef", instruction{class: emulated, length: 2}},
		{"9c", instruction{class: pushesFlags, length: 1}},
		{"9d", instruction{class: popsFlags, length: 1}},
		{"48 cf", instruction{class: popsFlags, length: 2}},
		{"cc", instruction{class: gated, length: 1, vector: 3}},
		{"f1", instruction{class: gated, length: 1, vector: 1}},
		{"cd 80", instruction{class: gated, length: 2, vector: 0x80}},
		{"0f 05", instruction{class: syscall, length: 2}},
		{"48 0f 07", instruction{class: sysret, length: 3}},
		// Cut off.
		{"", instruction{}}, {"f3", instruction{}}, {"48", instruction{}}, {"0f", instruction{}},
		{"0f 01", instruction{}}, {"0f 20", instruction{}}, {"e4", instruction{}}, {"cd", instruction{}},
		{"0f 01 3c", instruction{}}, {"f3 f3 f3 f3 f3 f3 f3 f3 f3 f3 f3 f3 f3 f3 f3", instruction{}},
	} {
		code, err := hex.DecodeString(strings.ReplaceAll(tt.code, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := decode(code, true); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.code, got, tt.want)
		}
	}
	// In 32-bit code, what is REX elsewhere is an instruction.
	if got := decode([]byte{0x40, 0xf4}, false); got != (instruction{}) {
		t.Errorf("inc eax: got %+v", got)
	}
	if got := decode([]byte{0x67, 0x0f, 0x01, 0x38}, false); got != (instruction{class: emulated, length: 4}) {
		t.Errorf("invlpg [bx+si]: got %+v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x48, 0x0f, 0x01, 0x3c, 0x25, 0, 0, 0, 0}, true)
	f.Add([]byte{0x67, 0x0f, 0x01, 0xb8, 0, 0}, false)
	f.Fuzz(func(t *testing.T, code []byte, long bool) {
		code = code[:min(len(code), 15)]
		if i := decode(code, long); i.length < 0 || i.length > len(code) || (i.class == emulated) && i.length == 0 {
			t.Errorf("% x: %+v", code, i)
		}
	})
}

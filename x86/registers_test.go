package x86

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FXSAVE keeps one bit of tag for each register; the other comes of its value.
func TestFXSaveTags(t *testing.T) {
	var fx FXSave
	fx.SetStatus(6 << 11) // TOP is 6: ST(0) is physical register 6
	fx[4] = 1<<6 | 1<<7 | 1<<0 | 1<<1
	copy(fx.ST(0), []byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f}) // 1.0
	copy(fx.ST(1), make([]byte, 10))                              // 0.0
	copy(fx.ST(2), []byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f}) // infinity
	copy(fx.ST(3), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0})          // denormal
	const want = tagValid<<12 | tagZero<<14 | tagSpecial<<0 | tagSpecial<<2 | tagEmpty<<4 | tagEmpty<<6 | tagEmpty<<8 | tagEmpty<<10
	if got := fx.Tags(); got != want {
		t.Errorf("got tags %#016b, want %#016b", got, want)
	}
	before := fx
	fx.SetTags(fx.Tags())
	if fx != before {
		t.Errorf("setting the tags as they are changes the state")
	}
}

// A component in its initial configuration leaves stale bytes behind.
func TestFXFromXSave(t *testing.T) {
	area := bytes.Repeat([]byte{0xaa}, 576)
	for _, tt := range []struct {
		name     string
		present  uint64
		x87, sse bool
	}{
		{"both", 3, true, true},
		{"x87 only", 1, true, false},
		{"sse only", 2, false, true},
		{"none", 0, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			binary.LittleEndian.PutUint64(area[512:], tt.present)
			fx, ok := FXFromXSave(area)
			if !ok {
				t.Fatal("area not taken")
			}
			if got, want := fx.Control(), map[bool]uint16{true: 0xaaaa, false: 0x37f}[tt.x87]; got != want {
				t.Errorf("got control word %#x, want %#x", got, want)
			}
			if got, want := fx.ST(7)[9], map[bool]byte{true: 0xaa}[tt.x87]; got != want {
				t.Errorf("got %#x in st7, want %#x", got, want)
			}
			if got, want := fx.XMM(15)[15], map[bool]byte{true: 0xaa}[tt.sse]; got != want {
				t.Errorf("got %#x in xmm15, want %#x", got, want)
			}
		})
	}
	if _, ok := FXFromXSave(area[:575]); ok {
		t.Error("short area taken")
	}
}

func TestFXToXSave(t *testing.T) {
	area := make([]byte, 832)
	area[700] = 0x55 // AVX state
	fx := FXInit
	fx.XMM(3)[0] = 7
	if !FXToXSave(area, &fx) {
		t.Fatal("area not taken")
	}
	got, _ := FXFromXSave(area)
	if got.XMM(3)[0] != 7 || got.Control() != 0x37f || area[700] != 0x55 {
		t.Error("state does not come out as it went in")
	}
	if FXToXSave(area[:100], &fx) {
		t.Error("short area taken")
	}
}

func TestDifference(t *testing.T) {
	a := Registers{RAX: 1}
	b := a
	if got := Difference(&a, &b); got != "" {
		t.Errorf("got %q, want none", got)
	}
	b.KernelGSBase = 1
	if got := Difference(&a, &b); got != "k_gs_base" {
		t.Errorf("got %q, want k_gs_base", got)
	}
	b.R15 = 1
	if got := Difference(&a, &b); got != "r15" {
		t.Errorf("got %q, want r15", got)
	}
}

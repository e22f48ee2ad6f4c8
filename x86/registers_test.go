package x86

import "testing"

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

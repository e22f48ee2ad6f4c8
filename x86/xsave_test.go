package x86

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

const allFeatures = FeatureX87 | FeatureSSE | FeatureAVX | FeatureAVX512 | FeaturePKRU

// amd is where AMD's processors with AVX-512 have the components, and intel
// where Intel's do.
var (
	amd   = XSaveLayout{2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432}
	intel = XSaveLayout{2: 576, 5: 1088, 6: 1152, 7: 1664, 9: 2688}
)

// newXSave makes an area of bytes 0xaa with the components that are present.
func newXSave(layout *XSaveLayout, present Feature) *XSave {
	x := &XSave{Layout: layout, XCR0: allFeatures, Ever: allFeatures, Area: bytes.Repeat([]byte{0xaa}, 2696)}
	clear(x.Area[512:576])
	binary.LittleEndian.PutUint64(x.Area[512:], uint64(present))
	return x
}

// A component in its initial configuration leaves stale bytes behind.
func TestXSaveLoad(t *testing.T) {
	for _, layout := range []*XSaveLayout{&amd, &intel} {
		for present := range allFeatures + 1 {
			if present&^allFeatures != 0 {
				continue
			}
			var r Registers
			if !newXSave(layout, present).Load(&r) {
				t.Fatal("area not taken")
			}
			if r.Known != KnownAVX|KnownAVX512|KnownPKRU {
				t.Fatalf("known are %b", r.Known)
			}
			for _, c := range []struct {
				name    string
				feature Feature
				got     byte
			}{
				{"st7", FeatureX87, r.FX.ST(7)[9]},
				{"xmm15", FeatureSSE, r.FX.XMM(15)[15]},
				{"ymm15h", FeatureAVX, r.YMMH[15][15]},
				{"k7", FeatureOpmask, r.K[63]},
				{"zmm15h", FeatureZMMHi256, r.ZMMH[15][31]},
				{"zmm31h", FeatureHi16ZMM, r.ZMMH[31][31]},
				{"xmm31", FeatureHi16ZMM, r.XMM16[15][15]},
				{"ymm31h", FeatureHi16ZMM, r.YMMH16[15][15]},
				{"pkru", FeaturePKRU, r.PKRU[3]},
			} {
				want := byte(0)
				if present&c.feature != 0 {
					want = 0xaa
				}
				if c.got != want {
					t.Errorf("present %b: got %#x in %s, want %#x", present, c.got, c.name, want)
				}
			}
			if want := map[bool]uint16{true: 0xaaaa, false: 0x37f}[present&FeatureX87 != 0]; r.FX.Control() != want {
				t.Errorf("present %b: got control word %#x, want %#x", present, r.FX.Control(), want)
			}
			if want := map[bool]uint32{true: 0xaaaaaaaa, false: 0x1f80}[present&(FeatureSSE|FeatureAVX) != 0]; r.FX.MXCSR() != want {
				t.Errorf("present %b: got mxcsr %#x, want %#x", present, r.FX.MXCSR(), want)
			}
		}
	}
}

// What a vCPU has not enabled, or what the area has no room for, is not known.
func TestXSaveKnown(t *testing.T) {
	tests := []struct {
		name   string
		change func(x *XSave)
		want   Known
	}{
		{"all", func(*XSave) {}, KnownAVX | KnownAVX512 | KnownPKRU},
		{"only SSE enabled", func(x *XSave) { x.XCR0 = 3 }, 0},
		{"AVX enabled", func(x *XSave) { x.XCR0 = 7 }, KnownAVX},
		{"short area", func(x *XSave) { x.Area = x.Area[:832] }, KnownAVX},
		{"no layout", func(x *XSave) { x.Layout = &XSaveLayout{} }, 0},
		{"layout into the header", func(x *XSave) { x.Layout = &XSaveLayout{2: 500} }, 0},
	}
	for _, tt := range tests {
		x := newXSave(&amd, allFeatures)
		tt.change(x)
		var r Registers
		if !x.Load(&r) || r.Known != tt.want {
			t.Errorf("%s: known are %b, want %b", tt.name, r.Known, tt.want)
		}
	}
	if (&XSave{Layout: &amd, Area: make([]byte, 575)}).Load(new(Registers)) {
		t.Error("short area taken")
	}
}

// A register that is stored is loaded again, and all others are as before,
// whatever was in its initial configuration.
func TestXSaveStore(t *testing.T) {
	changes := map[string]func(r *Registers){
		"st3":    func(r *Registers) { r.FX.ST(3)[0] ^= 1 },
		"mxcsr":  func(r *Registers) { r.FX.SetMXCSR(r.FX.MXCSR() ^ 1) },
		"xmm3":   func(r *Registers) { r.FX.XMM(3)[0] ^= 1 },
		"ymm3h":  func(r *Registers) { r.YMMH[3][0] ^= 1 },
		"k3":     func(r *Registers) { r.K[24] ^= 1 },
		"zmm3h":  func(r *Registers) { r.ZMMH[3][0] ^= 1 },
		"zmm19h": func(r *Registers) { r.ZMMH[19][0] ^= 1 },
		"xmm19":  func(r *Registers) { r.XMM16[3][0] ^= 1 },
		"ymm19h": func(r *Registers) { r.YMMH16[3][0] ^= 1 },
		"pkru":   func(r *Registers) { r.PKRU[0] ^= 1 },
		"none":   func(*Registers) {},
	}
	for name, change := range changes {
		for _, present := range []Feature{0, allFeatures, FeatureSSE, FeatureX87 | FeatureAVX} {
			t.Run(fmt.Sprintf("%s, present %b", name, present), func(t *testing.T) {
				x := newXSave(&intel, present)
				before := bytes.Clone(x.Area)
				var want, got Registers
				x.Load(&want)
				change(&want)
				x.Store(&want)
				x.Load(&got)
				if diff := Difference(&got, &want); diff != "" {
					t.Errorf("%s is not as it was stored", diff)
				}
				if name == "none" && !bytes.Equal(x.Area, before) {
					t.Error("storing what was there changes the area")
				}
			})
		}
	}
}

// A component that a vCPU never enabled cannot be marked as present: Xen refuses
// such a state.
func TestXSaveStoreNeverEnabled(t *testing.T) {
	x := newXSave(&amd, FeatureX87)
	x.XCR0, x.Ever = FeatureX87, FeatureX87
	var r Registers
	x.Load(&r)
	r.FX.ST(0)[0] ^= 1
	x.Store(&r)
	if got := Feature(binary.LittleEndian.Uint64(x.Area[512:])); got != FeatureX87 {
		t.Errorf("components %b are marked as present, want %b", got, FeatureX87)
	}
}

func TestThisXSaveLayout(t *testing.T) {
	l := ThisXSaveLayout()
	if l[2] != 576 {
		t.Errorf("AVX state is at %d", l[2])
	}
	for i, offset := range l {
		if offset != 0 && offset < 576 {
			t.Errorf("component %d is at %d, within the legacy area", i, offset)
		}
	}
}

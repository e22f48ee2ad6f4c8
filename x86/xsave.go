// This file reads and changes an XSAVE area: x87, SSE, AVX, AVX-512 and
// protection keys (SDM vol. 1, chapter 13).

package x86

import (
	"encoding/binary"
	"slices"
)

// Feature is a set of state components, numbered as in XCR0 (SDM vol. 1,
// section 13.1).
type Feature uint64

// The state components that Registers has.
const (
	FeatureX87      Feature = 1 << 0
	FeatureSSE      Feature = 1 << 1
	FeatureAVX      Feature = 1 << 2
	FeatureOpmask   Feature = 1 << 5
	FeatureZMMHi256 Feature = 1 << 6
	FeatureHi16ZMM  Feature = 1 << 7
	FeaturePKRU     Feature = 1 << 9

	FeatureAVX512 = FeatureOpmask | FeatureZMMHi256 | FeatureHi16ZMM
)

const (
	xsaveHeader   = 512 // offset of XSTATE_BV in an XSAVE area
	xsaveExtended = 576 // where the components after SSE may begin
)

// An XSaveLayout gives where the components after SSE stand in an XSAVE area
// that is not compacted, by number. It differs between processors. 0: nowhere.
type XSaveLayout [10]uint32

// ThisXSaveLayout asks the processor that this program runs on (CPUID leaf 0DH,
// sub-leaves 2 and on).
func ThisXSaveLayout() XSaveLayout {
	l := XSaveLayout{2: xsaveExtended} // the same on all processors
	if most, _, _, _ := cpuid(0, 0); most < 0xd {
		return l
	}
	for i := 3; i < len(l); i++ {
		_, l[i], _, _ = cpuid(0xd, uint32(i))
	}
	return l
}

// XSave is the XSAVE state of a vCPU.
type XSave struct {
	Layout *XSaveLayout
	XCR0   Feature // components that it has enabled
	Ever   Feature // components that it ever had enabled, which Area has room for
	Area   []byte  // not compacted; empty if it never used XSAVE
}

// part is a component and its place in Registers.
type part struct {
	number  int // of the component
	offset  int // within the component
	feature Feature
	bytes   []byte
}

// parts gives all of the components after SSE, in r.
func (r *Registers) parts() []part {
	ps := make([]part, 0, 2+4*len(r.YMMH))
	add := func(number, offset int, b []byte) {
		ps = append(ps, part{number, offset, Feature(1) << number, b})
	}
	for i := range r.YMMH {
		add(2, 16*i, r.YMMH[i][:])
	}
	add(5, 0, r.K[:])
	for i := range 16 {
		add(6, 32*i, r.ZMMH[i][:])
		add(7, 64*i, r.XMM16[i][:])
		add(7, 64*i+16, r.YMMH16[i][:])
		add(7, 64*i+32, r.ZMMH[16+i][:])
	}
	add(9, 0, r.PKRU[:])
	return ps
}

// field gives a part's bytes in the area, or nil if it is not there.
func (x *XSave) field(p part) []byte {
	base := int(x.Layout[p.number])
	if x.XCR0&p.feature == 0 || base < xsaveExtended || base+p.offset+len(p.bytes) > len(x.Area) {
		return nil
	}
	return x.Area[base+p.offset:][:len(p.bytes)]
}

// Load takes the registers of all components out of the area, and marks those
// that are there as known. A component that the area has in its initial
// configuration leaves stale bytes, for which the initial values stand in (SDM
// vol. 1, section 13.6). It gives false, and does nothing, without an area.
func (x *XSave) Load(r *Registers) bool {
	if len(x.Area) < xsaveExtended {
		return false
	}
	present := Feature(binary.LittleEndian.Uint64(x.Area[xsaveHeader:]))
	copy(r.FX[:], x.Area)
	if present&FeatureX87 == 0 {
		copy(r.FX[:24], FXInit[:24])
		clear(r.FX[32:160])
	}
	if present&FeatureSSE == 0 {
		clear(r.FX[160:416])
		// MXCSR belongs to SSE and AVX both.
		if present&FeatureAVX == 0 {
			r.FX.SetMXCSR(FXInit.MXCSR())
		}
	}
	for _, p := range r.parts() {
		field := x.field(p)
		switch {
		case field == nil:
			continue
		case present&p.feature == 0:
			clear(p.bytes)
		default:
			copy(p.bytes, field)
		}
		switch p.number {
		case 2:
			r.Known |= KnownAVX
		case 5, 6, 7:
			r.Known |= KnownAVX512
		case 9:
			r.Known |= KnownPKRU
		}
	}
	return true
}

// Store puts the registers of all components that differ from the area's into
// it. Without an area it does nothing.
func (x *XSave) Store(r *Registers) {
	var old Registers
	if !x.Load(&old) {
		return
	}
	var changed Feature
	if string(old.FX[:160]) != string(r.FX[:160]) {
		changed |= FeatureX87 | FeatureSSE // MXCSR among the first
	}
	if string(old.FX[160:416]) != string(r.FX[160:416]) {
		changed |= FeatureSSE
	}
	was := old.parts()
	for i, p := range r.parts() {
		if x.field(p) != nil && !slices.Equal(p.bytes, was[i].bytes) {
			changed |= p.feature
		}
	}
	// Each changed component is written whole: what was in its initial
	// configuration has stale bytes.
	changed &= x.Ever
	if changed&(FeatureX87|FeatureSSE|FeatureAVX) != 0 {
		copy(x.Area, r.FX[:416]) // with MXCSR, which AVX has too
	}
	for _, p := range r.parts() {
		if field := x.field(p); field != nil && changed&p.feature != 0 {
			copy(field, p.bytes)
		}
	}
	header := x.Area[xsaveHeader:]
	binary.LittleEndian.PutUint64(header, binary.LittleEndian.Uint64(header)|uint64(changed))
}

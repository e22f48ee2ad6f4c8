// This file reads and changes an XSAVE area: x87, SSE, AVX, AVX-512 and
// protection keys (SDM vol. 1, chapter 13).

package x86

import (
	"bytes"
	"encoding/binary"
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

// component is a state component after SSE, whose bytes are in several places of
// Registers.
type component struct {
	number, size int
	pieces       int   // how many those places are
	known        Known // set with it
}

var components = [...]component{
	{2, 16 * 16, 16, KnownAVX},
	{5, 64, 1, KnownAVX512},
	{6, 16 * 32, 16, KnownAVX512},
	{7, 16 * 64, 16 * 3, KnownAVX512},
	{9, 4, 1, KnownPKRU},
}

func (c component) feature() Feature { return 1 << c.number }

// piece gives a place in r, and its offset within the component. It is no closure, so
// that r can be on the stack.
// Preconditions: 0 <= i < c.pieces.
func (c component) piece(r *Registers, i int) (offset int, place []byte) {
	switch c.number {
	case 2:
		return 16 * i, r.YMMH[i][:]
	case 5:
		return 0, r.K[:]
	case 6:
		return 32 * i, r.ZMMH[i][:]
	case 7:
		switch n := i / 3; i % 3 {
		case 0:
			return 64 * n, r.XMM16[n][:]
		case 1:
			return 64*n + 16, r.YMMH16[n][:]
		default:
			return 64*n + 32, r.ZMMH[16+n][:]
		}
	default:
		return 0, r.PKRU[:]
	}
}

// same tells whether two states have the same bytes in a component.
func (c component) same(a, b *Registers) bool {
	for i := range c.pieces {
		_, of := c.piece(a, i)
		if _, other := c.piece(b, i); !bytes.Equal(of, other) {
			return false
		}
	}
	return true
}

// field gives a component's bytes in the area, or nil if it is not there.
func (x *XSave) field(c component) []byte {
	base := int(x.Layout[c.number])
	if x.XCR0&c.feature() == 0 || base < xsaveExtended || base+c.size > len(x.Area) {
		return nil
	}
	return x.Area[base:][:c.size]
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
	for _, c := range components {
		field := x.field(c)
		if field == nil {
			continue
		}
		for i := range c.pieces {
			offset, place := c.piece(r, i)
			if present&c.feature() == 0 {
				clear(place)
			} else {
				copy(place, field[offset:])
			}
		}
		r.Known |= c.known
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
	for _, c := range components {
		field := x.field(c)
		if field == nil || x.Ever&c.feature() == 0 || c.same(r, &old) {
			continue
		}
		changed |= c.feature()
		// Written whole: what was in its initial configuration has stale bytes.
		for i := range c.pieces {
			offset, place := c.piece(r, i)
			copy(field[offset:], place)
		}
	}
	changed &= x.Ever
	if changed&(FeatureX87|FeatureSSE|FeatureAVX) != 0 {
		copy(x.Area, r.FX[:416]) // with MXCSR, which AVX has too
	}
	header := x.Area[xsaveHeader:]
	binary.LittleEndian.PutUint64(header, binary.LittleEndian.Uint64(header)|uint64(changed))
}

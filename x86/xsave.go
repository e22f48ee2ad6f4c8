// This file reads and changes the x87 and SSE part of an XSAVE area.

package x86

import "encoding/binary"

// Bits of XSTATE_BV for the components that an FXSave holds (SDM vol. 1,
// section 13.4.2).
const (
	xstateX87 uint64 = 1 << 0
	xstateSSE uint64 = 1 << 1

	xsaveHeader = 512 // offset of XSTATE_BV in an XSAVE area
)

// FXFromXSave takes the x87 and SSE state out of an XSAVE area. A component
// that the area has in its initial configuration leaves stale bytes, for which
// the initial values stand in (SDM vol. 1, section 13.6). It gives false for an
// area that is too short.
func FXFromXSave(area []byte) (fx FXSave, ok bool) {
	if len(area) < xsaveHeader+64 {
		return fx, false
	}
	copy(fx[:], area)
	present := binary.LittleEndian.Uint64(area[xsaveHeader:])
	if present&xstateX87 == 0 {
		copy(fx[:24], FXInit[:24])
		clear(fx[32:160])
	}
	if present&xstateSSE == 0 {
		clear(fx[160:416])
		if present&^(xstateX87|xstateSSE) == 0 {
			fx.SetMXCSR(FXInit.MXCSR())
		}
	}
	return fx, true
}

// FXToXSave puts an x87 and SSE state into an XSAVE area. It gives false for
// an area that is too short.
func FXToXSave(area []byte, fx *FXSave) bool {
	if len(area) < xsaveHeader+64 {
		return false
	}
	copy(area, fx[:416])
	present := binary.LittleEndian.Uint64(area[xsaveHeader:])
	binary.LittleEndian.PutUint64(area[xsaveHeader:], present|xstateX87|xstateSSE)
	return true
}

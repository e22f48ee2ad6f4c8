package xen

import "testing"

// Upper bits of a frame stand in the lower 12 of a 32-bit PV guest's CR3.
func TestFrame32(t *testing.T) {
	for cr3, want := range map[uint32]MFN{
		0:          0,
		0x1000:     1,
		0xfffff000: 0xfffff,
		0x00001abc: 0xabc00001,
		0x12345fff: 0xfff12345,
		0x00000001: 0x00100000,
		^uint32(0): 0xffffffff,
	} {
		if got := Frame32(cr3); got != want {
			t.Errorf("%#x: got %v, want %v", cr3, got, want)
		}
	}
}

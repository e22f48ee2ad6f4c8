// This file gives a VCPUContext as the bytes that the hypervisor sees.

package xen

import "unsafe"

// bytes gives ctx itself, not a copy.
func (ctx *VCPUContext) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(ctx)), contextSize)
}

// bytes gives ctx itself, not a copy.
func (ctx *VCPUContext32) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(ctx)), contextSize32)
}

// bytes gives cpu itself, not a copy.
func (cpu *SavedCPU) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(cpu)), savedCPUSize)
}

// This file is about the vCPUs of 32-bit PV guests, whose state has a layout of
// its own.

package xen

import "structs"

// TrapInfo32 is an entry of a 32-bit PV guest's virtual IDT.
type TrapInfo32 struct {
	_       structs.HostLayout
	Vector  uint8
	Flags   uint8
	CS      uint16
	Address uint32
}

// VCPUContext32 is the state of a vCPU of a 32-bit PV guest: struct
// vcpu_guest_context of Xen's public header arch-x86/xen.h as 32-bit code sees
// it, which has not changed from 4.4 to 4.22. 2800 bytes.
type VCPUContext32 struct {
	_                                    structs.HostLayout
	FPU                                  [512]byte // FXSAVE image
	Flags                                uint32    // VGCF_*
	EBX, ECX, EDX, ESI, EDI, EBP, EAX    uint32
	ErrorCode, EntryVector               uint16
	EIP                                  uint32
	CS                                   uint16
	SavedUpcallMask                      uint8
	_                                    uint8
	EFLAGS, ESP                          uint32
	SS, _                                uint16
	ES, _                                uint16
	DS, _                                uint16
	FS, _                                uint16
	GS, _                                uint16
	Traps                                [256]TrapInfo32
	LDTBase, LDTEntries                  uint32
	GDTFrames                            [16]uint32
	GDTEntries                           uint32
	KernelSS, KernelSP                   uint32
	ControlRegs                          [8]uint32 // [3] is folded: see Frame32
	DebugRegs                            [8]uint32
	EventCallbackCS, EventCallback       uint32
	FailsafeCallbackCS, FailsafeCallback uint32
	VMAssist                             uint32
}

// contextSize32 is the size of a VCPUContext32.
const contextSize32 = 2800

// Frame32 gives the frame in a CR3 of a 32-bit PV guest, whose upper 12 bits
// stand in the lower (xen_cr3_to_pfn of Xen's public header
// arch-x86/xen-x86_32.h).
func Frame32(cr3 uint32) MFN { return MFN(cr3>>12 | cr3<<20) }

// Widen gives the registers as a VCPUContext, extended by zeros. What only
// 32-bit guests have (traps, callbacks, descriptor tables) is left out.
func (c *VCPUContext32) Widen() VCPUContext {
	w := VCPUContext{
		FPU: c.FPU, Flags: uint64(c.Flags),
		RAX: uint64(c.EAX), RBX: uint64(c.EBX), RCX: uint64(c.ECX), RDX: uint64(c.EDX),
		RSI: uint64(c.ESI), RDI: uint64(c.EDI), RBP: uint64(c.EBP), RSP: uint64(c.ESP),
		RIP: uint64(c.EIP), RFLAGS: uint64(c.EFLAGS),
		CS: c.CS, SS: c.SS, DS: c.DS, ES: c.ES, FS: c.FS, GS: c.GS,
	}
	for i := range c.ControlRegs {
		w.ControlRegs[i] = uint64(c.ControlRegs[i])
		w.DebugRegs[i] = uint64(c.DebugRegs[i])
	}
	return w
}

// Narrow takes the registers out of a VCPUContext, cut to 32 bits, but for the
// control registers, which cannot be changed.
func (c *VCPUContext32) Narrow(w *VCPUContext) {
	c.FPU, c.Flags = w.FPU, uint32(w.Flags)
	c.EAX, c.EBX, c.ECX, c.EDX = uint32(w.RAX), uint32(w.RBX), uint32(w.RCX), uint32(w.RDX)
	c.ESI, c.EDI, c.EBP, c.ESP = uint32(w.RSI), uint32(w.RDI), uint32(w.RBP), uint32(w.RSP)
	c.EIP, c.EFLAGS = uint32(w.RIP), uint32(w.RFLAGS)
	c.CS, c.SS, c.DS, c.ES, c.FS, c.GS = w.CS, w.SS, w.DS, w.ES, w.FS, w.GS
	for i := range c.DebugRegs {
		c.DebugRegs[i] = uint32(w.DebugRegs[i])
	}
}

// VCPUContext32 is VCPUContext for a 32-bit PV guest.
func (h *Host) VCPUContext32(domain DomID, vcpu int, ctx *VCPUContext32) error {
	return h.readContext(domain, vcpu, ctx.bytes())
}

// SetVCPUContext32 is SetVCPUContext for a 32-bit PV guest.
func (h *Host) SetVCPUContext32(domain DomID, vcpu int, ctx *VCPUContext32) error {
	return h.writeContext(domain, vcpu, ctx.bytes())
}

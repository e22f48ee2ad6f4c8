// This file is about vCPUs: their state and their registers.

package xen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"structs"
	"time"

	"golang.org/x/sys/unix"
)

// Flags of a VCPUContext (VGCF_*).
const (
	VGCFI387Valid          uint64 = 1 << 0 // the FPU state is to be loaded
	VGCFInKernel           uint64 = 1 << 2 // PV: the vCPU is in kernel mode
	VGCFSyscallMasksEvents uint64 = 1 << 4 // PV: the kernel's handler of SYSCALL begins with events masked
	VGCFOnline             uint64 = 1 << 5 // the vCPU is up
)

// EntryVectorSyscall is set in a VCPUContext's EntryVector if the vCPU came
// into the hypervisor by SYSCALL. It then leaves by SYSRET, which takes rip
// from rcx and rflags from r11.
const EntryVectorSyscall uint32 = 0x100

// TrapMasksEvents is the flag of a TrapInfo that delivers the trap with events masked
// (TI_SET_IF).
const TrapMasksEvents = 1 << 2

// TrapInfo is an entry of a PV guest's virtual IDT: struct trap_info.
type TrapInfo struct {
	_       structs.HostLayout
	Vector  uint8
	Flags   uint8 // bits 0-1: lowest ring that may raise it; TrapMasksEvents
	CS      uint16
	_       uint32
	Address uint64
}

// VCPUContext is the state of a vCPU of a 64-bit PV guest, or of an HVM or PVH
// guest of any width, for which only some of it holds: struct
// vcpu_guest_context of Xen's public header arch-x86/xen.h, which has not
// changed from 4.4 to 4.22. 5168 bytes.
type VCPUContext struct {
	_                structs.HostLayout
	FPU              [512]byte // FXSAVE image
	Flags            uint64    // VGCF_*
	R15              uint64
	R14              uint64
	R13              uint64
	R12              uint64
	RBP              uint64
	RBX              uint64
	R11              uint64
	R10              uint64
	R9               uint64
	R8               uint64
	RAX              uint64
	RCX              uint64
	RDX              uint64
	RSI              uint64
	RDI              uint64
	ErrorCode        uint32
	EntryVector      uint32
	RIP              uint64
	CS               uint16
	_                uint16
	SavedUpcallMask  uint8
	_                [3]uint8
	RFLAGS           uint64
	RSP              uint64
	SS               uint16
	_                [3]uint16
	ES               uint16
	_                [3]uint16
	DS               uint16
	_                [3]uint16
	FS               uint16
	_                [3]uint16
	GS               uint16
	_                [3]uint16
	Traps            [256]TrapInfo
	LDTBase          uint64
	LDTEntries       uint64
	GDTFrames        [16]uint64
	GDTEntries       uint64
	KernelSS         uint64
	KernelSP         uint64
	ControlRegs      [8]uint64 // [1] is the user-mode CR3 of a PV guest
	DebugRegs        [8]uint64
	EventCallback    uint64
	FailsafeCallback uint64
	SyscallCallback  uint64
	VMAssist         uint64
	FSBase           uint64
	GSBaseKernel     uint64
	GSBaseUser       uint64
}

// contextSize is the size of a VCPUContext.
const contextSize = 5168

// vcpuErrors are what errnos mean for calls about a vCPU.
var vcpuErrors = map[unix.Errno]error{
	unix.ESRCH:   ErrNoDomain,
	unix.EINVAL:  ErrNoVCPU,
	unix.ENOENT:  ErrNoVCPU,
	unix.ENODATA: ErrVCPUOffline,
}

// asVCPUError adds a sentinel to the error of a call that reads a vCPU.
func asVCPUError(vcpu int, err error) error { return withVCPU(vcpu, err, vcpuErrors) }

// asSetError is asVCPUError for calls that write, where EINVAL is about the
// state written.
func asSetError(vcpu int, err error) error { return withVCPU(vcpu, err, domainErrors) }

func withVCPU(vcpu int, err error, sentinels map[unix.Errno]error) error {
	var op *OpError
	if errors.As(err, &op) {
		op.Err = fmt.Errorf("vCPU %d: %w", vcpu, errnoAs(op.Err, sentinels))
	}
	return err
}

// VCPUContext reads the state of a vCPU into ctx. The hypervisor stops the vCPU
// while it does. A vCPU that was never brought up gives ErrVCPUOffline. The
// state of 32-bit PV guests needs VCPUContext32.
func (h *Host) VCPUContext(domain DomID, vcpu int, ctx *VCPUContext) error {
	return h.readContext(domain, vcpu, ctx.bytes())
}

// SetVCPUContext writes the state of a vCPU. It is to be a state that
// VCPUContext gave, with changes: what is cleared in Flags is taken from the
// vCPU. The hypervisor resets all vector state beyond SSE; see VCPUExtState.
func (h *Host) SetVCPUContext(domain DomID, vcpu int, ctx *VCPUContext) error {
	return h.writeContext(domain, vcpu, ctx.bytes())
}

// readContext reads a vCPU's state in the layout of the domain's width.
func (h *Host) readContext(domain DomID, vcpu int, to []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	// The hypervisor decides what it writes, so there is room for the larger.
	mem, addr := h.payload(contextSize)
	clear(mem)
	var u union
	u.putU32(0, uint32(vcpu))
	u.putU64(8, addr)
	if err := h.domctlLocked(domctlGetVCPUContext, domain, &u); err != nil {
		return asVCPUError(vcpu, err)
	}
	copy(to, mem)
	return nil
}

// writeContext writes a vCPU's state in the layout of the domain's width.
func (h *Host) writeContext(domain DomID, vcpu int, from []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(contextSize)
	clear(mem[copy(mem, from):])
	var u union
	u.putU32(0, uint32(vcpu))
	u.putU64(8, addr)
	return asSetError(vcpu, h.domctlLocked(domctlSetVCPUContext, domain, &u))
}

// VCPUInfo is how a vCPU is scheduled: struct xen_domctl_getvcpuinfo.
type VCPUInfo struct {
	Online  bool // up
	Blocked bool // waits for an event
	Running bool // is on a CPU
	CPUTime time.Duration
	CPU     int // physical, where it runs or ran last
}

// VCPUInfo tells how a vCPU is scheduled.
func (h *Host) VCPUInfo(domain DomID, vcpu int) (VCPUInfo, error) {
	var u union
	u.putU32(0, uint32(vcpu))
	if err := h.domctl(domctlGetVCPUInfo, domain, &u); err != nil {
		return VCPUInfo{}, asVCPUError(vcpu, err)
	}
	return VCPUInfo{
		Online:  u.u8(4) != 0,
		Blocked: u.u8(5) != 0,
		Running: u.u8(6) != 0,
		CPUTime: time.Duration(u.u64(8)),
		CPU:     int(u.u32(16)),
	}, nil
}

// ExtState is a vCPU's extended state: struct xen_domctl_vcpuextstate's buffer.
// It is empty on a processor without XSAVE.
type ExtState struct {
	Features uint64 // components that the processor has, as in XCR0
	Data     []byte // XCR0 u64, accumulated XCR0 u64, XSAVE area, not compacted
}

// XCR0 gives the components that the vCPU has enabled.
func (s ExtState) XCR0() uint64 { return s.word(0) }

// EverXCR0 gives the components that the vCPU ever had enabled, for which Area
// has room.
func (s ExtState) EverXCR0() uint64 { return s.word(8) }

func (s ExtState) word(offset int) uint64 {
	if len(s.Data) < 16 {
		return 0
	}
	return binary.LittleEndian.Uint64(s.Data[offset:])
}

// Area gives the XSAVE area within Data, empty if the vCPU never used XSAVE.
func (s ExtState) Area() []byte { return s.Data[min(16, len(s.Data)):] }

// VCPUExtState reads a vCPU's XSAVE state: what SetVCPUContext resets.
func (h *Host) VCPUExtState(domain DomID, vcpu int) (ExtState, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.xsave == nil {
		// Asked without a buffer, it tells what the processor has.
		var u union
		u.putU32(0, uint32(vcpu))
		if err := h.domctlLocked(domctlGetVCPUExtState, domain, &u); err != nil {
			return ExtState{}, asVCPUError(vcpu, err)
		}
		h.xsave = &xsaveSize{features: u.u64(8), bytes: u.u64(16)}
	}
	if h.xsave.features == 0 {
		return ExtState{}, nil
	}
	if h.xsave.bytes > maxPayload {
		return ExtState{}, opError(domctlGetVCPUExtState.String(), int(domain), fmt.Errorf("state of %d bytes is too large", h.xsave.bytes))
	}
	mem, addr := h.payload(int(h.xsave.bytes))
	clear(mem)
	var u union
	u.putU32(0, uint32(vcpu))
	u.putU64(8, h.xsave.features)
	u.putU64(16, h.xsave.bytes)
	u.putU64(24, addr)
	if err := h.domctlLocked(domctlGetVCPUExtState, domain, &u); err != nil {
		return ExtState{}, asVCPUError(vcpu, err)
	}
	n := min(h.xsave.bytes, u.u64(16))
	return ExtState{Features: h.xsave.features, Data: append([]byte(nil), mem[:n]...)}, nil
}

// SetVCPUExtState writes back what VCPUExtState gave.
func (h *Host) SetVCPUExtState(domain DomID, vcpu int, s ExtState) error {
	if len(s.Data) == 0 {
		return nil
	}
	if len(s.Data) > maxPayload {
		return opError(domctlSetVCPUExtState.String(), int(domain), fmt.Errorf("state of %d bytes is too large", len(s.Data)))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr := h.payload(len(s.Data))
	copy(mem, s.Data)
	var u union
	u.putU32(0, uint32(vcpu))
	u.putU64(8, s.Features)
	u.putU64(16, uint64(len(s.Data)))
	u.putU64(24, addr)
	return asSetError(vcpu, h.domctlLocked(domctlSetVCPUExtState, domain, &u))
}

// HVMCPU is what a VCPUContext of an HVM or PVH guest lacks, from its save
// state (Xen public header arch-x86/hvm/save.h).
type HVMCPU struct {
	EFER    uint64
	IDTBase uint64
	LSTAR   uint64    // where SYSCALL goes in 64-bit mode
	R8toR15 [8]uint64 // which some releases of Xen leave out: Quirks.ContextLosesR8toR15
	TPR     uint8     // the local APIC's task priority, of which CR8 is the upper half
}

// A saveRecord is a part of the save state of an HVM or PVH guest.
type saveRecord struct {
	typecode uint32
	size     int
}

var (
	saveCPU       = saveRecord{2, 1032} // struct hvm_hw_cpu, since 4.7
	saveLAPICRegs = saveRecord{6, 1024} // struct hvm_hw_lapic_regs
)

// Offsets within the records.
const (
	saveCPUR8      = 576
	saveCPUIDTBase = 872
	saveCPULSTAR   = 960
	saveCPUEFER    = 992
	saveLAPICTPR   = 0x80
)

// HVMCPU reads what a VCPUContext of an HVM or PVH guest lacks.
func (h *Host) HVMCPU(domain DomID, vcpu int) (HVMCPU, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var cpu HVMCPU
	mem, err := h.savedLocked(domain, vcpu, saveCPU)
	if err != nil {
		return cpu, err
	}
	cpu.EFER = binary.LittleEndian.Uint64(mem[saveCPUEFER:])
	cpu.IDTBase = binary.LittleEndian.Uint64(mem[saveCPUIDTBase:])
	cpu.LSTAR = binary.LittleEndian.Uint64(mem[saveCPULSTAR:])
	for i := range cpu.R8toR15 {
		cpu.R8toR15[i] = binary.LittleEndian.Uint64(mem[saveCPUR8+8*i:])
	}
	if mem, err = h.savedLocked(domain, vcpu, saveLAPICRegs); err != nil {
		return cpu, err
	}
	cpu.TPR = mem[saveLAPICTPR]
	return cpu, nil
}

// savedLocked reads a record of a vCPU's save state. It stays until the next
// call.
// Preconditions: h.mu is held.
func (h *Host) savedLocked(domain DomID, vcpu int, r saveRecord) ([]byte, error) {
	mem, addr := h.payload(r.size)
	clear(mem)
	var u union
	u.putU32(0, r.typecode)
	u.putU32(4, uint32(vcpu))
	u.putU64(8, uint64(r.size))
	u.putU64(16, addr)
	if err := h.domctlLocked(domctlGetHVMContextPartial, domain, &u); err != nil {
		return nil, asVCPUError(vcpu, err)
	}
	return mem, nil
}

// This file is about the save state of HVM and PVH guests, by which those
// registers can be written that setvcpucontext leaves alone: a stream of
// records, of which the hypervisor also loads a few alone (Xen public headers
// hvm/save.h and arch-x86/hvm/save.h).

package xen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"structs"

	"golang.org/x/sys/unix"
)

// ErrBadState says that the hypervisor does not load a state of vCPUs.
var ErrBadState = errors.New("the hypervisor finds it invalid: `xl dmesg` may say why")

// Indexes of the segment registers in a SavedCPU. IDTR and GDTR have a base and
// a limit only.
const (
	SegCS = iota
	SegDS
	SegES
	SegFS
	SegGS
	SegSS
	SegTR
	SegLDTR
	SegIDTR
	SegGDTR
)

// SavedCPU is a vCPU in the save state: struct hvm_hw_cpu, which has not changed
// from 4.7 to 4.22. 1032 bytes.
type SavedCPU struct {
	_          structs.HostLayout
	FPU        [512]byte // FXSAVE image
	RAX        uint64
	RBX        uint64
	RCX        uint64
	RDX        uint64
	RBP        uint64
	RSI        uint64
	RDI        uint64
	RSP        uint64
	R8toR15    [8]uint64
	RIP        uint64
	RFLAGS     uint64
	CR0        uint64
	CR2        uint64
	CR3        uint64
	CR4        uint64
	DR         [4]uint64
	DR6        uint64
	DR7        uint64
	Selectors  [8]uint32
	Limits     [10]uint32 // in bytes
	Bases      [10]uint64
	Attributes [8]uint32 // of the descriptor: bits 40 to 47, then 52 to 55
	_          [3]uint64 // SYSENTER's
	ShadowGS   uint64    // the base that SWAPGS would bring in
	_          [5]uint64 // SYSCALL's
	EFER       uint64
	_          [2]uint64 // TSC_AUX, TSC
	_          [2]uint32 // an event that is to be injected
	Flags      uint32    // bit 0: FPU holds a state
	_          uint32
}

// savedCPUSize is the size of a SavedCPU.
const savedCPUSize = 1032

// SavedFPUValid is set in a SavedCPU's Flags if FPU is to be loaded.
const SavedFPUValid = 1 << 0

// Types of records.
const (
	saveEnd       = 0
	saveHeader    = 1
	saveCPUType   = 2
	saveLAPICType = 6
	saveMTRRType  = 14
	saveXSAVEType = 16
)

// saveDescriptor is the size of what stands before each record: typecode u16,
// instance u16, length u32.
const saveDescriptor = 8

// A VCPUState is the part of an HVM or PVH guest's save state that is about the
// registers of its vCPUs that are up.
type VCPUState struct {
	records []saved
}

// saved is a record.
type saved struct {
	typecode, vcpu uint16
	data           []byte
	omit           bool // do not write it
}

// VCPUState reads the state of all vCPUs.
//
// Loading it again does to others than its registers what cannot be helped: the
// guest's time stamp counter goes on from where it was at the time of the call.
// svm tells that HVM guests run on AMD's processors, where loading a vCPU resets
// its PAT. So the record with that goes along. It also has the MTRRs, of which
// all releases save the first variable range in place of each (hvm_save_mtrr_msr),
// but with SVM they have no effect on the memory of a guest.
//
// Preconditions: the domain is paused.
func (h *Host) VCPUState(domain DomID, svm bool) (*VCPUState, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Record by record, the time stamp counters would be those of the last call
	// that asked for everything.
	var u union
	if err := h.domctlLocked(domctlGetHVMContext, domain, &u); err != nil {
		return nil, asDomainError(err)
	}
	size := u.u32(0)
	mem, addr, release, err := h.anyPayload(int(size))
	if err != nil {
		return nil, opError(domctlGetHVMContext.String(), int(domain), err)
	}
	defer release()
	clear(mem)
	u = union{}
	u.putU32(0, size)
	u.putU64(8, addr)
	if err := h.domctlLocked(domctlGetHVMContext, domain, &u); err != nil {
		return nil, asDomainError(err)
	}
	s, err := parseVCPUState(mem[:min(size, u.u32(0))], svm)
	return s, opError(domctlGetHVMContext.String(), int(domain), err)
}

// maxState bounds the save state of a guest: that of 128 vCPUs with AVX-512 is
// less than 1 MB.
const maxState = 4 << 20

// anyPayload is payload for more than fits there. release gives it back.
// Preconditions: h.mu is held.
func (h *Host) anyPayload(n int) (mem []byte, addr uint64, release func() error, err error) {
	if n <= maxPayload {
		mem, addr := h.payload(n)
		return mem, addr, func() error { return nil }, nil
	}
	t, ok := h.transport.(roomy)
	if !ok || n > maxState {
		return nil, 0, nil, fmt.Errorf("state of %d bytes is too large", n)
	}
	mem, release, err = t.Room(n)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("memory for a state of %d bytes: %w", n, err)
	}
	return mem[:n], address(mem, 0), release, nil
}

// parseVCPUState takes the records of interest out of a stream.
func parseVCPUState(stream []byte, svm bool) (*VCPUState, error) {
	s := &VCPUState{}
	le := binary.LittleEndian
	for {
		if len(stream) < saveDescriptor {
			return nil, errors.New("save state has no end")
		}
		r := saved{typecode: le.Uint16(stream), vcpu: le.Uint16(stream[2:])}
		length := le.Uint32(stream[4:])
		stream = stream[saveDescriptor:]
		if uint64(length) > uint64(len(stream)) {
			return nil, fmt.Errorf("record %d of the save state is cut off", r.typecode)
		}
		r.data, stream = slices.Clone(stream[:length]), stream[length:]
		switch r.typecode {
		case saveEnd:
			if len(s.records) == 0 || s.records[0].typecode != saveHeader {
				return nil, errors.New("save state does not start with its header")
			}
			return s, nil
		case saveCPUType:
			if length != savedCPUSize {
				return nil, fmt.Errorf("saved vCPU %d has %d bytes, want %d", r.vcpu, length, savedCPUSize)
			}
		case saveLAPICType:
			if length <= saveLAPICTPR {
				return nil, fmt.Errorf("saved local APIC %d has %d bytes", r.vcpu, length)
			}
			r.omit = true // unless it is to change: it restarts the timer
		case saveMTRRType:
			r.omit = !svm
		case saveHeader, saveXSAVEType:
			// Since 4.20 loading a vCPU resets what lies beyond SSE.
		default:
			continue
		}
		s.records = append(s.records, r)
	}
}

// Clone gives a copy.
func (s *VCPUState) Clone() *VCPUState {
	c := &VCPUState{records: slices.Clone(s.records)}
	for i := range c.records {
		c.records[i].data = slices.Clone(c.records[i].data)
	}
	return c
}

// find gives a record of a vCPU, or nil.
func (s *VCPUState) find(typecode uint16, vcpu int) *saved {
	for i := range s.records {
		if r := &s.records[i]; r.typecode == typecode && int(r.vcpu) == vcpu {
			return r
		}
	}
	return nil
}

// CPU gives a vCPU. One that is down has no state: ErrVCPUOffline.
func (s *VCPUState) CPU(vcpu int) (SavedCPU, error) {
	var cpu SavedCPU
	r := s.find(saveCPUType, vcpu)
	if r == nil {
		return cpu, fmt.Errorf("vCPU %d: %w", vcpu, ErrVCPUOffline)
	}
	copy(cpu.bytes(), r.data)
	return cpu, nil
}

// SetCPU puts in another state of a vCPU that has one.
func (s *VCPUState) SetCPU(vcpu int, cpu SavedCPU) {
	if r := s.find(saveCPUType, vcpu); r != nil {
		copy(r.data, cpu.bytes())
	}
}

// SetTPR sets the task priority of a vCPU's local APIC, of which CR8 is the upper
// half. Loading it starts the APIC's timer anew.
func (s *VCPUState) SetTPR(vcpu int, tpr uint8) {
	if r := s.find(saveLAPICType, vcpu); r != nil {
		r.data[saveLAPICTPR], r.omit = tpr, false
	}
}

// SetVCPUState loads the registers of all vCPUs. The hypervisor takes down a
// vCPU that is not among them. Before 4.19 a state that it refuses leaves vCPUs
// down, until another is loaded.
// Preconditions: the domain is paused; s is of VCPUState during this pause.
func (h *Host) SetVCPUState(domain DomID, s *VCPUState) error {
	var stream []byte
	add := func(typecode, vcpu uint16, data []byte) {
		stream = binary.LittleEndian.AppendUint16(stream, typecode)
		stream = binary.LittleEndian.AppendUint16(stream, vcpu)
		stream = binary.LittleEndian.AppendUint32(stream, uint32(len(data)))
		stream = append(stream, data...)
	}
	for _, r := range s.records {
		if !r.omit {
			add(r.typecode, r.vcpu, r.data)
		}
	}
	add(saveEnd, 0, nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	mem, addr, release, err := h.anyPayload(len(stream))
	if err != nil {
		return opError(domctlSetHVMContext.String(), int(domain), err)
	}
	defer release()
	copy(mem, stream)
	var u union
	u.putU32(0, uint32(len(stream)))
	u.putU64(8, addr)
	err = h.domctlLocked(domctlSetHVMContext, domain, &u)
	var op *OpError
	if errors.As(err, &op) {
		op.Err = errnoAs(op.Err, map[unix.Errno]error{unix.ESRCH: ErrNoDomain, unix.EINVAL: ErrBadState})
	}
	return err
}

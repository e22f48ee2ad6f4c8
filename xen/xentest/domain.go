// This file holds the domains and their vCPUs.

package xentest

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// DomainConfig says what domain to make.
type DomainConfig struct {
	ID     xen.DomID
	Kind   xen.Kind
	VCPUs  int  // 0 for 1
	PV32   bool // a 32-bit PV domain
	Pauses int  // how often somebody else has paused it
}

// A Domain is a domain of the fake hypervisor.
type Domain struct {
	ID   xen.DomID
	Kind xen.Kind

	Dying           bool
	Shutdown        bool
	ShutdownReason  xen.ShutdownReason
	Blocked         bool
	Running         bool
	Debugged        bool
	UUID            [16]byte
	CPUTime         time.Duration
	SharedInfoFrame uint64
	MaxGPFN         uint64
	MaxPages        uint64
	NoVCPUs         bool // as if none were allocated yet
	NoPages         bool // as if it had no memory yet
	RingWaited      bool // as if vCPUs waited for a slot on its ring of vm_events

	x          *Hypervisor
	width      int // of a PV domain
	vcpus      []*VCPU
	pauses     int  // the hypervisor's count
	callPauses int  // of those, by calls on a transport
	callDebug  bool // Debugged by a call on a transport
	virqs      int  // VIRQ_DEBUGGER that were sent
	frames     map[uint64]*frame
	modified   map[uint64]bool // frames that the hypervisor was told of
	next       uint64          // the next guest frame to give out
	ring       *ring           // nil without one
	monitors   map[xen.MonitorEvent]bool
}

// A VCPU is a vCPU of a Domain.
type VCPU struct {
	// Context is what getvcpucontext gives and setvcpucontext takes, but for
	// its bit VGCFOnline, which is Online, and on a processor with XSAVE its FPU
	// state, which is in Ext.
	Context xen.VCPUContext
	// Raw, if there is any, is what the calls give and take in place of Context:
	// the bytes of a 32-bit PV guest's state.
	Raw []byte
	// Ext is the XSAVE area, not compacted; empty for a vCPU that never used
	// XSAVE.
	Ext []byte
	// HVM is in the save state of an HVM or PVH guest, but for R8toR15, which
	// are Context's.
	HVM xen.HVMCPU
	// Saved has what of that state neither Context nor HVM has, as the hidden
	// parts of segments.
	Saved xen.SavedCPU
	PAT   uint64 // of an HVM or PVH guest
	// TimerStarts counts how often its local APIC's timer was started anew.
	TimerStarts int

	Online        bool
	Blocked       bool
	Running       bool
	Uninitialised bool // it was never brought up
	Waiting       int  // how often an event has paused it
	SingleStep    bool // by the monitor trap flag
	Injected      []xen.Injection
	CPUTime       time.Duration
	CPU           int

	pauses int    // of its own
	event  uint32 // latched for gdbsx_domstatus
}

// AddDomain makes a domain. Its vCPUs are in kernel mode with paging on and no
// page tables, its memory is empty.
func (x *Hypervisor) AddDomain(c DomainConfig) *Domain {
	x.t.Helper()
	d := &Domain{
		ID:              c.ID,
		Kind:            c.Kind,
		x:               x,
		width:           64,
		SharedInfoFrame: ^uint64(0),
		MaxPages:        1 << 16,
		frames:          map[uint64]*frame{},
		modified:        map[uint64]bool{},
		next:            firstGuestFrame,
		pauses:          c.Pauses,
	}
	if c.PV32 {
		d.width = 32
	}
	for n := range max(c.VCPUs, 1) {
		d.vcpus = append(d.vcpus, x.newVCPU(c.Kind, n))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.domains[uint16(c.ID)] != nil {
		x.t.Fatalf("xentest: domain %d exists", c.ID)
	}
	x.domains[uint16(c.ID)] = d
	return d
}

// The XSAVE area of a processor with x87, SSE and AVX.
const (
	xfeatures  = 7
	xsaveBytes = 832
	xstateBV   = 512 // its offset
)

func (x *Hypervisor) newVCPU(kind xen.Kind, n int) *VCPU {
	v := &VCPU{Online: true, CPU: n}
	c := &v.Context
	c.Flags = xen.VGCFI387Valid
	c.RFLAGS = 0x202
	c.ControlRegs[0] = 0x80050033
	c.FPU = x86.FXInit
	if kind == xen.PV {
		c.Flags |= xen.VGCFInKernel
		c.CS, c.SS = 0xe033, 0xe02b
		c.ControlRegs[4] = 0x660
	} else {
		c.CS, c.SS = 0x10, 0x18
		c.ControlRegs[4] = 0x6f0
		v.HVM = xen.HVMCPU{EFER: 0xd01}
		v.Saved.Attributes = [8]uint32{xen.SegCS: 0xa9b, xen.SegDS: 0xc93, xen.SegES: 0xc93, xen.SegSS: 0xc93, xen.SegTR: 0x8b}
		v.PAT = 0x0407050600070106 // Linux's
	}
	if !x.config.NoXSAVE {
		v.Ext = make([]byte, xsaveBytes)
		copy(v.Ext, x86.FXInit[:])
		binary.LittleEndian.PutUint64(v.Ext[xstateBV:], 3)
	}
	return v
}

// VCPU gives a vCPU.
func (d *Domain) VCPU(n int) *VCPU { return d.vcpus[n] }

// Pauses gives the hypervisor's count of pauses.
func (d *Domain) Pauses() int {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.pauses
}

// Pause adds a pause of somebody else, as `xl pause` does.
func (d *Domain) Pause() {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	d.pauses++
}

// Unpause takes one from the count, as `xl unpause` does.
func (d *Domain) Unpause() {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	d.pauses = max(d.pauses-1, 0)
	d.callPauses = min(d.callPauses, d.pauses) // it may have been one of those
}

// Int3 is what the hypervisor does where a vCPU in kernel mode has executed int3:
// with debugging on it stops the domain. It tells whether it did.
func (d *Domain) Int3(n int) bool {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.debug(d.vcpus[n], 3)
}

// DebugTrap is Int3 for a #DB.
func (d *Domain) DebugTrap(n int) bool {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.debug(d.vcpus[n], 0)
}

// debug is domain_pause_for_debugger of Xen. Several vCPUs can stop a domain at
// once, so that it may be paused already.
func (d *Domain) debug(v *VCPU, event uint32) bool {
	if !d.x.config.GDBSX || !d.Debugged || v.pauses > 0 || !v.Online {
		return false
	}
	if event != 0 {
		v.event = event
	}
	d.pauses++
	d.callPauses++ // whoever has turned debugging on must take it back
	if v.event == 0 {
		d.virqs++
	}
	return true
}

// VIRQs gives how often VIRQ_DEBUGGER was sent for the domain.
func (d *Domain) VIRQs() int {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.virqs
}

// OwnPauses gives a vCPU's own count of pauses.
func (d *Domain) OwnPauses(n int) int {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	return d.vcpus[n].pauses
}

// Crash shuts the domain down as a panicking kernel does.
func (d *Domain) Crash() {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	d.Shutdown, d.ShutdownReason = true, xen.ShutdownCrash
}

// Destroy removes the domain. Mappings of its memory stay.
func (d *Domain) Destroy() {
	d.x.mu.Lock()
	defer d.x.mu.Unlock()
	if d.x.domains[uint16(d.ID)] == d {
		delete(d.x.domains, uint16(d.ID))
	}
}

// pause is XEN_DOMCTL_pausedomain.
func (d *Domain) pause() unix.Errno {
	if d.pauses >= 255 {
		return unix.EOVERFLOW
	}
	d.pauses++
	d.callPauses++
	return 0
}

// unpause is XEN_DOMCTL_unpausedomain.
func (d *Domain) unpause() unix.Errno {
	if d.pauses == 0 {
		return unix.EINVAL
	}
	d.pauses--
	d.callPauses--
	return 0
}

// info makes a struct xen_domctl_getdomaininfo.
func (d *Domain) info() []byte {
	b := make([]byte, d.x.release.infoSize)
	le := binary.LittleEndian
	var flags uint32
	for bit, set := range []bool{d.Dying, d.Kind != xen.PV, d.Shutdown, d.pauses > 0, d.Blocked, d.Running, d.Debugged} {
		if set {
			flags |= 1 << bit
		}
	}
	if d.Shutdown {
		flags |= uint32(d.ShutdownReason) << 16
	} else {
		flags |= 0xffff_0000
	}
	pages, online, highest := uint64(len(d.frames)), 0, ^uint32(0)
	if !d.NoVCPUs {
		highest = uint32(len(d.vcpus) - 1)
		for _, v := range d.vcpus {
			if v.Online {
				online++
			}
		}
	}
	if d.NoPages {
		pages = 0
	}
	le.PutUint16(b, uint16(d.ID))
	le.PutUint32(b[4:], flags)
	le.PutUint64(b[8:], pages)
	le.PutUint64(b[16:], d.MaxPages)
	le.PutUint64(b[48:], d.SharedInfoFrame)
	le.PutUint64(b[56:], uint64(d.CPUTime))
	le.PutUint32(b[64:], uint32(online))
	le.PutUint32(b[68:], highest)
	copy(b[76:], d.UUID[:])
	emulation := uint32(0)
	switch d.Kind {
	case xen.PVH:
		emulation = 1 << 0 // local APIC
	case xen.HVM:
		emulation = 0x17f
	}
	le.PutUint32(b[d.x.release.infoEmulation:], emulation)
	return b
}

// canonical tells whether a 64-bit address is.
func canonical(addr uint64) bool { return uint64(int64(addr<<16)>>16) == addr }

// context is what getvcpucontext gives.
func (d *Domain) context(v *VCPU) xen.VCPUContext {
	c := v.Context
	c.Flags &^= xen.VGCFOnline
	if v.Online {
		c.Flags |= xen.VGCFOnline
	}
	if len(v.Ext) > 0 {
		copy(c.FPU[:], v.Ext)
	}
	if d.x.losesHighGPRs() {
		c.R8, c.R9, c.R10, c.R11, c.R12, c.R13, c.R14, c.R15 = 0, 0, 0, 0, 0, 0, 0, 0
	}
	if d.x.release.vectorLost() {
		c.ErrorCode, c.EntryVector = 0, 0
	}
	return c
}

// setContext is what setvcpucontext does.
func (d *Domain) setContext(v *VCPU, c xen.VCPUContext) unix.Errno {
	old := v.Context
	if d.Kind == xen.PV {
		for _, addr := range []uint64{c.RIP, c.RSP, c.KernelSP, c.FSBase, c.GSBaseKernel, c.GSBaseUser} {
			if !canonical(addr) {
				return unix.EINVAL
			}
		}
		if c.ControlRegs[3] != old.ControlRegs[3] || c.ControlRegs[1] != old.ControlRegs[1] ||
			c.GDTFrames != old.GDTFrames || c.GDTEntries != old.GDTEntries ||
			c.LDTBase != old.LDTBase || c.LDTEntries != old.LDTEntries {
			return unix.EOPNOTSUPP
		}
		c.ControlRegs = old.ControlRegs
		c.CS, c.SS = c.CS|3, c.SS|3
		c.RFLAGS = c.RFLAGS&^0x3000 | 0x202
	} else {
		// Only the general registers, the FPU and the debug registers go in.
		from := c
		c = old
		c.Flags, c.FPU, c.DebugRegs = from.Flags, from.FPU, from.DebugRegs
		c.RAX, c.RBX, c.RCX, c.RDX = from.RAX, from.RBX, from.RCX, from.RDX
		c.RSI, c.RDI, c.RBP, c.RSP = from.RSI, from.RDI, from.RBP, from.RSP
		c.R8, c.R9, c.R10, c.R11 = from.R8, from.R9, from.R10, from.R11
		c.R12, c.R13, c.R14, c.R15 = from.R12, from.R13, from.R14, from.R15
		c.RIP, c.RFLAGS = from.RIP, from.RFLAGS|2
	}
	if d.x.losesHighGPRs() {
		c.R8, c.R9, c.R10, c.R11, c.R12, c.R13, c.R14, c.R15 = 0, 0, 0, 0, 0, 0, 0, 0
	}
	if c.Flags&xen.VGCFI387Valid == 0 {
		c.FPU = x86.FXInit
	}
	if len(v.Ext) > 0 {
		clear(v.Ext)
		copy(v.Ext, c.FPU[:])
		binary.LittleEndian.PutUint64(v.Ext[xstateBV:], 3)
	}
	v.Online = c.Flags&xen.VGCFOnline != 0
	v.Uninitialised = false
	v.Context = c
	return 0
}

// String gives the domain as "domain 3".
func (d *Domain) String() string { return fmt.Sprintf("domain %d", d.ID) }

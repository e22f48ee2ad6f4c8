// This file is the save state of HVM and PVH domains: read whole or by record,
// and written.

package xentest

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// Types of records (Xen public header arch-x86/hvm/save.h).
const (
	recordEnd    = 0
	recordHeader = 1
	recordCPU    = 2
	recordLAPIC  = 6
	recordMTRR   = 14
	recordXSAVE  = 16
)

// header is a struct hvm_save_header: magic, version, changeset, CPUID, TSC's kHz.
var header = func() []byte {
	b := make([]byte, 24)
	binary.LittleEndian.PutUint32(b, 0x54381286)
	binary.LittleEndian.PutUint32(b[4:], 1)
	return b
}()

// savedCPU makes the CPU record: from Saved what the others do not have.
func (d *Domain) savedCPU(v *VCPU) xen.SavedCPU {
	c, s := &v.Context, v.Saved
	s.RAX, s.RBX, s.RCX, s.RDX = c.RAX, c.RBX, c.RCX, c.RDX
	s.RSI, s.RDI, s.RBP, s.RSP = c.RSI, c.RDI, c.RBP, c.RSP
	s.R8toR15 = [8]uint64{c.R8, c.R9, c.R10, c.R11, c.R12, c.R13, c.R14, c.R15}
	s.RIP, s.RFLAGS = c.RIP, c.RFLAGS
	s.CR0, s.CR2, s.CR3, s.CR4 = c.ControlRegs[0], c.ControlRegs[2], c.ControlRegs[3], c.ControlRegs[4]
	s.DR, s.DR6, s.DR7 = [4]uint64(c.DebugRegs[:4]), c.DebugRegs[6], c.DebugRegs[7]
	for i, selector := range []uint16{c.CS, c.DS, c.ES, c.FS, c.GS, c.SS} {
		s.Selectors[i] = uint32(selector)
	}
	s.Bases[xen.SegFS], s.Bases[xen.SegGS], s.ShadowGS = c.FSBase, c.GSBaseKernel, c.GSBaseUser
	if c.CS&3 != 0 {
		s.Bases[xen.SegGS], s.ShadowGS = c.GSBaseUser, c.GSBaseKernel
	}
	s.EFER = v.HVM.EFER
	s.FPU = c.FPU
	if len(v.Ext) > 0 {
		copy(s.FPU[:], v.Ext)
	}
	s.Flags = xen.SavedFPUValid
	return s
}

// loadCPU is what loading a CPU record does.
func (d *Domain) loadCPU(v *VCPU, s xen.SavedCPU) unix.Errno {
	// hvm_load_cpu_ctxt: CR0 without ET or with PG alone, CR4's and EFER's bits
	// that no guest has.
	const et, pe, pg = 1 << 4, 1 << 0, 1 << 31
	if s.CR0&et == 0 || s.CR0&(pe|pg) == pg || s.CR4>>32 != 0 || s.EFER&^0xd01 != 0 || s.CR3>>52 != 0 {
		return unix.EINVAL
	}
	c := &v.Context
	c.RAX, c.RBX, c.RCX, c.RDX = s.RAX, s.RBX, s.RCX, s.RDX
	c.RSI, c.RDI, c.RBP, c.RSP = s.RSI, s.RDI, s.RBP, s.RSP
	r := &s.R8toR15
	c.R8, c.R9, c.R10, c.R11, c.R12, c.R13, c.R14, c.R15 = r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]
	c.RIP, c.RFLAGS = s.RIP, s.RFLAGS|2
	c.ControlRegs[0], c.ControlRegs[2], c.ControlRegs[3], c.ControlRegs[4] = s.CR0, s.CR2, s.CR3, s.CR4
	copy(c.DebugRegs[:], s.DR[:])
	c.DebugRegs[6], c.DebugRegs[7] = s.DR6, s.DR7
	for i, selector := range []*uint16{&c.CS, &c.DS, &c.ES, &c.FS, &c.GS, &c.SS} {
		*selector = uint16(s.Selectors[i])
	}
	c.FSBase, c.GSBaseKernel, c.GSBaseUser = s.Bases[xen.SegFS], s.Bases[xen.SegGS], s.ShadowGS
	if c.CS&3 != 0 {
		c.GSBaseUser, c.GSBaseKernel = s.Bases[xen.SegGS], s.ShadowGS
	}
	v.HVM.EFER = s.EFER
	c.FPU = s.FPU
	if len(v.Ext) > 0 {
		clear(v.Ext) // as since 4.20
		copy(v.Ext, s.FPU[:])
		binary.LittleEndian.PutUint64(v.Ext[xstateBV:], 3)
	}
	v.PAT = resetPAT // as with SVM
	v.Online, v.Uninitialised = true, false
	v.Saved = s
	return 0
}

// resetPAT is the PAT after a processor's reset (SDM vol. 3A, section 12.12.4).
const resetPAT = 0x0007040600070406

// hvmRecord gives a record of a vCPU's save state by its type, or nil.
func (d *Domain) hvmRecord(v *VCPU, typecode uint32) []byte {
	switch typecode {
	case recordCPU:
		s := d.savedCPU(v)
		return slices.Clone(savedBytes(&s))
	case recordLAPIC: // struct hvm_hw_lapic_regs
		b := make([]byte, 1024)
		b[0x80] = v.HVM.TPR
		return b
	case recordMTRR: // struct hvm_hw_mtrr, whose first field is the PAT
		return append(binary.LittleEndian.AppendUint64(nil, v.PAT), make([]byte, 232)...)
	case recordXSAVE: // struct hvm_hw_cpu_xsave
		if len(v.Ext) == 0 {
			return nil
		}
		b := binary.LittleEndian.AppendUint64(nil, xfeatures)
		b = binary.LittleEndian.AppendUint64(b, xfeatures)
		b = binary.LittleEndian.AppendUint64(b, xfeatures)
		return append(b, v.Ext...)
	}
	return nil
}

func (d *Domain) saveState() []byte {
	var b []byte
	add := func(typecode, vcpu int, record []byte) {
		b = binary.LittleEndian.AppendUint16(b, uint16(typecode))
		b = binary.LittleEndian.AppendUint16(b, uint16(vcpu))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(record)))
		b = append(b, record...)
	}
	add(recordHeader, 0, header)
	for _, typecode := range []int{recordCPU, 5, recordLAPIC, recordMTRR, recordXSAVE} {
		for n, v := range d.vcpus {
			record := d.hvmRecord(v, uint32(typecode))
			if typecode == 5 { // struct hvm_hw_lapic, which nobody here needs
				record = make([]byte, 24)
			}
			if record != nil && (v.Online || typecode != recordCPU) {
				add(typecode, n, record)
			}
		}
	}
	add(recordEnd, 0, nil)
	return b
}

func (c *conn) getHVMContext(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	if d.Kind == xen.PV {
		return unix.EINVAL
	}
	state := d.saveState()
	size, buf := le.Uint32(u), le.Uint64(u[8:])
	if buf == 0 {
		le.PutUint32(u, uint32(len(state)+100)) // the upper limit
		return 0
	}
	if size < uint32(len(state)+100) {
		return unix.ENOSPC
	}
	b, errno := c.at(buf, len(state))
	if errno == 0 {
		copy(b, state)
		le.PutUint32(u, uint32(len(state)))
	}
	return errno
}

func (c *conn) setHVMContext(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	if d.Kind == xen.PV {
		return unix.EINVAL
	}
	b, errno := c.at(le.Uint64(u[8:]), int(le.Uint32(u)))
	if errno != 0 {
		return errno
	}
	if len(b) < 32 || le.Uint16(b) != recordHeader || !slices.Equal(b[8:32], header) {
		return unix.EINVAL
	}
	for _, v := range d.vcpus {
		v.Online = false
	}
	for b = b[32:]; len(b) >= 8; {
		typecode, n, length := le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:])
		if typecode == recordEnd {
			return 0
		}
		if int(n) >= len(d.vcpus) || uint64(length) > uint64(len(b)-8) {
			return unix.EINVAL
		}
		record, v := b[8:][:length], d.vcpus[n]
		b = b[8+length:]
		want := d.hvmRecord(v, uint32(typecode))
		if len(want) != len(record) {
			return unix.EINVAL
		}
		switch typecode {
		case recordCPU:
			var s xen.SavedCPU
			copy(savedBytes(&s), record)
			if errno := d.loadCPU(v, s); errno != 0 {
				return errno
			}
		case recordLAPIC:
			v.HVM.TPR = record[0x80]
			v.TimerStarts++
		case recordMTRR:
			v.PAT = le.Uint64(record)
		case recordXSAVE:
			v.Ext = slices.Clone(record[24:])
		}
	}
	return unix.ENODATA
}

// This file is the xen.Transport: hypercalls as the hypervisor answers them, and
// mappings as the kernel's privcmd device makes them.

package xentest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// conn is a connection to the hypervisor.
type conn struct {
	x      *Hypervisor
	buffer []byte
	room   []byte // given out by Room, or nil
	closed bool   // guarded by x.mu
}

const bufferSize = 64 << 10

func newConn(x *Hypervisor) (*conn, error) {
	b, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return &conn{x: x, buffer: b}, err
}

func (c *conn) Buffer() []byte { return c.buffer }

// Close releases the buffer.
func (c *conn) Close() error {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	if c.closed {
		return unix.EBADF
	}
	c.closed = true
	return unix.Munmap(c.buffer)
}

// Map maps frames of a domain.
func (c *conn) Map(domain uint16, frames []uint64, errs []int32, write bool) ([]byte, error) {
	x := c.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(frames) == 0 || len(frames) != len(errs) {
		x.misuse = append(x.misuse, fmt.Sprintf("Map of %d frames with %d errors", len(frames), len(errs)))
		return nil, unix.EINVAL
	}
	x.maps = append(x.maps, MapCall{xen.DomID(domain), slices.Clone(frames), write})
	if errno := x.enter(OpMap); errno != 0 {
		return nil, errno
	}
	d := x.domains[domain]
	machine := make([]uint64, len(frames))
	for i, f := range frames {
		errno := unix.ESRCH
		if d != nil {
			machine[i], errno = d.mapErrno(f, write)
		}
		errs[i] = -int32(errno)
	}
	mem, err := x.machine.view(machine, errs, write)
	if err != nil {
		return nil, err
	}
	x.mappings[addressOf(mem)] = mapping{len(mem), domain}
	return mem, nil
}

// Unmap takes back what Map gave, and exactly that.
func (c *conn) Unmap(mem []byte) error {
	x := c.x
	x.mu.Lock()
	defer x.mu.Unlock()
	errno := x.enter(OpUnmap)
	addr := addressOf(mem)
	if m, ok := x.mappings[addr]; !ok || m.size != len(mem) {
		x.misuse = append(x.misuse, fmt.Sprintf("Unmap of %d bytes at %#x, which is no mapping", len(mem), addr))
		return unix.EINVAL
	}
	delete(x.mappings, addr)
	if err := unmapAt(addr, len(mem)); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Hypercall numbers (Xen public header xen.h).
const (
	hypercallMMUUpdate = 1
	hypercallMemoryOp  = 12
	hypercallVersion   = 17
	hypercallHVMOp     = 34
	hypercallSysctl    = 35
	hypercallDomctl    = 36
	hypercallDMOp      = 41
)

// Hypercall answers a hypercall.
func (c *conn) Hypercall(op uint64, args [5]uint64) (int64, error) {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	if c.closed {
		return 0, unix.EBADF
	}
	var (
		r     int64
		errno unix.Errno
	)
	switch op {
	case hypercallVersion:
		r, errno = c.version(args)
	case hypercallMemoryOp:
		r, errno = c.memoryOp(args)
	case hypercallDomctl:
		errno = c.domctl(args[0])
	case hypercallSysctl:
		errno = c.sysctl(args[0])
	case hypercallHVMOp:
		errno = c.hvmOp(args)
	case hypercallDMOp:
		errno = c.dmOp(args)
	case hypercallMMUUpdate:
		errno = c.mmuUpdate(args)
	default:
		errno = unix.ENOSYS
	}
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// Room gives memory beside the buffer, one at a time.
func (c *conn) Room(n int) ([]byte, func() error, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	c.room = mem
	return mem, func() error {
		c.room = nil
		return unix.Munmap(mem)
	}, nil
}

// at gives n bytes of the buffer, or of Room's, at an address.
func (c *conn) at(addr uint64, n int) ([]byte, unix.Errno) {
	for _, mem := range [][]byte{c.buffer, c.room} {
		base := uint64(addressOf(mem))
		if addr >= base && n >= 0 && addr-base <= uint64(len(mem)) && uint64(n) <= uint64(len(mem))-(addr-base) {
			return mem[addr-base:][:n:n], 0
		}
	}
	return nil, unix.EFAULT
}

func (c *conn) version(args [5]uint64) (int64, unix.Errno) {
	x := c.x
	if errno := x.enter(OpVersion); errno != 0 {
		return 0, errno
	}
	var text string
	var size int
	switch args[0] {
	case 0:
		return int64(4<<16 | x.release.minor), 0
	case 1:
		text, size = x.config.Extra, 16
	case 3:
		text, size = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", 1024
	case 4:
		text, size = "Tue Dec 13 17:28:47 2022 +0100 git:3d0c3a5a5e", 64
	default:
		return 0, unix.ENOSYS
	}
	b, errno := c.at(args[1], size)
	if errno == 0 {
		clear(b)
		copy(b[:size-1], text)
	}
	return 0, errno
}

func (c *conn) memoryOp(args [5]uint64) (int64, unix.Errno) {
	switch args[0] {
	case 1, 6:
		return c.changeFrame(args)
	case 14:
	default:
		return 0, unix.ENOSYS
	}
	if errno := c.x.enter(OpMaximumGPFN); errno != 0 {
		return 0, errno
	}
	b, errno := c.at(args[1], 2)
	if errno != 0 {
		return 0, errno
	}
	d := c.x.domains[binary.LittleEndian.Uint16(b)]
	if d == nil {
		return 0, unix.ESRCH
	}
	return int64(d.MaxGPFN), 0
}

func (c *conn) sysctl(addr uint64) unix.Errno {
	x := c.x
	if x.config.NoSysctl {
		return unix.ENOSYS
	}
	b, errno := c.at(addr, 136)
	if errno != 0 {
		return errno
	}
	le := binary.LittleEndian
	if le.Uint32(b[4:]) != x.release.sysctl {
		return unix.EACCES
	}
	if le.Uint32(b) != 6 {
		return unix.ENOSYS
	}
	if errno := x.enter(OpGetDomainInfoList); errno != 0 {
		return errno
	}
	first, most, buf := le.Uint16(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:])
	n := uint32(0)
	for id := int(first); id <= 0xffff && n < most; id++ {
		d := x.domains[uint16(id)]
		if d == nil {
			continue
		}
		out, errno := c.at(buf+uint64(n)*uint64(x.release.infoSize), x.release.infoSize)
		if errno != 0 {
			return errno
		}
		copy(out, d.info())
		n++
	}
	le.PutUint32(b[24:], n)
	return 0
}

// domctlOps are the operations by number. unionSize is 128 bytes.
var domctlOps = map[uint32]struct {
	op  Op
	run func(c *conn, d *Domain, u []byte) unix.Errno
}{
	3:    {OpPauseDomain, func(_ *conn, d *Domain, _ []byte) unix.Errno { return d.pause() }},
	4:    {OpUnpauseDomain, func(_ *conn, d *Domain, _ []byte) unix.Errno { return d.unpause() }},
	5:    {OpGetDomainInfo, func(_ *conn, d *Domain, u []byte) unix.Errno { copy(u, d.info()); return 0 }},
	12:   {OpSetVCPUContext, (*conn).setVCPUContext},
	13:   {OpGetVCPUContext, (*conn).getVCPUContext},
	14:   {OpGetVCPUInfo, (*conn).getVCPUInfo},
	18:   {OpSetDebugging, (*conn).setDebugging},
	33:   {OpGetHVMContext, (*conn).getHVMContext},
	34:   {OpSetHVMContext, (*conn).setHVMContext},
	36:   {OpGetAddressSize, (*conn).getAddressSize},
	54:   {OpDebugOp, (*conn).debugOp},
	55:   {OpGetHVMContextPartial, (*conn).getHVMContextPartial},
	56:   {OpVMEventOp, (*conn).vmEvent},
	62:   {OpSetVCPUExtState, (*conn).setVCPUExtState},
	63:   {OpGetVCPUExtState, (*conn).getVCPUExtState},
	1001: {OpGDBSXPauseVCPU, (*conn).gdbsxPauseVCPU},
	77:   {OpMonitorOp, (*conn).monitorOp},
	1002: {OpGDBSXUnpauseVCPU, (*conn).gdbsxUnpauseVCPU},
	1003: {OpGDBSXDomStatus, (*conn).gdbsxDomStatus},
}

func (c *conn) domctl(addr uint64) unix.Errno {
	x := c.x
	b, errno := c.at(addr, 144)
	if errno != 0 {
		return errno
	}
	le := binary.LittleEndian
	if le.Uint32(b[4:]) != x.release.domctl {
		return unix.EACCES
	}
	if slices.ContainsFunc(b[10:16], func(p byte) bool { return p != 0 }) {
		x.misuse = append(x.misuse, "domctl with padding that is not zero")
	}
	row, known := domctlOps[le.Uint32(b)]
	if known {
		if errno := x.enter(row.op); errno != 0 {
			return errno
		}
	}
	id := le.Uint16(b[8:])
	d := x.domains[id]
	if d == nil && known && row.op == OpGetDomainInfo && x.release.inexactInfo() {
		for next := int(id) + 1; d == nil && next <= 0xffff; next++ {
			d = x.domains[uint16(next)]
		}
	}
	switch {
	case d == nil:
		return unix.ESRCH
	case !known:
		return unix.ENOSYS
	case d.ID == 0 && (row.op == OpPauseDomain || row.op == OpSetVCPUContext || row.op == OpGetVCPUContext ||
		row.op == OpGetHVMContext || row.op == OpSetHVMContext):
		return unix.EINVAL // ourselves
	}
	u := slices.Clone(b[16:])
	errno = row.run(c, d, u)
	copy(b[16:], u)
	return errno
}

// vcpu gives the vCPU that a union names, or nil.
func (d *Domain) vcpu(u []byte) *VCPU {
	if n := binary.LittleEndian.Uint32(u); uint64(n) < uint64(len(d.vcpus)) && !d.NoVCPUs {
		return d.vcpus[n]
	}
	return nil
}

func (c *conn) getVCPUContext(d *Domain, u []byte) unix.Errno {
	v := d.vcpu(u)
	switch {
	case v == nil:
		return unix.EINVAL
	case v.Uninitialised:
		return unix.ENODATA
	}
	if v.Raw != nil {
		b, errno := c.at(binary.LittleEndian.Uint64(u[8:]), len(v.Raw))
		if errno == 0 {
			copy(b, v.Raw)
		}
		return errno
	}
	ctx := d.context(v)
	b, errno := c.at(binary.LittleEndian.Uint64(u[8:]), len(contextBytes(&ctx)))
	if errno == 0 {
		copy(b, contextBytes(&ctx))
	}
	return errno
}

func (c *conn) setVCPUContext(d *Domain, u []byte) unix.Errno {
	v := d.vcpu(u)
	if v == nil {
		return unix.EINVAL
	}
	if v.Raw != nil {
		b, errno := c.at(binary.LittleEndian.Uint64(u[8:]), len(v.Raw))
		if errno == 0 {
			copy(v.Raw, b)
		}
		return errno
	}
	var ctx xen.VCPUContext
	b, errno := c.at(binary.LittleEndian.Uint64(u[8:]), len(contextBytes(&ctx)))
	if errno != 0 {
		return errno
	}
	copy(contextBytes(&ctx), b)
	return d.setContext(v, ctx)
}

func (c *conn) getVCPUInfo(d *Domain, u []byte) unix.Errno {
	v := d.vcpu(u)
	if v == nil {
		if c.x.release.minor >= 22 {
			return unix.ENOENT
		}
		return unix.EINVAL
	}
	for i, set := range []bool{v.Online, v.Blocked, v.Running} {
		u[4+i] = 0
		if set {
			u[4+i] = 1
		}
	}
	if d.pauses == 0 && v.Online && !v.Blocked {
		v.CPUTime += 100 * time.Microsecond
	}
	binary.LittleEndian.PutUint64(u[8:], uint64(v.CPUTime))
	binary.LittleEndian.PutUint32(u[16:], uint32(v.CPU))
	return 0
}

func (c *conn) getAddressSize(d *Domain, u []byte) unix.Errno {
	if d.Kind != xen.PV {
		return unix.EOPNOTSUPP
	}
	binary.LittleEndian.PutUint32(u, uint32(d.width))
	return 0
}

func (c *conn) getHVMContextPartial(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	v := d.vcpu(u[4:])
	switch {
	case d.Kind == xen.PV, d.Dying:
		return unix.EINVAL
	case v == nil:
		return unix.ENOENT
	case !v.Online:
		return unix.ENODATA
	}
	record := d.hvmRecord(v, le.Uint32(u))
	if record == nil {
		return unix.EINVAL
	}
	size, buf := le.Uint64(u[8:]), le.Uint64(u[16:])
	le.PutUint64(u[8:], uint64(len(record)))
	if buf == 0 {
		return 0
	}
	if size < uint64(len(record)) {
		return unix.ENOBUFS
	}
	b, errno := c.at(buf, len(record))
	if errno == 0 {
		copy(b, record)
	}
	return errno
}

// extState gives a vCPU's extended state as the call does: XCR0, all components
// that it ever enabled, the XSAVE area.
func (v *VCPU) extState() []byte {
	b := make([]byte, 16)
	if len(v.Ext) > 0 {
		binary.LittleEndian.PutUint64(b, xfeatures)
		binary.LittleEndian.PutUint64(b[8:], xfeatures)
	}
	return append(b, v.Ext...)
}

func (c *conn) getVCPUExtState(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	v := d.vcpu(u)
	if v == nil {
		return unix.ESRCH
	}
	mask, most := uint64(xfeatures), uint64(16+xsaveBytes)
	if c.x.config.NoXSAVE {
		mask, most = 0, 16
	}
	if le.Uint64(u[8:]) == 0 && le.Uint64(u[16:]) == 0 || le.Uint64(u[24:]) == 0 {
		le.PutUint64(u[8:], mask)
		le.PutUint64(u[16:], most)
		return 0
	}
	state := v.extState()
	if le.Uint64(u[8:]) != mask || le.Uint64(u[16:]) < uint64(len(state)) {
		return unix.EINVAL
	}
	b, errno := c.at(le.Uint64(u[24:]), len(state))
	if errno != 0 {
		return errno
	}
	copy(b, state)
	le.PutUint64(u[16:], uint64(len(state)))
	return 0
}

func (c *conn) setVCPUExtState(d *Domain, u []byte) unix.Errno {
	le := binary.LittleEndian
	v := d.vcpu(u)
	if v == nil {
		return unix.ESRCH
	}
	mask := uint64(xfeatures)
	if c.x.config.NoXSAVE {
		mask = 0
	}
	size := le.Uint64(u[16:])
	if le.Uint64(u[8:])&^mask != 0 || size != 16 && size != 16+xsaveBytes {
		return unix.EINVAL
	}
	b, errno := c.at(le.Uint64(u[24:]), int(size))
	if errno != 0 {
		return errno
	}
	v.Ext = slices.Clone(b[16:])
	return 0
}

func (c *conn) setDebugging(d *Domain, u []byte) unix.Errno {
	if d.ID == 0 {
		return unix.EINVAL // ourselves
	}
	d.Debugged, d.callDebug = u[0] != 0, u[0] != 0
	return 0
}

func (c *conn) gdbsxDomStatus(d *Domain, u []byte) unix.Errno {
	if !c.x.config.GDBSX {
		return unix.ENOSYS
	}
	le := binary.LittleEndian
	u[0] = 0
	le.PutUint32(u[4:], ^uint32(0))
	if d.pauses == 0 {
		return 0
	}
	u[0] = 1
	for n, v := range d.vcpus {
		if v.event != 0 {
			le.PutUint32(u[4:], uint32(n))
			le.PutUint32(u[8:], v.event)
			v.event = 0
			break
		}
	}
	return 0
}

func (c *conn) gdbsxPauseVCPU(d *Domain, u []byte) unix.Errno {
	v, errno := c.gdbsxVCPU(d, u)
	if errno == 0 {
		v.pauses++
	}
	return errno
}

func (c *conn) gdbsxUnpauseVCPU(d *Domain, u []byte) unix.Errno {
	v, errno := c.gdbsxVCPU(d, u)
	if errno == 0 && v.pauses == 0 {
		return unix.EINVAL
	}
	if errno == 0 {
		v.pauses--
	}
	return errno
}

func (c *conn) gdbsxVCPU(d *Domain, u []byte) (*VCPU, unix.Errno) {
	v := d.vcpu(u)
	switch {
	case !c.x.config.GDBSX:
		return nil, unix.ENOSYS
	case d.pauses == 0:
		return nil, unix.EBUSY
	case v == nil:
		return nil, unix.EINVAL
	}
	return v, 0
}

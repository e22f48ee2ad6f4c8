// This file holds Host, the connection to the hypervisor: how it is opened, and
// how its calls are made.

package xen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Host is a connection to the hypervisor. Its methods may be called from
// several goroutines.
type Host struct {
	transport Transport
	version   Version
	quirks    Quirks
	info      infoLayout
	event     eventLayout
	stats     counters

	mu     sync.Mutex
	buffer []byte     // the transport's; guarded by mu
	xsave  *xsaveSize // nil until asked; guarded by mu
}

// xsaveSize is what the processor has of XSAVE state.
type xsaveSize struct{ features, bytes uint64 }

// counters count what a Host asks of the kernel.
type counters struct{ hypercalls, maps, frames atomic.Uint64 }

// Stats counts what a Host has asked of the kernel since Open. Each hypercall
// is one system call; each mapping three: mmap, ioctl and, at its end, munmap.
type Stats struct {
	Hypercalls uint64
	Mappings   uint64
	Frames     uint64 // mapped, over all mappings
}

// Open connects to the hypervisor through /dev/xen/privcmd and finds out its
// version. Its errors say what the host lacks: ErrNotXen, ErrNotDom0,
// ErrNotRoot, ErrNoPrivcmd, ErrVersion, ErrDenied.
func Open() (*Host, error) {
	p, err := openPrivcmd()
	if err != nil {
		return nil, err
	}
	h, err := NewHost(p)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return h, nil
}

// NewHost makes a Host over a transport, which the Host then owns.
func NewHost(t Transport) (*Host, error) {
	h := &Host{transport: t, buffer: t.Buffer()}
	if len(h.buffer) < bufferSize {
		return nil, fmt.Errorf("transport's buffer has %d bytes, of %d", len(h.buffer), bufferSize)
	}
	if err := h.probe(); err != nil {
		return nil, err
	}
	return h, nil
}

// Close releases the connection. Mappings stay valid until they are closed.
func (h *Host) Close() error { return h.transport.Close() }

// Version gives what the hypervisor says of itself.
func (h *Host) Version() Version { return h.version }

// Quirks tells what to do differently on this hypervisor.
func (h *Host) Quirks() Quirks { return h.quirks }

// Stats gives the counts so far.
func (h *Host) Stats() Stats {
	return Stats{h.stats.hypercalls.Load(), h.stats.maps.Load(), h.stats.frames.Load()}
}

// probe finds out the version, and with it the layouts.
func (h *Host) probe() error {
	v, err := h.versionCall(xenverVersion, "XENVER_version", nil)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return ErrNotXen
		}
		return err
	}
	h.version.Major, h.version.Minor = int(v>>16), int(v&0xffff)

	for _, text := range []struct {
		op   uint64
		name string
		size int
		set  func(string)
	}{
		{xenverExtraversion, "XENVER_extraversion", 16, func(s string) { h.version.Extra = s }},
		{xenverCapabilities, "XENVER_capabilities", 1024, func(s string) { h.version.Capabilities = strings.Fields(s) }},
		{xenverChangeset, "XENVER_changeset", 64, func(s string) { h.version.Changeset = s }},
	} {
		b := make([]byte, text.size)
		if _, err := h.versionCall(text.op, text.name, b); err != nil {
			return err
		}
		b, _, _ = bytes.Cut(b, []byte{0})
		text.set(string(b))
	}

	rel, err := findRelease(h.version.Major, h.version.Minor, func(domctl uint32) error {
		h.version.Domctl = domctl
		return h.domctl(domctlGetDomainInfo, 0, new(union))
	})
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w (%w)", ErrNotDom0, err)
		}
		return err
	}
	h.info, h.event = rel.info, rel.event
	h.quirks = h.version.quirks()
	return h.probeSysctl(rel.sysctl)
}

// probeSysctl finds the interface version of sysctl: the release's own, or any
// other that answers. A hypervisor built without sysctl has none.
func (h *Host) probeSysctl(own uint32) error {
	tried := map[uint32]bool{}
	for i := len(releases); i >= 0; i-- {
		version := own
		if i < len(releases) {
			version = releases[i].sysctl
		}
		if tried[version] {
			continue
		}
		tried[version] = true
		h.version.Sysctl = version
		_, err := h.domainInfoList(0, 1)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOSYS):
			h.version.Sysctl = 0
			return nil
		case !errors.Is(err, unix.EACCES):
			return err
		}
	}
	return fmt.Errorf("sysctl of Xen %v: %w", h.version, ErrVersion)
}

// Operations of XEN_VERSION (Xen public header version.h).
const (
	xenverVersion      = 0
	xenverExtraversion = 1
	xenverCapabilities = 3
	xenverChangeset    = 4
)

func (h *Host) versionCall(op uint64, name string, out []byte) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var arg uint64
	if out != nil {
		arg = address(h.buffer, 0)
		clear(h.buffer[:len(out)])
	}
	r, err := h.call(hypercallVersion, op, arg)
	copy(out, h.buffer)
	return r, opError(name, noDomain, err)
}

// call makes a hypercall.
// Preconditions: h.mu is held.
func (h *Host) call(op uint64, args ...uint64) (int64, error) {
	h.stats.hypercalls.Add(1)
	var a [5]uint64
	copy(a[:], args)
	return h.transport.Hypercall(op, a)
}

// union is the part of struct xen_domctl and struct xen_sysctl that depends on
// the operation.
type union [128]byte

func (u *union) u8(off int) uint8         { return u[off] }
func (u *union) u32(off int) uint32       { return binary.LittleEndian.Uint32(u[off:]) }
func (u *union) u64(off int) uint64       { return binary.LittleEndian.Uint64(u[off:]) }
func (u *union) putU32(off int, v uint32) { binary.LittleEndian.PutUint32(u[off:], v) }
func (u *union) putU64(off int, v uint64) { binary.LittleEndian.PutUint64(u[off:], v) }

// domctl makes a domain control call. u goes in and comes out.
func (h *Host) domctl(op domctlOp, domain DomID, u *union) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domctlLocked(op, domain, u)
}

// domctlLocked is domctl for callers that also use the payload.
// Preconditions: h.mu is held.
func (h *Host) domctlLocked(op domctlOp, domain DomID, u *union) error {
	// struct xen_domctl: cmd u32 @0, interface_version u32 @4, domain u16 @8,
	// padding, union @16; 144 bytes (Xen public header domctl.h).
	b := h.buffer[:16+len(u)]
	clear(b[:16])
	binary.LittleEndian.PutUint32(b, uint32(op))
	binary.LittleEndian.PutUint32(b[4:], h.version.Domctl)
	binary.LittleEndian.PutUint16(b[8:], uint16(domain))
	copy(b[16:], u[:])
	_, err := h.call(hypercallDomctl, address(h.buffer, 0))
	copy(u[:], b[16:])
	return opError(op.String(), int(domain), err)
}

// sysctlLocked makes a system control call.
// Preconditions: h.mu is held.
func (h *Host) sysctlLocked(op uint32, name string, u *union) error {
	// struct xen_sysctl: cmd u32 @0, interface_version u32 @4, union @8; 136
	// bytes (Xen public header sysctl.h).
	b := h.buffer[:8+len(u)]
	binary.LittleEndian.PutUint32(b, op)
	binary.LittleEndian.PutUint32(b[4:], h.version.Sysctl)
	copy(b[8:], u[:])
	_, err := h.call(hypercallSysctl, address(h.buffer, 0))
	copy(u[:], b[8:])
	return opError(name, noDomain, err)
}

// payload gives the memory that an operation's structure points to, and the
// address to put there.
// Preconditions: h.mu is held; n <= maxPayload.
func (h *Host) payload(n int) ([]byte, uint64) {
	return h.buffer[payloadOffset : payloadOffset+n], address(h.buffer, payloadOffset)
}

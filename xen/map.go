// This file maps frames of other domains.

package xen

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A Mapping is a run of frames of a domain, mapped next to each other. It must
// be closed; the domain's memory is not given free before.
type Mapping struct {
	transport Transport
	mem       []byte
	errs      []int32
	describe  func(i int) string
}

// MapMachineFrames maps machine frames of a PV domain in one call. It fails
// only as a whole; Page tells what became of each frame.
//
// Map writable only while the domain is paused: it cannot use a page for a page
// table while that is mapped so.
func (h *Host) MapMachineFrames(domain DomID, frames []MFN, write bool) (*Mapping, error) {
	return mapFrames(h, domain, frames, write)
}

// MapGuestFrames maps guest frames of an HVM or PVH domain in one call, which
// translates them. It is otherwise as MapMachineFrames.
func (h *Host) MapGuestFrames(domain DomID, frames []GFN, write bool) (*Mapping, error) {
	return mapFrames(h, domain, frames, write)
}

func mapFrames[F Frame](h *Host, domain DomID, frames []F, write bool) (*Mapping, error) {
	if len(frames) == 0 {
		return &Mapping{}, nil
	}
	m := &Mapping{transport: h.transport, errs: make([]int32, len(frames))}
	raw := make([]uint64, len(frames))
	for i, f := range frames {
		raw[i] = uint64(f)
	}
	m.describe = func(i int) string { return fmt.Sprint(F(raw[i])) }
	for try := 1; ; try++ {
		h.stats.maps.Add(1)
		h.stats.frames.Add(uint64(len(frames)))
		var err error
		m.mem, err = h.transport.Map(uint16(domain), raw, m.errs, write)
		if err != nil {
			return nil, asDomainError(opError("IOCTL_PRIVCMD_MMAPBATCH_V2", int(domain), err))
		}
		if try == pagingTries || !slices.Contains(m.errs, -int32(unix.ENOENT)) {
			return m, nil
		}
		// To ask for a frame that is paged out has the pager bring it in.
		if err := h.transport.Unmap(m.mem); err != nil {
			return nil, opError("munmap", int(domain), err)
		}
		time.Sleep(pagingPause)
	}
}

// How often frames that are paged out are asked for, and how long after one
// another: half a second in all, for there may be no pager any more.
const (
	pagingTries = 50
	pagingPause = 10 * time.Millisecond
)

// frameErrors are what errnos mean for a frame of a mapping.
var frameErrors = map[unix.Errno]error{
	unix.EINVAL: ErrBadFrame,
	unix.EPERM:  ErrBadFrame,
	unix.ESRCH:  ErrNoDomain,
	unix.EBUSY:  ErrFrameBusy,
	unix.ENOENT: ErrFramePaged,
}

// Len gives the number of frames.
func (m *Mapping) Len() int { return len(m.errs) }

// Page gives the PageSize bytes of frame i, until Close, or why it is not
// mapped: ErrBadFrame, ErrFrameBusy, or ErrFramePaged if no pager brings it in.
func (m *Mapping) Page(i int) ([]byte, error) {
	if errno := m.errs[i]; errno != 0 {
		return nil, fmt.Errorf("map %s: %w", m.describe(i), errnoAs(unix.Errno(-errno), frameErrors))
	}
	return m.mem[i*PageSize : (i+1)*PageSize : (i+1)*PageSize], nil
}

// Close unmaps the frames. Their pages must not be touched after.
func (m *Mapping) Close() error {
	if m.mem == nil {
		return nil
	}
	mem := m.mem
	m.mem = nil
	for i := range m.errs {
		m.errs[i] = -int32(unix.EBADF)
	}
	return m.transport.Unmap(mem)
}

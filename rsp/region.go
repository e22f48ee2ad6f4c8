// This file tells a client what is mapped where: qMemoryRegionInfo (lldb's
// document "GDB Remote Protocol Extensions").

package rsp

import "strconv"

// A MemoryRegion is addresses next to each other that are all mapped in one way,
// or all not.
type MemoryRegion struct {
	Start, Last uint64
	Mapped      bool
	Writable    bool
	Executable  bool
}

// A Mapper is a Target that knows what is mapped where.
type Mapper interface {
	// MemoryRegion gives the region that an address is in, or some of it from
	// the address on. Preconditions: the target is stopped.
	MemoryRegion(id ThreadID, addr uint64) (MemoryRegion, error)
}

// memoryRegion handles qMemoryRegionInfo.
func (s *session) memoryRegion(a *arguments) error {
	m, ok := s.target.(Mapper)
	if !ok {
		return nil // the empty reply: not known here
	}
	r, err := m.MemoryRegion(s.general, a.num[0])
	if err != nil {
		return err
	}
	size := r.Last - r.Start + 1
	if size == 0 {
		size-- // no number tells the size of all of the address space
	}
	s.out = strconv.AppendUint(append(s.out, "start:"...), r.Start, 16)
	s.out = strconv.AppendUint(append(s.out, ";size:"...), size, 16)
	if r.Mapped {
		s.out = append(s.out, ";permissions:r"...)
		if r.Writable {
			s.out = append(s.out, 'w')
		}
		if r.Executable {
			s.out = append(s.out, 'x')
		}
	}
	s.out = append(s.out, ';')
	return nil
}

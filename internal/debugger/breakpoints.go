// This file keeps breakpoints: int3 in the guest's memory, and the processor's
// debug registers.

package debugger

import (
	"errors"
	"fmt"
	"slices"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/rsp"
)

// breakpoint is one that the client has inserted.
type breakpoint struct {
	rsp.Breakpoint
	plant *guest.Plant // of a software breakpoint
}

// debugSlots is how many breakpoints the processor has (SDM vol. 3B, section
// 18.2).
const debugSlots = 4

// slot is one of the debug registers DR0 to DR3.
type slot struct {
	of    *breakpoint // nil if it is free
	addr  uint64
	size  int
	value []byte // of a read watchpoint: what was last seen there
}

// Watchpoints tells how many hardware breakpoints and watchpoints there can be.
func (t *Target) Watchpoints() int { return debugSlots }

// InsertBreakpoint inserts a breakpoint, or gives one that is there other
// conditions and commands.
func (t *Target) InsertBreakpoint(b rsp.Breakpoint) error {
	key := b.Place()
	if old := t.breakpoints[key]; old != nil {
		old.Conditions, old.Commands = b.Conditions, b.Commands
		return nil
	}
	if t.noEngine != nil {
		return clientError(t.noEngine)
	}
	n := &breakpoint{Breakpoint: b}
	var err error
	if b.Kind == rsp.SoftwareBreakpoint {
		n.plant, err = t.guest.Plant(t.vcpu(b.Thread), b.Addr, []byte{guest.Int3})
	} else {
		err = t.takeSlots(n)
	}
	if err != nil {
		return clientError(err)
	}
	t.breakpoints[key] = n
	return nil
}

// RemoveBreakpoint removes a breakpoint. That there is none is no error.
func (t *Target) RemoveBreakpoint(b rsp.Breakpoint) error {
	key := b.Place()
	old := t.breakpoints[key]
	if old == nil {
		return nil
	}
	delete(t.breakpoints, key)
	// A hit that was not told is none any more; but if the client, which removes
	// its breakpoints at each stop, inserts this one again, the vCPU is to hit it.
	t.pending = slices.DeleteFunc(t.pending, func(h hit) bool {
		if h.of == old {
			t.past[h.vcpu] = place{}
		}
		return h.of == old
	})
	if old.plant == nil {
		return clientError(t.freeSlots(old))
	}
	return t.unplant(old)
}

// unplant takes a breakpoint out of the guest's memory.
func (t *Target) unplant(b *breakpoint) error {
	err := t.guest.Unplant(b.plant)
	if errors.Is(err, guest.ErrRewritten) {
		t.print(fmt.Sprintf("The breakpoint at %#x was overwritten by the guest itself, whose code is left as it is.\n", b.Addr))
		return nil
	}
	return clientError(err)
}

// takeSlots finds debug registers for a breakpoint, and sets them on all vCPUs.
func (t *Target) takeSlots(b *breakpoint) error {
	pieces := []slot{{of: b, addr: b.Addr, size: 1}}
	if b.Kind != rsp.HardwareBreakpoint {
		if pieces = watchPieces(b); pieces == nil {
			return fmt.Errorf("%w: a watchpoint of %d bytes at %#x needs more than the %d debug registers, which watch 1, 2, 4 or 8 aligned bytes each",
				rsp.ErrNotSupported, b.Size, b.Addr, debugSlots)
		}
	}
	before := t.slots
	needed, used, guests := len(pieces), 0, t.guestSlots()
	for i := debugSlots - 1; i >= 0; i-- { // Linux takes the first ones first
		s := &t.slots[i]
		switch {
		case s.of != nil || guests&(1<<i) != 0:
			used++
		case len(pieces) > 0:
			*s, pieces = pieces[0], pieces[1:]
			if b.Kind == rsp.ReadWatch {
				s.value = t.watched(t.vcpu(b.Thread), s)
			}
		}
	}
	if len(pieces) > 0 {
		t.slots = before
		return fmt.Errorf("%w: %d of the %d debug registers are in use, and this needs %d: delete a watchpoint or hardware breakpoint first",
			rsp.ErrNotSupported, used, debugSlots, needed)
	}
	if err := t.setDebugRegs(); err != nil {
		t.slots = before
		return errors.Join(err, t.setDebugRegs())
	}
	return nil
}

// watchPieces divides what is to be watched into aligned pieces that a debug
// register can watch, or gives nil if they are too many.
func watchPieces(b *breakpoint) []slot {
	var pieces []slot
	for addr, left := b.Addr, uint64(b.Size); left > 0; {
		size := uint64(8)
		for size > left || addr%size != 0 {
			size /= 2
		}
		pieces = append(pieces, slot{of: b, addr: addr, size: int(size)})
		if len(pieces) > debugSlots {
			return nil
		}
		addr, left = addr+size, left-size
	}
	return pieces
}

// freeSlots gives back the debug registers of a breakpoint.
func (t *Target) freeSlots(b *breakpoint) error {
	for i := range t.slots {
		if t.slots[i].of == b {
			t.slots[i] = slot{}
		}
	}
	return t.setDebugRegs()
}

// guestSlots tells which debug registers the guest uses itself, as bits.
func (t *Target) guestSlots() (used uint8) {
	vcpus, _ := t.guest.VCPUs()
	for _, n := range vcpus {
		_, dr7, err := t.guest.OwnDebugRegs(n)
		for i := range debugSlots {
			if err == nil && dr7&(3<<(2*i)) != 0 {
				used |= 1 << i
			}
		}
	}
	return used
}

// makeWay moves what is in debug registers that the guest has begun to use itself to
// free ones. Where there is none, the guest has its own back only when ours is removed.
func (t *Target) makeWay() {
	guests := t.guestSlots()
	for i := range t.slots {
		for j := debugSlots - 1; j >= 0 && t.slots[i].of != nil && guests&(1<<i) != 0; j-- {
			if t.slots[j].of == nil && guests&(1<<j) == 0 {
				t.slots[i], t.slots[j] = slot{}, t.slots[i]
			}
		}
	}
}

// setDebugRegs gives all vCPUs the debug registers that the slots ask for, beside
// the guest's own.
func (t *Target) setDebugRegs() error {
	vcpus, err := t.guest.VCPUs()
	if err != nil {
		return err
	}
	t.makeWay()
	for _, n := range vcpus {
		addr, dr7, err := t.guest.OwnDebugRegs(n)
		if err != nil {
			return err
		}
		for i := range t.slots {
			s := &t.slots[i]
			if s.of == nil {
				continue
			}
			addr[i] = s.addr
			dr7 = dr7&^(3<<(2*i)|0xf<<(16+4*i)) | 1<<(2*i) | s.control()<<(16+4*i)
		}
		if err := t.guest.SetDebugRegs(n, addr, dr7); err != nil {
			return err
		}
	}
	return nil
}

// slotsInUse tells whether there is a hardware breakpoint or watchpoint.
func (t *Target) slotsInUse() bool {
	return slices.ContainsFunc(t.slots[:], func(s slot) bool { return s.of != nil })
}

// control gives a debug register's bits R/W and LEN in DR7 (SDM vol. 3B, section
// 18.2.4). The processor cannot watch for reads alone.
func (s *slot) control() uint64 {
	var rw uint64
	switch s.of.Kind {
	case rsp.HardwareBreakpoint:
		return 0
	case rsp.Watch:
		rw = 1
	default:
		rw = 3
	}
	length := map[int]uint64{1: 0, 2: 1, 4: 3, 8: 2}[s.size]
	return rw | length<<2
}

// watched gives what is at a slot's address as a vCPU sees it.
func (t *Target) watched(n int, s *slot) []byte {
	b := make([]byte, s.size)
	got, err := t.guest.Read(n, s.addr, b)
	if err != nil {
		return nil
	}
	return b[:got]
}

// plantedBreakpoint gives the breakpoint whose int3 a vCPU finds at an address.
func (t *Target) plantedBreakpoint(n int, addr uint64) *breakpoint {
	plant := t.guest.PlantedAt(n, addr)
	if plant == nil {
		return nil
	}
	for _, b := range t.breakpoints {
		if b.plant == plant {
			return b
		}
	}
	return nil
}

// A machine is a stopped vCPU, for expressions of the client's.
type machine struct {
	t *Target
	n int
}

// Register gives a register by its number in the description.
func (m *machine) Register(n int) (uint64, error) {
	if n < 0 || n >= len(m.t.layout.registers) {
		return 0, fmt.Errorf("there is no register %d", n)
	}
	reg := &m.t.layout.registers[n]
	regs, err := m.t.guest.Registers(m.n)
	if err != nil {
		return 0, err
	}
	if reg.load == nil || regs.Known&reg.known != reg.known {
		return 0, fmt.Errorf("register %s has no value to calculate with", reg.Name)
	}
	return reg.load(&regs), nil
}

// ReadMemory reads all of p.
func (m *machine) ReadMemory(addr uint64, p []byte) error {
	got, err := m.t.guest.Read(m.n, addr, p)
	if err == nil && got < len(p) {
		err = fmt.Errorf("%#x: %w", addr+uint64(got), guest.ErrUnmapped)
	}
	return err
}

// judge decides whether a hit is for the client, and runs the commands of one
// that is not.
func (t *Target) judge(n int, b *breakpoint) (stop bool) {
	m := &machine{t: t, n: n}
	stop, err := b.Hit(m, t.print)
	if err != nil {
		t.print(fmt.Sprintf("The %v.\n", err))
	}
	t.hits++
	if !stop {
		t.kept++
	}
	return stop
}

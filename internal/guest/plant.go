// This file plants bytes in a guest's memory, such as the int3 of a breakpoint,
// and hides them from whoever reads or writes it through this package.

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"gdbserver-xen/xen"
)

var (
	// ErrRewritten says that the guest itself has overwritten planted bytes, or
	// given their frame away. What it has there now stays.
	ErrRewritten = errors.New("the guest has overwritten it")
	// ErrPlanted says that something is planted there already.
	ErrPlanted = errors.New("something is planted there already")
	// ErrTooManyPlants says that no more can be kept track of.
	ErrTooManyPlants = fmt.Errorf("there is room for %d breakpoints only: delete some first", maxPlants)
)

// maxPlant is the longest run of bytes that is planted.
const maxPlant = 4

// Int3 is the breakpoint instruction (SDM vol. 2A, "INT n/INTO/INT3/INT1").
const Int3 = 0xcc

// A Plant is a run of bytes within a frame that replaces what the guest has
// there. It stays with the frame, whatever the guest maps where.
type Plant struct {
	addr   uint64 // where it was planted
	frame  uint64
	offset int
	length int
	saved  [maxPlant]byte // what the guest has there
	ours   [maxPlant]byte
	lifted bool // the guest's bytes are back for a while
	record int  // in the ledger
	ledger *Ledger
}

// Addr gives the virtual address that bytes were planted at.
func (p *Plant) Addr() uint64 { return p.addr }

// conceal puts the guest's bytes into what was read from a frame at offset. A
// byte that is no longer ours is the guest's.
func (p *Plant) conceal(read []byte, offset int) {
	if p.lifted {
		return
	}
	for i := range p.length {
		if at := p.offset + i - offset; at >= 0 && at < len(read) && read[at] == p.ours[i] {
			read[at] = p.saved[i]
		}
	}
}

// divert takes what is to be written into a frame at offset, keeps the part that
// falls onto planted bytes, and gives what to write instead.
func (p *Plant) divert(write, page []byte, offset int) []byte {
	if p.lifted {
		return write
	}
	out, changed := write, false
	for i := range p.length {
		at := p.offset + i - offset
		if at < 0 || at >= len(write) || page[p.offset+i] != p.ours[i] {
			continue
		}
		if !changed {
			out, changed = bytes.Clone(write), true
		}
		p.saved[i], out[at] = write[at], p.ours[i]
	}
	if changed {
		p.ledger.setSaved(p)
	}
	return out
}

// Plant puts bytes at an address as a vCPU sees it, all within one page, in
// place of the guest's: an Int3 or ParkingBytes.
// Preconditions: the guest is paused.
func (g *Guest) Plant(vcpu int, addr uint64, ours []byte) (*Plant, error) {
	v, err := g.view(vcpu)
	if err != nil {
		return nil, err
	}
	frame, err := g.mem.locate(v, addr)
	if err != nil {
		return nil, err
	}
	p := &Plant{addr: addr, frame: frame, offset: int(addr % xen.PageSize), length: len(ours), ledger: g.ledger}
	copy(p.ours[:], ours)
	if p.offset+p.length > xen.PageSize {
		return nil, fmt.Errorf("plant at %#x: %d bytes do not end within the page", addr, p.length)
	}
	for i := range p.length {
		if g.mem.planted(frame, p.offset+i) != nil {
			return nil, fmt.Errorf("plant at %#x: %w", addr, ErrPlanted)
		}
	}
	if err := g.mem.peek(frame, p.offset, p.saved[:p.length]); err != nil {
		return nil, fmt.Errorf("plant at %#x: %w", addr, err)
	}
	if !g.ledger.addPlant(p) {
		return nil, ErrTooManyPlants
	}
	g.wrote = true
	if err := g.mem.poke(frame, p.offset, p.ours[:p.length]); err != nil {
		g.ledger.removePlant(p)
		return nil, fmt.Errorf("plant at %#x: %w", addr, err)
	}
	g.mem.hide(p)
	g.plants = append(g.plants, p)
	return p, nil
}

// intact tells whether planted bytes are still there: ErrRewritten says that they
// are not, other errors that nobody knows just now.
func (g *Guest) intact(p *Plant) error {
	var now [maxPlant]byte
	err := g.mem.peek(p.frame, p.offset, now[:p.length])
	switch {
	case errors.Is(err, xen.ErrBadFrame):
		return fmt.Errorf("%#x: %w: %w", p.addr, ErrRewritten, err)
	case err != nil:
		return fmt.Errorf("%#x: %w", p.addr, err)
	}
	want := p.ours
	if p.lifted {
		want = p.saved
	}
	if now != want {
		return fmt.Errorf("%#x: %w", p.addr, ErrRewritten)
	}
	return nil
}

// Lift puts the guest's bytes back for a while, for a vCPU to run over them.
// ErrRewritten says that they are the guest's already.
func (g *Guest) Lift(p *Plant) error {
	if p.lifted {
		return nil
	}
	if err := g.intact(p); err != nil {
		return err
	}
	if err := g.mem.poke(p.frame, p.offset, p.saved[:p.length]); err != nil {
		return err
	}
	p.lifted = true
	return nil
}

// Replant ends a Lift, unless the guest has its bytes back for good. ErrRewritten says
// that the guest has changed them meanwhile, which then stay as they are.
func (g *Guest) Replant(p *Plant) error {
	if !p.lifted || !slices.Contains(g.plants, p) {
		return nil
	}
	if err := g.intact(p); err != nil {
		return err
	}
	if err := g.mem.poke(p.frame, p.offset, p.ours[:p.length]); err != nil {
		return err
	}
	p.lifted = false
	return nil
}

// Unplant gives the guest its bytes back for good, unless Disarm has. ErrRewritten
// says that it had taken them itself.
func (g *Guest) Unplant(p *Plant) error {
	if !slices.Contains(g.plants, p) {
		return nil
	}
	err := g.intact(p)
	if err == nil && !p.lifted {
		g.wrote = true
		err = g.mem.poke(p.frame, p.offset, p.saved[:p.length])
	}
	if err != nil && !errors.Is(err, ErrRewritten) {
		return fmt.Errorf("take back what was planted at %#x: %w", p.addr, err)
	}
	g.mem.show(p)
	g.plants = slices.DeleteFunc(g.plants, func(q *Plant) bool { return q == p })
	g.ledger.removePlant(p)
	return err
}

// unplant takes some plants back, but for what the guest has overwritten.
func (g *Guest) unplant(which func(p *Plant) bool) error {
	var errs []error
	for _, p := range slices.Clone(g.plants) {
		if !which(p) {
			continue
		}
		if err := g.Unplant(p); err != nil && !errors.Is(err, ErrRewritten) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// PlantedAt gives the int3 of ours that a vCPU finds at an address, or nil.
func (g *Guest) PlantedAt(vcpu int, addr uint64) *Plant {
	v, err := g.view(vcpu)
	if err != nil {
		return nil
	}
	frame, err := g.mem.locate(v, addr)
	if err != nil {
		return nil
	}
	p := g.mem.planted(frame, int(addr%xen.PageSize))
	if p == nil || p.length != 1 || p.lifted || g.intact(p) != nil {
		return nil
	}
	return p
}

func (m *frames[F]) locate(v *view, addr uint64) (uint64, error) {
	tr, err := m.walk(v, addr)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnmapped, err)
	}
	return uint64(tr.Frame), nil
}

func (m *frames[F]) peek(frame uint64, offset int, p []byte) error {
	if err := m.makeRoom(); err != nil {
		return err
	}
	page, err := m.Table(F(frame))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnmapped, err)
	}
	copy(p, page[offset:])
	return nil
}

func (m *frames[F]) poke(frame uint64, offset int, p []byte) error {
	mapping, err := m.mapWritable([]F{F(frame)})
	if err != nil {
		return err
	}
	page, err := mapping.Page(0)
	if err == nil {
		store(page[offset:], p)
		m.noteWrite(frame, offset)
	}
	return errors.Join(err, m.wrote(mapping))
}

// store writes into a page. The lengths that are planted are written by one
// instruction, so that a killed process leaves no half of them.
func store(page, p []byte) {
	if len(p) == len(ParkingBytes) {
		binary.LittleEndian.PutUint32(page, binary.LittleEndian.Uint32(p))
		return
	}
	copy(page, p)
}

func (m *frames[F]) hide(p *Plant) { m.plants[F(p.frame)] = append(m.plants[F(p.frame)], p) }

func (m *frames[F]) show(p *Plant) {
	f := F(p.frame)
	m.plants[f] = slices.DeleteFunc(m.plants[f], func(q *Plant) bool { return q == p })
	if len(m.plants[f]) == 0 {
		delete(m.plants, f)
	}
}

func (m *frames[F]) planted(frame uint64, offset int) *Plant {
	for _, p := range m.plants[F(frame)] {
		if offset >= p.offset && offset < p.offset+p.length {
			return p
		}
	}
	return nil
}

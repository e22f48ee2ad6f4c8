// This file holds the values of a thread's registers, and the packets that read
// and write them: g, G, p and P (GDB manual, node "Packets").

package rsp

import (
	"fmt"
)

// Registers holds the values of the registers of a Description. A register is
// known or unknown; the protocol can say of each which it is. Values are little
// endian, as on the wire.
type Registers struct {
	list    []Register
	offsets []int // one more than registers: the last is the size of all
	index   map[string]int
	values  []byte
	known   []bool
}

// NewRegisters returns the registers of d, all unknown.
//
// Preconditions: d is valid.
func NewRegisters(d *Description) *Registers {
	r := &Registers{index: make(map[string]int)}
	size := 0
	for _, f := range d.Features {
		for _, reg := range f.Registers {
			r.index[reg.Name] = len(r.list)
			r.list = append(r.list, reg)
			r.offsets = append(r.offsets, size)
			size += reg.Bits / 8
		}
	}
	r.offsets = append(r.offsets, size)
	r.values = make([]byte, size)
	r.known = make([]bool, len(r.list))
	return r
}

// Len returns the number of registers.
func (r *Registers) Len() int { return len(r.list) }

// Index returns the number of the register of that name.
func (r *Registers) Index(name string) (int, bool) {
	i, ok := r.index[name]
	return i, ok
}

// Size returns the size of register i in bytes.
func (r *Registers) Size(i int) int { return r.offsets[i+1] - r.offsets[i] }

// Known reports whether register i has a value.
func (r *Registers) Known(i int) bool { return r.known[i] }

// Bytes returns the value of register i. It stays valid, and changes with the
// register, until Clear.
func (r *Registers) Bytes(i int) (value []byte, known bool) {
	return r.field(i), r.known[i]
}

// Uint returns the value of register i as a number.
//
// Preconditions: the register has at most 64 bits.
func (r *Registers) Uint(i int) (value uint64, known bool) {
	b := r.field(i)
	for j := len(b) - 1; j >= 0; j-- {
		value = value<<8 | uint64(b[j])
	}
	return value, r.known[i]
}

// Set gives register i a value.
//
// Preconditions: value has the register's size.
func (r *Registers) Set(i int, value []byte) {
	b := r.field(i)
	if len(value) != len(b) {
		panic(fmt.Sprintf("register %s: %d bytes for a register of %d", r.list[i].Name, len(value), len(b)))
	}
	copy(b, value)
	r.known[i] = true
}

// SetUint gives register i a number as its value, cut or extended with zeros to
// the register's size.
func (r *Registers) SetUint(i int, value uint64) {
	b := r.field(i)
	for j := range b {
		b[j] = byte(value)
		value >>= 8
	}
	r.known[i] = true
}

// CopyFrom gives the registers that are known in src their values there.
//
// Preconditions: both are of the same description.
func (r *Registers) CopyFrom(src *Registers) {
	for i, known := range src.known {
		if known {
			copy(r.field(i), src.field(i))
			r.known[i] = true
		}
	}
}

// Clear makes all registers unknown.
func (r *Registers) Clear() {
	clear(r.values)
	clear(r.known)
}

func (r *Registers) field(i int) []byte {
	return r.values[r.offsets[i]:r.offsets[i+1]:r.offsets[i+1]]
}

// appendHex appends register i as the protocol has it, with x for the digits of
// an unknown one.
func (r *Registers) appendHex(dst []byte, i int) []byte {
	if r.known[i] {
		return appendHex(dst, r.field(i))
	}
	for range r.field(i) {
		dst = append(dst, "xx"...)
	}
	return dst
}

// parseHex is the inverse of appendHex. It returns what follows in text.
func (r *Registers) parseHex(text []byte, i int) (rest []byte, ok bool) {
	size := r.Size(i)
	if len(text) < 2*size {
		return text, false
	}
	digits, rest := text[:2*size], text[2*size:]
	if digits[0] == 'x' {
		for _, c := range digits {
			if c != 'x' {
				return rest, false
			}
		}
		r.known[i] = false
		return rest, true
	}
	if _, ok := appendDecoded(r.field(i)[:0], digits); !ok {
		return rest, false
	}
	r.known[i] = true
	return rest, true
}

// readRegisters handles g.
func (s *session) readRegisters(*arguments) error {
	if err := s.fetchRegisters(); err != nil {
		return err
	}
	for i := range s.regs.Len() {
		if err := s.checkKnown(i); err != nil {
			return err
		}
		s.out = s.regs.appendHex(s.out, i)
	}
	return nil
}

// checkKnown refuses a register without a value to lldb, which does not know
// the digit x: it would show cc for each byte from there on, and write that
// back. Refused g, it goes on with p; refused p, it says that there is no value.
func (s *session) checkKnown(i int) error {
	if s.dialect == lldb && !s.regs.Known(i) {
		return fmt.Errorf("%w: reading register %s", ErrNotSupported, s.regs.list[i].Name)
	}
	return nil
}

// readRegister handles p.
func (s *session) readRegister(a *arguments) error {
	i, err := s.register(a.num[0])
	if err != nil {
		return err
	}
	if err := s.fetchRegisters(); err != nil {
		return err
	}
	if err := s.checkKnown(i); err != nil {
		return err
	}
	s.out = s.regs.appendHex(s.out, i)
	return nil
}

// writeRegisters handles G. A client may send fewer registers than there are,
// but not more.
func (s *session) writeRegisters(a *arguments) error {
	s.regs.Clear()
	text := a.data
	for i := 0; i < s.regs.Len() && len(text) > 0; i++ {
		rest, ok := s.regs.parseHex(text, i)
		if !ok {
			return fmt.Errorf("%w: value of register %s", errMalformed, s.regs.list[i].Name)
		}
		text = rest
	}
	if len(text) > 0 {
		return fmt.Errorf("%w: more values than registers", errMalformed)
	}
	return s.storeRegisters()
}

// writeRegister handles P.
func (s *session) writeRegister(a *arguments) error {
	i, err := s.register(a.num[0])
	if err != nil {
		return err
	}
	s.regs.Clear()
	if rest, ok := s.regs.parseHex(a.data, i); !ok || len(rest) > 0 {
		return fmt.Errorf("%w: value of register %s", errMalformed, s.regs.list[i].Name)
	}
	return s.storeRegisters()
}

// register checks a register's number.
func (s *session) register(n uint64) (int, error) {
	if n >= uint64(s.regs.Len()) {
		return 0, fmt.Errorf("no register has number %d", n)
	}
	return int(n), nil
}

// fetchRegisters fills s.regs for the thread that the packet is about.
func (s *session) fetchRegisters() error {
	s.regs.Clear()
	return s.target.ReadRegisters(s.registerThread(), s.regs)
}

// storeRegisters writes s.regs to the thread that the packet is about.
func (s *session) storeRegisters() error {
	if err := s.target.WriteRegisters(s.registerThread(), s.regs); err != nil {
		return err
	}
	return s.ok()
}

// This file finds where a guest's kernel is entered.

package guest

import (
	"encoding/binary"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// Handler gives the address of the handler that a vCPU's kernel has for an
// exception.
// Preconditions: the guest is paused.
func (g *Guest) Handler(n int, vector uint8) (uint64, error) {
	if g.kind == xen.PV {
		t, err := g.Trap(n, vector)
		return t.Address, err
	}
	return g.Gate(n, vector)
}

// Gate gives the address of the handler that a vCPU's interrupt descriptor table
// has for a vector (SDM vol. 3A, section 6.14.1).
// Preconditions: the guest is paused, and HVM or PVH.
func (g *Guest) Gate(n int, vector uint8) (uint64, error) {
	c, err := g.context(n)
	if err != nil {
		return 0, err
	}
	size := uint64(8)
	if c.hvm.EFER&x86.EFERLMA != 0 {
		size = 16
	}
	var gate [16]byte
	at := c.hvm.IDTBase + uint64(vector)*size
	got, err := g.Read(n, at, gate[:size])
	if err != nil {
		return 0, err
	}
	if uint64(got) < size {
		return 0, ErrUnmapped
	}
	le := binary.LittleEndian
	return uint64(le.Uint16(gate[:])) | uint64(le.Uint16(gate[6:]))<<16 | uint64(le.Uint32(gate[8:]))<<32, nil
}

// SyscallEntry gives where a vCPU goes when it executes SYSCALL.
// Preconditions: the guest is paused, and HVM or PVH.
func (g *Guest) SyscallEntry(n int) (uint64, error) {
	c, err := g.context(n)
	if err != nil {
		return 0, err
	}
	return c.hvm.LSTAR, nil
}

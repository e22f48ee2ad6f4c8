// This file describes a target's registers. Their values are in registers.go,
// target.xml in targetxml.go.

package rsp

// A Flag is a named run of bits in a register of a flags type.
type Flag struct {
	Name       string
	Start, End int // bit numbers, both inclusive
}

// A FlagsType is a target description's flags type (GDB manual, node "Target
// Description Format"): GDB prints such a register as [ PE PG ].
type FlagsType struct {
	ID    string
	Bytes int
	Flags []Flag
}

// A Register is one register of a description. Its type is one of gdb's
// predefined types (int64, code_ptr, data_ptr, i387_ext, ...), the ID of a
// FlagsType, or vec128, gdb's type for SSE registers, which the description then
// defines. The first register of type code_ptr is taken for the program counter.
type Register struct {
	Name  string
	Bits  int
	Type  string
	Group string // "", "general", "float", "vector", "system"
}

// A Feature is a named set of registers, standard or of our own.
type Feature struct {
	Name      string // as org.gnu.gdb.i386.core
	Types     []FlagsType
	Registers []Register
}

// A Description is what target.xml says. Registers are numbered from 0 in
// order of appearance, which is also their order in the g packet.
type Description struct {
	Architecture string // as i386:x86-64
	Features     []Feature
}

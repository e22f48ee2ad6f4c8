// This file makes a kernel's data.

package linuxtest

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Data is a kernel's data: variables, structures and lists at addresses that are given
// out one after the other, and the memory of its modules.
type Data struct {
	Mem    Space
	Loaded Space // modules
	Apart  bool  // what is made from now on has pages of its own, each piece

	symbol  func(name string, addr uint64) // is told of variables
	structs map[string]structure
	types   Types
	heads   map[string]uint64 // of lists
	modules []uint64
}

type structure struct {
	size    uint32
	members []member
}

// dataBase is behind every image, and near enough for kallsyms to tell of.
const dataBase = 0xffffffffa0000000

// NewData makes the data of a kernel that has the structures of a version, one of
// Structs, and tells symbol of each variable, now and later.
func NewData(version string, symbol func(name string, addr uint64)) *Data {
	all := append(slices.Clone(Structs[version]), structsOfAll...)
	d := &Data{
		Mem: Space{Addr: dataBase}, Loaded: Space{Modules, make([]byte, 8*ModuleSize)},
		symbol: symbol, structs: map[string]structure{}, types: Describe(all...), heads: map[string]uint64{},
	}
	for _, s := range all {
		title, size, members := parseStruct(s)
		d.structs[title] = structure{size, members}
	}
	d.New(pageSize) // so that nothing is at the start
	at := d.New(len(d.types.BTF))
	copy(d.At(at), d.types.BTF)
	d.symbol("__start_BTF", at)
	d.symbol("__stop_BTF", at+uint64(len(d.types.BTF)))
	return d
}

// Offset gives the offset of a member, as "module.arch.num_orcs", or the size of a
// structure, as "module".
func (d *Data) Offset(key string) (v uint64, ok bool) {
	title, path, nested := strings.Cut(key, ".")
	s, ok := d.structs[title]
	if !ok || !nested {
		return uint64(s.size), ok
	}
	name, rest, nested := strings.Cut(path, ".")
	for _, m := range s.members {
		inner := m.of + "."
		switch {
		case m.name == "_": // its members are those of what contains it
			inner += path
		case m.name != name:
			continue
		case !nested:
			return uint64(m.offset), true
		default:
			inner += rest
		}
		if v, ok := d.Offset(inner); ok {
			return uint64(m.offset) + v, true
		}
	}
	return 0, false
}

// New gives memory that is zero.
func (d *Data) New(size int) uint64 {
	align := 64
	if d.Apart {
		align = pageSize
	}
	d.Mem.Bytes = padded(d.Mem.Bytes, align)
	at := d.Mem.Addr + uint64(len(d.Mem.Bytes))
	d.Mem.Bytes = padded(append(d.Mem.Bytes, make([]byte, size)...), align)
	return at
}

// Symbol gives a place a name.
func (d *Data) Symbol(name string, addr uint64) { d.symbol(name, addr) }

// Variable makes a variable, which is a word.
func (d *Data) Variable(name string, v uint64) uint64 {
	at := d.New(8)
	d.Put(at, v)
	d.symbol(name, at)
	return at
}

// At gives the memory at an address, and behind it.
func (d *Data) At(addr uint64) []byte {
	if addr >= Modules {
		return d.Loaded.Bytes[addr-Modules:]
	}
	return d.Mem.Bytes[addr-d.Mem.Addr:]
}

// Put writes a word.
func (d *Data) Put(addr, v uint64) { binary.LittleEndian.PutUint64(d.At(addr), v) }

// PutHalf writes half a word.
func (d *Data) PutHalf(addr uint64, v uint32) { binary.LittleEndian.PutUint32(d.At(addr), v) }

// Text makes a text that ends with a zero.
func (d *Data) Text(s string) uint64 {
	at := d.New(len(s) + 1)
	copy(d.At(at), s)
	return at
}

// Field gives the address of a member of a structure.
func (d *Data) Field(at uint64, key string) uint64 {
	offset, ok := d.Offset(key)
	if !ok {
		panic("no " + key)
	}
	return at + offset
}

// Link makes a list of entries.
func (d *Data) Link(head uint64, entries ...uint64) {
	at := head
	for _, e := range append(entries, head) {
		d.Put(at, e)
		at = e
	}
}

// head gives the head of a list that a variable is, always the same.
func (d *Data) head(name string) uint64 {
	if d.heads[name] == 0 {
		d.heads[name] = d.New(16)
		d.symbol(name, d.heads[name])
	}
	return d.heads[name]
}

// This file reads BTF, in which a kernel describes its own types
// (Documentation/bpf/btf.rst and include/uapi/linux/btf.h in Linux), and finds where
// the members of structures are.

package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNoBTF says that a kernel does not describe its structures.
var ErrNoBTF = errors.New("the guest's kernel does not describe its structures (CONFIG_DEBUG_INFO_BTF)")

const (
	btfMagic  = 0xeb9f
	btfHeader = 24
	mostBTF   = 32 << 20 // bytes
	// mostLookups bounds the members that are looked at for one that is asked for.
	mostLookups = 1 << 17
	// mostNesting is how deep structures and names of types stand in each other.
	mostNesting = 16
)

// Kinds of types (BTF_KIND_*).
const (
	kindInt       = 1
	kindPointer   = 2
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindForward   = 7
	kindTypedef   = 8
	kindVolatile  = 9
	kindConst     = 10
	kindRestrict  = 11
	kindFunction  = 12
	kindPrototype = 13
	kindVariable  = 14
	kindSection   = 15 // where variables are
	kindFloat     = 16
	kindDeclTag   = 17
	kindTypeTag   = 18
	kindEnum64    = 19
)

// btfExtra is how many bytes a type of each kind has behind its first 12, and how
// many more for each of its parts.
var btfExtra = []struct{ fixed, each int }{
	kindInt: {4, 0}, kindPointer: {}, kindArray: {12, 0}, kindStruct: {0, 12}, kindUnion: {0, 12}, kindEnum: {0, 8},
	kindForward: {}, kindTypedef: {}, kindVolatile: {}, kindConst: {}, kindRestrict: {}, kindFunction: {},
	kindPrototype: {0, 8}, kindVariable: {4, 0}, kindSection: {0, 12}, kindFloat: {}, kindDeclTag: {4, 0}, kindTypeTag: {}, kindEnum64: {0, 12},
}

// btf is a kernel's types, or those of a module, which continue the kernel's: their
// numbers and the offsets of their names do.
type btf struct {
	base         *btf // the kernel's; nil: these are
	types, names []byte
	first        uint32            // number of the first type
	firstName    uint32            // where names begin
	at           []uint32          // where each type stands, by its number less the first
	structs      map[string]uint32 // numbers of those that were asked for

	// What prepare finds out.
	reach       [2][]reach // by byMade and byContained, by number less the first
	signedEnums bool
	only        map[string]bool // names of structures and unions: of one only
}

// A btfType is the first 12 bytes of a type, and what stands behind them.
type btfType struct {
	kind, parts int
	flag        bool   // kind_flag: what it means is the kind's
	name        uint32 // where that is
	size        uint32 // or the type that it refers to
	rest        []byte
}

// A btfMember is a member of a structure.
type btfMember struct {
	name, typ uint32
	offset    uint32 // in bits
	bits      uint32 // of a bit field; 0: it is none
}

// readBTF reads types, which may be a module's, and notes where structures of some
// names are.
func readBTF(b []byte, base *btf, names map[string]bool) (*btf, error) {
	if len(b) < btfHeader || binary.LittleEndian.Uint16(b) != btfMagic {
		return nil, errors.New("it does not begin as BTF does")
	}
	header := uint64(binary.LittleEndian.Uint32(b[4:]))
	part := func(at int) []byte {
		first := header + uint64(binary.LittleEndian.Uint32(b[at:]))
		end := first + uint64(binary.LittleEndian.Uint32(b[at+4:]))
		if end > uint64(len(b)) {
			return nil
		}
		return b[first:end]
	}
	t := &btf{base: base, types: part(8), names: part(16), first: 1, structs: map[string]uint32{}}
	if base != nil {
		t.first, t.firstName = base.end(), uint32(len(base.names))
	}
	if t.types == nil || t.names == nil {
		return nil, fmt.Errorf("its parts do not lie within its %d bytes", len(b))
	}
	for at := 0; at < len(t.types); {
		kind, size := t.extent(at)
		if size == 0 {
			return nil, fmt.Errorf("its type %d is of unknown kind %d, or cut off", t.end(), kind)
		}
		if kind == kindStruct {
			if name := t.name(binary.LittleEndian.Uint32(t.types[at:])); names[string(name)] {
				t.structs[string(name)] = t.end()
			}
		}
		t.at = append(t.at, uint32(at))
		at += size
	}
	return t, nil
}

// end gives the number behind that of the last type.
func (t *btf) end() uint32 { return t.first + uint32(len(t.at)) }

// extent gives the kind of the type at an offset, and its size, or 0.
func (t *btf) extent(at int) (kind, size int) {
	if at+12 > len(t.types) {
		return 0, 0
	}
	info := binary.LittleEndian.Uint32(t.types[at+4:])
	kind = int(info >> 24 & 0x1f)
	if kind == 0 || kind >= len(btfExtra) {
		return kind, 0
	}
	size = 12 + btfExtra[kind].fixed + btfExtra[kind].each*int(info&0xffff)
	if at+size > len(t.types) {
		return kind, 0
	}
	return kind, size
}

// name gives a name without a copy, empty if there is none.
func (t *btf) name(at uint32) []byte {
	if at < t.firstName {
		return t.base.name(at)
	}
	at -= t.firstName
	if uint64(at) >= uint64(len(t.names)) {
		return nil
	}
	name, _, _ := bytes.Cut(t.names[at:], []byte{0})
	return name
}

// typ gives a type by its number.
func (t *btf) typ(id uint32) (btfType, bool) {
	if t.base != nil && id < t.first {
		return t.base.typ(id)
	}
	if id < t.first || id >= t.end() {
		return btfType{}, false
	}
	at := int(t.at[id-t.first])
	_, size := t.extent(at)
	info := binary.LittleEndian.Uint32(t.types[at+4:])
	return btfType{
		kind: int(info >> 24 & 0x1f), parts: int(info & 0xffff), flag: info>>31 != 0,
		name: binary.LittleEndian.Uint32(t.types[at:]), size: binary.LittleEndian.Uint32(t.types[at+8:]), rest: t.types[at+12 : at+size],
	}, true
}

// part gives a member of a structure or union by its place.
func (t *btf) part(typ btfType, i int) btfMember {
	b := typ.rest[12*i:]
	m := btfMember{name: binary.LittleEndian.Uint32(b), typ: binary.LittleEndian.Uint32(b[4:]), offset: binary.LittleEndian.Uint32(b[8:])}
	if typ.flag {
		m.offset, m.bits = m.offset&0xffffff, m.offset>>24
		return m
	}
	// Bit fields are numbers that have fewer bits than bytes have.
	if of, ok := t.plain(m.typ); ok && of.kind == kindInt {
		is := binary.LittleEndian.Uint32(of.rest)
		if bits := is & 0xff; bits != 0 && bits < 8*of.size {
			m.offset, m.bits = m.offset+is>>16&0xff, bits
		}
	}
	return m
}

// plain gives a type without other names of it, const and volatile.
func (t *btf) plain(id uint32) (btfType, bool) {
	for range mostNesting {
		typ, ok := t.typ(id)
		if !ok {
			return typ, false
		}
		switch typ.kind {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = typ.size
		default:
			return typ, true
		}
	}
	return btfType{}, false
}

// lookup gives what a key asks for: the size of a structure, as "module"; the
// offset of a member in bytes, as "module.core_layout.base"; or of how many
// elements a member is, as "#module.mem".
func (t *btf) lookup(key string) (uint64, bool) {
	key, count := strings.CutPrefix(key, "#")
	path := strings.Split(key, ".")
	id, ok := t.structs[path[0]]
	if !ok {
		return 0, false
	}
	if len(path) == 1 {
		typ, ok := t.typ(id)
		return uint64(typ.size), ok
	}
	budget := mostLookups
	offset, member, ok := t.member(id, path[1:], &budget, 0)
	if !ok || !count {
		return offset, ok
	}
	typ, ok := t.plain(member)
	if !ok || typ.kind != kindArray {
		return 0, false
	}
	return uint64(binary.LittleEndian.Uint32(typ.rest[8:])), true
}

// member finds a member by its path. Members without a name have members of their
// own that count as the structure's.
func (t *btf) member(id uint32, path []string, budget *int, depth int) (offset uint64, found uint32, ok bool) {
	typ, ok := t.plain(id)
	if !ok || typ.kind != kindStruct && typ.kind != kindUnion || depth > mostNesting {
		return 0, 0, false
	}
	for i := range typ.parts {
		if *budget--; *budget < 0 {
			return 0, 0, false
		}
		m := t.part(typ, i)
		name, inner, at := t.name(m.name), m.typ, uint64(m.offset/8)
		switch {
		case len(name) == 0:
			if offset, found, ok := t.member(inner, path, budget, depth+1); ok {
				return at + offset, found, true
			}
		case string(name) != path[0]:
		case len(path) == 1:
			return at, inner, true
		default:
			offset, found, ok := t.member(inner, path[1:], budget, depth+1)
			return at + offset, found, ok
		}
	}
	return 0, 0, false
}

// offsets are what keys of btf.lookup ask for.
type offsets map[string]uint64

// keys are all that is asked for of a kernel's structures.
func keys() []string { return slices.Concat(ringKeys, taskKeys, moduleKeys, moduleTypeKeys) }

// ReadTypes reads what the kernel says of its structures, which does not change
// while it runs, so that what is asked for later needs no more of it.
func (k *Kernel) ReadTypes(mem Memory) {
	k.types(mem)
	k.VMCoreInfo(mem)
}

// KnowsTypes tells whether the kernel describes its types, once they were read.
func (k *Kernel) KnowsTypes() bool { return k.btf != nil }

// types gives what the kernel says of its structures, read once.
func (k *Kernel) types(mem Memory) (offsets, error) {
	if k.offsets != nil || k.noOffsets != nil {
		return k.offsets, k.noOffsets
	}
	k.offsets, k.noOffsets = k.readTypes(mem)
	return k.offsets, k.noOffsets
}

func (k *Kernel) readTypes(mem Memory) (offsets, error) {
	first, ok1 := k.Lookup("__start_BTF")
	end, ok2 := k.Lookup("__stop_BTF")
	if !ok1 || !ok2 || end <= first {
		return nil, ErrNoBTF
	}
	if end-first > mostBTF {
		return nil, fmt.Errorf("%w in a size that can be: %d bytes", ErrNoBTF, end-first)
	}
	b := make([]byte, end-first)
	readSparse(mem, first, b)
	wanted := keys()
	names := map[string]bool{}
	for _, key := range wanted {
		name, _, _ := strings.Cut(strings.TrimPrefix(key, "#"), ".")
		names[name] = true
	}
	t, err := readBTF(b, nil, names)
	if err != nil {
		return nil, fmt.Errorf("%w so that it can be read: %w", ErrNoBTF, err)
	}
	k.btf = t
	all := offsets{}
	for _, key := range wanted {
		if v, ok := t.lookup(key); ok {
			all[key] = v
		}
	}
	return all, nil
}

// need checks that there is what keys ask for.
func (o offsets) need(keys ...string) error {
	for _, key := range keys {
		if _, ok := o[key]; !ok {
			return fmt.Errorf("the guest's kernel has no %s: it is of a version that is not known here", strings.TrimPrefix(key, "#"))
		}
	}
	return nil
}

// This file makes of BTF the debug information that debuggers read: types, and
// functions and variables with theirs. It has nothing that neither BTF nor the kernel's
// symbols have, as lines, and what is in a function. It is of DWARF 4: nothing here needs
// 5, which gdb before version 8 and others do not read.

package linux

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Bounds on what is made of types, which debuggers follow without any.
const (
	// mostDepth is how many types may be made of each other without a structure in
	// between, and how many structures may stand in each other. Kernels have up to 20.
	mostDepth = 64
	// mostFollowed is how many types there may be in what debuggers follow from one,
	// each counted as often as it is come to. Kernels have up to 5149, in
	// struct bpf_ctx_convert of 6.12.
	mostFollowed = 1 << 17
	// mostArray is the size that an array may have, in bytes.
	mostArray = 1 << 32
	// mostInfo is more than debug information of a kernel's takes, in bytes.
	mostInfo = 64 << 20
)

// Tags, attributes, forms and encodings (DWARF 4, sections 7.5 to 7.8 and 7.12).
const (
	tagArray       = 0x01
	tagEnumeration = 0x04
	tagParameter   = 0x05
	tagMember      = 0x0d
	tagPointer     = 0x0f
	tagUnit        = 0x11
	tagStructure   = 0x13
	tagSubroutine  = 0x15 // type of a function
	tagTypedef     = 0x16
	tagUnion       = 0x17
	tagAnything    = 0x18 // more parameters, of any type
	tagSubrange    = 0x21
	tagBase        = 0x24
	tagConst       = 0x26
	tagEnumerator  = 0x28
	tagSubprogram  = 0x2e // a function
	tagVariable    = 0x34
	tagVolatile    = 0x35
	tagRestrict    = 0x37

	attrLocation    = 0x02
	attrName        = 0x03
	attrSize        = 0x0b
	attrBitSize     = 0x0d
	attrLowPC       = 0x11
	attrHighPC      = 0x12
	attrLanguage    = 0x13
	attrConstant    = 0x1c
	attrProducer    = 0x25
	attrPrototyped  = 0x27
	attrCount       = 0x37
	attrOffset      = 0x38 // of a member
	attrDeclaration = 0x3c
	attrEncoding    = 0x3e
	attrExternal    = 0x3f
	attrType        = 0x49
	attrBitOffset   = 0x6b // of a member

	formAddress    = 0x01
	formSigned     = 0x0d // sdata
	formString     = 0x0e // strp
	formUnsigned   = 0x0f // udata
	formReference  = 0x13 // ref4
	formExpression = 0x18 // exprloc
	formPresent    = 0x19 // flag_present

	encodingBoolean      = 0x02
	encodingFloat        = 0x04
	encodingSigned       = 0x05
	encodingSignedChar   = 0x06
	encodingUnsigned     = 0x07
	encodingUnsignedChar = 0x08

	languageC99 = 0x0c
	opAddress   = 0x03
)

// debugInfo is what debuggers read, by section.
type debugInfo struct{ info, abbrev, names []byte }

func (d *debugInfo) size() int { return len(d.info) + len(d.abbrev) + len(d.names) }

// A unit is what there is debug information of.
type unit struct {
	t      *btf
	name   string
	code   extent           // where most of its functions are; none: nowhere
	base   uint64           // what addresses count from
	places map[string]place // where functions and variables are
	most   int              // no function or variable is begun behind so many bytes
}

// debugInfo makes debug information of all types, and of those functions and
// variables that are known by name to be at one address.
func (k *Kernel) debugInfo() debugInfo {
	u := unit{t: k.btf, name: "BTF of the guest's kernel", most: mostInfo}
	if n := len(k.code); n > 0 {
		u.code = extent{k.code[0].first, k.code[n-1].end}
	}
	var functions, others []*symbol
	symbols := k.withNewTask() // at which a function ends
	for i := range symbols {
		if s := &symbols[i]; s.isText() {
			functions = append(functions, s)
		} else {
			others = append(others, s)
		}
	}
	u.places = places(functions, others, k.code)
	return u.debugInfo()
}

// debugInfo makes debug information of a module's types, functions and variables, with
// addresses that count from a base. gdb finds the kernel's structures by their names in
// what it has of the kernel, so these are declared only.
func (m *Module) debugInfo(t *btf, base uint64, most int) debugInfo {
	u := unit{t: t, name: "BTF of module " + m.Name, base: base, most: most}
	if len(m.text) > 0 {
		u.code = m.text[0]
	}
	u.places = places(pointers(m.symbols), pointers(m.variables), m.text)
	return u.debugInfo()
}

func pointers(list []symbol) []*symbol {
	all := make([]*symbol, len(list))
	for i := range list {
		all[i] = &list[i]
	}
	return all
}

// debugInfo makes debug information of a unit.
func (u unit) debugInfo() debugInfo {
	u.t.prepare()
	b := &infoBuilder{
		t: u.t, base: u.base,
		entries: map[uint32]uint32{}, baseNames: map[uint32]uint32{}, codes: map[string]uint64{},
	}
	b.text(u.t.names)
	name := b.text([]byte(u.name))
	// Its length, version 4, abbreviations from 0, addresses of 8 bytes.
	b.info = []byte{0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8}
	b.begin(tagUnit, true)
	b.string(attrProducer, name)
	b.string(attrName, name)
	b.number(attrLanguage, languageC99)
	if u.code != (extent{}) {
		b.code(u.code)
	}
	b.end()
	for id := u.t.first; id < u.t.end(); id++ {
		b.addType(id)
	}
	b.addNamed(u.places, u.most)
	for len(b.needed) > 0 {
		id := b.needed[0]
		b.needed = b.needed[1:]
		b.addType(id)
	}
	b.close()
	binary.LittleEndian.PutUint32(b.info, uint32(len(b.info)-4))
	for _, at := range b.refs {
		id := binary.LittleEndian.Uint32(b.info[at:])
		binary.LittleEndian.PutUint32(b.info[at:], b.entries[id])
	}
	b.abbrev = append(b.abbrev, 0)
	return b.debugInfo
}

// An infoBuilder makes debug information.
type infoBuilder struct {
	debugInfo
	t         *btf
	base      uint64            // what addresses count from
	entries   map[uint32]uint32 // where each type stands in info, by number
	needed    []uint32          // types of the kernel's that a module's need, and that are not made yet
	refs      []uint32          // where in info there is the number of a type, to be replaced
	codes     map[string]uint64
	baseNames map[uint32]uint32 // where the kernel's names stand that a module's types need

	// The entry that is being made: what it has, in the form of an abbreviation, its
	// values, and where in these are numbers of types.
	what, values []byte
	types        []int
}

// text adds names, and gives where they stand.
func (b *infoBuilder) text(names []byte) (at uint32) {
	at = uint32(len(b.names))
	for _, c := range names {
		if c != 0 && (c < ' ' || c > '~') {
			c = '?' // as printable does
		}
		b.names = append(b.names, c)
	}
	b.names = append(b.names, 0)
	return at
}

// begin begins an entry. Children, if it has any, end with close.
func (b *infoBuilder) begin(tag byte, children bool) {
	b.what, b.values, b.types = append(b.what[:0], tag, 0), b.values[:0], b.types[:0]
	if children {
		b.what[1] = 1
	}
}

// end ends the attributes of an entry.
func (b *infoBuilder) end() {
	code, ok := b.codes[string(b.what)]
	if !ok {
		code = uint64(len(b.codes) + 1)
		b.codes[string(b.what)] = code
		b.abbrev = append(append(appendUnsigned(b.abbrev, code), b.what...), 0, 0)
	}
	b.info = appendUnsigned(b.info, code)
	for _, at := range b.types {
		b.refs = append(b.refs, uint32(len(b.info)+at))
	}
	b.info = append(b.info, b.values...)
}

// close ends the children of an entry.
func (b *infoBuilder) close() { b.info = append(b.info, 0) }

// attribute says that the entry has an attribute. Its value is to be appended.
func (b *infoBuilder) attribute(attr, form byte) { b.what = append(b.what, attr, form) }

func (b *infoBuilder) flag(attr byte) { b.attribute(attr, formPresent) }

func (b *infoBuilder) number(attr byte, v uint64) {
	b.attribute(attr, formUnsigned)
	b.values = appendUnsigned(b.values, v)
}

func (b *infoBuilder) signed(attr byte, v int64) {
	b.attribute(attr, formSigned)
	b.values = appendSigned(b.values, v)
}

func (b *infoBuilder) string(attr byte, at uint32) {
	b.attribute(attr, formString)
	b.values = binary.LittleEndian.AppendUint32(b.values, at)
}

// code says where a function is.
func (b *infoBuilder) code(e extent) {
	b.attribute(attrLowPC, formAddress)
	b.values = binary.LittleEndian.AppendUint64(b.values, e.first-b.base)
	b.number(attrHighPC, e.end-e.first)
}

// name gives the entry a name of BTF's, if there is one.
func (b *infoBuilder) name(at uint32) {
	name := b.t.name(at)
	if len(name) == 0 {
		return
	}
	if at >= b.t.firstName {
		b.string(attrName, at-b.t.firstName)
		return
	}
	here, ok := b.baseNames[at]
	if !ok {
		here = b.text(name)
		b.baseNames[at] = here
	}
	b.string(attrName, here)
}

// typ gives the entry a type. It has none if that is void, or not to be used.
func (b *infoBuilder) typ(id uint32) {
	for range mostDepth {
		typ, ok := b.t.typ(id)
		switch {
		case !ok || b.t.isEndless(id):
			return
		case typ.kind == kindTypeTag:
			id = typ.size
			continue
		case tags[typ.kind] == 0:
			return
		}
		if _, ok := b.entries[id]; !ok && id < b.t.first {
			b.entries[id] = 0
			b.needed = append(b.needed, id)
		}
		b.attribute(attrType, formReference)
		b.types = append(b.types, len(b.values))
		b.values = binary.LittleEndian.AppendUint32(b.values, id)
		return
	}
}

// tags are the tags of types by their kinds; 0: that kind has no entries.
var tags = [kindEnum64 + 1]byte{
	kindInt: tagBase, kindFloat: tagBase, kindPointer: tagPointer, kindArray: tagArray, kindStruct: tagStructure,
	kindUnion: tagUnion, kindEnum: tagEnumeration, kindEnum64: tagEnumeration, kindForward: tagStructure,
	kindTypedef: tagTypedef, kindVolatile: tagVolatile, kindConst: tagConst, kindRestrict: tagRestrict,
	kindPrototype: tagSubroutine,
}

// addType adds a type, if it is of a kind that has entries.
func (b *infoBuilder) addType(id uint32) {
	typ, _ := b.t.typ(id)
	tag := tags[typ.kind]
	b.entries[id] = uint32(len(b.info))
	if id < b.t.first && b.t.isOnly(typ) {
		b.declare(tag, typ)
		return
	}
	switch typ.kind {
	case kindInt, kindFloat:
		b.begin(tag, false)
		b.name(typ.name)
		b.number(attrSize, uint64(typ.size))
		b.number(attrEncoding, uint64(b.encoding(typ)))
		b.end()
	case kindPointer, kindTypedef, kindVolatile, kindConst, kindRestrict:
		b.begin(tag, false)
		b.name(typ.name)
		if typ.kind == kindPointer {
			b.number(attrSize, 8)
		}
		b.typ(typ.size)
		b.end()
	case kindArray:
		b.addArray(typ)
	case kindStruct, kindUnion:
		b.addStruct(typ)
	case kindEnum, kindEnum64:
		b.addEnum(typ)
	case kindForward:
		if typ.flag {
			tag = tagUnion
		}
		b.declare(tag, typ)
	case kindPrototype:
		b.begin(tag, typ.parts > 0)
		b.flag(attrPrototyped)
		b.typ(typ.size)
		b.end()
		b.addParameters(typ)
	}
}

// declare adds a structure or union by its name only.
func (b *infoBuilder) declare(tag byte, typ btfType) {
	b.begin(tag, false)
	b.name(typ.name)
	b.flag(attrDeclaration)
	b.end()
}

// encoding tells what the bits of a number mean.
func (b *infoBuilder) encoding(typ btfType) byte {
	if typ.kind == kindFloat {
		return encodingFloat
	}
	const signed, char, boolean = 1, 2, 4
	is := binary.LittleEndian.Uint32(typ.rest) >> 24 & 0xf
	if typ.size == 1 && bytes.Contains(b.t.name(typ.name), []byte("char")) {
		is |= char // which pahole does not say
	}
	switch {
	case is&boolean != 0:
		return encodingBoolean
	case is&char != 0 && is&signed != 0:
		return encodingSignedChar
	case is&char != 0:
		return encodingUnsignedChar
	case is&signed != 0:
		return encodingSigned
	}
	return encodingUnsigned
}

// addArray adds an array. Debuggers are not told of one that is too large to be.
func (b *infoBuilder) addArray(typ btfType) {
	element, count := binary.LittleEndian.Uint32(typ.rest), uint64(binary.LittleEndian.Uint32(typ.rest[8:]))
	b.begin(tagArray, true)
	b.typ(element)
	b.end()
	b.begin(tagSubrange, false)
	if size, _ := b.t.sizeOf(element); count > 0 && count*size <= mostArray {
		b.number(attrCount, count)
	}
	b.end()
	b.close()
}

// addStruct adds a structure or union. gdb 13 fails when it prints one that has
// members beyond its end: these are left out.
func (b *infoBuilder) addStruct(typ btfType) {
	b.begin(tags[typ.kind], typ.parts > 0)
	b.name(typ.name)
	b.number(attrSize, uint64(typ.size))
	b.end()
	for i := range typ.parts {
		m := b.t.part(typ, i)
		if !b.t.fits(m, typ) {
			continue
		}
		b.begin(tagMember, false)
		b.name(m.name)
		b.typ(m.typ)
		if m.bits > 0 {
			b.number(attrBitSize, uint64(m.bits))
			b.number(attrBitOffset, uint64(m.offset))
		} else {
			b.number(attrOffset, uint64(m.offset/8))
		}
		b.end()
	}
	if typ.parts > 0 {
		b.close()
	}
}

// addEnum adds an enumeration. BTF declares one by giving it no members.
func (b *infoBuilder) addEnum(typ btfType) {
	b.begin(tagEnumeration, typ.parts > 0)
	b.name(typ.name)
	if typ.parts == 0 {
		b.flag(attrDeclaration)
	} else {
		b.number(attrSize, uint64(typ.size))
	}
	b.end()
	signed := typ.flag || !b.t.signedEnums
	each := btfExtra[typ.kind].each
	for i := range typ.parts {
		e := typ.rest[each*i:]
		v := uint64(binary.LittleEndian.Uint32(e[4:]))
		switch {
		case typ.kind == kindEnum64:
			v |= uint64(binary.LittleEndian.Uint32(e[8:])) << 32
		case signed:
			v = uint64(int64(int32(v)))
		}
		b.begin(tagEnumerator, false)
		b.name(binary.LittleEndian.Uint32(e))
		if signed {
			b.signed(attrConstant, int64(v))
		} else {
			b.number(attrConstant, v)
		}
		b.end()
	}
	if typ.parts > 0 {
		b.close()
	}
}

// addParameters adds the types of a function's parameters, and ends it. The last is 0
// for any others. They have no names: where they are is not known, and debuggers would
// say so of each in all stacks.
func (b *infoBuilder) addParameters(prototype btfType) {
	for i := range prototype.parts {
		name, typ := binary.LittleEndian.Uint32(prototype.rest[8*i:]), binary.LittleEndian.Uint32(prototype.rest[8*i+4:])
		if name == 0 && typ == 0 && i == prototype.parts-1 {
			b.begin(tagAnything, false)
		} else {
			b.begin(tagParameter, false)
			b.typ(typ)
		}
		b.end()
	}
	if prototype.parts > 0 {
		b.close()
	}
}

// addNamed adds functions and variables. BTF does not tell where they are, so those of
// which there are several of one name are left out. Variables of each processor are, as
// in the kernel's own symbol file, where their symbols are.
func (b *infoBuilder) addNamed(places map[string]place, most int) {
	described := map[string]int{} // how often
	for id := b.t.first; id < b.t.end(); id++ {
		if typ, _ := b.t.typ(id); typ.kind == kindFunction || typ.kind == kindVariable {
			described[string(b.t.name(typ.name))]++
		}
	}
	for id := b.t.first; id < b.t.end() && len(b.info) < most; id++ {
		typ, _ := b.t.typ(id)
		if typ.kind != kindFunction && typ.kind != kindVariable {
			continue
		}
		name := b.t.name(typ.name)
		if p := places[string(name)]; described[string(name)] == 1 && p.function == (typ.kind == kindFunction) && p.first != 0 {
			if p.function {
				b.addFunction(typ, p)
			} else {
				b.addVariable(typ, p)
			}
		}
	}
}

// addFunction adds a function.
func (b *infoBuilder) addFunction(typ btfType, p place) {
	prototype, ok := b.t.typ(typ.size)
	if !ok || prototype.kind != kindPrototype || b.t.isEndless(typ.size) {
		return
	}
	b.begin(tagSubprogram, prototype.parts > 0)
	b.named(typ.name, p)
	b.flag(attrPrototyped)
	b.code(p.extent)
	b.typ(prototype.size)
	b.end()
	b.addParameters(prototype)
}

// addVariable adds a variable.
func (b *infoBuilder) addVariable(typ btfType, p place) {
	b.begin(tagVariable, false)
	b.named(typ.name, p)
	b.typ(typ.size)
	b.attribute(attrLocation, formExpression)
	b.values = block(b.values, binary.LittleEndian.AppendUint64([]byte{opAddress}, p.first-b.base))
	b.end()
}

// named gives the entry a name that has an address.
func (b *infoBuilder) named(at uint32, p place) {
	b.name(at)
	if p.global {
		b.flag(attrExternal)
	}
}

// A place is where a function or variable is. Nothing is at 0.
type place struct {
	extent           // of a variable only the address is known
	function, global bool
}

// places gives where names are, and 0 for those that are in several places. Of
// functions at one address, which are in order, it has the first, as everywhere.
func places(functions, others []*symbol, code []extent) map[string]place {
	places := make(map[string]place, len(functions)+len(others))
	put := func(s *symbol, e extent) {
		p := place{e, s.isText(), s.kind >= 'A' && s.kind <= 'Z'}
		if _, twice := places[s.name]; twice {
			p = place{}
		}
		places[s.name] = p
	}
	for _, s := range others {
		put(s, extent{s.addr, s.addr})
	}
	for i, s := range functions {
		put(s, functionAt(functions, i, code))
	}
	return places
}

// functionAt gives the extent of one of some functions in order, or none if it is
// not the first at its address.
func functionAt(functions []*symbol, i int, code []extent) extent {
	first := functions[i].addr
	c := slices.IndexFunc(code, func(c extent) bool { return first >= c.first && first < c.end })
	if c < 0 || i > 0 && functions[i-1].addr == first {
		return extent{}
	}
	end := code[c].end
	for i++; i < len(functions) && functions[i].addr <= first; i++ {
	}
	if i < len(functions) {
		end = min(end, functions[i].addr)
	}
	return extent{first, end}
}

// prepare finds out, once, what debug information needs to know of all types.
func (t *btf) prepare() {
	if t.reach[0] != nil {
		return
	}
	if t.base != nil {
		t.base.prepare()
	}
	t.reach[byMade] = t.reaches(byMade, t.madeOf)
	t.reach[byContained] = t.reaches(byContained, t.contains)
	t.signedEnums = t.hasSignedEnums()
	t.only = map[string]bool{}
	for id := t.first; id < t.end(); id++ {
		if typ, _ := t.typ(id); typ.kind == kindStruct || typ.kind == kindUnion {
			name := string(t.name(typ.name))
			_, twice := t.only[name]
			t.only[name] = !twice && name != ""
		}
	}
}

// isOnly tells whether a type of the kernel's is a structure or union, and the only one of
// its name, so that debuggers find it by that.
func (t *btf) isOnly(typ btfType) bool {
	if typ.kind != kindStruct && typ.kind != kindUnion {
		return false
	}
	name := t.name(typ.name)
	_, own := t.only[string(name)]
	return t.base.only[string(name)] && !own
}

// hasSignedEnums tells whether enumerations say if they are signed, as they do since
// Linux 6.0: then at least one is, or is of 64 bits.
func (t *btf) hasSignedEnums() bool {
	for id := t.first; id < t.end(); id++ {
		if typ, _ := t.typ(id); typ.kind == kindEnum64 || typ.kind == kindEnum && typ.flag {
			return true
		}
	}
	return t.base != nil && t.base.signedEnums
}

// sizeOf gives the size of a type in bytes, at most mostArray+1, if it has one.
func (t *btf) sizeOf(id uint32) (size uint64, ok bool) {
	times := uint64(1)
	for range mostDepth {
		typ, _ := t.typ(id)
		switch typ.kind {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = typ.size
		case kindArray:
			times = min(times*uint64(binary.LittleEndian.Uint32(typ.rest[8:])), mostArray+1)
			id = binary.LittleEndian.Uint32(typ.rest)
		case kindPointer:
			return min(times*8, mostArray+1), true
		case kindInt, kindFloat, kindEnum, kindEnum64, kindStruct, kindUnion:
			return min(times*uint64(typ.size), mostArray+1), true
		default:
			return 0, false
		}
	}
	return 0, false
}

// fits tells whether a member has a size and is within its structure, and a bit field
// within its type. What is only declared has none: debuggers would look for it by its
// name, and might find what contains the structure.
func (t *btf) fits(m btfMember, in btfType) bool {
	size, ok := t.sizeOf(m.typ)
	if m.bits > 0 {
		return ok && uint64(m.bits) <= 8*size && uint64(m.offset)+uint64(m.bits) <= 8*uint64(in.size)
	}
	return ok && uint64(m.offset/8)+size <= uint64(in.size)
}

// isEndless tells whether a type leads to itself, or to too many others: by what it is
// made of without a structure in between, or by what it contains. It is known once
// prepare was called.
func (t *btf) isEndless(id uint32) bool {
	return t.reachOf(byMade, id) == noEnd || t.reachOf(byContained, id) == noEnd
}

// madeOf visits what a type is made of, up to structures.
func (t *btf) madeOf(typ btfType, visit func(id uint32)) {
	switch typ.kind {
	case kindPointer, kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
		visit(typ.size)
	case kindArray:
		visit(binary.LittleEndian.Uint32(typ.rest))
	case kindPrototype:
		visit(typ.size)
		for i := range typ.parts {
			visit(binary.LittleEndian.Uint32(typ.rest[8*i+4:]))
		}
	}
}

// contains visits what a type contains.
func (t *btf) contains(typ btfType, visit func(id uint32)) {
	switch typ.kind {
	case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
		visit(typ.size)
	case kindArray:
		visit(binary.LittleEndian.Uint32(typ.rest))
	case kindStruct, kindUnion:
		for i := range typ.parts {
			visit(t.part(typ, i).typ)
		}
	}
}

// A reach is how far debuggers follow a type, and through how many, itself included.
// Members double that with each structure that they are in, or multiply it by more.
type reach struct{ depth, types uint32 }

// noEnd is the reach of types that lead too far, or to themselves.
var noEnd = reach{mostDepth, mostFollowed}

// What types lead to others by: indices of btf.reach.
const (
	byMade      = iota // madeOf
	byContained        // contains
)

// reachOf gives how far a type leads.
func (t *btf) reachOf(by int, id uint32) reach {
	if id < t.first {
		t = t.base
	}
	return t.reach[by][id-t.first]
}

// reaches gives how far types lead, by their numbers less the first.
func (t *btf) reaches(by int, next func(typ btfType, visit func(id uint32))) []reach {
	known := make([]reach, len(t.at))
	var follow func(id uint32, level int) reach
	follow = func(id uint32, level int) reach {
		typ, ok := t.typ(id)
		switch {
		case !ok:
			return reach{}
		case id < t.first:
			return t.base.reachOf(by, id)
		case known[id-t.first].types > 0:
			return known[id-t.first]
		case level == mostDepth:
			return noEnd
		}
		known[id-t.first] = noEnd // if it comes back to itself
		all := reach{types: 1}
		next(typ, func(to uint32) {
			r := follow(to, level+1)
			all = reach{max(all.depth, r.depth+1), min(all.types+r.types, mostFollowed)}
		})
		if all.depth >= mostDepth || all.types == mostFollowed {
			all = noEnd
		}
		known[id-t.first] = all
		return all
	}
	for id := t.first; id < t.end(); id++ {
		follow(id, 0)
	}
	return known
}

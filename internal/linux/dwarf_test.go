package linux

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux/linuxtest"
)

// typesBTF describes types, each by words: its name, kind, flag, parts, size or type,
// and what follows. Texts are names.
func typesBTF(types ...[]any) []byte { return linuxtest.BTF(0, types...) }

const flagged = 1 << 31

// allTypes are types of all kinds.
func allTypes() []byte {
	kind := func(kind, parts int) int { return kind<<24 | parts }
	return typesBTF(
		[]any{"int", kind(kindInt, 0), 4, 1<<24 | 32},                   // 1
		[]any{"char", kind(kindInt, 0), 1, 1<<24 | 8},                   // 2
		[]any{"_Bool", kind(kindInt, 0), 1, 4<<24 | 8},                  // 3
		[]any{"unsigned long", kind(kindInt, 0), 8, 64},                 // 4
		[]any{"", kind(kindPointer, 0), 0},                              // 5: void *
		[]any{"", kind(kindArray, 0), 0, 2, 1, 16},                      // 6: char [16]
		[]any{"", kind(kindArray, 0), 0, 2, 1, 0},                       // 7: char []
		[]any{"", kind(kindUnion, 2), 16, "number", 4, 0, "text", 6, 0}, // 8
		[]any{"task", flagged | kind(kindStruct, 5), 64, "pid", 1, 0, "a", 4, 3<<24 | 33, "b", 3, 1<<24 | 36, "", 8, 64, "comm", 7, 192}, // 9
		[]any{"", kind(kindPointer, 0), 9},                                    // 10: struct task *
		[]any{"task_t", kind(kindTypedef, 0), 9},                              // 11
		[]any{"", kind(kindConst, 0), 11},                                     // 12
		[]any{"", kind(kindVolatile, 0), 12},                                  // 13
		[]any{"", kind(kindRestrict, 0), 10},                                  // 14
		[]any{"color", flagged | kind(kindEnum, 2), 4, "RED", -1, "GREEN", 7}, // 15
		[]any{"big", kind(kindEnum64, 1), 8, "HUGE", 1, 1 << 31},              // 16
		[]any{"plain", kind(kindEnum, 1), 4, "TOP", 1 << 31},                  // 17
		[]any{"elsewhere", kind(kindForward, 0), 0},                           // 18
		[]any{"either", flagged | kind(kindForward, 0), 0},                    // 19
		[]any{"double", kind(kindFloat, 0), 8},                                // 20
		[]any{"", kind(kindPrototype, 3), 1, "t", 10, "format", 22, "", 0},    // 21: int (struct task *, const char *, ...)
		[]any{"", kind(kindPointer, 0), 23},                                   // 22
		[]any{"", kind(kindConst, 0), 24},                                     // 23
		[]any{"user", kind(kindTypeTag, 0), 2},                                // 24
		[]any{"leaf", kind(kindFunction, 0), 21},                              // 25
		[]any{"middle", kind(kindFunction, 0), 21},                            // 26: described twice
		[]any{"middle", kind(kindFunction, 0), 21},                            // 27
		[]any{"startup_xen", kind(kindFunction, 0), 21},                       // 28: the second name there
		[]any{"nowhere", kind(kindFunction, 0), 21},                           // 29
		[]any{"runqueues", kind(kindVariable, 0), 13, 1},                      // 30
		[]any{"linux_banner", kind(kindFunction, 0), 21},                      // 31: none
		[]any{"aligned", kind(kindVariable, 0), 13, 1},                        // 32: none
		[]any{".data..percpu", kind(kindSection, 1), 64, 30, 0, 64},           // 33
		[]any{"tag", kind(kindDeclTag, 0), 9, -1},                             // 34
		[]any{"old", kind(kindStruct, 2), 8, "low", 36, 0, "high", 36, 3},     // 35
		[]any{"u3", kind(kindInt, 0), 4, 3},                                   // 36: unsigned int of 3 bits
	)
}

// madeInfo gives the debug information of a kernel, as Go reads it from its file.
func madeInfo(t *testing.T, k *Kernel) *dwarf.Data {
	t.Helper()
	file, _ := k.Executable(true)
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.DWARF()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// All kinds of types are what they are in C, and functions and variables are where
// their names are.
func TestDebugInfo(t *testing.T) {
	_, k := foundKernel(t, linuxtest.Layouts[2])
	var err error
	if k.btf, err = readBTF(allTypes(), nil, nil); err != nil {
		t.Fatal(err)
	}
	got := describe(t, madeInfo(t, k))
	want := map[string]string{
		"unit":               fmt.Sprintf("%#x+%#x", uint64(linuxtest.Base), k.code[0].end-linuxtest.Base),
		"type int":           "*dwarf.IntType 4",
		"type char":          "*dwarf.CharType 1",
		"type _Bool":         "*dwarf.BoolType 1",
		"type unsigned long": "*dwarf.UintType 8",
		"type double":        "*dwarf.FloatType 8",
		"type task_t":        "*dwarf.TypedefType 64",
		"type task": "struct task {pid int@0; a unsigned long@0 : 3@33; b _Bool@0 : 1@36;  union {number unsigned long@0; text [16]char@0}@8; " +
			"comm [-1]char@24}",
		"type ":          "union {number unsigned long@0; text [16]char@0}",
		"type elsewhere": "struct elsewhere /*incomplete*/",
		"type either":    "union either /*incomplete*/",
		"type u3":        "*dwarf.UintType 4",
		"type old":       "struct old {low u3@0 : 3@0; high u3@0 : 3@3}",
		"type color":     "enum color {RED=-1; GREEN=7}",
		"type big":       "enum big {HUGE=-9223372036854775807}",
		"type plain":     "enum plain {TOP=2147483648}",
		"prototype 1":    "*struct task",
		"prototype 2":    "*const char",
		"prototype ...":  "",
		"leaf":           fmt.Sprintf("int %#x+%#x", linuxtest.Function("leaf"), linuxtest.FunctionSize),
		"leaf 1":         "*struct task",
		"leaf 2":         "*const char",
		"leaf ...":       "",
		"runqueues":      "volatile const task_t 03 00 50 01 00 00 00 00 00",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// describe gives what debug information says, by tag and name.
func describe(t *testing.T, d *dwarf.Data) map[string]string {
	t.Helper()
	got := map[string]string{}
	r := d.Reader()
	parent, parameters := "", 0
	for {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e == nil {
			break
		}
		name, _ := e.Val(dwarf.AttrName).(string)
		typ := "void"
		if ref, ok := e.Val(dwarf.AttrType).(dwarf.Offset); ok {
			of, err := d.Type(ref)
			if err != nil {
				t.Fatal(err)
			}
			typ = of.String()
		}
		switch e.Tag {
		case dwarf.TagSubprogram:
			parent, parameters = name, 0
			got[name] = fmt.Sprintf("%s %#x+%#x", typ, e.Val(dwarf.AttrLowpc), e.Val(dwarf.AttrHighpc))
		case dwarf.TagSubroutineType:
			parent, parameters = "prototype", 0
		case dwarf.TagFormalParameter:
			parameters++
			got[fmt.Sprintf("%s %d%s", parent, parameters, name)] = typ
		case dwarf.TagUnspecifiedParameters:
			got[parent+" ..."] = ""
		case dwarf.TagVariable:
			got[name] = fmt.Sprintf("%s % x", typ, e.Val(dwarf.AttrLocation))
		case dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType:
			of, err := d.Type(e.Offset)
			if err != nil {
				t.Fatal(err)
			}
			if s, ok := of.(*dwarf.StructType); ok {
				got["type "+name] = s.Defn()
			} else {
				got["type "+name] = of.String()
			}
		case dwarf.TagBaseType, dwarf.TagTypedef:
			of, err := d.Type(e.Offset)
			if err != nil {
				t.Fatal(err)
			}
			got["type "+name] = fmt.Sprintf("%T %d", of, of.Size())
		case dwarf.TagCompileUnit:
			got["unit"] = fmt.Sprintf("%#x+%#x", e.Val(dwarf.AttrLowpc), e.Val(dwarf.AttrHighpc))
		}
	}
	return got
}

// A module's debug information declares the kernel's structures, but for those that are not
// the only ones of their name, and has copies of what else of the kernel's it needs.
func TestModuleDebugInfo(t *testing.T) {
	kind := func(kind, parts int) int { return kind<<24 | parts }
	base, err := readBTF(typesBTF(
		[]any{"int", kind(kindInt, 0), 4, 1<<24 | 32},             // 1
		[]any{"list", kind(kindStruct, 1), 4, "first", 1, 0},      // 2
		[]any{"twice", kind(kindStruct, 1), 4, "a", 1, 0},         // 3
		[]any{"twice", kind(kindUnion, 1), 8, "b", 5, 0},          // 4
		[]any{"", kind(kindPointer, 0), 2},                        // 5: struct list *
		[]any{"", kind(kindUnion, 2), 8, "x", 1, 0, "y", 5, 0},    // 6
		[]any{"count_t", kind(kindTypedef, 0), 1},                 // 7
		[]any{"color", flagged | kind(kindEnum, 1), 4, "RED", -1}, // 8
		[]any{"", kind(kindPrototype, 1), 1, "", 5},               // 9: int (struct list *)
		[]any{"", kind(kindArray, 0), 0, 2, 1, 3},                 // 10: struct list [3]
		[]any{"unused", kind(kindStruct, 0), 0},                   // 11
		[]any{"slhc_data", kind(kindVariable, 0), 1, 1},           // 12: the kernel's
		[]any{"loop", kind(kindTypedef, 0), 13},                   // 13
	), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	types, err := readBTF(linuxtest.BTF(len(base.names),
		[]any{"dev", kind(kindStruct, 8), 64, "head", 2, 0, "next", 15, 64, "list", 5, 128, "", 6, 192, "count", 7, 256,
			"color", 8, 288, "lists", 10, 320, "other", 4, 448}, // 14
		[]any{"", kind(kindPointer, 0), 14},                   // 15
		[]any{"", kind(kindPrototype, 2), 1, "d", 15, "n", 7}, // 16
		[]any{"slhc_open", kind(kindFunction, 0), 16},         // 17
		[]any{"slhc_init", kind(kindFunction, 0), 9},          // 18: of a prototype of the kernel's
		[]any{"slhc_data", kind(kindVariable, 0), 14, 1},      // 19
		[]any{"plain", kind(kindEnum, 1), 4, "TOP", 1 << 31},  // 20: it would be signed without the kernel's
		[]any{"bad", kind(kindStruct, 1), 4, "loop", 13, 0},   // 21
	), base, nil)
	if err != nil {
		t.Fatal(err)
	}
	const at = linuxtest.Modules
	m := &Module{
		Name: "slhc", text: []extent{{at, at + 0x1000}},
		symbols:   []symbol{{at + 0x40, 't', "slhc_init"}, {at + 0x80, 't', "slhc_open"}},
		variables: []symbol{{at + 0x1000, 'd', "slhc_data"}},
	}
	made := m.debugInfo(types, at, 1<<20)
	if err := checkEnds(types, made); err != nil {
		t.Error(err)
	}
	d, err := dwarf.New(made.abbrev, nil, nil, made.info, nil, nil, nil, made.names)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"unit":         "0x0+0x1000",
		"type int":     "*dwarf.IntType 4",
		"type count_t": "*dwarf.TypedefType 4",
		"type list":    "struct list /*incomplete*/",
		"type twice":   "union twice {b *struct list@0}",
		"type ":        "union {x int@0; y *struct list@0}",
		"type color":   "enum color {RED=-1}",
		"type plain":   "enum plain {TOP=2147483648}",
		"type bad":     "struct bad {}",
		"type dev": "struct dev {head struct list@0; next *struct dev@8; list *struct list@16;  union {x int@0; y *struct list@0}@24; " +
			"count count_t@32; color enum color {RED=-1}@36; lists [3]struct list@40; other union twice@56}",
		"prototype 1": "*struct dev",
		"prototype 2": "count_t",
		"slhc_open":   "int 0x80+0xf80",
		"slhc_open 1": "*struct dev",
		"slhc_open 2": "count_t",
		"slhc_init":   "int 0x40+0x40",
		"slhc_init 1": "*struct list",
		"slhc_data":   "struct dev 03 00 10 00 00 00 00 00 00",
	}
	if diff := cmp.Diff(want, describe(t, d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Enumerations of kernels that do not say whether they are signed are.
func TestDebugInfoOldEnum(t *testing.T) {
	e := []any{"e", kindEnum<<24 | 1, 4, "VALUE", -2}
	for _, tt := range []struct {
		types [][]any
		want  int64
	}{
		{[][]any{e}, -2},
		{[][]any{e, {"signed", flagged | kindEnum<<24 | 1, 4, "MINUS", -1}}, 1<<32 - 2},
		{[][]any{e, {"wide", kindEnum64<<24 | 1, 8, "HUGE", 0, 1}}, 1<<32 - 2},
	} {
		types, err := readBTF(typesBTF(tt.types...), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := madeInfo(t, &Kernel{btf: types}).Reader()
		for range 3 {
			e, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if v := e.Val(dwarf.AttrConstValue); e.Tag == dwarf.TagEnumerator && v != tt.want {
				t.Errorf("%v: it is %v", tt.types, v)
			}
		}
	}
}

// Members that are not within their structure or have no size, and bit fields that are
// not within their type, are left out.
func TestDebugInfoBeyond(t *testing.T) {
	types, err := readBTF(typesBTF(
		[]any{"char", kindInt << 24, 1, 1<<24 | 8},
		[]any{"", kindArray << 24, 0, 1, 1, 7},
		[]any{"", kindPrototype << 24, 1 << 30},
		[]any{"s", flagged | kindStruct<<24 | 11, 8,
			"last", 1, 7 * 8, "beyond", 1, 8 * 8, "seven", 2, 8, "eight", 2, 2 * 8,
			"bits", 1, 8<<24 | 56, "many", 1, 9<<24 | 48, "late", 1, 8<<24 | 57,
			"function", 3, 0, "declared", 5, 0, "nothing", 0, 0, "empty", 6, 8 * 8}, // 4
		[]any{"s", kindForward << 24, 0}, // 5
		[]any{"", kindArray << 24, 0, 1, 1, 0},
	), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := madeInfo(t, &Kernel{btf: types}).Reader()
	var got []string
	for e, err := r.Next(); e != nil; e, err = r.Next() {
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := e.Val(dwarf.AttrName).(string); ok && e.Tag == dwarf.TagMember {
			got = append(got, name)
		}
	}
	if diff := cmp.Diff([]string{"last", "seven", "bits", "empty"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Of the structures of a real kernel, debuggers are told what its BTF says.
func TestDebugInfoReal(t *testing.T) {
	const path = "/sys/kernel/btf/vmlinux"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("the kernel of this machine does not describe its types: %v", err)
	}
	types, err := readBTF(b, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkStructs(t, types, madeInfo(t, &Kernel{btf: types}))
}

// checkStructs compares all structures, with their members.
func checkStructs(t *testing.T, types *btf, d *dwarf.Data) {
	t.Helper()
	r := d.Reader()
	id := uint32(0)
	next := func() *dwarf.Entry {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	structs, members := 0, 0
	for e := next(); e != nil; e = next() {
		if e.Tag != dwarf.TagStructType && e.Tag != dwarf.TagUnionType || e.Val(dwarf.AttrDeclaration) != nil {
			continue
		}
		var typ btfType
		for ok := true; ; {
			id++
			if typ, ok = types.typ(id); !ok {
				t.Fatal("there are more structures than in BTF")
			}
			if typ.kind == kindStruct || typ.kind == kindUnion {
				break
			}
		}
		structs++
		name, _ := e.Val(dwarf.AttrName).(string)
		if want := string(types.name(typ.name)); name != want || e.Val(dwarf.AttrByteSize) != int64(typ.size) {
			t.Fatalf("type %d is %s of %v bytes, want %s of %d", id, name, e.Val(dwarf.AttrByteSize), want, typ.size)
		}
		for i := range typ.parts {
			m, e := types.part(typ, i), next()
			members++
			member, _ := e.Val(dwarf.AttrName).(string)
			at, ok := e.Val(dwarf.AttrDataMemberLoc).(int64)
			bits, _ := e.Val(dwarf.AttrBitSize).(int64)
			if at *= 8; !ok {
				at, _ = e.Val(dwarf.AttrDataBitOffset).(int64)
			}
			if e.Tag != dwarf.TagMember || member != string(types.name(m.name)) || at != int64(m.offset) || bits != int64(m.bits) {
				t.Fatalf("member %d of %s is %+v, want %s %+v", i, name, e, types.name(m.name), m)
			}
			if _, err := d.Type(e.Val(dwarf.AttrType).(dwarf.Offset)); err != nil {
				t.Fatalf("the type of %s.%s: %v", name, member, err)
			}
		}
	}
	if structs == 0 || members < structs {
		t.Errorf("%d structures with %d members", structs, members)
	}
}

// Types that lead to themselves or are too deep have none, so that debuggers end.
func TestEndlessTypes(t *testing.T) {
	chain := [][]any{}
	for i := range 1000 {
		chain = append(chain, []any{"", kindPointer << 24, i + 2})
	}
	nested := [][]any{{"int", kindInt << 24, 4, 32}}
	for i := range 1000 {
		nested = append(nested, []any{"", kindArray << 24, 0, i + 1, 1, 1 << 20})
	}
	var inside [][]any
	for i := range 1000 {
		inside = append(inside, []any{fmt.Sprint("s", i), kindStruct<<24 | 1, 8, "", i + 2, 0})
	}
	doubled := [][]any{{"int", kindInt << 24, 4, 32}}
	for i := range 60 {
		doubled = append(doubled, []any{"", kindUnion<<24 | 2, 4, "", i + 1, 0, "", i + 1, 0})
	}
	calls := [][]any{{"int", kindInt << 24, 4, 32}}
	for i := range 30 {
		calls = append(calls, []any{"", kindPointer << 24, 2*i + 3}, []any{"", kindPrototype<<24 | 2, 1, "", 2 * i, "", 2 * i})
	}
	for name, b := range map[string][]byte{
		"each twice the last": typesBTF(doubled...),
		"functions of others": typesBTF(calls...),
		"pointer to itself":   typesBTF([]any{"", kindPointer << 24, 1}),
		"names of each other": typesBTF([]any{"a", kindTypedef << 24, 2}, []any{"b", kindTypedef << 24, 1}),
		"tags of each other":  typesBTF([]any{"a", kindTypeTag << 24, 2}, []any{"b", kindTypeTag << 24, 1}, []any{"", kindPointer << 24, 1}),
		"function of itself":  typesBTF([]any{"", kindPrototype<<24 | 1, 1, "", 1}, []any{"leaf", kindFunction << 24, 1}),
		"structure in itself": typesBTF([]any{"s", kindStruct<<24 | 1, 8, "", 1, 0}),
		"arrays of itself":    typesBTF([]any{"s", kindStruct<<24 | 1, 8, "m", 2, 0}, []any{"", kindArray << 24, 0, 1, 1, 4}),
		"long chain":          typesBTF(chain...),
		"arrays of arrays":    typesBTF(nested...),
		"many structures":     typesBTF(inside...),
		"types that are none": typesBTF([]any{"", kindPointer << 24, 2}, []any{"f", kindFunction << 24, 99}, []any{"", kindPointer << 24, 1 << 30}),
	} {
		types, err := readBTF(b, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := checkEnds(types, (&Kernel{btf: types}).debugInfo()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// checkEnds checks that debug information of types can be read, and that what is
// followed in it ends.
func checkEnds(t *btf, made debugInfo) error {
	most := 1000
	for ; t != nil; t = t.base {
		most += 2 * (len(t.types) + len(t.names))
	}
	if made.size() > most {
		return fmt.Errorf("it has over %d bytes", most)
	}
	d, err := dwarf.New(made.abbrev, nil, nil, made.info, nil, nil, nil, made.names)
	if err != nil {
		return err
	}
	// What leads where, at once and by what a structure contains.
	direct, contained := map[dwarf.Offset][]dwarf.Offset{}, map[dwarf.Offset][]dwarf.Offset{}
	var parents []*dwarf.Entry
	r := d.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if e.Tag == 0 {
			parents = parents[:len(parents)-1]
			continue
		}
		from := e
		if e.Tag == dwarf.TagMember || e.Tag == dwarf.TagFormalParameter {
			from = parents[len(parents)-1]
		}
		if to, ok := e.Val(dwarf.AttrType).(dwarf.Offset); ok {
			if e.Tag != dwarf.TagMember {
				direct[from.Offset] = append(direct[from.Offset], to)
			}
			if e.Tag != dwarf.TagPointerType && from.Tag != dwarf.TagSubroutineType {
				contained[from.Offset] = append(contained[from.Offset], to)
			}
		}
		if e.Children {
			parents = append(parents, e)
		}
	}
	for _, graph := range []map[dwarf.Offset][]dwarf.Offset{direct, contained} {
		followed := map[dwarf.Offset]int{}
		var follow func(at dwarf.Offset, level int) (types int)
		follow = func(at dwarf.Offset, level int) (types int) {
			if level > mostDepth {
				return math.MaxInt32
			}
			if followed[at] == 0 {
				followed[at] = 1
				for _, to := range graph[at] {
					followed[at] += follow(to, level+1)
				}
			}
			return followed[at]
		}
		for at := range graph {
			if n := follow(at, 0); n > 2*mostFollowed { // a function's or variable's add to those of its types
				return fmt.Errorf("what is at %#x leads through %d types", at, n)
			}
		}
	}
	return nil
}

// The names of a guest's do nothing to a terminal.
func TestDebugInfoNames(t *testing.T) {
	types, err := readBTF(typesBTF([]any{"a\x1b[2Jb\xff", kindForward << 24, 0}), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if names := string((&Kernel{btf: types}).debugInfo().names); !strings.Contains(names, "\x00a?[2Jb?\x00") {
		t.Errorf("%q", names)
	}
}

// FuzzDebugInfo makes debug information of types that are changed at places.
func FuzzDebugInfo(f *testing.F) {
	all := allTypes()
	whole, err := readBTF(all, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	names := int(binary.LittleEndian.Uint32(all[16:])) + btfHeader
	f.Add(all[btfHeader:names])
	for _, structs := range linuxtest.Structs {
		b := linuxtest.Describe(structs...).BTF
		f.Add(b[btfHeader : btfHeader+binary.LittleEndian.Uint32(b[12:])])
	}
	f.Fuzz(func(t *testing.T, types []byte) {
		b := bytes.Clone(all[:btfHeader])
		binary.LittleEndian.PutUint32(b[12:], uint32(len(types)))
		binary.LittleEndian.PutUint32(b[16:], uint32(len(types)))
		b = append(append(b, types...), all[names:]...)
		read, err := readBTF(b, nil, nil)
		if err != nil {
			return
		}
		if err := checkEnds(read, (&Kernel{btf: read}).debugInfo()); err != nil {
			t.Error(err)
		}
		// As a module's: of a kernel's that are whole, and of themselves.
		for _, base := range []*btf{whole, read} {
			if read, err = readBTF(b, base, nil); err != nil {
				t.Fatal(err)
			}
			if err := checkEnds(read, (&Module{}).debugInfo(read, 0, mostInfo)); err != nil {
				t.Error(err)
			}
		}
	})
}

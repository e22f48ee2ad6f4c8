package linux

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeStructs describe the structures of kernels, with their sizes and the offsets
// of members; behind those of members that are structures their type, and the
// elements of an array. A member without a name is written _.
var fakeStructs = map[string][]string{
	"6.1": {
		"thread_struct 64: sp 24",
		"thread_info 24: flags 0, cpu 20",
		"task_struct 2048: thread_info 0 thread_info, __state 24, flags 44, tasks 100, exit_state 256, pid 300, tgid 304, real_parent 312, thread_node 400, comm 600, signal 700, stack 32, on_cpu 56, thread 800 thread_struct",
		"module_layout 32: base 0, size 8, text_size 12",
		"both_layouts 64: core_layout 0 module_layout, init_layout 32 module_layout",
		"mod_arch_specific 24: num_orcs 0, orc_unwind_ip 8, orc_unwind 16",
		"module 896: state 0, list 8, name 24, _ 200 both_layouts, kallsyms 480, arch 560 mod_arch_specific, source_list 820, refcnt 880",
	},
	"6.12": {
		"thread_struct 64: sp 24",
		"thread_info 24: flags 0, cpu 20",
		"task_struct 1900: thread_info 0 thread_info, __state 24, flags 44, tasks 100, exit_state 256, pid 300, tgid 304, real_parent 312, thread_node 400, comm 600, signal 700, stack 32, on_cpu 56, thread 800 thread_struct",
		"module_memory 64: base 0, size 16",
		"mod_arch_specific 24: num_orcs 0, orc_unwind_ip 8, orc_unwind 16",
		"module 1280: state 0, list 8, name 24, mem 200 module_memory 7, kallsyms 800, arch 860 mod_arch_specific, source_list 920, refcnt 980",
	},
	"5.10": {
		"thread_struct 64: sp 24",
		"task_struct 1900: state 16, flags 44, cpu 60, tasks 100, exit_state 256, pid 300, tgid 304, real_parent 312, thread_node 400, comm 600, signal 700, stack 32, on_cpu 56, thread 800 thread_struct",
		"module_layout 80: base 0, size 8, text_size 12",
		"mod_arch_specific 24: num_orcs 0, orc_unwind_ip 8, orc_unwind 16",
		"module 896: state 0, list 8, name 24, core_layout 200 module_layout, init_layout 320 module_layout, kallsyms 480, arch 560 mod_arch_specific, source_list 820, refcnt 880",
	},
}

// fakeStructsOfAll are the same everywhere.
var fakeStructsOfAll = []string{
	"signal_struct 1112: thread_head 16",
	"inactive_task_frame 56: bx 32, bp 40, ret_addr 48",
	"module_use 48: source_list 0, target_list 16, source 32, target 40",
	"mod_kallsyms 32: symtab 0, num_symtab 8, strtab 16, typetab 24",
	"prb_data_blk_lpos 16: begin 0, next 8",
	"prb_desc 24: state_var 0, text_blk_lpos 8 prb_data_blk_lpos",
	"prb_desc_ring 48: count_bits 0, descs 8, infos 16, head_id 24, tail_id 32",
	"prb_data_ring 32: size_bits 0, data 8, head_lpos 16, tail_lpos 24",
	"printk_ringbuffer 88: desc_ring 0 prb_desc_ring, text_data_ring 48 prb_data_ring, fail 80",
	"btf_module 48: list 0, module 16, btf 24",
	"btf 208: data 0, data_size 80, start_id 136, start_str_off 140",
	"printk_info 88: seq 0, ts_nsec 8, text_len 16, facility 18, caller_id 20",
}

// fakeBTF describes structures.
func fakeBTF(structs ...string) []byte {
	le := binary.LittleEndian
	names := []byte{0}
	name := func(s string) uint32 {
		names = append(append(names, s...), 0)
		return uint32(len(names) - len(s) - 1)
	}
	var types []byte
	count := uint32(0)
	add := func(words ...uint32) uint32 {
		for _, w := range words {
			types = le.AppendUint32(types, w)
		}
		count++
		return count
	}
	number := add(name("long"), 1<<24, 8, 64)
	known := map[string]uint32{}
	for _, s := range structs {
		head, list, _ := strings.Cut(s, ": ")
		var title string
		var size, parts uint32
		fmt.Sscan(head, &title, &size)
		var members []uint32
		for m := range strings.SplitSeq(list, ", ") {
			var member, of string
			var offset, times uint32
			n, _ := fmt.Sscan(m, &member, &offset, &of, &times)
			typ := number
			if n > 2 { // by another name, and const
				typ = add(0, kindConst<<24, add(name("also_"+of), kindTypedef<<24, known[of]))
			}
			if n > 3 {
				typ = add(0, kindArray<<24, 0, typ, number, times)
			}
			at := uint32(0)
			if member != "_" {
				at = name(member)
			}
			members = append(members, at, typ, offset*8|7<<24)
			parts++
		}
		known[title] = add(append([]uint32{name(title), kindStruct<<24 | 1<<31 | parts, size}, members...)...)
	}
	b := le.AppendUint32(nil, btfMagic|1<<16)
	for _, v := range []int{btfHeader, 0, len(types), len(types), len(names)} {
		b = le.AppendUint32(b, uint32(v))
	}
	return append(append(b, types...), names...)
}

func TestBTF(t *testing.T) {
	for version, want := range map[string]map[string]uint64{
		"6.1": {
			"module": 896, "module.name": 24, "module.core_layout.size": 208, "module.init_layout.base": 232,
			"task_struct.thread_info.cpu": 20, "task_struct.__state": 24, "module.arch.orc_unwind": 576,
		},
		"6.12": {"module.mem": 200, "#module.mem": 7, "module_memory": 64, "module_memory.size": 16},
		"5.10": {"task_struct.state": 16, "task_struct.cpu": 60, "module.init_layout.text_size": 332},
	} {
		b := fakeBTF(fakeStructs[version]...)
		types, err := readBTF(b, nil, map[string]bool{"module": true, "task_struct": true, "module_memory": true})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for key := range want {
			if v, ok := types.lookup(key); ok {
				got[key] = v
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
		for _, key := range []string{"module.none", "module.name.none", "none", "#module.name", "list_head.next", "module.core_layout.none"} {
			if v, ok := types.lookup(key); ok {
				t.Errorf("%s: %s is at %d", version, key, v)
			}
		}
		for n := range len(b) {
			if _, err := readBTF(b[:n], nil, nil); err == nil {
				t.Errorf("%s: the first %d bytes of %d are read", version, n, len(b))
			}
		}
	}
}

// A structure that contains itself ends a search.
func TestBTFLoop(t *testing.T) {
	b := fakeBTF("loop 8: _ 0, _ 0, x 0")
	types := b[btfHeader:]
	for i := range 2 { // its first members become itself: type 2
		binary.LittleEndian.PutUint32(types[16+12+12*i+4:], 2)
	}
	got, err := readBTF(b, nil, map[string]bool{"loop": true})
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := got.lookup("loop.none"); ok {
		t.Errorf("it is at %d", v)
	}
}

func FuzzBTF(f *testing.F) {
	for _, structs := range fakeStructs {
		f.Add(fakeBTF(structs...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		names := map[string]bool{}
		for _, key := range keys() {
			name, _, _ := strings.Cut(strings.TrimPrefix(key, "#"), ".")
			names[name] = true
		}
		types, err := readBTF(b, nil, names)
		if err != nil {
			return
		}
		for _, key := range keys() {
			types.lookup(key)
		}
	})
}

// fakeData is a kernel's data: variables, structures and lists at addresses that
// are given out one after the other.
type fakeData struct {
	*Kernel
	mem space
	o   offsets
	// described are its types.
	described *btf
	// loaded is memory of modules.
	loaded space
}

const fakeDataBase = 0xffff888001000000

// newFakeData makes a kernel of a version that has no code.
func newFakeData(version string) *fakeData {
	d := &fakeData{Kernel: &Kernel{}, mem: space{addr: fakeDataBase}}
	d.new(pageSize) // so that nothing is at the start
	b := fakeBTF(append(fakeStructs[version], fakeStructsOfAll...)...)
	at := d.new(len(b))
	copy(d.at(at), b)
	d.symbol("__start_BTF", at)
	d.symbol("__stop_BTF", at+uint64(len(b)))
	var err error
	if d.o, err = d.types(d.mem); err != nil {
		panic(err)
	}
	d.offsets, d.described = nil, d.btf
	return d
}

func (d *fakeData) symbol(name string, addr uint64) {
	d.symbols = append(d.symbols, symbol{addr: addr, kind: 'd', name: name})
}

// new gives memory that is zero.
func (d *fakeData) new(size int) uint64 {
	at := d.mem.addr + uint64(len(d.mem.b))
	d.mem.b = append(d.mem.b, make([]byte, alignUp(size, 64))...)
	return at
}

// variable makes a variable, which is a word.
func (d *fakeData) variable(name string, v uint64) uint64 {
	at := d.new(8)
	d.put(at, v)
	d.symbol(name, at)
	return at
}

func (d *fakeData) at(addr uint64) []byte { return d.mem.b[addr-d.mem.addr:] }

func (d *fakeData) put(addr, v uint64) { binary.LittleEndian.PutUint64(d.at(addr), v) }

func (d *fakeData) putHalf(addr uint64, v uint32) { binary.LittleEndian.PutUint32(d.at(addr), v) }

// text makes a text that ends with a zero.
func (d *fakeData) text(s string) uint64 {
	at := d.new(len(s) + 1)
	copy(d.at(at), s)
	return at
}

// field gives the address of a member of a structure.
func (d *fakeData) field(at uint64, key string) uint64 {
	offset, ok := d.o[key]
	if !ok {
		panic("no " + key)
	}
	return at + offset
}

// link makes a list of entries.
func (d *fakeData) link(head uint64, entries ...uint64) {
	at := head
	for _, e := range append(entries, head) {
		d.put(at, e)
		at = e
	}
}

// damage calls do with copies of the memory that are changed at places.
func (d *fakeData) damage(seed uint64, changes []byte, do func(k *Kernel, mem Memory)) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	damaged := space{d.mem.addr, append([]byte(nil), d.mem.b...)}
	for _, c := range changes {
		damaged.b[pageSize+rnd.IntN(len(damaged.b)-pageSize)] ^= c
	}
	do(&Kernel{symbols: d.symbols, orc: d.orc, code: d.code}, damaged)
}

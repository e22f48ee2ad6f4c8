// This file describes structures as kernels do.

package linuxtest

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Kinds of types (Documentation/bpf/btf.rst in Linux).
const (
	kindInt       = 1
	kindPointer   = 2
	kindArray     = 3
	kindStruct    = 4
	kindTypedef   = 8
	kindConst     = 10
	kindFunction  = 12
	kindPrototype = 13
)

// Structs describe the structures of kernels, with their sizes and the offsets
// of members; behind those of members that are structures their type, and the
// elements of an array. A member without a name is written _.
var Structs = map[string][]string{
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

// structsOfAll are the same everywhere.
var structsOfAll = []string{
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

// A member is one of a structure's.
type member struct {
	name   string
	offset uint32
	of     string // the structure that it is, if any
	times  uint32 // of an array
}

// parseStruct reads what Structs has of a structure.
func parseStruct(s string) (title string, size uint32, members []member) {
	head, list, _ := strings.Cut(s, ": ")
	fmt.Sscan(head, &title, &size)
	for text := range strings.SplitSeq(list, ", ") {
		var m member
		fmt.Sscan(text, &m.name, &m.offset, &m.of, &m.times)
		members = append(members, m)
	}
	return title, size, members
}

// Types are structures as BTF describes them.
type Types struct {
	BTF     []byte
	numbers map[string]uint32 // of structures
	end     uint32            // the number behind that of the last type
	names   uint32            // size of the names
}

// Describe describes structures, which are written as in Structs, and a function in
// assembly, as kernels do where C declares it.
func Describe(structs ...string) Types {
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
	number := add(name("long"), kindInt<<24, 8, 64)
	known := map[string]uint32{}
	for _, s := range structs {
		title, size, list := parseStruct(s)
		var members []uint32
		for _, m := range list {
			typ := number
			if m.of != "" { // by another name, and const
				typ = add(0, kindConst<<24, add(name("also_"+m.of), kindTypedef<<24, known[m.of]))
			}
			if m.times > 0 {
				typ = add(0, kindArray<<24, 0, typ, number, m.times)
			}
			at := uint32(0)
			if m.name != "_" {
				at = name(m.name)
			}
			members = append(members, at, typ, m.offset*8|7<<24)
		}
		known[title] = add(append([]uint32{name(title), kindStruct<<24 | 1<<31 | uint32(len(list)), size}, members...)...)
	}
	add(name("__switch_to_asm"), kindFunction<<24, add(0, kindPrototype<<24, 0))
	return Types{BTF: assemble(types, names), numbers: known, end: count + 1, names: uint32(len(names))}
}

// assemble puts types and their names together.
func assemble(types, names []byte) []byte {
	const magic, headerSize = 0xeb9f, 24
	b := binary.LittleEndian.AppendUint32(nil, magic|1<<16)
	for _, v := range []int{headerSize, 0, len(types), len(types), len(names)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return append(append(b, types...), names...)
}

// BTF describes types that continue others, whose names have a size: each by words, its
// name, kind, flag, parts, size or type, and what follows. Texts are names.
func BTF(firstName int, types ...[]any) []byte {
	names, b := []byte{0}, []byte(nil)
	for _, words := range types {
		for _, w := range words {
			switch w := w.(type) {
			case string:
				at := 0
				if w != "" {
					at = firstName + len(names)
					names = append(append(names, w...), 0)
				}
				b = binary.LittleEndian.AppendUint32(b, uint32(at))
			case int:
				b = binary.LittleEndian.AppendUint32(b, uint32(w))
			}
		}
	}
	return assemble(b, names)
}

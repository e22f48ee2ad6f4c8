// This file is a sample description of an x86-64 virtual CPU: the standard
// features that gdb knows (GDB manual, node "i386 Features") and one of our own.

package rsptest

import (
	"fmt"

	"gdbserver-xen/rsp"
)

// Description describes an x86-64 virtual CPU as gdb's standard features have
// it, and its system registers under QEMU's names.
func Description() *rsp.Description {
	return &rsp.Description{
		Architecture: "i386:x86-64",
		Features: []rsp.Feature{
			coreFeature(),
			sseFeature(),
			{
				Name: "org.gnu.gdb.i386.segments",
				Registers: []rsp.Register{
					{Name: "fs_base", Bits: 64, Type: "int"},
					{Name: "gs_base", Bits: 64, Type: "int"},
				},
			},
			systemFeature(),
		},
	}
}

func coreFeature() rsp.Feature {
	f := rsp.Feature{
		Name: "org.gnu.gdb.i386.core",
		Types: []rsp.FlagsType{{ID: "i386_eflags", Bytes: 4, Flags: bits(
			"CF", 0, "PF", 2, "AF", 4, "ZF", 6, "SF", 7, "TF", 8, "IF", 9, "DF", 10, "OF", 11,
			"NT", 14, "RF", 16, "VM", 17, "AC", 18, "VIF", 19, "VIP", 20, "ID", 21)}},
	}
	for _, name := range []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"} {
		typ := "int64"
		if name == "rbp" || name == "rsp" {
			typ = "data_ptr"
		}
		f.Registers = append(f.Registers, rsp.Register{Name: name, Bits: 64, Type: typ})
	}
	f.Registers = append(f.Registers,
		rsp.Register{Name: "rip", Bits: 64, Type: "code_ptr"},
		rsp.Register{Name: "eflags", Bits: 32, Type: "i386_eflags"})
	for _, name := range []string{"cs", "ss", "ds", "es", "fs", "gs"} {
		f.Registers = append(f.Registers, rsp.Register{Name: name, Bits: 32, Type: "int32"})
	}
	for i := range 8 {
		f.Registers = append(f.Registers, rsp.Register{Name: fmt.Sprintf("st%d", i), Bits: 80, Type: "i387_ext"})
	}
	for _, name := range []string{"fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"} {
		f.Registers = append(f.Registers, rsp.Register{Name: name, Bits: 32, Type: "int", Group: "float"})
	}
	return f
}

func sseFeature() rsp.Feature {
	f := rsp.Feature{
		Name: "org.gnu.gdb.i386.sse",
		Types: []rsp.FlagsType{{ID: "i386_mxcsr", Bytes: 4, Flags: bits(
			"IE", 0, "DE", 1, "ZE", 2, "OE", 3, "UE", 4, "PE", 5, "DAZ", 6,
			"IM", 7, "DM", 8, "ZM", 9, "OM", 10, "UM", 11, "PM", 12, "FZ", 15)}},
	}
	for i := range 16 {
		f.Registers = append(f.Registers, rsp.Register{Name: fmt.Sprintf("xmm%d", i), Bits: 128, Type: "vec128"})
	}
	f.Registers = append(f.Registers, rsp.Register{Name: "mxcsr", Bits: 32, Type: "i386_mxcsr", Group: "vector"})
	return f
}

func systemFeature() rsp.Feature {
	return rsp.Feature{
		Name: "org.gdbserver-xen.x86.system",
		Types: []rsp.FlagsType{
			{ID: "x64_cr0", Bytes: 8, Flags: bits("PE", 0, "MP", 1, "EM", 2, "TS", 3, "ET", 4, "NE", 5,
				"WP", 16, "AM", 18, "NW", 29, "CD", 30, "PG", 31)},
			{ID: "x64_cr3", Bytes: 8, Flags: append(bits("PWT", 3, "PCD", 4),
				rsp.Flag{Name: "PDBR", Start: 12, End: 63})},
			{ID: "x64_cr4", Bytes: 8, Flags: bits("VME", 0, "PVI", 1, "TSD", 2, "DE", 3, "PSE", 4, "PAE", 5,
				"MCE", 6, "PGE", 7, "PCE", 8, "OSFXSR", 9, "OSXMMEXCPT", 10, "UMIP", 11, "LA57", 12,
				"VMXE", 13, "SMXE", 14, "FSGSBASE", 16, "PCIDE", 17, "OSXSAVE", 18, "SMEP", 20, "SMAP", 21,
				"PKE", 22)},
			{ID: "x64_efer", Bytes: 8, Flags: bits("SCE", 0, "LME", 8, "LMA", 10, "NXE", 11, "SVME", 12,
				"FFXSR", 14)},
		},
		Registers: []rsp.Register{
			{Name: "k_gs_base", Bits: 64, Type: "int"},
			{Name: "cr0", Bits: 64, Type: "x64_cr0"},
			{Name: "cr2", Bits: 64, Type: "int"},
			{Name: "cr3", Bits: 64, Type: "x64_cr3"},
			{Name: "cr4", Bits: 64, Type: "x64_cr4"},
			{Name: "cr8", Bits: 64, Type: "int"},
			{Name: "efer", Bits: 64, Type: "x64_efer"},
		},
	}
}

// bits makes flags of one bit from names and bit numbers.
func bits(pairs ...any) []rsp.Flag {
	var flags []rsp.Flag
	for i := 0; i < len(pairs); i += 2 {
		bit := pairs[i+1].(int)
		flags = append(flags, rsp.Flag{Name: pairs[i].(string), Start: bit, End: bit})
	}
	return flags
}

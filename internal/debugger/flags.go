// This file names the bits of those registers that GDB is to print as flags.

package debugger

import "gdbserver-xen/rsp"

// bits is a field of several bits.
func bits(name string, from, to int) rsp.Flag { return rsp.Flag{Name: name, Start: from, End: to} }

func bit(name string, n int) rsp.Flag { return rsp.Flag{Name: name, Start: n, End: n} }

// eflagsType is GDB's own (SDM vol. 1, section 3.4.3).
var eflagsType = rsp.FlagsType{ID: "i386_eflags", Bytes: 4, Flags: []rsp.Flag{
	bit("CF", 0), bit("", 1), bit("PF", 2), bit("AF", 4), bit("ZF", 6), bit("SF", 7),
	bit("TF", 8), bit("IF", 9), bit("DF", 10), bit("OF", 11), bit("NT", 14),
	bit("RF", 16), bit("VM", 17), bit("AC", 18), bit("VIF", 19), bit("VIP", 20), bit("ID", 21),
}}

// mxcsrType is GDB's own (SDM vol. 1, section 10.2.3).
var mxcsrType = rsp.FlagsType{ID: "i386_mxcsr", Bytes: 4, Flags: []rsp.Flag{
	bit("IE", 0), bit("DE", 1), bit("ZE", 2), bit("OE", 3), bit("UE", 4), bit("PE", 5), bit("DAZ", 6),
	bit("IM", 7), bit("DM", 8), bit("ZM", 9), bit("OM", 10), bit("UM", 11), bit("PM", 12), bit("FZ", 15),
}}

// cr0Type and cr4Type: SDM vol. 3A, section 2.5.
var (
	cr0Type = rsp.FlagsType{ID: "x64_cr0", Bytes: 8, Flags: []rsp.Flag{
		bit("PE", 0), bit("MP", 1), bit("EM", 2), bit("TS", 3), bit("ET", 4), bit("NE", 5),
		bit("WP", 16), bit("AM", 18), bit("NW", 29), bit("CD", 30), bit("PG", 31),
	}}
	cr4Type = rsp.FlagsType{ID: "x64_cr4", Bytes: 8, Flags: []rsp.Flag{
		bit("VME", 0), bit("PVI", 1), bit("TSD", 2), bit("DE", 3), bit("PSE", 4), bit("PAE", 5),
		bit("MCE", 6), bit("PGE", 7), bit("PCE", 8), bit("OSFXSR", 9), bit("OSXMMEXCPT", 10),
		bit("UMIP", 11), bit("LA57", 12), bit("VMXE", 13), bit("SMXE", 14), bit("FSGSBASE", 16),
		bit("PCIDE", 17), bit("OSXSAVE", 18), bit("SMEP", 20), bit("SMAP", 21), bit("PKE", 22),
		bit("CET", 23), bit("PKS", 24),
	}}
)

// eferType: SDM vol. 3A, section 2.2.1, and AMD64 Architecture Programmer's
// Manual vol. 2, section 3.1.7.
var eferType = rsp.FlagsType{ID: "x64_efer", Bytes: 8, Flags: []rsp.Flag{
	bit("SCE", 0), bit("LME", 8), bit("LMA", 10), bit("NXE", 11), bit("SVME", 12),
	bit("LMSLE", 13), bit("FFXSR", 14), bit("TCE", 15),
}}

// dr6Type and dr7Type: SDM vol. 3B, section 18.2.
var (
	dr6Type = rsp.FlagsType{ID: "x64_dr6", Bytes: 8, Flags: []rsp.Flag{
		bit("B0", 0), bit("B1", 1), bit("B2", 2), bit("B3", 3), bit("BD", 13), bit("BS", 14), bit("BT", 15),
	}}
	dr7Type = rsp.FlagsType{ID: "x64_dr7", Bytes: 8, Flags: []rsp.Flag{
		bit("L0", 0), bit("G0", 1), bit("L1", 2), bit("G1", 3), bit("L2", 4), bit("G2", 5), bit("L3", 6), bit("G3", 7),
		bit("LE", 8), bit("GE", 9), bit("GD", 13),
		bits("RW0", 16, 17), bits("LEN0", 18, 19), bits("RW1", 20, 21), bits("LEN1", 22, 23),
		bits("RW2", 24, 25), bits("LEN2", 26, 27), bits("RW3", 28, 29), bits("LEN3", 30, 31),
	}}
)

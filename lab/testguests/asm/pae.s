# A guest with PAE paging: 3 levels, pages of 4 KB and 2 MB (SDM vol. 3A, 4.4).
# Its topmost table does not begin at a page.

	.include "common.s"
	.set WIDE, 1
	.include "tables.s"

directory_low:
	entry_of table_low + TABLE
	until 512, directory_low
directory_window:
	entry_of table_window + TABLE
	entry_of 0xa00000 + TABLE + PS
	entry_of 0x400000 + TABLE + PS + NX
	until 512, directory_window
directory_top:
	until 511, directory_top
	entry_of table_top + TABLE
	.quad -1, -1, -1, -1
root:
	.quad directory_low + P
	.quad 0
	.quad directory_window + P	# 0x80000000
	.quad directory_top + P
	.quad -1, -1, -1, -1

	.text
mode_entry:
	msr MSR_EFER, EFER_NXE
	control cr4, CR4 | CR4_PAE
	control cr3, root
	control cr0, CR0 | CR0_PG
	read_probes
	pushl $FLAGS
	popfl
	values32
	park_here

	.data
	.balign 16
probes:
	probe 0, 0x7ffc, 0x80000000, 0x80001000, 0x80002ffc, 0x80004000, 0x80005000
	probe 0x80006000, 0x80008000, 0x80009ffc, 0x801ff000, 0x80200000, 0x80300000
	probe 0x803ffffc, 0x80400000, 0x805ffffc, 0xffffe000, 0xfffffffc
probes_end:

# A guest with 32-bit paging: 2 levels, pages of 4 KB and 4 MB (SDM vol. 3A,
# 4.3).

	.include "common.s"
	.set WIDE, 0
	.include "tables.s"

	.set PWT, 1 << 3	# a bit of CR3 that is no address

directory:
	entry_of table_low + TABLE
	until 512, directory
	entry_of table_window + TABLE	# 0x80000000
	entry_of 0x800000 + TABLE + PS
	entry_of 0x400000 + TABLE + PS
	until 1023, directory
	entry_of table_top + TABLE
	.set root, directory + PWT

	.text
mode_entry:
	control cr4, CR4 | CR4_PSE
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
	probe 0x80006000, 0x80008000, 0x80009ffc, 0x803ff000, 0x80400000, 0x80600000
	probe 0x807ffffc, 0x80800000, 0x80bffffc, 0xffffe000, 0xfffffffc
probes_end:

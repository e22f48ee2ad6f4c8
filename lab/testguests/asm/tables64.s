# Four levels of tables, with pages of 4 KB, 2 MB and 1 GB (SDM vol. 3A, 4.5),
# and the way into 64-bit mode (9.8.5).

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
pointers_low:
	entry_of directory_low + TABLE
	entry_of 0
	entry_of directory_window + TABLE	# 0x80000000
	entry_of directory_top + TABLE		# up to 0xffffffff
	until 512, pointers_low
pointers_window:
	entry_of directory_window + TABLE	# 0xffff900000000000
	entry_of TABLE + PS			# 1 GB from physical address 0
	until 512, pointers_window
pointers_end:
	until 511, pointers_end
	entry_of directory_top + TABLE		# up to the end of a half
root:
	entry_of pointers_low + TABLE
	until 255, root
	entry_of pointers_end + TABLE		# the lower half's
	until 288, root
	entry_of pointers_window + TABLE
	until 511, root
	entry_of pointers_end + TABLE		# the upper half's

# Vector registers that only 64-bit mode has.
	.macro vectors64
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups vector_values + 32 * \n, %ymm\n
	.endr
	.endm
	.macro values64
	value64 8, r8
	value64 9, r9
	value64 10, r10
	value64 11, r11
	value64 12, r12
	value64 13, r13
	value64 14, r14
	value64 15, r15
	.endm

	.text
	.code32
mode_entry:
	control cr4, CR4 | CR4_PAE
	control cr3, root
	msr MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE
	control cr0, CR0 | CR0_PG
	ljmp $CODE64, $entry64

	.code64
entry64:
	movq $probes, %rsi
1:	movq (%rsi), %rbx
	movl (%rbx), %eax
	movq %rax, 8(%rsi)
	addq $16, %rsi
	cmpq $probes_end, %rsi
	jne 1b
	vectors64
	values64

	.data
	.balign 16
probes:
	probe 0, 0x7ffc, 0x80000000, 0x80001000, 0x80002ffc, 0x80004000, 0x80005000
	probe 0x80006000, 0x80008000, 0x80009ffc, 0x801ff000, 0x80200000, 0x80300000
	probe 0x803ffffc, 0x80400000, 0x805ffffc, 0xffffe000, 0xfffffffc
	probe 0x00007fffffffe000, 0x00007ffffffffffc, 0xffff900000000000
	probe 0xffff900000001000, 0xffff900000002ffc, 0xffff900000005000
	probe 0xffff900000006000, 0xffff9000001ff000, 0xffff900000200000
	probe 0xffff900000300000, 0xffff9000003ffffc, 0xffff900000400000
	probe 0xffff900040000000, 0xffff900040400000, 0xffff900040bffffc, PROBE_LAST
	probe 0xffffffffffffe000, 0xfffffffffffffffc
probes_end:
	.text

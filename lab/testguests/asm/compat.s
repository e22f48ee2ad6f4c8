# A guest in compatibility mode: 32-bit user code under 4-level paging (SDM vol.
# 3A, 5.8.1 and vol. 1, 3.2.1). What 64-bit mode has loaded into the registers
# that only it has stays (SDM vol. 1, 3.4.1.1). Most of the page of 1 GB has no
# memory behind it.

	.set PROBE_LAST, 0xffff900041fffffc
	.include "common.s"
	.include "tables64.s"

	movl $USER_DATA32, %eax
	movl %eax, %ds
	movl %eax, %es
	movl $FS_SEL, %eax
	movl %eax, %fs
	movl $GS_SEL, %eax
	movl %eax, %gs
	pushq $USER_DATA32
	pushq $stack_end
	pushq $FLAGS
	pushq $USER_CODE32
	pushq $compat
	iretq

	.code32
compat:
	values32
	park_here

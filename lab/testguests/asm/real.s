# A guest in real mode: 16 bits, no paging (SDM vol. 3A, 9.9.2 and 20.1). Its
# code segment has low bits set, which are no privilege level here.

	.include "common.s"

	.set REAL_BASE, 0x8030
	.set REAL_CS, REAL_BASE >> 4
	.set REAL_STACK, 0x0900

	.text
mode_entry:
	read_probes
	movl $real_start, %esi
	movl $REAL_BASE, %edi
	movl $(real_end - real_start), %ecx
	rep movsb
	lidt real_interrupts
	ljmp $CODE16, $0

real_start:
	.code16
	movw $DATA16, %ax	# limits of 64 KB
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %fs
	movw %ax, %gs
	movw %ax, %ss
	movl %cr0, %eax
	andl $~CR0_PE, %eax
	movl %eax, %cr0
	ljmp $REAL_CS, $(1f - real_start)
1:	movw $0x1234, %ax
	movw %ax, %ds
	movw $0x2345, %ax
	movw %ax, %es
	movw $0x3456, %ax
	movw %ax, %fs
	movw $0x4567, %ax
	movw %ax, %gs
	movw $REAL_STACK, %ax
	movw %ax, %ss
	movl $0x100, %esp
	pushl $FLAGS
	popfl
	values32
1:	pause
	jmp 1b
2:
real_end:
	.set park, 1b - real_start
	.set park_end, 2b - real_start

	.data
real_interrupts:
	.word 0x3ff
	.long 0
	.balign 16
probes:
	probe 0, 0x7ffc, PATTERN_START, PATTERN_END-4, MEMORY_END-4
probes_end:

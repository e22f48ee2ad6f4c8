# A PV guest of 32 bits, which runs in ring 1. In a pattern that takes several
# pages each word tells its virtual address, as those of the other guests tell
# their physical one (common.s).

	.include "pv.s"
	.set MULTIPLIER, 0x9e3779b1
	.set VALUE, 0x89abcdef
	.set STEP, 0x11111111

	.text
	.code32
	.global entry
entry:
	cld
	movl $pattern, %edi
1:	imull $MULTIPLIER, %edi, %eax
	movl %eax, %edx
	shrl $15, %edx
	xorl %eax, %edx
	movl %edx, (%edi)
	addl $4, %edi
	cmpl $pattern_end, %edi
	jne 1b
	.macro value n:req, reg:req
	movl $((VALUE ^ \n * STEP) & 0xffffffff), %\reg
	.endm
	value 0, eax
	value 1, ebx
	value 2, ecx
	value 3, edx
	value 4, esi
	value 5, edi
	value 6, ebp
	value 7, esp
park:
	pause
	jmp park
park_end:

	.data
	.balign 4096
pattern:
	.fill 5 * 4096
pattern_end:

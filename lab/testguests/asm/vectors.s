# A PV guest that loads all AVX registers, and then checks for ever that they
# hold what it loaded: in a PV guest, Xen sees to XSETBV itself, and so knows of
# them. (Xen public headers elfnote.h and arch-x86/xen-x86_64.h.)

	.set CR4_OSXSAVE, 1 << 18

	.include "pv.s"

	.text
	.code64
	.global entry
entry:
	cld
	movq %cr4, %rax
	orq $CR4_OSXSAVE, %rax
	movq %rax, %cr4
	xorl %ecx, %ecx
	movl $7, %eax			# x87, SSE and AVX
	xorl %edx, %edx
	xsetbv
load:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups vector_values + 32 * \n, %ymm\n
	.endr
park:
	incq rounds
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups %ymm\n, seen + 32 * \n
	.endr
	movl $seen, %esi
	movl $vector_values, %edi
	movl $16 * 32 / 8, %ecx
	repe cmpsq
	je park
	incq failures
	movl $seen, %esi		# what was wrong, for the debugger
	movl $wrong, %edi
	movl $16 * 32 / 8, %ecx
	rep movsq
	jmp load
park_end:

	.data
	.balign 32
vector_values:
	.set i, 0
	.rept 16 * 32
	.byte (i * 167 + (i >> 8) * 59 + 13) & 0xff
	.set i, i + 1
	.endr
seen:	.fill 16 * 32
wrong:	.fill 16 * 32
rounds:	.quad 0
failures:
	.quad 0

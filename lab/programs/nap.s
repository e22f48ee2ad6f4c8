# A program for guests that sleeps for 10 ms at a time, for ever, and does nothing else:
# what it takes of an emulated CPU is not worth mentioning.

	.set SYS_nanosleep, 35

	.text
	.globl _start
_start:
	movl $SYS_nanosleep, %eax
	leaq nap(%rip), %rdi
	xorl %esi, %esi
	syscall
	jmp _start

	.data
	.balign 8
nap:
	.quad 0, 10000000

# A program for guests that traps itself, by int3 and by single steps, for ever.
# Now and then it prints what its signal handler has counted:
#   traps BREAKPOINTS STEPS OTHERS
# Each round has one breakpoint and six steps.

	.set TF, 1 << 8
	.set SIGTRAP, 5
	.set SI_KERNEL, 0x80	# si_code of an int3
	.set TRAP_TRACE, 2	# and of a single step
	.set SA_SIGINFO, 4
	.set SA_RESTORER, 0x04000000
	.set SYS_write, 1
	.set SYS_rt_sigaction, 13
	.set SYS_rt_sigreturn, 15
	.set SYS_nanosleep, 35
	.set ROUNDS, 50		# between two lines

	.text
	.globl _start
_start:
	movl $SYS_rt_sigaction, %eax
	movl $SIGTRAP, %edi
	leaq action(%rip), %rsi
	xorl %edx, %edx
	movl $8, %r10d
	syscall
again:
	movl $ROUNDS, %ebx
round:
	int3
	pushfq
	orq $TF, (%rsp)
	popfq
	nop			# the first that traps
	nop
	nop
	pushfq
	andq $~TF, (%rsp)
	popfq			# the last
	movl $SYS_nanosleep, %eax
	leaq nap(%rip), %rdi
	xorl %esi, %esi
	syscall
	decl %ebx
	jnz round

	leaq line_end(%rip), %rdi
	movb $'\n', -1(%rdi)
	decq %rdi
	movq others(%rip), %rax
	call number
	movq steps(%rip), %rax
	call number
	movq breakpoints(%rip), %rax
	call number
	subq $5, %rdi
	movl $0x70617274, (%rdi)	# trap
	movb $'s', 4(%rdi)
	leaq line_end(%rip), %rdx
	subq %rdi, %rdx
	movq %rdi, %rsi
	movl $1, %edi
	movl $SYS_write, %eax
	syscall
	jmp again

# number puts a blank and rax in decimal in front of rdi.
number:
	movl $10, %ecx
1:	xorl %edx, %edx
	divq %rcx
	addb $'0', %dl
	decq %rdi
	movb %dl, (%rdi)
	testq %rax, %rax
	jnz 1b
	decq %rdi
	movb $' ', (%rdi)
	ret

# handler(signal, siginfo, context)
handler:
	movl 8(%rsi), %eax
	cmpl $SI_KERNEL, %eax
	je 1f
	cmpl $TRAP_TRACE, %eax
	je 2f
	incq others(%rip)
	ret
1:	incq breakpoints(%rip)
	ret
2:	incq steps(%rip)
	ret

restorer:
	movl $SYS_rt_sigreturn, %eax
	syscall

	.data
	.balign 8
action:
	.quad handler, SA_SIGINFO | SA_RESTORER, restorer, 0
nap:
	.quad 0, 10000000

	.bss
	.balign 8
breakpoints:
	.skip 8
steps:
	.skip 8
others:
	.skip 8
line:
	.skip 128
line_end:

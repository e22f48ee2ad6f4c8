# A program for guests that traps itself, by int3, by single steps and by a debug
# register, for ever. Now and then it prints what its signal handler has counted, and
# what the kernel has of a hardware breakpoint on one of its variables:
#   traps BREAKPOINTS STEPS OTHERS WRITES
# Each round has one breakpoint, six steps and one write. Without hardware breakpoints
# (perf_event_open) it ends at once.

	.set TF, 1 << 8
	.set SIGTRAP, 5
	.set SI_KERNEL, 0x80	# si_code of an int3
	.set TRAP_TRACE, 2	# and of a single step
	.set SA_SIGINFO, 4
	.set SA_RESTORER, 0x04000000
	.set SYS_read, 0
	.set SYS_write, 1
	.set SYS_rt_sigaction, 13
	.set SYS_rt_sigreturn, 15
	.set SYS_nanosleep, 35
	.set SYS_exit, 60
	.set SYS_perf_event_open, 298
	.set PERF_TYPE_BREAKPOINT, 5
	.set EXCLUDE_KERNEL, 1 << 5	# of struct perf_event_attr
	.set HW_BREAKPOINT_W, 2
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
	movl $SYS_perf_event_open, %eax
	leaq event(%rip), %rdi
	xorl %esi, %esi		# this process
	movq $-1, %rdx		# on any CPU
	movq $-1, %r10
	xorl %r8d, %r8d
	syscall
	testq %rax, %rax
	js fail
	movl %eax, %r12d
again:
	movl $ROUNDS, %ebx
round:
	int3
	incq written(%rip)
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

	movl $SYS_read, %eax
	movl %r12d, %edi
	leaq writes(%rip), %rsi
	movl $8, %edx
	syscall
	leaq line_end(%rip), %rdi
	movb $'\n', -1(%rdi)
	decq %rdi
	movq writes(%rip), %rax
	call number
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

fail:	movl $SYS_exit, %eax
	movl $1, %edi
	syscall

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
event:				# struct perf_event_attr, as Linux 2.6.39 has it
	.long PERF_TYPE_BREAKPOINT, 72
	.quad 0, 0, 0, 0, EXCLUDE_KERNEL
	.long 0, HW_BREAKPOINT_W
	.quad written, 8

	.bss
	.balign 8
written:
	.skip 8
writes:
	.skip 8
breakpoints:
	.skip 8
steps:
	.skip 8
others:
	.skip 8
line:
	.skip 128
line_end:

# The program that the fake target of NewProgram executes. Built by build.sh.

	.cfi_sections .debug_frame
	.text
	.globl _start
	.type _start, @function
_start:
	.cfi_startproc
	.cfi_undefined %rip
	call main
	hlt
	.cfi_endproc
	.size _start, . - _start

	.type main, @function
main:
	.cfi_startproc
	push %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
.Lround:
	nop; nop; nop			# a line of three instructions
	call bump
	mov $3, %ecx
.Lspin:
	dec %ecx
	jnz .Lspin
	incq rounds(%rip)
	jmp .Lround
	.cfi_endproc
	.size main, . - main

	.type bump, @function
bump:
	.cfi_startproc
	push %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
	incq counter(%rip)
	mov counter(%rip), %rax
	pop %rbp
	.cfi_def_cfa %rsp, 8
	ret
	.cfi_endproc
	.size bump, . - bump

	.data
	.globl counter, rounds
	.type counter, @object
	.size counter, 8
counter: .quad 0
	.type rounds, @object
	.size rounds, 8
rounds:	.quad 0

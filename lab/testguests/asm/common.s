# What all test guests have in common: the entry in 32-bit protected mode, the
# pattern in memory, and the values of registers. A guest's own file includes
# this one, and has mode_entry.
#
# Sections named below are of the SDM, volume 3A, unless they say otherwise.

# Where the pattern lies (package testguests has the same numbers).
	.set LOW_END,       0x00008000	# from 0
	.set PATTERN_START, 0x00400000
	.set PATTERN_END,   0x00c00000
	.ifndef MEMORY_END
	.set MEMORY_END,    0x02000000	# and the page below it
	.endif

# Control bits (2.5, 2.2.1).
	.set CR0_PE, 1 << 0
	.set CR0_MP, 1 << 1
	.set CR0_ET, 1 << 4
	.set CR0_NE, 1 << 5
	.set CR0_WP, 1 << 16
	.set CR0_PG, 1 << 31
	.set CR0, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP
	.set CR4_PSE, 1 << 4
	.set CR4_PAE, 1 << 5
	.set CR4_OSFXSR, 1 << 9
	.set CR4_OSXMMEXCPT, 1 << 10
	.set CR4_OSXSAVE, 1 << 18
	.set CR4, CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
	.set EFER_SCE, 1 << 0
	.set EFER_LME, 1 << 8
	.set EFER_NXE, 1 << 11
	.set MSR_EFER, 0xc0000080
	.set MSR_FS_BASE, 0xc0000100
	.set MSR_GS_BASE, 0xc0000101
	.set MSR_KERNEL_GS_BASE, 0xc0000102

# Bits of a page-table entry (4.5). Accessed and dirty are set from the start,
# so that no walk of the CPU's changes a table.
	.set P, 1 << 0
	.set RW, 1 << 1
	.set US, 1 << 2
	.set PS, 1 << 7
	.set PAT, 1 << 7	# in the last level
	.set AD, 1 << 5 | 1 << 6
	.set SOFT, 7 << 9	# ignored by the CPU
	.set TABLE, P | RW | US | AD

# Selectors of the table of descriptors at the end.
	.set CODE32, 0x08
	.set DATA32, 0x10
	.set CODE16, 0x18
	.set DATA16, 0x20
	.set FS_SEL, 0x28 | 3
	.set GS_SEL, 0x30 | 3
	.set CODE64, 0x38
	.set USER_CODE32, 0x40 | 3
	.set USER_DATA32, 0x48 | 3
	.set OTHER_DATA32, 0x50

# CF PF AF ZF SF DF OF and IOPL 3; interrupts are off.
	.set FLAGS, 0x3cd7

# Loads the n-th value of general registers.
	.set VALUE, 0x0123456789abcdef
	.set STEP, 0x1111111111111111
	.macro value32 n:req, reg:req
	movl $((VALUE ^ \n * STEP) & 0xffffffff), %\reg
	.endm
	.macro value64 n:req, reg:req
	movabsq $(VALUE ^ \n * STEP), %\reg
	.endm
	.macro values32
	value32 0, eax
	value32 1, ebx
	value32 2, ecx
	value32 3, edx
	value32 4, esi
	value32 5, edi
	value32 6, ebp
	value32 7, esp
	.endm

# Loads a model-specific register.
	.macro msr number:req, value:vararg
	movl $\number, %ecx
	movl $((\value) & 0xffffffff), %eax
	movl $((\value) >> 32), %edx
	wrmsr
	.endm

# Loads a control or debug register, in 32-bit code.
	.macro control reg:req, value:vararg
	movl $(\value), %eax
	movl %eax, %\reg
	.endm

# Where a guest stays. With interrupts off, HLT would shut the domain down.
	.macro park_here
park:
	pause
	jmp park
park_end:
	.endm

# Fills whole pages with the pattern, in which each aligned word tells its
# physical address: a = address * MULTIPLIER; word = a ^ a >> 15.
	.set MULTIPLIER, 0x9e3779b1
	.macro fill start:req, end:req
	movl $(\start), %edi
	movl $(\end), %ecx
	call fill_pages
	.endm

# Lines of the table of virtual addresses that a guest reads through its own
# CPU, between probes and probes_end.
	.macro probe addresses:vararg
	.irp address, \addresses
	.quad \address, 0
	.endr
	.endm

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18		# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long entry

	.text
	.code32
	.global entry
entry:
	cli
	cld
	lgdt descriptors_pointer
	ljmp $CODE32, $1f
1:	movl $DATA32, %eax
	movl %eax, %ds
	movl %eax, %ss
	movl $OTHER_DATA32, %eax
	movl %eax, %es
	movl $FS_SEL, %eax
	movl %eax, %fs
	movl $GS_SEL, %eax
	movl %eax, %gs
	movl $stack_end, %esp

	fill 0, LOW_END
	fill PATTERN_START, PATTERN_END
	fill (MEMORY_END-0x1000), MEMORY_END
	.ifdef FILL_MORE
	fill (FILL_MORE-0x1000), (FILL_MORE+0x1000)
	fill (FILL_LAST-0x1000), FILL_LAST
	.endif

	control cr0, CR0
	control cr2, 0xc2c3c4c5
	control cr4, CR4
	control dr0, PATTERN_START + 0x10	# breakpoints where no code runs
	control dr1, PATTERN_START + 0x11
	control dr2, PATTERN_START + 0x1012
	control dr3, PATTERN_START + 0x2013
	control dr6, 0xffff0ff1
	control dr7, 0x481		# L0 and G3
	msr MSR_KERNEL_GS_BASE, 0x00007f0011223344

	# x87, SSE and AVX on (2.6), all x87 registers and the first 8 others.
	xorl %ecx, %ecx
	movl $7, %eax
	xorl %edx, %edx
	xsetbv
	fninit
	.irp n, 7, 6, 5, 4, 3, 2, 1, 0
	fldt x87_values + 16 * \n
	.endr
	fldcw x87_control
	ldmxcsr mxcsr_value
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	vmovups vector_values + 32 * \n, %ymm\n
	.endr
	jmp mode_entry

fill_pages:
	imull $MULTIPLIER, %edi, %eax
	movl %eax, %edx
	shrl $15, %edx
	xorl %eax, %edx
	movl %edx, (%edi)
	addl $4, %edi
	cmpl %ecx, %edi
	jne fill_pages
	ret

# Reads a word at each address of the table.
	.macro read_probes
	movl $probes, %esi
1:	movl (%esi), %ebx
	movl (%ebx), %eax
	movl %eax, 8(%esi)
	addl $16, %esi
	cmpl $probes_end, %esi
	jne 1b
	.endm

	.data
	.balign 8
descriptors:				# 3.4.5
	.quad 0
	.quad 0x00cf9b000000ffff	# CODE32
	.quad 0x00cf93000000ffff	# DATA32
	.quad 0x00009b008030ffff	# CODE16, base 0x8030
	.quad 0x000093000000ffff	# DATA16
	.quad 0x12cff3345678ffff	# FS_SEL, base 0x12345678
	.quad 0x9acff3bcdef0ffff	# GS_SEL, base 0x9abcdef0
	.quad 0x00af9b000000ffff	# CODE64
	.quad 0x00cffb000000ffff	# USER_CODE32
	.quad 0x00cff3000000ffff	# USER_DATA32
	.quad 0x00cf93000000ffff	# OTHER_DATA32
descriptors_end:
descriptors_pointer:
	.word descriptors_end - descriptors - 1
	.long descriptors
x87_control:
	.word 0xb7f			# rounds up, all exceptions masked
mxcsr_value:
	.long 0x1fa0			# all masked, precision flag set
	.balign 32
x87_values:				# 10 bytes each, valid and of growing size
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	.quad 0xc90fdaa22168c235 + \n
	.quad 0x4000 + \n
	.endr
vector_values:
	.set i, 0
	.rept 16 * 32
	.byte (i * 167 + (i >> 8) * 59 + 13) & 0xff
	.set i, i + 1
	.endr
	.balign 16
	.fill 256
stack_end:

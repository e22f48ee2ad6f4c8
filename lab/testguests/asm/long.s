# A guest in 64-bit mode, with more than a gigabyte of memory, so that a page of
# 1 GB has some behind all of it.

	.set MEMORY_END, 0x42000000
	.set FILL_MORE, 0x20000000	# the middle and the end of the gigabyte
	.set FILL_LAST, 0x40000000
	.set PROBE_LAST, 0xffff90007ffffffc
	.include "common.s"
	.include "tables64.s"

	msr MSR_FS_BASE, 0x0000123456789abc
	msr MSR_GS_BASE, 0xffff8a0bcdef0123
	movabsq $0xffffc2c3c4c5c6c7, %rax
	movq %rax, %cr2
	movabsq $0xffff900000000020, %rax
	movq %rax, %dr2
	pushq $FLAGS
	popfq
	value64 0, rax
	value64 1, rbx
	value64 2, rcx
	value64 3, rdx
	value64 4, rsi
	value64 5, rdi
	value64 6, rbp
	value64 7, rsp
	park_here

# A guest in 32-bit protected mode without paging.

	.include "common.s"

	.text
mode_entry:
	read_probes
	pushl $FLAGS
	popfl
	values32
	park_here

	.data
	.balign 16
probes:
	probe 0, 0x7ffc, PATTERN_START, PATTERN_END-4, MEMORY_END-4
probes_end:

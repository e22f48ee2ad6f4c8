# Page tables that the paged guests have in common. Before it is included, WIDE
# says whether entries have 8 bytes (SDM vol. 3A, 4.4 and 4.5) or 4 (4.3).

	.if WIDE
	.set NX, 1 << 63
	.set ENTRIES, 512
	.set ENTRY_SIZE, 8
	.macro entry_of value:vararg
	.quad \value
	.endm
	.else
	.set NX, 0
	.set ENTRIES, 1024
	.set ENTRY_SIZE, 4
	.macro entry_of value:vararg
	.long \value
	.endm
	.endif

# Fills a table with absent entries up to number n.
	.macro until n:req, table:req
	.fill \n - (. - \table) / ENTRY_SIZE, ENTRY_SIZE, 0
	.endm

	.data
	.balign 4096
# The first 8 pages, and the second megabyte, where this program is: each page
# at its physical address.
table_low:
	.set frame, 0
	.rept 8
	entry_of frame + TABLE
	.set frame, frame + 0x1000
	.endr
	until 256, table_low
	.set frame, 0x100000
	.rept 256
	entry_of frame + TABLE
	.set frame, frame + 0x1000
	.endr
	until ENTRIES, table_low

# Neighbours here are none in physical memory.
table_window:
	entry_of 0x400000 + TABLE
	entry_of 0x7ff000 + P + AD + NX		# read-only, for the kernel
	entry_of 0x401000 + TABLE + SOFT
	entry_of 0
	entry_of 0x402000 + TABLE
	entry_of 0x400000 + TABLE + NX		# as page 0
	entry_of TABLE				# frame 0
	entry_of 0x403000 + RW + US		# not present
	entry_of 0x403000 + TABLE
	entry_of 0xbff000 + TABLE + PAT
	entry_of 0x80000000 + TABLE		# no memory there
	until (ENTRIES-1), table_window
	entry_of 0x404000 + TABLE

# The end of the address space.
table_top:
	until (ENTRIES-2), table_top
	entry_of 0x405000 + TABLE
	entry_of 0x406000 + TABLE

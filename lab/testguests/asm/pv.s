# What PV guests have in common: the notes by which Xen's builder knows them (Xen
# public header elfnote.h).

	.macro note type:req, desc:vararg
	.balign 4
	.long 4, 2f - 1f, \type
	.asciz "Xen"
1:	\desc
2:
	.endm
	.section .note.xen, "a", @note
	note 1, .long entry		# XEN_ELFNOTE_ENTRY
	note 3, .long 0			# XEN_ELFNOTE_VIRT_BASE
	note 5, .asciz "xen-3.0"	# XEN_ELFNOTE_XEN_VERSION
	note 6, .asciz "test"		# XEN_ELFNOTE_GUEST_OS
	note 8, .asciz "generic"	# XEN_ELFNOTE_LOADER
	note 9, .asciz "yes"		# XEN_ELFNOTE_PAE_MODE, of 32 bits only

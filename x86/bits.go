// This file names the bits of the registers that decide how memory is read.

package x86

// Bits of CR0 (SDM vol. 3A, section 2.5).
const (
	CR0PE uint64 = 1 << 0  // protection enable
	CR0PG uint64 = 1 << 31 // paging
)

// Bits of CR4 (SDM vol. 3A, section 2.5).
const (
	CR4PSE  uint64 = 1 << 4  // page size extensions: 4 MB pages in 2-level paging
	CR4PAE  uint64 = 1 << 5  // physical address extension
	CR4LA57 uint64 = 1 << 12 // 57-bit linear addresses: 5-level paging
)

// Bits of IA32_EFER (SDM vol. 3A, section 2.2.1).
const EFERLMA uint64 = 1 << 10 // IA-32e mode active

// Bits of RFLAGS (SDM vol. 1, section 3.4.3).
const (
	RFLAGSTF uint64 = 1 << 8 // trap after the next instruction
	RFLAGSIF uint64 = 1 << 9
	RFLAGSRF uint64 = 1 << 16 // no instruction breakpoint at the next instruction
	RFLAGSVM uint64 = 1 << 17 // virtual-8086 mode
)

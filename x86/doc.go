// Package x86 knows the processor and nothing of Xen: registers, control bits
// and page-table walks over tables that the caller supplies.
//
// Facts are from the Intel 64 and IA-32 Architectures Software Developer's
// Manual (SDM), volume 3A, chapters 2 (control registers) and 4 (paging).
package x86

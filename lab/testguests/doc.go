// Package testguests has tiny guests that put a CPU into one mode each, lay a
// pattern at chosen addresses, load known values into all registers, and stay
// there. What a debugger must see of them is here too, as data, and written
// down apart from their page tables.
//
// They are assembly, in asm, built by the machine's binutils in a moment. They
// boot as PVH guests ([lab.Host.CreateKernelGuest]) on a CPU with AVX
// ([lab.VectorCPU]); Vectors and PV32 are PV guests.
//
// Section numbers are the SDM's, volume 3A.
package testguests

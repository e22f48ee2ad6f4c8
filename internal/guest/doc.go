// Package guest is a debuggee: a domain with its vCPUs, their registers, and
// memory by virtual address.
//
// It is the only place, beside the choice of how to stop a guest, that tells
// paravirtual from hardware-virtualized guests. The kind decides two things
// once, at Attach: the paging mode (a PV guest always pages, whatever its
// control registers say) and the kind of frame that its page tables hold
// (machine frames in a PV guest, guest frames in the others). The two kinds of
// frame are different types all the way down to the mapping call.
//
// While the guest is paused, a frame is mapped once and an address is
// translated once. Resume drops both.
package guest

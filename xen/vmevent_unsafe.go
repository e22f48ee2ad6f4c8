// This file reads and writes the counters of a ring that the hypervisor reads
// and writes too.

package xen

import (
	"sync/atomic"
	"unsafe"
)

// counter gives a counter within a page.
// Preconditions: offset is a multiple of 4 within the page.
func counter(page []byte, offset int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&page[offset]))
}

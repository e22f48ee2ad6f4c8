// This file gives the counters of a ring that others read and write at the same
// time.

package xentest

import (
	"sync/atomic"
	"unsafe"
)

// counter gives the counter at an offset.
func (r *ring) counter(offset int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&r.page[offset]))
}

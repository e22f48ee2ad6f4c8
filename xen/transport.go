// This file separates what a Host asks from how it reaches the hypervisor: the
// kernel's privcmd device, or the fake of package xentest.

package xen

// A Transport carries hypercalls and foreign mappings. Its methods may be
// called from several goroutines, but Buffer's memory belongs to whoever makes
// the call: a Host guards it with a lock.
type Transport interface {
	// Hypercall makes a hypercall and gives its result. A negative result is an
	// error of type unix.Errno instead. Pointers among the arguments are
	// addresses within Buffer.
	Hypercall(op uint64, args [5]uint64) (int64, error)
	// Buffer gives memory that the hypervisor can reach, at least 64 KB, always
	// the same.
	Buffer() []byte
	// Map maps frames of a domain next to each other, for reading and, if write
	// is set, for writing. It sets errs[i] to 0 or a negative errno for each
	// frame; a frame with an errno must not be touched.
	// Preconditions: len(frames) == len(errs), and neither is 0.
	Map(domain uint16, frames []uint64, errs []int32, write bool) ([]byte, error)
	// Unmap takes back what Map gave.
	Unmap(mem []byte) error
	// Close releases the transport. Mappings stay valid.
	Close() error
}

// bufferSize is the size of the memory shared with the hypervisor: one page for
// an operation's structure, the rest for what it points to.
const (
	bufferSize    = 16 * PageSize
	payloadOffset = PageSize
	maxPayload    = bufferSize - payloadOffset
)

// Hypercall numbers (Xen public header xen.h).
const (
	hypercallMMUUpdate = 1
	hypercallMemoryOp  = 12
	hypercallVersion   = 17
	hypercallHVMOp     = 34
	hypercallSysctl    = 35
	hypercallDomctl    = 36
	hypercallDMOp      = 41
)

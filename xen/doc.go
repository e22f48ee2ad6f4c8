// Package xen speaks to the hypervisor from dom0, in pure Go: hypercalls,
// foreign mappings and event channels through the kernel's devices under
// /dev/xen.
//
// It is the only package that knows interface versions and structure layouts.
// They stand in tables (releases, in version.go), chosen once by Open. Ask a
// Host what it can do (Quirks), never which version it is.
//
// # Hypercall buffers
//
// The hypervisor reads and writes a caller's memory through the live page
// tables and never faults a page in, so what a hypercall points to must not
// move or be swapped. A Host keeps one buffer for that, mapped from
// /dev/xen/hypercall (Linux 4.18 and later), which the kernel pins. On older
// kernels it falls back to locked anonymous memory, which compaction may still
// move: a call then fails with EFAULT now and then, and is made again.
//
// # Errors
//
// Every error of a call is an *OpError that names the operation and the domain
// and wraps the errno and, where one fits, one of the sentinels of this
// package.
package xen

// Package xentest is a hypervisor that exists only in this process: a
// xen.Transport over domains made of ordinary memory, for tests of what stands
// on package xen.
//
// It is strict where the real one is: interface versions, counted pauses,
// errnos per mapped frame. A mapping is a true alias of the domain's memory, its
// bad frames fault, and so does all of it once it is unmapped. It tells what a
// test left behind (Check) and fails calls on demand (Fail).
//
//	x := xentest.New(t, xentest.Config{Release: "4.17"})
//	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: xen.PV})
//	pt := d.NewPageTables(x86.FourLevel)
//	pt.MapPage(0xffffffff81000000, []byte("kernel text"))
//	d.UsePageTables(pt)
//	host := x.Host()
//
// Facts are from Xen's public headers and from reading the hypervisor of the
// releases it plays.
package xentest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
)

// Config says what hypervisor to play. The zero value is a Xen 4.17 as
// distributions build it.
type Config struct {
	Release string // "4.14" to "4.22"; empty for "4.17"
	Extra   string // rest of the version number; empty for ".5"
	// Domctl and Sysctl are the interface versions that it takes; 0 for the
	// release's own.
	Domctl, Sysctl uint32
	// NoSysctl takes XEN_SYSCTL out, as CONFIG_SYSCTL=n does.
	NoSysctl bool
	// GDBSX puts the gdbsx operations in, as CONFIG_GDBSX=y does.
	GDBSX bool
	// Intel makes it a processor with a monitor trap flag.
	Intel bool
	// NoXSAVE makes it a processor without XSAVE. Else it has x87, SSE and AVX.
	NoXSAVE bool
}

// A Hypervisor is a fake hypervisor. Its methods, and those of its domains, may
// be called from several goroutines. Fields of its domains and vCPUs may be used
// while no call is under way, or within Do.
type Hypervisor struct {
	t       testing.TB
	config  Config
	release release

	mu       sync.Mutex
	machine  machine             // guarded by mu
	domains  map[uint16]*Domain  // guarded by mu
	mappings map[uintptr]mapping // by address; guarded by mu
	calls    map[Op]int          // guarded by mu
	faults   []fault             // guarded by mu
	maps     []MapCall           // guarded by mu
	misuse   []string            // guarded by mu
}

// mapping is a Map that no Unmap has followed yet.
type mapping struct {
	size   int
	domain uint16
}

// A MapCall is a call of Map.
type MapCall struct {
	Domain xen.DomID
	Frames []uint64
	Write  bool
}

// New makes a hypervisor with a domain 0 that has one vCPU and no memory. At the
// end of the test it is checked (see Check) and removed.
func New(t testing.TB, config Config) *Hypervisor {
	t.Helper()
	if config.Release == "" {
		config.Release = "4.17"
	}
	if config.Extra == "" {
		config.Extra = ".5"
	}
	i := slices.IndexFunc(releases, func(r release) bool { return r.name() == config.Release })
	if i < 0 {
		t.Fatalf("xentest: no Xen %s", config.Release)
	}
	x := &Hypervisor{
		t:        t,
		config:   config,
		release:  releases[i],
		domains:  map[uint16]*Domain{},
		mappings: map[uintptr]mapping{},
		calls:    map[Op]int{},
	}
	if config.Domctl != 0 {
		x.release.domctl = config.Domctl
	}
	if config.Sysctl != 0 {
		x.release.sysctl = config.Sysctl
	}
	if err := x.machine.open(); err != nil {
		t.Fatalf("xentest: memory: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		x.Check(t)
		x.mu.Lock()
		defer x.mu.Unlock()
		for addr, m := range x.mappings {
			unmapAt(addr, m.size)
		}
		if err := x.machine.close(); err != nil {
			t.Errorf("xentest: memory: %v", err)
		}
	})
	x.AddDomain(DomainConfig{ID: 0, Kind: xen.PV})
	return x
}

// Do calls f while no call is under way. f must not call methods of the
// hypervisor or its domains.
func (x *Hypervisor) Do(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
}

// Transport gives a new connection to the hypervisor.
func (x *Hypervisor) Transport() xen.Transport {
	x.t.Helper()
	c, err := newConn(x)
	if err != nil {
		x.t.Fatalf("xentest: %v", err)
	}
	return c
}

// Host opens the hypervisor, which must not fail, and closes it at the end of
// the test.
func (x *Hypervisor) Host() *xen.Host {
	x.t.Helper()
	h, err := xen.NewHost(x.Transport())
	if err != nil {
		x.t.Fatalf("xentest: %v", err)
	}
	x.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			x.t.Errorf("xentest: close: %v", err)
		}
	})
	return h
}

// Check reports as test errors what was left behind or misused: mappings that
// are not unmapped, pauses that are not taken back (or taken back too often), rings
// of vm_events and vCPUs that wait for an answer, and calls that the contract of xen.Transport forbids.
func (x *Hypervisor) Check(t testing.TB) {
	t.Helper()
	for _, s := range x.Leaks() {
		t.Error("xentest: " + s)
	}
}

// Leaks gives what Check reports, as sentences.
func (x *Hypervisor) Leaks() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	leaks := slices.Clone(x.misuse)
	for _, addr := range slices.Sorted(maps.Keys(x.mappings)) {
		m := x.mappings[addr]
		leaks = append(leaks, fmt.Sprintf("%d frames of domain %d are still mapped at %#x", m.size/xen.PageSize, m.domain, addr))
	}
	for _, id := range slices.Sorted(maps.Keys(x.domains)) {
		d := x.domains[id]
		if d.callPauses != 0 {
			leaks = append(leaks, fmt.Sprintf("domain %d: %d pauses more than unpauses", id, d.callPauses))
		}
		if d.callDebug {
			leaks = append(leaks, fmt.Sprintf("domain %d: debugging is on", id))
		}
		if d.ring != nil {
			leaks = append(leaks, fmt.Sprintf("domain %d: its ring of vm_events is left", id))
		}
		for n, v := range d.vcpus {
			if v.pauses != 0 {
				leaks = append(leaks, fmt.Sprintf("domain %d: vCPU %d has %d pauses of its own", id, n, v.pauses))
			}
			if v.event != 0 {
				leaks = append(leaks, fmt.Sprintf("domain %d: an event of vCPU %d was not asked for", id, n))
			}
			if v.Waiting > 0 {
				leaks = append(leaks, fmt.Sprintf("domain %d: vCPU %d waits for the answer of an event", id, n))
			}
			if v.SingleStep {
				leaks = append(leaks, fmt.Sprintf("domain %d: vCPU %d is single-stepped", id, n))
			}
		}
	}
	return leaks
}

// Mapped gives how many mappings are held now.
func (x *Hypervisor) Mapped() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.mappings)
}

// MapCalls gives all calls of Map so far.
func (x *Hypervisor) MapCalls() []MapCall {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.maps)
}

// An Op is an operation that can be counted and made to fail: a hypercall's
// operation by its name in Xen's public headers, or one of the others.
type Op string

// The operations.
const (
	OpAny                  Op = "any"
	OpVersion              Op = "xen_version"
	OpMaximumGPFN          Op = "XENMEM_maximum_gpfn"
	OpPauseDomain          Op = "pausedomain"
	OpUnpauseDomain        Op = "unpausedomain"
	OpGetDomainInfo        Op = "getdomaininfo"
	OpSetVCPUContext       Op = "setvcpucontext"
	OpGetVCPUContext       Op = "getvcpucontext"
	OpGetVCPUInfo          Op = "getvcpuinfo"
	OpSetDebugging         Op = "setdebugging"
	OpGetHVMContext        Op = "gethvmcontext"
	OpSetHVMContext        Op = "sethvmcontext"
	OpGetAddressSize       Op = "get_address_size"
	OpGetHVMContextPartial Op = "gethvmcontext_partial"
	OpSetVCPUExtState      Op = "setvcpuextstate"
	OpGetVCPUExtState      Op = "getvcpuextstate"
	OpGDBSXPauseVCPU       Op = "gdbsx_pausevcpu"
	OpGDBSXUnpauseVCPU     Op = "gdbsx_unpausevcpu"
	OpGDBSXDomStatus       Op = "gdbsx_domstatus"
	OpGetDomainInfoList    Op = "getdomaininfolist"
	OpDebugOp              Op = "debug_op"
	OpVMEventOp            Op = "vm_event_op"
	OpMonitorOp            Op = "monitor_op"
	OpHVMGetParam          Op = "HVMOP_get_param"
	OpInjectEvent          Op = "XEN_DMOP_inject_event"
	OpModifiedMemory       Op = "XEN_DMOP_modified_memory"
	OpMMUUpdate            Op = "mmu_update"
	OpPopulate             Op = "XENMEM_populate_physmap"
	OpDecrease             Op = "XENMEM_decrease_reservation"
	OpMap                  Op = "map"
	OpUnmap                Op = "unmap" // takes effect even where it is made to fail
)

// fault is an order to fail.
type fault struct {
	op    Op
	left  int // calls until it happens; 0: it happens at each
	errno unix.Errno
}

// Fail makes the n-th call of an operation from now on fail, without effect;
// n is 1 for the next. OpAny counts all operations.
func (x *Hypervisor) Fail(op Op, n int, errno unix.Errno) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.faults = append(x.faults, fault{op, n, errno})
}

// FailAlways makes all calls of an operation from now on fail, without effect.
func (x *Hypervisor) FailAlways(op Op, errno unix.Errno) { x.Fail(op, 0, errno) }

// ClearFaults takes all Fail and FailAlways back.
func (x *Hypervisor) ClearFaults() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.faults = nil
}

// Calls gives how often an operation was called, failed calls included. Calls
// that name an unknown operation, or the wrong interface version, do not count.
func (x *Hypervisor) Calls(op Op) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.calls[op]
}

// enter counts a call and gives the errno that it is to fail with, or 0.
// Preconditions: x.mu is held.
func (x *Hypervisor) enter(op Op) unix.Errno {
	x.calls[op]++
	x.calls[OpAny]++
	var errno unix.Errno
	kept := x.faults[:0]
	for _, f := range x.faults {
		if f.op != op && f.op != OpAny {
			kept = append(kept, f)
			continue
		}
		if f.left <= 1 && errno == 0 {
			errno = f.errno
		}
		if f.left != 1 {
			f.left = max(f.left-1, 0)
			kept = append(kept, f)
		}
	}
	x.faults = kept
	return errno
}

// ReleaseMappings unmaps all that is mapped, as the end of a process does.
func (x *Hypervisor) ReleaseMappings() {
	x.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	for addr, m := range x.mappings {
		if err := unmapAt(addr, m.size); err != nil {
			x.t.Fatalf("xentest: %v", err)
		}
	}
	clear(x.mappings)
}

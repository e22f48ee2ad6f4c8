// This file holds what differs between releases of Xen, as one table, and how
// the running one is found in it.
//
// Facts are from Xen's public headers domctl.h and sysctl.h of each release,
// compiled and measured.

package xen

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// infoLayout gives the size of a struct xen_domctl_getdomaininfo and the byte
// offsets of the fields that moved. All others are at fixed offsets.
type infoLayout struct {
	size           int
	emulationFlags int
}

var (
	info104 = infoLayout{size: 104, emulationFlags: 96}  // since 4.10.1
	info112 = infoLayout{size: 112, emulationFlags: 104} // since 4.16: gpaddr_bits
)

// eventLayout gives the version and the size of the records on a ring of
// vm_events. What is used of them has not moved.
type eventLayout struct {
	version uint32
	size    int
}

var (
	event384 = eventLayout{version: 6, size: 384}
	event400 = eventLayout{version: 7, size: 400} // since 4.15: npt_base, vmtrace_pos
)

// release is a row of the table: a release of Xen, its interface versions, the
// layouts that go with them and what it does in its own way.
type release struct {
	major, minor   int
	domctl, sysctl uint32
	info           infoLayout
	event          eventLayout
}

// releases is every release whose layouts are known, oldest first.
var releases = []release{
	{4, 14, 0x12, 0x13, info104, event384},
	{4, 15, 0x13, 0x13, info104, event400},
	{4, 16, 0x14, 0x14, info112, event400},
	{4, 17, 0x15, 0x15, info112, event400},
	{4, 18, 0x16, 0x15, info112, event400},
	{4, 19, 0x17, 0x15, info112, event400},
	{4, 20, 0x17, 0x15, info112, event400},
	{4, 21, 0x17, 0x16, info112, event400},
	{4, 22, 0x18, 0x16, info112, event400},
}

// Version is what the hypervisor says of itself.
type Version struct {
	Major, Minor int
	Extra        string   // rest of the version, as ".5-pre"
	Capabilities []string // guest types, as "xen-3.0-x86_64", "hvm-3.0-x86_64"
	Changeset    string
	Domctl       uint32 // interface version of XEN_DOMCTL
	Sysctl       uint32 // interface version of XEN_SYSCTL; 0 if it has none
}

// String gives the version as "4.17.5".
func (v Version) String() string { return fmt.Sprintf("%d.%d%s", v.Major, v.Minor, v.Extra) }

// Quirks tells what a caller must do differently on this hypervisor.
type Quirks struct {
	// ContextLosesR8toR15: getvcpucontext of a 64-bit guest gives zeros for r8
	// to r15 and setvcpucontext zeroes them (4.21.0 and 4.21.1).
	ContextLosesR8toR15 bool
	// SVMStaleCR2: getvcpucontext of an HVM or PVH guest on AMD's processors
	// gives the CR2 of the last page fault that the hypervisor injected, not the
	// guest's (before 4.20.4, 4.21.2 and 4.22).
	SVMStaleCR2 bool
	// DebugStopsUnsure: gdbsx's calls alone do not mean that SetDebugging stops a
	// domain, which takes CONFIG_CRASH_DEBUG too: without, PV guests get their traps
	// as ever, and HVM and PVH guests lose their int3. With it, nothing tells that a
	// #DB has stopped a vCPU of a PV domain (4.14 to 4.16, debugger_trap_entry in
	// include/asm-x86/debugger.h, which do_debug calls before it sets DR6).
	DebugStopsUnsure bool
}

// quirks works out the quirks of a version.
func (v Version) quirks() Quirks {
	at := func(minor int) bool { return v.Major == 4 && v.Minor == minor }
	patch, _ := strconv.Atoi(digits(strings.TrimPrefix(v.Extra, ".")))
	return Quirks{
		ContextLosesR8toR15: at(21) && patch < 2,
		DebugStopsUnsure:    v.Major == 4 && v.Minor >= 14 && v.Minor <= 16,
		SVMStaleCR2:         v.Major == 4 && v.Minor < 20 || at(20) && patch < 4 || at(21) && patch < 2,
	}
}

// digits gives the leading decimal digits of s.
func digits(s string) string {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return s[:i]
}

// findRelease picks the row of the running hypervisor: the one of its version
// number if its interface versions answer, else any row whose do, since
// distributors carry interfaces back. try asks the hypervisor whether it takes
// a domctl version, with an errno of EACCES for no.
func findRelease(major, minor int, try func(domctl uint32) error) (release, error) {
	order := make([]release, 0, len(releases)+1)
	for _, r := range releases {
		if r.major == major && r.minor == minor {
			order = append(order, r)
		}
	}
	for i := len(releases) - 1; i >= 0; i-- {
		order = append(order, releases[i])
	}
	denied := false
	tried := map[uint32]bool{}
	for _, r := range order {
		if tried[r.domctl] {
			continue
		}
		tried[r.domctl] = true
		switch err := try(r.domctl); {
		case err == nil:
			return r, nil
		case errors.Is(err, unix.EACCES):
			denied = true
		default:
			return release{}, err
		}
	}
	// FLASK denies with EACCES too: then no version at all is let through.
	if denied && order[0].major == major && order[0].minor == minor && len(order) > len(releases) {
		return release{}, fmt.Errorf("hypervisor is Xen %d.%d: %w, or %w", major, minor, ErrDenied, ErrVersion)
	}
	return release{}, fmt.Errorf("hypervisor is Xen %d.%d: %w", major, minor, ErrVersion)
}

// KnownReleases gives the oldest and the newest release of Xen whose layouts are
// known, as "4.14" and "4.22".
func KnownReleases() (oldest, newest string) {
	name := func(r release) string { return fmt.Sprintf("%d.%d", r.major, r.minor) }
	return name(releases[0]), name(releases[len(releases)-1])
}

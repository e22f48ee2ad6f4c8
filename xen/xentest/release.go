// This file says what differs between the releases that can be played.

package xentest

import (
	"fmt"
	"strconv"
	"strings"
)

// release is a release of Xen. It repeats, on purpose, facts of package xen's
// table: a test of one against the other finds a slip in either.
type release struct {
	minor          int
	domctl, sysctl uint32
	infoSize       int // of struct xen_domctl_getdomaininfo
	infoEmulation  int // offset of emulation_flags in it
	eventVersion   uint32
	eventSize      int // of struct vm_event_st
}

var releases = []release{
	{14, 0x12, 0x13, 104, 96, 6, 384},
	{15, 0x13, 0x13, 104, 96, 7, 400},
	{16, 0x14, 0x14, 112, 104, 7, 400},
	{17, 0x15, 0x15, 112, 104, 7, 400},
	{18, 0x16, 0x15, 112, 104, 7, 400},
	{19, 0x17, 0x15, 112, 104, 7, 400},
	{20, 0x17, 0x15, 112, 104, 7, 400},
	{21, 0x17, 0x16, 112, 104, 7, 400},
	{22, 0x18, 0x16, 112, 104, 7, 400},
}

func (r release) name() string { return fmt.Sprintf("4.%d", r.minor) }

// Releases gives the releases that can be played, oldest first, as "4.14".
func Releases() []string {
	var names []string
	for _, r := range releases {
		names = append(names, r.name())
	}
	return names
}

// inexactInfo tells whether getdomaininfo answers about the next domain where
// the one asked for does not exist.
func (r release) inexactInfo() bool { return r.minor <= 17 }

// vectorLost tells whether error_code and entry_vector are not exported.
func (r release) vectorLost() bool { return r.minor >= 21 }

// losesHighGPRs tells whether vCPU contexts lose r8 to r15.
func (x *Hypervisor) losesHighGPRs() bool {
	patch, _ := strconv.Atoi(strings.TrimPrefix(x.config.Extra, "."))
	return x.release.minor == 21 && patch < 2
}

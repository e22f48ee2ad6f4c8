package lab

// The table of Xen releases the lab can boot. A new one is a new row.

import (
	"fmt"
	"sort"
	"strings"
)

// DefaultRelease is the Xen release that an empty Config.Release means.
const DefaultRelease = "4.17"

// A release says where one Xen comes from: a Debian suite holds a hypervisor,
// its tools and a kernel that were made for each other.
type release struct {
	Xen   string // as in the names of Debian's packages
	Suite string
	// Security is the suite of security updates.
	Security string
	// Linux is the kernel's version; for people, the packages decide.
	Linux string
	// DeviceModel is the package of the QEMU that Xen runs for HVM guests,
	// DeviceModelPath that program in it.
	DeviceModel, DeviceModelPath string
	// Shadow tells that the hypervisor has shadow paging.
	Shadow bool
}

var releases = []release{
	{Xen: "4.14", Suite: "bullseye", Security: "bullseye-security", Linux: "5.10",
		DeviceModel: "qemu-system-x86", DeviceModelPath: "usr/bin/qemu-system-i386", Shadow: true},
	{Xen: "4.17", Suite: "bookworm", Security: "bookworm-security", Linux: "6.1",
		DeviceModel: "qemu-system-xen", DeviceModelPath: "usr/libexec/xen-qemu-system-i386"},
	{Xen: "4.20", Suite: "trixie", Security: "trixie-security", Linux: "6.12",
		DeviceModel: "qemu-system-xen", DeviceModelPath: "usr/libexec/xen-qemu-system-i386"},
}

// packages are what apt is asked for; it adds what they depend on.
func (r release) packages() []string {
	return []string{
		"xen-hypervisor-" + r.Xen + "-amd64",
		"xen-utils-" + r.Xen,
		"xenstore-utils",
		"linux-image-amd64",
		"busybox-static",
		"kmod",
		"libgcc-s1",
		"strace",
	}
}

// Releases lists the Xen releases that Config.Release accepts.
func Releases() []string {
	var names []string
	for _, r := range releases {
		names = append(names, r.Xen)
	}
	sort.Strings(names)
	return names
}

func findRelease(xen string) (release, error) {
	if xen == "" {
		xen = DefaultRelease
	}
	for _, r := range releases {
		if r.Xen == xen {
			return r, nil
		}
	}
	return release{}, fmt.Errorf("xen %q is not in the lab, known are %s", xen, strings.Join(Releases(), ", "))
}

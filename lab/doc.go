// Package lab runs real Xen on a machine that has none: it boots the
// hypervisor, a dom0 and guests in QEMU, from Debian's packages alone, with
// no hardware virtualisation and nothing installed on the machine but QEMU. (A
// hypervisor that Debian has no package of, [Config.GDBSX], is built from
// Debian's source, with a compiler.)
//
//	host, err := lab.Start(ctx, lab.Config{})
//	...
//	defer host.Close()
//	guest, err := host.CreateGuest(ctx, lab.GuestConfig{Kind: lab.PV})
//	...
//	res, err := host.Run(ctx, "xl list")
//
// # Hosts
//
// A [Host] is one emulated machine. Several can run side by side, in one
// process or in several. A host dies with the process that started it,
// however that ends.
//
// # Dom0
//
// Dom0 lives in memory: busybox, xl and Xen's other tools, and an agent that
// runs commands ([Host.Run], [Host.Command]) and copies files ([Host.CopyIn],
// [Host.CopyOut]). Its /share is a directory of this machine
// ([Host.ShareDir]), for files that are too large for its memory. A guest's
// core file comes out by [Guest.DumpCore].
//
// # Guests
//
// A [Guest] runs the same kernel as dom0 and counts seconds on its console:
// [Guest.WaitTick] proves that it still runs. PV and PVH guests are loaded by
// xl; HVM guests boot from a disk, through firmware and GRUB, which takes
// minutes on a busy machine.
//
// # Cache
//
// Downloads and images are kept in [CacheDir] and made when they are missing;
// each entry has a manifest.json with the exact versions of its packages.
//
// Tests use package labtest.
package lab

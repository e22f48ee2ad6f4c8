package lab

// HVM guests boot as a bare machine does: firmware, a disk with GRUB on it,
// Debian's bzImage, which unpacks itself to an address of its own choice. What
// that needs beyond the image is a cache entry of its own, which dom0 gets
// when the first such guest is created.

import (
	"cmp"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

//go:embed hvm.go
var hvmSource string

// hvmPackages are what HVM guests need besides [release.packages].
func (r release) hvmPackages() []string {
	return []string{r.DeviceModel, "seabios", "grub-pc-bin", "libgcc-s1"}
}

// Where dom0 keeps the device model and the guests' disks: in memory. (QEMU
// reads disks straight into mapped pages of a guest, which the 9p file system
// does not take.)
const dom0HVM = "/run/hvm"

// deviceModel starts QEMU in dom0 with the libraries it was made for.
const deviceModel = `#!/bin/sh
exec ` + dom0HVM + `/dm/lib/ld-linux-x86-64.so.2 --library-path ` + dom0HVM + `/dm/lib ` + dom0HVM + `/dm/qemu -L ` + dom0HVM + `/dm "$@"
`

// grubConfig is built into GRUB: it goes on with grub.cfg, which is the
// guest's own. GRUB writes to the serial port; Linux does not, for each letter
// there is a way to the device model and back.
const grubConfig = `serial --unit=0 --speed=115200
terminal_output serial
set root=(hd0,msdos1)
configfile /grub.cfg
`

var grubModules = []string{"biosdisk", "part_msdos", "newc", "linux", "serial", "terminal", "normal", "configfile", "echo"}

// Where the disk's one partition starts: behind GRUB.
const (
	sectorSize     = 512
	partitionStart = 2048
)

// buildHVM returns the cache entry for HVM guests of an image:
//
//	dm        for dom0: the device model, its libraries, the firmware
//	grub      the start of a disk, up to its partition
//	vmlinuz   for the partition
//	initrd    for the partition
func (c *cache) buildHVM(ctx context.Context, r release, img image) (string, error) {
	packages, err := c.fetch(ctx, r, "packages-hvm-", r.hvmPackages())
	if err != nil {
		return "", err
	}
	m, err := readManifest(packages)
	if err != nil {
		return "", fmt.Errorf("read manifest: %w", err)
	}
	names := make([]string, 0, len(m.Packages))
	for name, version := range m.Packages {
		names = append(names, name+"="+version)
	}
	sort.Strings(names)
	name := "hvm-" + r.Xen + "-" + key(strings.Join(names, " "), filepath.Base(img.dir), hvmSource)
	return c.get(ctx, name, func(dir string) error {
		b := imageBuilder{release: r, kernel: img.kernel, root: filepath.Join(dir, "root"), dir: dir}
		defer os.RemoveAll(b.root)
		if err := c.unpack(ctx, packages, b.root); err != nil {
			return err
		}
		c.progress.phase("building the disk of hvm guests of xen %s", r.Xen)
		if err := b.deviceModel(); err != nil {
			return fmt.Errorf("collect the device model of xen %s: %w", r.Xen, err)
		}
		if err := b.grub(ctx); err != nil {
			return fmt.Errorf("build grub of xen %s: %w", r.Xen, err)
		}
		if err := gzipFile(filepath.Join(img.dir, "guest.cpio"), filepath.Join(dir, "initrd")); err != nil {
			return err
		}
		main, err := c.fetchPackages(ctx, r)
		if err != nil {
			return err
		}
		deb, err := filepath.Glob(filepath.Join(main, "debs", "linux-image-"+img.kernel+"_*.deb"))
		if err != nil || len(deb) != 1 {
			return fmt.Errorf("no package of linux %s in %s", img.kernel, main)
		}
		if err := c.extractFromDeb(ctx, deb[0], "vmlinuz-"+img.kernel, filepath.Join(dir, "vmlinuz")); err != nil {
			return err
		}
		return m.write(dir)
	})
}

// deviceModel fills dm.
func (b imageBuilder) deviceModel() error {
	dm := filepath.Join(b.dir, "dm")
	if err := os.MkdirAll(filepath.Join(dm, "lib"), 0o755); err != nil {
		return err
	}
	qemu, err := b.find(b.release.DeviceModelPath)
	if err != nil {
		return err
	}
	libs := map[string]string{}
	if err := b.closure(qemu, libs); err != nil {
		return err
	}
	for _, name := range []string{"ld-linux-x86-64.so.2", "libgcc_s.so.1"} {
		if err := b.library(name, libs); err != nil {
			return err
		}
	}
	files := map[string]string{"qemu": qemu}
	for name, path := range libs {
		files["lib/"+name] = path
	}
	for to, from := range map[string]string{
		"bios": "usr/share/seabios/bios-256k.bin",
		// Even without a display it wants to know its keyboard.
		"keymaps/en-us": "usr/share/qemu/keymaps/en-us",
	} {
		if files[to], err = b.find(from); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(files) {
		if err := copyFile(files[name], filepath.Join(dm, name)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dm, "run"), []byte(deviceModel), 0o755)
}

// grub builds the start of a disk: GRUB's boot sector, which loads what is in
// the sectors behind it.
func (b imageBuilder) grub(ctx context.Context) error {
	modules, err := b.find("usr/lib/grub/i386-pc")
	if err != nil {
		return err
	}
	mkimage, err := b.find("usr/bin/grub-mkimage")
	if err != nil {
		return err
	}
	config, core := filepath.Join(b.dir, "grub.cfg"), filepath.Join(b.dir, "core")
	if err := os.WriteFile(config, []byte(grubConfig), 0o644); err != nil {
		return err
	}
	defer os.Remove(config)
	defer os.Remove(core)
	libs := map[string]string{}
	if err := b.library("ld-linux-x86-64.so.2", libs); err != nil {
		return err
	}
	path := filepath.Join(b.root, "lib/x86_64-linux-gnu") + ":" + filepath.Join(b.root, "usr/lib/x86_64-linux-gnu")
	args := append([]string{"--library-path", path, mkimage, "-d", modules, "-O", "i386-pc",
		"-p", "(hd0,msdos1)", "-c", config, "-o", core}, grubModules...)
	if out, err := exec.CommandContext(ctx, libs["ld-linux-x86-64.so.2"], args...).CombinedOutput(); err != nil {
		return fmt.Errorf("grub-mkimage: %w\n%s", err, lastLines(out, 5))
	}
	disk, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		return err
	}
	more, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	disk = append(disk, more...)
	if len(disk) > partitionStart*sectorSize {
		return fmt.Errorf("grub's %d bytes reach into the partition", len(disk))
	}
	return os.WriteFile(filepath.Join(b.dir, "grub"), disk, 0o644)
}

// writeDisk makes a guest's disk. Its partition is a cpio archive, which GRUB
// reads like a file system.
func writeDisk(hvm, path, cmdline string) error {
	grub, err := os.ReadFile(filepath.Join(hvm, "grub"))
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(partitionStart*sectorSize, io.SeekStart); err != nil {
		return err
	}
	c := newCpioWriter(f)
	c.file("grub.cfg", 0o644, fmt.Appendf(nil, `echo loading linux
linux /vmlinuz %s
initrd /initrd
echo starting linux
boot
`, cmdline))
	c.copyFile("vmlinuz", filepath.Join(hvm, "vmlinuz"))
	c.copyFile("initrd", filepath.Join(hvm, "initrd"))
	if err := c.close(); err != nil {
		return err
	}
	setPartition(grub[:sectorSize], partitionStart, uint32(c.written/sectorSize))
	if _, err := f.WriteAt(grub, 0); err != nil {
		return err
	}
	return f.Close()
}

// setPartition writes the partition table of a boot sector: one entry, which
// can be booted from, of no known file system.
func setPartition(sector []byte, start, size uint32) {
	table := sector[0x1be:0x200]
	clear(table)
	table[0], table[4] = 0x80, 0xda
	// The addresses by cylinder, head and sector say: too large for that.
	copy(table[1:], "\xfe\xff\xff")
	copy(table[5:], "\xfe\xff\xff")
	binary.LittleEndian.PutUint32(table[8:], start)
	binary.LittleEndian.PutUint32(table[12:], size)
	copy(table[64:], "\x55\xaa")
}

func gzipFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err := errors.Join(err, z.Close(), out.Close()); err != nil {
		return fmt.Errorf("pack %s: %w", from, err)
	}
	return nil
}

// copyFile copies a file with its mode, and makes its directory.
func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// prepareHVM brings what HVM guests need into dom0, once.
func (h *Host) prepareHVM(ctx context.Context) (dir string, err error) {
	h.hvmMu.Lock()
	defer h.hvmMu.Unlock()
	if h.hvm != "" {
		return h.hvm, nil
	}
	if dir, err = h.cache.buildHVM(ctx, h.release, h.image); err != nil {
		return "", err
	}
	share := filepath.Join(h.ShareDir(), "dm")
	defer os.RemoveAll(share)
	if err := os.CopyFS(share, os.DirFS(filepath.Join(dir, "dm"))); err != nil {
		return "", err
	}
	if _, err := h.Output(ctx, "mkdir -p "+dom0HVM+" && cp -r /share/dm "+dom0HVM); err != nil {
		return "", err
	}
	h.hvm = dir
	return dir, nil
}

// The command line passes through GRUB's shell.
var hvmCmdline = regexp.MustCompile(`^[A-Za-z0-9 ._,:/@%+=-]*$`)

// hvmConfig prepares the guest's disk and returns its configuration file.
func (g *Guest) hvmConfig(ctx context.Context) (config string, err error) {
	c := g.cfg
	// noearly: before it lists devices, Linux looks for an AGP bridge at 8192
	// places, and each is a way to the device model and back.
	cmdline := strings.TrimSpace("console=hvc0 rdinit=/init pci=noearly 8250.nr_uarts=0 no_timer_check " + c.Cmdline)
	if !hvmCmdline.MatchString(cmdline) {
		return "", fmt.Errorf("bad kernel command line %q", cmdline)
	}
	dir, err := g.host.prepareHVM(ctx)
	if err != nil {
		return "", err
	}
	disk := "disk-" + c.Name
	onShare := filepath.Join(g.host.ShareDir(), disk)
	defer os.Remove(onShare)
	if err := writeDisk(dir, onShare, cmdline); err != nil {
		return "", fmt.Errorf("write disk: %w", err)
	}
	if _, err := g.host.Output(ctx, "cp /share/"+disk+" "+g.disk()); err != nil {
		return "", err
	}
	if err := os.Remove(g.host.serialFile(g.cfg.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	g.host.cache.progress.phase("booting hvm guest %s through its firmware", c.Name)
	return fmt.Sprintf(`name = "%s"
type = "hvm"
memory = %d
vcpus = %d
disk = [ "format=raw, vdev=hda, access=rw, backendtype=qdisk, target=%s" ]
hdtype = "ahci"
serial = "file:/share/console/%s"
vga = "none"
vnc = 0
nographic = 1
usb = 0
bios = "seabios"
bios_path_override = "%[6]s/dm/bios"
device_model_version = "qemu-xen"
device_model_override = "%[6]s/dm/run"
on_reboot = "destroy"
on_crash = "preserve"
cpus = "0"
%[7]s
`, c.Name, c.MemoryMB, c.VCPUs, g.disk(), filepath.Base(g.host.serialFile(c.Name)), dom0HVM, c.paging()+c.Extra), nil
}

// disk is the guest's disk in dom0.
func (g *Guest) disk() string { return dom0HVM + "/disk-" + g.cfg.Name }

// serialFile is what an HVM guest's boot loader wrote.
func (h *Host) serialFile(guest string) string {
	return filepath.Join(h.ShareDir(), "console", "serial-"+guest+".log")
}

// hvmReport says, for people, how far an HVM guest got before Linux had its
// console.
func (g *Guest) hvmReport(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	serial, err := os.ReadFile(g.host.serialFile(g.cfg.Name))
	if err != nil {
		serial = []byte(err.Error())
	}
	model, err := g.host.Run(ctx, "tail -n 10 /var/log/xen/qemu-dm-"+g.cfg.Name+".log")
	if err != nil {
		model.Stdout = []byte(err.Error())
	}
	return fmt.Sprintf("its serial port:\n%s\nits device model:\n%s", lastLines(serial, 15),
		cmp.Or(string(model.Stdout), string(model.Stderr)))
}

// destroyCommand is what ends an HVM guest. xl complains when the guest has
// crashed and its device model ended by itself.
func (g *Guest) destroyCommand() string {
	return fmt.Sprintf("rm -f %[1]s; xl destroy %[2]s || { sleep 1; ! xl domid %[2]s >/dev/null 2>&1; }", g.disk(), g.cfg.Name)
}

// unpin gives the guest the CPUs that are not dom0's. Until it has booted it shares
// dom0's: it waits for its device model thousands of times, and going from one to
// the other is faster than waking another emulated CPU.
func (g *Guest) unpin(ctx context.Context) error {
	_, err := g.host.Output(ctx, "xl vcpu-pin "+g.cfg.Name+" all "+notFirst)
	return err
}

// failed adds to an error what helps to understand it.
func (g *Guest) failed(ctx context.Context, err error) error {
	if g.cfg.Kind != HVM {
		return err
	}
	return fmt.Errorf("%w\n%s", err, g.hvmReport(ctx))
}

package lab

// The image of a release: hypervisor, kernel, dom0's initramfs and the
// guests', built from the packages that were fetched.

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// The recipe: an image is rebuilt when one of these changes.
var (
	//go:embed image.go
	imageSource string
	//go:embed cpio.go
	cpioSource string
	//go:embed kernel.go
	kernelSource string
	//go:embed dom0.sh
	dom0Init string
	//go:embed guest.sh
	guestInit string
	//go:embed programs/traps.s
	trapsSource string
	//go:embed programs/nap.s
	napSource string
)

// Modules dom0 loads; what they depend on is added.
var dom0Modules = []string{
	"xen-privcmd", "xen-evtchn", "xenfs", "xen-gntdev", "xen-gntalloc",
	"virtio_pci", "virtio_net", "9pnet_virtio", "9p",
}

// Modules that guests have files of, in the order in which they can be loaded: the
// second needs the first, and the third has threads that sleep in it.
var guestModules = []string{"drivers/net/slip/slhc", "drivers/net/ppp/ppp_generic", "net/core/pktgen"}

// Programs of dom0 besides Xen's and busybox's.
var dom0Programs = []string{
	"usr/sbin/xl", "usr/sbin/gdbsx", "usr/sbin/xenhypfs", "usr/bin/kmod", "usr/bin/busybox", "usr/bin/xenstore", "usr/bin/xenstore-*", "usr/bin/strace",
	"usr/lib/xen-*/bin/*", "usr/lib/xen-*/boot/*",
}

// An image is a cache entry that a host boots from. Dom0 sees the directory as
// /image: the guests' files are read from there, not carried in its initramfs,
// which an emulated CPU takes long to unpack.
type image struct {
	dir      string
	manifest manifest
	kernel   string // release of the kernel, as in uname -r
	built    hypervisor
}

func (i image) xen() string     { return cmp.Or(i.built.path, filepath.Join(i.dir, "xen")) }
func (i image) vmlinux() string { return filepath.Join(i.dir, "vmlinux") }
func (i image) dom0() string    { return filepath.Join(i.dir, "dom0.cpio") }

// xenVersion is the version of the hypervisor's package.
func (i image) xenVersion(r release) string {
	return i.manifest.Packages["xen-hypervisor-"+r.Xen+"-amd64"]
}

// buildImage returns the image of a release, from the cache if it is there.
func (c *cache) buildImage(ctx context.Context, r release) (image, error) {
	packages, err := c.fetchPackages(ctx, r)
	if err != nil {
		return image{}, err
	}
	m, err := readManifest(packages)
	if err != nil {
		return image{}, fmt.Errorf("read manifest: %w", err)
	}
	names := make([]string, 0, len(m.Packages))
	for name, version := range m.Packages {
		names = append(names, name+"="+version)
	}
	sort.Strings(names)
	kernel, err := m.kernelRelease()
	if err != nil {
		return image{}, err
	}
	name := "image-" + r.Xen + "-" + key(strings.Join(names, " "), imageSource, cpioSource, kernelSource, dom0Init, guestInit, trapsSource, napSource)
	dir, err := c.get(ctx, name, func(dir string) error {
		b := imageBuilder{release: r, kernel: kernel, root: filepath.Join(dir, "root"), dir: dir}
		defer os.RemoveAll(b.root)
		if err := os.Mkdir(b.root, 0o755); err != nil {
			return err
		}
		if err := c.unpack(ctx, packages, b.root); err != nil {
			return err
		}
		c.progress.phase("building the image of xen %s with linux %s", r.Xen, kernel)
		if err := b.build(ctx); err != nil {
			return fmt.Errorf("build image of xen %s: %w", r.Xen, err)
		}
		return m.write(dir)
	})
	if err != nil {
		return image{}, err
	}
	return image{dir: dir, manifest: m, kernel: kernel}, nil
}

// kernelRelease finds the kernel's name among the packages.
func (m manifest) kernelRelease() (string, error) {
	for name := range m.Packages {
		k, ok := strings.CutPrefix(name, "linux-image-")
		if ok && k != "amd64" {
			return k, nil
		}
	}
	return "", errors.New("no kernel among the packages")
}

type imageBuilder struct {
	release release
	kernel  string
	root    string // where the packages are unpacked
	dir     string // where the image goes
}

func (b imageBuilder) build(ctx context.Context) error {
	if err := gunzip(filepath.Join(b.root, "boot/xen-"+b.release.Xen+"-amd64.gz"), filepath.Join(b.dir, "xen")); err != nil {
		return err
	}
	if err := extractKernel(ctx, filepath.Join(b.root, "boot/vmlinuz-"+b.kernel), filepath.Join(b.dir, "vmlinux")); err != nil {
		return err
	}
	for name, source := range map[string]string{"traps": trapsSource, "nap": napSource} {
		if err := b.assemble(ctx, name, source); err != nil {
			return err
		}
	}
	if err := writeCpio(filepath.Join(b.dir, "guest.cpio"), func(c *cpioWriter) error { return b.guest(ctx, c) }); err != nil {
		return err
	}
	return writeCpio(filepath.Join(b.dir, "dom0.cpio"), func(c *cpioWriter) error { return b.dom0(ctx, c) })
}

func writeCpio(path string, fill func(*cpioWriter) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	c := newCpioWriter(w)
	if err := fill(c); err != nil {
		return err
	}
	if err := c.close(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// assemble builds a program of the guests.
func (b imageBuilder) assemble(ctx context.Context, name, source string) error {
	if err := EnsureTools(ctx, map[string]string{"as": "binutils", "ld": "binutils"}); err != nil {
		return err
	}
	object := filepath.Join(b.root, name+".o")
	assemble := exec.CommandContext(ctx, "as", "--64", "--fatal-warnings", "-o", object)
	assemble.Stdin = strings.NewReader(source)
	link := exec.CommandContext(ctx, "ld", "-m", "elf_x86_64", "-static", "-nostdlib", "-o", filepath.Join(b.root, name), object)
	for _, cmd := range []*exec.Cmd{assemble, link} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd.Args[0], err, out)
		}
	}
	return nil
}

// guest fills the initramfs of the guests.
func (b imageBuilder) guest(ctx context.Context, c *cpioWriter) error {
	for _, d := range []string{"proc", "sys", "dev", "bin", "modules"} {
		c.dir(d)
	}
	c.charDevice("dev/console", 0o600, 5, 1)
	c.charDevice("dev/null", 0o666, 1, 3)
	c.charDevice("dev/zero", 0o666, 1, 5)
	busybox, err := b.find("usr/bin/busybox")
	if err != nil {
		return err
	}
	c.copyFile("bin/busybox", busybox)
	for _, applet := range []string{"sh", "mount", "sleep", "usleep", "taskset", "grep", "dd", "head", "tr", "wc", "cat", "insmod"} {
		c.symlink("bin/"+applet, "busybox")
	}
	for _, name := range []string{"traps", "nap"} {
		c.copyFile("bin/"+name, filepath.Join(b.root, name))
	}
	for _, name := range guestModules {
		module, err := b.module(ctx, name)
		if err != nil {
			return err
		}
		c.file("modules/"+filepath.Base(name)+".ko", 0o644, module)
	}
	c.file("init", 0o755, []byte(guestInit))
	return nil
}

// module gives a module of the kernel's, unpacked.
func (b imageBuilder) module(ctx context.Context, name string) ([]byte, error) {
	path, err := b.find("usr/lib/modules/" + b.kernel + "/kernel/" + name + ".ko")
	if err == nil {
		return os.ReadFile(path)
	}
	if path, err = b.find("usr/lib/modules/" + b.kernel + "/kernel/" + name + ".ko.xz"); err != nil {
		return nil, err
	}
	module, err := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return module, nil
}

// dom0 fills the initramfs of dom0, but for the agent.
func (b imageBuilder) dom0(ctx context.Context, c *cpioWriter) error {
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run",
		"tmp", "root", "share", "image", "etc/xen", "var/lib/xen", "var/lib/xenstored", "var/log/xen", "mnt"} {
		c.dir(d)
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		c.symlink(d, "usr/"+d)
	}
	c.symlink("var/run", "/run")
	c.symlink("var/lock", "/run/lock")
	c.symlink("usr/lib/xen", "xen-"+b.release.Xen)
	c.charDevice("dev/console", 0o600, 5, 1)
	c.file("init", 0o755, []byte(dom0Init))
	c.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	c.file("etc/group", 0o644, []byte("root:x:0:\n"))
	c.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))
	c.file("etc/xen/xl.conf", 0o644, nil)

	have := map[string]bool{}
	libs := map[string]string{}
	for _, pattern := range dom0Programs {
		files, err := b.glob(pattern)
		if err != nil {
			return err
		}
		for name, path := range files {
			have[name] = true
			if target, err := os.Readlink(path); err == nil {
				c.symlink(name, target)
				continue
			}
			c.copyFile(name, path)
			if err := b.closure(path, libs); err != nil {
				return err
			}
		}
	}
	// pthread_cancel opens this one by name, and xl aborts without it.
	if err := b.library("libgcc_s.so.1", libs); err != nil {
		return err
	}
	for _, name := range sortedKeys(libs) {
		c.copyFile("usr/lib/x86_64-linux-gnu/"+name, libs[name])
	}
	c.symlink("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")

	for _, name := range []string{"modprobe", "depmod", "insmod", "rmmod", "lsmod"} {
		c.symlink("usr/sbin/"+name, "../bin/kmod")
		have["usr/bin/"+name] = true
	}
	busybox, err := b.find("usr/bin/busybox")
	if err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if name := "usr/bin/" + applet; !have[name] {
			c.symlink(name, "busybox")
		}
	}
	return b.modules(ctx, c)
}

// find returns the path of a package's file, whether or not its suite has
// merged /bin, /sbin and /lib into /usr.
func (b imageBuilder) find(name string) (string, error) {
	for _, n := range []string{name, strings.TrimPrefix(name, "usr/")} {
		path := filepath.Join(b.root, n)
		if _, err := os.Lstat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in the packages of %s", name, b.release.Suite)
}

// glob returns the files that a pattern names, by name within the image.
func (b imageBuilder) glob(pattern string) (map[string]string, error) {
	found := map[string]string{}
	for _, prefix := range []string{"", "usr/"} {
		rest := strings.TrimPrefix(pattern, prefix)
		paths, err := filepath.Glob(filepath.Join(b.root, rest))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			st, err := os.Stat(path)
			if err != nil || st.IsDir() {
				continue // or a link out of the package
			}
			name, err := filepath.Rel(b.root, path)
			if err != nil {
				return nil, err
			}
			found[prefix+name] = path
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("no %s in the packages of %s", pattern, b.release.Suite)
}

// closure adds the libraries an ELF file needs to libs.
func (b imageBuilder) closure(path string, libs map[string]string) error {
	f, err := elf.Open(path)
	var bad *elf.FormatError
	if errors.As(err, &bad) {
		return nil // a script
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 || f.Section(".dynamic") == nil {
		return nil
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read libraries of %s: %w", path, err)
	}
	for _, name := range names {
		if err := b.library(name, libs); err != nil {
			return err
		}
	}
	return nil
}

func (b imageBuilder) library(name string, libs map[string]string) error {
	if libs[name] != "" {
		return nil
	}
	for _, dir := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"} {
		path, err := filepath.EvalSymlinks(filepath.Join(b.root, dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		libs[name] = path
		return b.closure(path, libs)
	}
	return fmt.Errorf("no library %s in the packages of %s", name, b.release.Suite)
}

// modules adds dom0's kernel modules and an index for modprobe.
func (b imageBuilder) modules(ctx context.Context, c *cpioWriter) error {
	depmod, err := lookProgram("depmod")
	if err != nil {
		return err
	}
	index := func(root string) error {
		out, err := exec.CommandContext(ctx, depmod, "-b", root, b.kernel).CombinedOutput()
		if err != nil {
			return fmt.Errorf("depmod: %w\n%s", err, lastLines(out, 3))
		}
		return nil
	}
	all, err := b.find("usr/lib/modules/" + b.kernel)
	if err != nil {
		return err
	}
	// depmod looks below /lib, where merged suites have nothing.
	if _, err := os.Lstat(filepath.Join(b.root, "lib")); errors.Is(err, fs.ErrNotExist) {
		if err := os.Symlink("usr/lib", filepath.Join(b.root, "lib")); err != nil {
			return err
		}
	}
	if err := index(b.root); err != nil {
		return err
	}
	deps, err := readModulesDep(filepath.Join(all, "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(all, "modules.builtin"))
	if err != nil {
		return err
	}

	// A second tree with what is needed, for a small index.
	small := filepath.Join(b.dir, "modules")
	defer os.RemoveAll(small)
	tree := filepath.Join(small, "lib/modules", b.kernel)
	needed := map[string]bool{}
	for _, m := range dom0Modules {
		file := deps.file(m)
		if file == "" && bytes.Contains(builtin, []byte("/"+m+".ko\n")) {
			continue
		}
		if file == "" {
			return fmt.Errorf("no module %s in linux %s", m, b.kernel)
		}
		needed[file] = true
		for _, dep := range deps[file] {
			needed[dep] = true
		}
	}
	for _, file := range sortedKeys(needed) {
		to := filepath.Join(tree, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(all, file), to); err != nil {
			return err
		}
	}
	for _, file := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := os.Rename(filepath.Join(all, file), filepath.Join(tree, file)); err != nil {
			return err
		}
	}
	if err := index(small); err != nil {
		return err
	}
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(small, path)
		if err != nil {
			return err
		}
		c.copyFile("usr/"+rel, path)
		return nil
	})
}

// modulesDep maps the file of each module to those it depends on.
type modulesDep map[string][]string

func readModulesDep(path string) (modulesDep, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	deps := modulesDep{}
	for line := range strings.Lines(string(b)) {
		file, rest, _ := strings.Cut(line, ":")
		deps[file] = strings.Fields(rest)
	}
	return deps, nil
}

// file finds a module by name; packed ones have a further suffix.
func (d modulesDep) file(name string) string {
	for file := range d {
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if base == name {
			return file
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

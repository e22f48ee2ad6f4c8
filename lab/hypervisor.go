package lab

// A hypervisor with CONFIG_GDBSX, CONFIG_PV32 and CONFIG_SHADOW_PAGING, which PV
// guests need to migrate live. Debian's has none of them, so it is built from Debian's
// source package on the machine that needs it, with Debian's configuration and these
// added.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// hypervisorConfig is added to Debian's configuration: what the tests need and
// Debian's has not. EXPERT is what GDBSX
// depends on where DEBUG is off. Without DEBUG_INFO the code is the same, and it
// takes less time and space to build.
const hypervisorConfig = `CONFIG_EXPERT=y
CONFIG_GDBSX=y
CONFIG_PV32=y
CONFIG_SHADOW_PAGING=y
CONFIG_DEBUG_INFO=n
`

// hypervisorTools are what the hypervisor is built with.
var hypervisorTools = map[string]string{
	"dpkg-source":          "dpkg-dev",
	"make":                 "make",
	"gcc":                  "gcc",
	"/usr/include/stdio.h": "libc6-dev",
	"python3":              "python3",
	"flex":                 "flex",
	"bison":                "bison",
}

// A hypervisor is one that was built from source.
type hypervisor struct {
	path    string
	version string // of the source package
}

// hypervisorEntry names a hypervisor's cache entry.
func hypervisorEntry(r release, version string) string {
	return "hypervisor-" + r.Xen + "-gdbsx-" + key(version, hypervisorConfig)
}

// buildHypervisor returns a hypervisor with CONFIG_GDBSX of a release, in the
// version of its package, or close to it if that has no source on the mirrors.
func (c *cache) buildHypervisor(ctx context.Context, r release, version string) (hypervisor, error) {
	dir, err := c.get(ctx, hypervisorEntry(r, version), func(dir string) error {
		if err := EnsureTools(ctx, hypervisorTools); err != nil {
			return err
		}
		work := filepath.Join(dir, "work")
		defer os.RemoveAll(work)
		source, m, err := c.fetchSource(ctx, r, version, work)
		if err != nil {
			return err
		}
		c.progress.phase("building xen %s with CONFIG_GDBSX, some minutes", m.Packages["xen"])
		defer c.progress.done()
		begin := time.Now()
		if err := c.makeHypervisor(ctx, source); err != nil {
			return fmt.Errorf("build xen %s: %w", m.Packages["xen"], err)
		}
		if err := copyFile(filepath.Join(source, "xen/xen"), filepath.Join(dir, "xen")); err != nil {
			return err
		}
		c.progress.phase("built it in %.1f minutes", time.Since(begin).Minutes())
		return m.write(dir)
	})
	if err != nil {
		return hypervisor{}, err
	}
	m, err := readManifest(dir)
	if err != nil {
		return hypervisor{}, fmt.Errorf("read manifest: %w", err)
	}
	return hypervisor{filepath.Join(dir, "xen"), m.Packages["xen"]}, nil
}

// fetchSource downloads and unpacks Xen's source package below dir, first from
// the machine's own mirrors, then from Debian's.
func (c *cache) fetchSource(ctx context.Context, r release, version, dir string) (source string, m manifest, err error) {
	for i, list := range sourcesLists(ctx, r) {
		list = strings.ReplaceAll(list, "deb [", "deb-src [")
		source, m, err = c.fetchSourceFrom(ctx, r, list, version, filepath.Join(dir, fmt.Sprint(i)))
		if err == nil || ctx.Err() != nil {
			return source, m, err
		}
	}
	return source, m, err
}

func (c *cache) fetchSourceFrom(ctx context.Context, r release, list, version, dir string) (source string, m manifest, err error) {
	conf, err := writeApt(ctx, dir, filepath.Join(dir, "debs"), list)
	if err != nil {
		return "", m, err
	}
	c.progress.phase("downloading the source of xen %s", version)
	defer c.progress.done()
	if err := c.aptUpdate(ctx, r, conf); err != nil {
		return "", m, err
	}
	// Not all mirrors have the sources of security updates, nor those of what was
	// updated since.
	var errs []error
	for _, what := range []string{"xen=" + version, "xen", "xen/" + r.Suite} {
		if err := c.apt(ctx, conf, dir, "--download-only", "source", what); err != nil {
			errs = append(errs, err)
			continue
		}
		dsc, err := filepath.Glob(filepath.Join(dir, "*.dsc"))
		if err != nil || len(dsc) != 1 {
			return "", m, fmt.Errorf("apt fetched %d descriptions of xen's source", len(dsc))
		}
		source = filepath.Join(dir, "source")
		// apt has checked the signatures.
		if out, err := exec.CommandContext(ctx, "dpkg-source", "--no-check", "--extract", dsc[0], source).CombinedOutput(); err != nil {
			return "", m, fmt.Errorf("unpack %s: %w\n%s", filepath.Base(dsc[0]), err, lastLines(out, 5))
		}
		m = manifest{Suite: r.Suite, Sources: list, Packages: map[string]string{}}
		m.Packages["xen"], err = sourceVersion(dsc[0])
		return source, m, err
	}
	return "", m, fmt.Errorf("download the source of xen %s: %w", version, errors.Join(errs...))
}

var versionLine = regexp.MustCompile(`(?m)^Version: (\S+)$`)

// sourceVersion reads the version of a source package.
func sourceVersion(dsc string) (string, error) {
	b, err := os.ReadFile(dsc)
	if err != nil {
		return "", err
	}
	v := versionLine.FindSubmatch(b)
	if v == nil {
		return "", fmt.Errorf("no version in %s", filepath.Base(dsc))
	}
	return string(v[1]), nil
}

// makeHypervisor builds the hypervisor of an unpacked source package, as
// debian/rules does.
func (c *cache) makeHypervisor(ctx context.Context, source string) error {
	config, err := os.ReadFile(filepath.Join(source, "debian/xen-kconfig"))
	if err != nil {
		return err
	}
	path := filepath.Join(source, "xen/.config")
	if err := os.WriteFile(path, append(config, hypervisorConfig...), 0o644); err != nil {
		return err
	}
	if err := c.make(ctx, source, "olddefconfig"); err != nil {
		return err
	}
	if config, err = os.ReadFile(path); err != nil {
		return err
	}
	if !bytes.Contains(config, []byte("\nCONFIG_GDBSX=y\n")) {
		return errors.New("its configuration does not take CONFIG_GDBSX")
	}
	return c.make(ctx, source, "build")
}

// make makes a target of the hypervisor and shows what it is at.
func (c *cache) make(ctx context.Context, source, target string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, "make", "-C", "xen", "-j", fmt.Sprint(runtime.NumCPU()), target)
	cmd.Dir = source
	// What is set here for other builds is not for the hypervisor.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = w, w
	// The compilers end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	done := 0
	for lines := bufio.NewScanner(r); lines.Scan(); done++ {
		c.progress.step("%d %s", done, strings.TrimSpace(lines.Text()))
		out.Write(lines.Bytes())
		out.WriteByte('\n')
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("make %s: %w\n%s", target, err, lastLines(out.Bytes(), 20))
	}
	return nil
}

package lab

// Debian packages of another suite, fetched and unpacked without installing
// anything: apt runs with its own sources, lists, cache and an empty status.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Debian's own mirror, used where the machine's sources name none.
const (
	defaultMirror         = "http://deb.debian.org/debian"
	defaultSecurityMirror = "http://deb.debian.org/debian-security"
)

// A manifest records the exact packages of a cache entry.
type manifest struct {
	Suite    string
	Sources  string
	Packages map[string]string // version by name
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read %s/manifest.json: %w", dir, err)
	}
	return m, nil
}

func (m manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "manifest.json"), append(b, '\n'), 0o644)
}

// fetchPackages returns a cache entry with the .deb files of a release and
// all they depend on.
func (c *cache) fetchPackages(ctx context.Context, r release) (string, error) {
	return c.fetch(ctx, r, "packages-", r.packages())
}

func (c *cache) fetch(ctx context.Context, r release, prefix string, packages []string) (string, error) {
	name := prefix + r.Xen + "-" + key(r.Suite, strings.Join(packages, " "))
	return c.get(ctx, name, func(dir string) error {
		return c.download(ctx, r, dir, packages)
	})
}

// download fetches packages into dir/debs, first from the machine's own
// mirrors, then from Debian's.
func (c *cache) download(ctx context.Context, r release, dir string, packages []string) error {
	var err error
	for _, list := range sourcesLists(ctx, r) {
		if err = c.downloadFrom(ctx, r, list, dir, packages); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *cache) downloadFrom(ctx context.Context, r release, list, dir string, packages []string) error {
	debs := filepath.Join(dir, "debs")
	conf, err := writeApt(ctx, dir, debs, list)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(conf))
	c.progress.phase("downloading packages of %s for xen %s", r.Suite, r.Xen)
	defer c.progress.done()
	if err := c.aptUpdate(ctx, r, conf); err != nil {
		return err
	}
	args := append([]string{"--download-only", "install"}, packages...)
	if err := c.apt(ctx, conf, "", args...); err != nil {
		return fmt.Errorf("download packages of %s: %w", r.Suite, err)
	}

	m := manifest{Suite: r.Suite, Sources: list, Packages: map[string]string{}}
	files, err := filepath.Glob(debs + "/*.deb")
	if err != nil {
		return err
	}
	for _, f := range files {
		out, err := exec.CommandContext(ctx, "dpkg-deb", "--show", "--showformat=${Package} ${Version}", f).Output()
		if err != nil {
			return fmt.Errorf("read package %s: %w", filepath.Base(f), err)
		}
		name, version, _ := strings.Cut(string(out), " ")
		m.Packages[name] = version
	}
	os.RemoveAll(debs + "/partial")
	os.Remove(debs + "/lock")
	return m.write(dir)
}

// writeApt writes what apt needs to work with a sources list on its own into
// dir/apt, and returns the configuration file. Packages go to debs.
func writeApt(ctx context.Context, dir, debs, list string) (conf string, err error) {
	apt := filepath.Join(dir, "apt")
	for _, d := range []string{apt + "/state", apt + "/lists/partial", apt + "/none", debs + "/partial"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	conf = apt + "/apt.conf"
	for file, text := range map[string]string{
		conf:                  aptConf(ctx, apt, debs),
		apt + "/sources.list": list,
		apt + "/status":       "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return conf, nil
}

func (c *cache) aptUpdate(ctx context.Context, r release, conf string) error {
	if err := c.apt(ctx, conf, "", "update"); err != nil {
		return fmt.Errorf("read package lists of %s (a suite that left the mirrors cannot be fetched any more): %w", r.Suite, err)
	}
	return nil
}

// apt runs apt-get with a configuration of its own, in a directory, and shows
// how far it is.
func (c *cache) apt(ctx context.Context, conf, dir string, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args = append([]string{"-q", "-y", "-o", "APT::Status-Fd=3"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+conf, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{w}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// dlstatus:number:percent:what
		if f := strings.SplitN(lines.Text(), ":", 4); len(f) == 4 && f[0] == "dlstatus" {
			c.progress.step("%.3s%% %s", f[2], f[3])
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[4], err, lastLines(out.Bytes(), 8))
	}
	return nil
}

// aptConf is a configuration that shares nothing with the machine's but the
// way out to the network.
func aptConf(ctx context.Context, apt, debs string) string {
	var b strings.Builder
	set := func(name, value string) { fmt.Fprintf(&b, "%s %q;\n", name, value) }
	set("Dir", apt)
	set("Dir::State", apt+"/state")
	set("Dir::State::lists", apt+"/lists")
	set("Dir::State::status", apt+"/status")
	set("Dir::Cache", apt+"/cache")
	set("Dir::Cache::archives", debs)
	set("Dir::Etc::main", apt+"/none/apt.conf")
	set("Dir::Etc::parts", apt+"/none")
	set("Dir::Etc::sourcelist", apt+"/sources.list")
	set("Dir::Etc::sourceparts", apt+"/none")
	set("Dir::Etc::preferences", apt+"/none/preferences")
	set("Dir::Etc::preferencesparts", apt+"/none")
	set("Dir::Etc::trustedparts", apt+"/none")
	set("APT::Architecture", "amd64")
	b.WriteString("APT::Architectures { \"amd64\"; };\n")
	set("APT::Install-Recommends", "false")
	set("APT::Sandbox::User", "") // the cache may be in a closed home
	set("Acquire::Languages", "none")
	set("Acquire::Retries", "3")
	// The lists of a suite at its end are signed but no longer renewed.
	set("Acquire::Check-Valid-Until", "false")

	out, _ := exec.CommandContext(ctx, "apt-config", "dump").Output()
	for line := range strings.Lines(string(out)) {
		for _, p := range []string{"Acquire::http", "Acquire::Check-Date"} {
			if strings.HasPrefix(line, p) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func sources(r release, mirror, security string) string {
	var b strings.Builder
	for _, s := range [][2]string{{mirror, r.Suite}, {mirror, r.Suite + "-updates"}, {security, r.Security}} {
		fmt.Fprintf(&b, "deb [signed-by=%s] %s %s main\n", keyring, s[0], s[1])
	}
	return b.String()
}

// sourcesLists are the sources lists to try for a release, one after the other:
// on the machine's own mirrors, then on Debian's.
func sourcesLists(ctx context.Context, r release) []string {
	own := machineSources(ctx, r)
	if deb := sources(r, defaultMirror, defaultSecurityMirror); deb != own {
		return []string{own, deb}
	}
	return []string{own}
}

// machineSources is the sources list of a release on the mirrors that the
// machine itself uses.
func machineSources(ctx context.Context, r release) string {
	out, _ := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages").Output()
	mirror, security := mirrors(string(out))
	return sources(r, mirror, security)
}

// mirrors picks Debian's main and security mirrors from lines of URI, suite
// and component.
func mirrors(targets string) (mirror, security string) {
	suites := []string{"bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		u, err := url.Parse(f[0])
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") {
			continue
		}
		uri := strings.TrimRight(f[0], "/")
		name, isSecurity := strings.CutSuffix(f[1], "-security")
		switch {
		case !slices.Contains(suites, name):
		case isSecurity && security == "":
			security = uri
		case !isSecurity && mirror == "":
			mirror = uri
		}
	}
	if mirror == "" {
		mirror = defaultMirror
	}
	if security == "" {
		security = defaultSecurityMirror
	}
	return mirror, security
}

// unpack extracts all packages of a cache entry into root.
func (c *cache) unpack(ctx context.Context, entry, root string) error {
	files, err := filepath.Glob(filepath.Join(entry, "debs", "*.deb"))
	if err != nil {
		return err
	}
	// Suites since trixie unpack into a merged /usr; the older ones bring
	// their /bin and /lib themselves.
	c.progress.phase("unpacking %d packages", len(files))
	defer c.progress.done()
	for i, f := range files {
		c.progress.step("%d/%d %s", i+1, len(files), filepath.Base(f))
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", f, root).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(f), err, lastLines(out, 3))
		}
	}
	return nil
}

package lab

// The programs that the lab needs on the machine itself.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

var tools = []struct{ program, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"depmod", "kmod"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
	{"dpkg-deb", "dpkg"},
	{"apt-get", "apt"},
}

// EnsureTools makes sure that the programs the lab needs are on this machine,
// and any further ones, given as Debian package names keyed by program, or by
// the path of a file. What is missing is installed by apt-get, which needs root;
// without it the error holds the command to type.
func EnsureTools(ctx context.Context, more map[string]string) error {
	var missing []string
	need := func(program, pkg string) {
		if !haveProgram(program) {
			missing = append(missing, pkg)
		}
	}
	for _, t := range tools {
		need(t.program, t.pkg)
	}
	for program, pkg := range more {
		need(program, pkg)
	}
	if _, err := os.Stat(keyring); err != nil {
		missing = append(missing, "debian-archive-keyring")
	}
	if len(missing) == 0 {
		return nil
	}
	args := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	line := "apt-get " + strings.Join(args, " ")
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing programs, install them with: sudo %s", line)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing packages %s, and no apt-get: the lab needs Debian", strings.Join(missing, ", "))
	}
	for _, args := range [][]string{{"update"}, args} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", line, err, lastLines(out, 10))
		}
	}
	return nil
}

// haveProgram also looks where users without root have no path to.
func haveProgram(name string) bool {
	_, err := lookProgram(name)
	return err == nil
}

func lookProgram(name string) (string, error) {
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return name, err
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name, nil
		}
	}
	return "", err
}

// lastLines returns the last n lines of some output.
func lastLines(b []byte, n int) string {
	lines := bytes.Split(bytes.TrimRight(b, "\r\n"), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}

package lab

// Core files of guests.

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed dumpcore/batch.c
var batchSource []byte

// DumpCore writes the guest's memory and registers to a file of this machine,
// by xl dump-core, which lets the guest run meanwhile.
func (g *Guest) DumpCore(ctx context.Context, localPath string) error {
	// Not straight to /share, see CopyIn, and not through dom0's memory,
	// which may be too small.
	core := "core-" + g.cfg.Name
	library, err := g.host.BatchLibrary(ctx)
	if err != nil {
		return fmt.Errorf("dump guest %s: %w", g.cfg.Name, err)
	}
	command := fmt.Sprintf(`
pipe=/tmp/%[1]s.$$
mkfifo $pipe && trap 'rm $pipe' EXIT || exit
cat $pipe >/share/%[1]s &
LD_PRELOAD=%[3]s xl dump-core %[2]s $pipe || { kill $!; exit 1; }
wait $!`, core, g.cfg.Name, library)
	defer os.Remove(filepath.Join(g.host.ShareDir(), core))
	if _, err := g.host.Output(ctx, command); err != nil {
		return fmt.Errorf("dump guest %s: %w", g.cfg.Name, err)
	}
	return g.host.CopyOut(ctx, "/share/"+core, localPath)
}

// BatchLibrary gives the path in dom0 of the library that makes xl dump-core map
// in batches, and so fast: its one source tells how. It uses no other library and
// no header, and so works with all releases.
func (h *Host) BatchLibrary(ctx context.Context) (dom0Path string, err error) {
	const name = "dumpcore.so"
	path := filepath.Join(h.ShareDir(), name)
	if _, err := os.Stat(path); err == nil {
		return "/share/" + name, nil
	}
	if err := EnsureTools(ctx, map[string]string{"gcc": "gcc"}); err != nil {
		return "", err
	}
	source := filepath.Join(h.run.path, "batch.c")
	if err := os.WriteFile(source, batchSource, 0o644); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-Werror", "-ffreestanding", "-fno-stack-protector",
		"-fPIC", "-shared", "-nostdlib", "-o", path, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return "/share/" + name, nil
}

package lab

// Files in and out of dom0.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// shared returns the path on this machine of a file below dom0's /share.
func (h *Host) shared(dom0Path string) (string, bool) {
	rest, ok := strings.CutPrefix(filepath.Clean(dom0Path), "/share/")
	return filepath.Join(h.ShareDir(), rest), ok
}

// CopyIn copies a file into dom0. What is below /share there is on this
// machine's disk; all else is in dom0's memory. (The 9p file system there does
// not take writes straight from mapped pages of a guest: see Guest.DumpCore.)
func (h *Host) CopyIn(ctx context.Context, localPath, dom0Path string, mode os.FileMode) error {
	f, err := os.Open(localPath)
	if err != nil {
		return fmt.Errorf("copy into dom0: %w", err)
	}
	defer f.Close()
	if err := h.agent.put(ctx, f, dom0Path, mode); err != nil {
		return fmt.Errorf("copy %s to dom0's %s: %w", localPath, dom0Path, err)
	}
	return nil
}

// CopyOut copies a file out of dom0. Large ones are best written below
// /share there, from where they are copied without passing through dom0.
func (h *Host) CopyOut(ctx context.Context, dom0Path, localPath string) (err error) {
	f, err := os.Create(localPath)
	if err != nil {
		return fmt.Errorf("copy out of dom0: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(localPath)
			err = fmt.Errorf("copy dom0's %s to %s: %w", dom0Path, localPath, err)
		}
	}()
	path, ok := h.shared(dom0Path)
	if !ok {
		return h.agent.get(ctx, dom0Path, f)
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(f, in)
	return err
}

// DumpCore writes the guest's memory and registers to a file of this machine,
// by xl dump-core, which pauses the guest meanwhile.
func (g *Guest) DumpCore(ctx context.Context, localPath string) error {
	// Not straight to /share, see CopyIn, and not through dom0's memory,
	// which may be too small.
	core := "core-" + g.cfg.Name
	command := fmt.Sprintf(`
pipe=/tmp/%[1]s.$$
mkfifo $pipe && trap 'rm $pipe' EXIT || exit
cat $pipe >/share/%[1]s &
xl dump-core %[2]s $pipe || { kill $!; exit 1; }
wait $!`, core, g.cfg.Name)
	defer os.Remove(filepath.Join(g.host.ShareDir(), core))
	if _, err := g.host.Output(ctx, command); err != nil {
		return fmt.Errorf("dump guest %s: %w", g.cfg.Name, err)
	}
	return g.host.CopyOut(ctx, "/share/"+core, localPath)
}

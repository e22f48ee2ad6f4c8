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

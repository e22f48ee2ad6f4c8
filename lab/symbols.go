package lab

// The kernel's symbols: Debian's -dbg package of exactly the image's kernel.
// It is large, so only the one file of use is kept, and only when asked for.

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// Symbols returns the path of the vmlinux file with the debugging symbols of
// the host's and the guests' kernel. The first time, this downloads 850 MB
// or more.
func (h *Host) Symbols(ctx context.Context) (vmlinux string, err error) {
	pkg := "linux-image-" + h.image.kernel + "-dbg"
	version := h.image.manifest.Packages["linux-image-"+h.image.kernel]
	file := "vmlinux-" + h.image.kernel
	dir, err := h.cache.get(ctx, "symbols-"+h.image.kernel+"-"+key(pkg, version), func(dir string) error {
		err := h.cache.download(ctx, h.release, dir, []string{pkg + "=" + version})
		if err != nil {
			return fmt.Errorf("%w\n(when the mirror has a newer kernel only: remove %s/packages-%s-* and start again)",
				err, h.cache.root, h.release.Xen)
		}
		debs := filepath.Join(dir, "debs")
		defer os.RemoveAll(debs)
		deb, err := filepath.Glob(filepath.Join(debs, pkg+"_*.deb"))
		if err != nil || len(deb) != 1 {
			return fmt.Errorf("apt did not fetch %s", pkg)
		}
		h.cache.progress.phase("unpacking %s", file)
		defer h.cache.progress.done()
		return h.cache.extractFromDeb(ctx, deb[0], file, filepath.Join(dir, file))
	})
	if err != nil {
		return "", fmt.Errorf("get kernel symbols: %w", err)
	}
	return filepath.Join(dir, file), nil
}

// extractFromDeb writes the one file of a package with a given base name.
func (c *cache) extractFromDeb(ctx context.Context, deb, base, to string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what comes after the file is not wanted
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // reports our own cancel; what matters was read
	}()
	for files := tar.NewReader(out); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("no %s in %s", base, filepath.Base(deb))
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", filepath.Base(deb), err)
		}
		if h.Typeflag != tar.TypeReg || path.Base(h.Name) != base {
			continue
		}
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		w := &stepWriter{w: f, total: h.Size, progress: c.progress}
		_, err = io.Copy(w, files)
		return errors.Join(err, f.Close())
	}
}

// A stepWriter shows how much of a file was written.
type stepWriter struct {
	w           io.Writer
	done, total int64
	progress    *progress
}

func (s *stepWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	before := s.done
	s.done += int64(n)
	if const10MB := int64(10 << 20); s.done/const10MB != before/const10MB {
		s.progress.step("%d of %d MB", s.done>>20, s.total>>20)
	}
	return n, err
}

package lab

// The agent's part of dom0's initramfs: built from its sources, which this
// package carries, so that it does not matter where the lab is started.

import (
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

//go:embed agent
var agentSources embed.FS

// buildAgent returns the path of the agent's program for dom0.
func (c *cache) buildAgent(ctx context.Context) (string, error) {
	parts := []string{runtime.Version()}
	files := map[string][]byte{"go.mod": []byte("module gdbserver-xen\n\ngo 1.24\n")}
	err := fs.WalkDir(agentSources, "agent", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := agentSources.ReadFile(path)
		files[filepath.Join("lab", path)] = b
		parts = append(parts, path, string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the agent's sources: %w", err)
	}
	dir, err := c.get(ctx, "agent-"+key(parts...), func(dir string) error {
		c.progress.phase("building the agent")
		src := filepath.Join(dir, "src")
		defer os.RemoveAll(src)
		for name, b := range files {
			path := filepath.Join(src, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				return err
			}
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w",
			"-o", filepath.Join(dir, "agent"), "./lab/agent")
		cmd.Dir = src
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the agent: %w\n%s", err, lastLines(out, 10))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "agent"), nil
}

// buildInitrd returns dom0's whole initramfs: the image's, and the agent in a
// second archive behind it.
func (c *cache) buildInitrd(ctx context.Context, img image) (string, error) {
	agent, err := c.buildAgent(ctx)
	if err != nil {
		return "", err
	}
	name := "initrd-" + key(filepath.Base(img.dir), filepath.Base(filepath.Dir(agent)))
	dir, err := c.get(ctx, name, func(dir string) error {
		out, err := os.Create(filepath.Join(dir, "initrd"))
		if err != nil {
			return err
		}
		defer out.Close()
		in, err := os.Open(img.dom0())
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("copy dom0's initramfs: %w", err)
		}
		w := newCpioWriter(out)
		w.copyFile("agent", agent)
		if err := w.close(); err != nil {
			return err
		}
		return out.Close()
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "initrd"), nil
}

package lab

// Hosts of other processes of this user.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gdbserver-xen/lab/agent/wire"
)

// hostFile, in a run directory, tells other processes of this user how to
// reach the host.
const hostFile = "host.json"

// A Remote is a running host that any process of this user has started.
type Remote struct {
	Release string
	PID     int    // of QEMU
	Dir     string `json:"-"`
	Agent   agentClient
}

// publish writes the host's file.
func (h *Host) publish() error {
	b, err := json.Marshal(Remote{Release: h.release.Xen, PID: h.PID(), Agent: h.agent})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.run.path, hostFile), b, 0o600)
}

// Running lists the hosts that this user runs.
func Running() ([]Remote, error) {
	root, err := CacheDir()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(root, "run", "host-*", hostFile))
	if err != nil {
		return nil, err
	}
	var hosts []Remote
	for _, file := range files {
		dir := filepath.Dir(file)
		if !owned(dir) {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		h := Remote{Dir: dir}
		if err := json.Unmarshal(b, &h); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// A Terminal is the size of a terminal.
type Terminal struct{ Rows, Cols int }

// Run runs a command in dom0 by sh -c, connected to in, out and errOut, and
// returns its exit code. With a terminal of some size, it runs on one, and
// all its output goes to out.
func (r Remote) Run(ctx context.Context, command string, in io.Reader, out, errOut io.Writer, term *Terminal) (int, error) {
	req := wire.Request{Command: command}
	if term != nil {
		req.Terminal, req.Rows, req.Cols = true, uint16(term.Rows), uint16(term.Cols)
	}
	p, err := r.Agent.run(ctx, req, out, errOut)
	if err != nil {
		return -1, fmt.Errorf("run %q in dom0: %w", command, err)
	}
	go func() {
		_, _ = io.Copy(p, in)
		_ = p.CloseInput()
	}()
	res, err := p.Wait()
	return res.ExitCode, err
}

// GuestConsoles lists the files that dom0 writes the guests' consoles to, by
// the guest's name.
func (r Remote) GuestConsoles() (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(r.Dir, "share", "console", "guest-*.log"))
	if err != nil {
		return nil, err
	}
	byName := map[string]string{}
	for _, f := range files {
		name := filepath.Base(f)
		byName[name[len("guest-"):len(name)-len(".log")]] = f
	}
	return byName, nil
}

package lab

// Guests that boot a file of the caller's.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A KernelConfig says what guest to create from a file.
type KernelConfig struct {
	// Name of the domain, as in [GuestConfig]. Empty: the kind with a number.
	Name string
	// Kind is PV or PVH. Empty: PVH.
	Kind Kind
	// Kernel is an ELF file of this machine that Xen can boot as a guest of the
	// kind.
	Kernel string
	// Park and ParkEnd are where vCPU 0 stays when the guest is ready: values
	// of rip, ParkEnd the first beyond.
	Park, ParkEnd uint64
	// VCPUs is the number of virtual CPUs. 0: 1.
	VCPUs int
	// MemoryMB is the guest's memory. 0: 32.
	MemoryMB int
	// Extra lines for the domain's configuration file.
	Extra string
}

// readyTimeout is how long a guest may take from its creation to its parking
// loop.
const readyTimeout = time.Minute

// CreateKernelGuest creates a guest that has no file but its kernel, and
// waits until its vCPU 0 is parked. It does not tick, whatever becomes of it the
// domain stays, and it takes a physical CPU for itself.
func (h *Host) CreateKernelGuest(ctx context.Context, cfg KernelConfig) (*Guest, error) {
	g, err := h.newGuest(GuestConfig{
		Name: cfg.Name, Kind: cmp.Or(cfg.Kind, PVH), VCPUs: cmp.Or(cfg.VCPUs, 1), MemoryMB: cmp.Or(cfg.MemoryMB, 32), Extra: cfg.Extra,
	})
	if err != nil {
		return nil, fmt.Errorf("create guest: %w", err)
	}
	if err := g.startKernel(ctx, cfg); err != nil {
		err = fmt.Errorf("create guest %s: %w", g.cfg.Name, err)
		// On a host that hangs this must not hang too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, g.Destroy(ctx))
	}
	return g, nil
}

func (g *Guest) startKernel(ctx context.Context, cfg KernelConfig) error {
	file := "guest-" + g.cfg.Name
	kernel, err := os.ReadFile(cfg.Kernel)
	if err != nil {
		return err
	}
	extra := cfg.Extra
	if g.cfg.Kind != PV {
		extra = notOnFirst + extra
	}
	config := fmt.Sprintf(`name = "%s"
type = "%s"
kernel = "/share/%s.elf"
memory = %d
vcpus = %d
on_poweroff = "preserve"
on_reboot = "preserve"
on_crash = "preserve"
%s
`, g.cfg.Name, g.cfg.Kind, file, g.cfg.MemoryMB, g.cfg.VCPUs, extra)
	for suffix, b := range map[string][]byte{".elf": kernel, ".cfg": []byte(config)} {
		path := filepath.Join(g.host.ShareDir(), file+suffix)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
		defer os.Remove(path)
	}
	begin := time.Now()
	// One command, since each takes its time.
	out, err := g.host.Output(ctx, fmt.Sprintf("xl create -q /share/%s.cfg && xl domid %s", file, g.cfg.Name))
	if err != nil {
		return err
	}
	if g.id, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return fmt.Errorf("read domain id: %w", err)
	}
	if err := g.waitParked(ctx, cfg.Park, cfg.ParkEnd); err != nil {
		return err
	}
	g.boot = time.Since(begin)
	return nil
}

var xenctxRIP = regexp.MustCompile(`(?m)\b[er]?ip: (?:[0-9a-f]+:)?([0-9a-f]+)`)

// waitParked asks xenctx where vCPU 0 is until it is there.
func (g *Guest) waitParked(ctx context.Context, start, end uint64) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		res, err := g.host.Run(ctx, fmt.Sprintf("/usr/lib/xen-*/bin/xenctx %d 0", g.id))
		if err == nil {
			if m := xenctxRIP.FindSubmatch(res.Stdout); m != nil {
				rip, err := strconv.ParseUint(string(m[1]), 16, 64)
				if err == nil && rip >= start && rip < end {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("vCPU 0 does not get to %#x: %w; xenctx says:\n%s%s", start, context.Cause(ctx), res.Stdout, res.Stderr)
		case <-time.After(pollInterval):
		}
	}
}

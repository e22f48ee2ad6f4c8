package lab

// Guests of a host.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Kind is how a guest is virtualised.
type Kind string

// The kinds of guests the lab can create.
const (
	PV  Kind = "pv"
	PVH Kind = "pvh"
	// HVM guests boot through firmware and a boot loader, which takes the lab
	// a minute or two, and have a device model in dom0.
	HVM Kind = "hvm"
)

// Kinds lists the kinds of guests.
func Kinds() []Kind { return []Kind{PV, PVH, HVM} }

// HasShadow tells whether a release has shadow paging; empty means
// [DefaultRelease].
func HasShadow(xen string) bool {
	r, err := findRelease(xen)
	return err == nil && r.Shadow
}

// A GuestConfig says what guest to create. The zero value is a PV guest with
// two vCPUs.
type GuestConfig struct {
	// Name of the domain; letters, digits, dots, dashes and underscores.
	// Empty: the kind with a number.
	Name string
	// Kind is how it is virtualised. Empty: PV.
	Kind Kind
	// VCPUs is the number of virtual CPUs. 0: 2.
	VCPUs int
	// MemoryMB is the guest's memory. 0: 256.
	MemoryMB int
	// Cmdline is added to the kernel's command line. The guest's init knows
	// work=busy, a loop in user mode on every vCPU, work=kernel, one long system
	// call after the other on the last of them, and more: see guest.sh.
	Cmdline string
	// KASLR lets the kernel choose addresses by chance. Otherwise nokaslr
	// makes them those of the symbol file. An HVM guest always has it, unless
	// Cmdline says nokaslr.
	KASLR bool
	// Shadow has the hypervisor walk the guest's page tables, where it would
	// leave that to the CPU, for kinds other than PV and releases with
	// [HasShadow].
	Shadow bool
	// Extra lines for the domain's configuration file.
	Extra string
}

// A Guest is a domain that the lab created: Debian's kernel with an init that
// counts seconds on the console.
type Guest struct {
	host    *Host
	cfg     GuestConfig
	id      int
	console *console
	boot    time.Duration

	stopOnce sync.Once
	stopping chan struct{}
	stopped  chan struct{} // the console's watcher has ended
}

var guestName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// bootTimeout is how long a guest may take to come up. Some hang on an emulated
// machine that is short of time: Linux then waits in multi_cpu_stop for ever.
const bootTimeout = 6 * time.Minute

// CreateGuest creates a guest and waits until its init counts. One that does not
// come up is started once more.
func (h *Host) CreateGuest(ctx context.Context, cfg GuestConfig) (*Guest, error) {
	cfg.Kind = cmp.Or(cfg.Kind, PV)
	cfg.VCPUs = cmp.Or(cfg.VCPUs, 2)
	cfg.MemoryMB = cmp.Or(cfg.MemoryMB, 256)
	first, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	g, err := h.createGuest(first, cfg)
	if err != nil && first.Err() != nil && ctx.Err() == nil {
		h.cache.progress.phase("%v: starting it once more", err)
		g, err = h.createGuest(ctx, cfg)
	}
	return g, err
}

func (h *Host) createGuest(ctx context.Context, cfg GuestConfig) (*Guest, error) {
	g, err := h.newGuest(cfg)
	if err != nil {
		return nil, fmt.Errorf("create guest: %w", err)
	}
	if err := g.start(ctx); err != nil {
		err = fmt.Errorf("create guest %s: %w", g.cfg.Name, err)
		// On a host that hangs this must not hang too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, g.Destroy(ctx))
	}
	return g, nil
}

// newGuest reserves the guest's name.
func (h *Host) newGuest(cfg GuestConfig) (*Guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errors.New("the host is closed")
	}
	if cfg.Name == "" {
		for n := 1; cfg.Name == "" || h.consoles[cfg.Name] != nil; n++ {
			cfg.Name = fmt.Sprintf("%s%d", cfg.Kind, n)
		}
	}
	if !guestName.MatchString(cfg.Name) {
		return nil, fmt.Errorf("bad name %q", cfg.Name)
	}
	if h.guests[cfg.Name] != nil {
		return nil, fmt.Errorf("there is a guest %s already", cfg.Name)
	}
	g := &Guest{host: h, cfg: cfg, stopping: make(chan struct{}), stopped: make(chan struct{})}
	g.console = newConsole(cfg.Name+": ", h.log)
	h.guests[cfg.Name] = g
	h.consoles[cfg.Name] = g.console
	h.watchers.Add(1)
	go g.watch(fileSize(g.consoleFile()))
	return g, nil
}

func (g *Guest) start(ctx context.Context) error {
	config, err := g.config(ctx)
	if err != nil {
		return err
	}
	name := "guest-" + g.cfg.Name + ".cfg"
	if err := os.WriteFile(filepath.Join(g.host.ShareDir(), name), []byte(config), 0o644); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := g.host.Output(ctx, "xl create -q /share/"+name); err != nil {
		return g.failed(ctx, err)
	}
	out, err := g.host.Output(ctx, "xl domid "+g.cfg.Name)
	if err != nil {
		return err
	}
	if g.id, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
		return fmt.Errorf("read domain id: %w", err)
	}
	if err := g.waitTick(ctx, 1); err != nil {
		return g.failed(ctx, err)
	}
	g.boot = time.Since(begin)
	if g.cfg.Kind == HVM {
		return g.unpin(ctx)
	}
	return nil
}

// config is the domain's configuration file, as xl.cfg(5) describes it.
func (g *Guest) config(ctx context.Context) (string, error) {
	if g.cfg.Kind == HVM {
		return g.hvmConfig(ctx)
	}
	return g.cfg.xl()
}

// xl is the configuration of a guest whose kernel xl loads.
func (c GuestConfig) xl() (string, error) {
	cmdline := "console=hvc0 rdinit=/init"
	if !c.KASLR {
		cmdline += " nokaslr"
	}
	cmdline = strings.TrimSpace(cmdline + " " + c.Cmdline)
	if strings.ContainsAny(cmdline, "\"\n") {
		return "", fmt.Errorf("bad kernel command line %q", cmdline)
	}
	switch c.Kind {
	case PV, PVH:
	default:
		return "", fmt.Errorf("unknown kind of guest %q", c.Kind)
	}
	extra := c.Extra
	if c.Kind != PV {
		extra = c.paging() + notOnFirst + extra
	}
	return fmt.Sprintf(`name = "%s"
type = "%s"
kernel = "/image/vmlinux"
ramdisk = "/image/guest.cpio"
extra = "%s"
memory = %d
vcpus = %d
on_crash = "preserve"
%s
`, c.Name, c.Kind, cmdline, c.MemoryMB, c.VCPUs, extra), nil
}

// notFirst are all CPUs but the first, dom0's. Now and then QEMU runs a guest with
// hardware virtualization there with the state of Xen, which ends in a triple fault.
const notFirst = "all,^0"

// notOnFirst is the line of the configuration that keeps a guest off the first CPU.
const notOnFirst = "cpus = \"" + notFirst + "\"\n"

// paging is the line of the configuration that says who walks the page tables.
func (c GuestConfig) paging() string {
	if c.Shadow {
		return "hap = 0\n"
	}
	return "hap = 1\n"
}

// consoleFile is where dom0's xenconsoled writes the guest's console.
func (g *Guest) consoleFile() string {
	return filepath.Join(g.host.ShareDir(), "console", "guest-"+g.cfg.Name+".log")
}

// watch follows the console's file; what a guest of the same name wrote there
// before ends at offset.
func (g *Guest) watch(offset int64) {
	defer g.host.watchers.Done()
	defer close(g.stopped)
	defer g.console.end()
	for {
		stopping := false
		select {
		case <-g.stopping:
			stopping = true // after one last look
		case <-time.After(pollInterval):
		}
		if f, err := os.Open(g.consoleFile()); err == nil {
			n, _ := io.Copy(g.console, io.NewSectionReader(f, offset, 1<<40))
			offset += n
			f.Close()
		}
		if stopping {
			return
		}
	}
}

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

func (g *Guest) stop() { g.stopOnce.Do(func() { close(g.stopping) }) }

// ID is the domain's number.
func (g *Guest) ID() int { return g.id }

// Name is the domain's name.
func (g *Guest) Name() string { return g.cfg.Name }

// Config is what the guest was created from, defaults filled in.
func (g *Guest) Config() GuestConfig { return g.cfg }

// BootTime is how long it took from xl create until the guest's init counted.
func (g *Guest) BootTime() time.Duration { return g.boot }

// Console returns what the guest has written so far.
func (g *Guest) Console() string { return g.console.String() }

// Ticks returns the last number the guest has counted to.
func (g *Guest) Ticks() int { return lastTick(g.Console()) }

// WaitTick waits until the guest has counted on by n seconds, which proves
// that it runs.
func (g *Guest) WaitTick(ctx context.Context, n int) error {
	return g.waitTick(ctx, g.Ticks()+n)
}

func (g *Guest) waitTick(ctx context.Context, want int) error {
	for {
		text, ended, changed := g.console.state()
		got := lastTick(text)
		if got >= want {
			return nil
		}
		if ended {
			return fmt.Errorf("guest %s ended at tick %d of %d", g.cfg.Name, got, want)
		}
		select {
		case <-changed:
		case <-g.host.qemu.done:
			return fmt.Errorf("guest %s was at tick %d of %d when qemu ended: %v", g.cfg.Name, got, want, g.host.qemu.err)
		case <-ctx.Done():
			return fmt.Errorf("guest %s is at tick %d of %d: %w; its console:\n%s",
				g.cfg.Name, got, want, context.Cause(ctx), g.console.tail(15))
		}
	}
}

var tickLine = regexp.MustCompile(`(?m)^tick (\d+)\r?\n`)

// lastTick finds the last whole tick line of a console.
func lastTick(text string) int {
	const enough = 4 << 10 // the end will do, unless a crash filled it
	for _, part := range []string{text[max(0, len(text)-enough):], text} {
		all := tickLine.FindAllStringSubmatch(part, -1)
		if len(all) > 0 {
			n, _ := strconv.Atoi(all[len(all)-1][1])
			return n
		}
	}
	return 0
}

// Destroy ends the guest at once. It may be called more than once.
func (g *Guest) Destroy(ctx context.Context) error {
	g.host.mu.Lock()
	mine := g.host.guests[g.cfg.Name] == g && !g.host.closed
	g.host.mu.Unlock()
	if !mine {
		return nil
	}
	destroy := "xl destroy " + g.cfg.Name
	if g.cfg.Kind == HVM {
		destroy = g.destroyCommand()
	}
	res, err := g.host.Run(ctx, destroy)
	if err != nil {
		return fmt.Errorf("destroy guest %s: %w", g.cfg.Name, err)
	}
	gone := strings.Contains(string(res.Stderr), "invalid domain identifier") // it has ended by itself
	if res.ExitCode != 0 && g.id != 0 && !gone {
		return fmt.Errorf("destroy guest %s: exit code %d: %s", g.cfg.Name, res.ExitCode, lastLines(res.Stderr, 5))
	}
	g.stop()
	<-g.stopped
	g.host.mu.Lock()
	delete(g.host.guests, g.cfg.Name)
	g.host.mu.Unlock()
	return nil
}

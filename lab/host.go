package lab

// A running host.

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gdbserver-xen/lab/agent/wire"
)

// DefaultCPU is QEMU's CPU model of a host: what Xen needs to run PV and PVH
// guests. Models with SMAP crash a PV dom0; without RDRAND each xl create waits
// two seconds for random numbers that dom0 does not have.
const DefaultCPU = "qemu64,+svm,+npt,+rdrand"

// VectorCPU adds the vector registers, up to AVX2.
const VectorCPU = "qemu64,+svm,+npt,+rdrand,+xsave,+xsaveopt,+avx,+avx2,+sse4.1,+sse4.2,+ssse3,+popcnt,+aes,+bmi1,+bmi2"

// A Config says what host to start. The zero value is Xen 4.17 on three CPUs.
type Config struct {
	// Release is the Xen release, one of [Releases]. Empty: [DefaultRelease].
	Release string
	// MemoryMB is the memory of the whole machine. 0: 4096.
	MemoryMB int
	// CPUs is the number of physical CPUs that Xen sees, the first of which is
	// dom0's. 0: 3.
	CPUs int
	// Dom0MemoryMB is dom0's share of the memory. Its root file system lives
	// there. 0: 1024.
	Dom0MemoryMB int
	// CPU is QEMU's CPU model. Empty: [DefaultCPU].
	CPU string
	// XenArgs is added to the hypervisor's command line.
	XenArgs string
	// Dom0Args is added to dom0's kernel command line.
	Dom0Args string
	// GDBSX boots a hypervisor that has the calls of Xen's own gdbsx, which
	// Debian's has not, runs PV guests of 32 bits, and lets PV guests migrate live: it
	// is built from Debian's source package. All else is as without.
	GDBSX bool

	// Log receives the lines of all consoles, each with a prefix that says
	// whose it is. Lines come whole, but from any goroutine, one at a time.
	// Nil: nowhere.
	Log io.Writer
	// Progress receives a line at the start of each long operation, and if it
	// is a terminal, how far it is. Nil: Log.
	Progress io.Writer
}

func (c Config) withDefaults() Config {
	c.Release = cmp.Or(c.Release, DefaultRelease)
	c.MemoryMB = cmp.Or(c.MemoryMB, 4096)
	c.CPUs = cmp.Or(c.CPUs, 3)
	c.Dom0MemoryMB = cmp.Or(c.Dom0MemoryMB, 1024)
	c.CPU = cmp.Or(c.CPU, DefaultCPU)
	if c.Progress == nil {
		c.Progress = c.Log
	}
	return c
}

// A Host is an emulated machine that runs Xen, with a dom0 that obeys. Its
// methods may be called from several goroutines.
type Host struct {
	cfg     Config
	release release
	image   image
	machine machine
	cache   *cache
	run     *runDir
	qemu    *child
	qmp     *qmp
	agent   agentClient
	log     *syncWriter
	console *console // Xen's and dom0's
	boot    time.Duration

	hvmMu sync.Mutex
	hvm   string // cache entry of what dom0 has got for HVM guests

	mu       sync.Mutex
	closed   bool
	forwards map[int]string // loopback address by dom0 port
	guests   map[string]*Guest
	consoles map[string]*console // of all guests there ever were
	watchers sync.WaitGroup
}

// Prepare fetches and builds all that Start and the guests need, so that
// later neither needs the network.
func Prepare(ctx context.Context, cfg Config) error {
	h, err := prepare(ctx, cfg.withDefaults())
	if err != nil {
		return err
	}
	_, err = h.cache.buildHVM(ctx, h.release, h.image)
	return err
}

// prepare returns a host that is not running yet.
func prepare(ctx context.Context, cfg Config) (*Host, error) {
	r, err := findRelease(cfg.Release)
	if err != nil {
		return nil, err
	}
	if err := EnsureTools(ctx, nil); err != nil {
		return nil, err
	}
	root, err := CacheDir()
	if err != nil {
		return nil, err
	}
	c := &cache{root: root, progress: newProgress(cfg.Progress)}
	img, err := c.buildImage(ctx, r)
	if err != nil {
		return nil, err
	}
	initrd, err := c.buildInitrd(ctx, img)
	if err != nil {
		return nil, err
	}
	if cfg.GDBSX {
		if img.built, err = c.buildHypervisor(ctx, r, img.xenVersion(r)); err != nil {
			return nil, err
		}
	}
	h := &Host{
		cfg: cfg, release: r, image: img, cache: c,
		machine:  machine{image: img, initrd: initrd, cfg: cfg},
		log:      &syncWriter{w: cfg.Log},
		forwards: map[int]string{},
		guests:   map[string]*Guest{},
		consoles: map[string]*console{},
	}
	h.console = newConsole("xen "+r.Xen+": ", h.log)
	return h, nil
}

// Start boots a host and waits until dom0 obeys. The first time it downloads
// and builds what it boots; later it needs no network. ctx bounds the start
// only: the host runs until Close, or until this process ends.
func Start(ctx context.Context, cfg Config) (*Host, error) {
	h, err := prepare(ctx, cfg.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("prepare host: %w", err)
	}
	if err := h.start(ctx); err != nil {
		err = fmt.Errorf("start host: %w\n%s", err, h.Report())
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) start(ctx context.Context) error {
	var err error
	if h.run, err = h.cache.newRunDir(ctx); err != nil {
		return err
	}
	h.machine.share = h.ShareDir()
	if h.machine.qemu, err = h.cache.qemu(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(h.ShareDir(), 0o700); err != nil {
		return err
	}
	h.agent.Token = rand.Text()
	if err := os.WriteFile(filepath.Join(h.ShareDir(), "token"), []byte(h.agent.Token), 0o600); err != nil {
		return err
	}
	h.cache.progress.phase("booting xen %s with linux %s", h.XenVersion(), h.image.kernel)
	begin := time.Now()
	if h.qemu, h.qmp, err = startQEMU(h.machine, h.console); err != nil {
		return err
	}
	go func() {
		<-h.qemu.done
		h.console.end()
	}()
	if h.agent.Addr, err = h.qmp.forwarded(ctx, agentPort); err != nil {
		return err
	}
	if err := h.waitConsole(ctx, "lab: agent listens", "lab: dom0 failed", "Kernel panic", "Panic on CPU"); err != nil {
		return err
	}
	if err := h.agent.ping(ctx); err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if err := h.publish(); err != nil {
		return err
	}
	h.boot = time.Since(begin)
	h.cache.progress.phase("dom0 answers after %.1f s", h.boot.Seconds())
	return nil
}

// waitConsole waits for a text on dom0's console; one of the others, or the
// end of QEMU, is an error.
func (h *Host) waitConsole(ctx context.Context, want string, fatal ...string) error {
	for {
		text, ended, changed := h.console.state()
		if strings.Contains(text, want) {
			return nil
		}
		for _, f := range fatal {
			if strings.Contains(text, f) {
				return fmt.Errorf("dom0 did not come up: its console says %q", f)
			}
		}
		if ended {
			return fmt.Errorf("qemu ended: %v", h.qemu.err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for dom0: %w", context.Cause(ctx))
		}
	}
}

// Close ends the host and all its guests, and removes its files. It may be
// called more than once.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	for _, g := range h.guests {
		g.stop()
	}
	h.mu.Unlock()
	h.watchers.Wait()
	if h.qemu != nil {
		h.qemu.kill()
		h.qmp.conn.Close()
	}
	h.console.end()
	if h.run != nil {
		if err := h.run.Close(); err != nil {
			return fmt.Errorf("remove run directory: %w", err)
		}
	}
	return nil
}

// Run runs a command in dom0 by sh -c and waits for its end. A command that
// fails is not an error, but has an exit code. The end of ctx kills it and
// all it started.
func (h *Host) Run(ctx context.Context, command string) (Result, error) {
	p, err := h.Command(ctx, command)
	if err != nil {
		return Result{}, err
	}
	res, err := p.Wait()
	if err != nil {
		return res, fmt.Errorf("run %q in dom0: %w", command, err)
	}
	return res, nil
}

// Output runs a command in dom0 and returns what it writes to stdout. Unlike
// with Run, an exit code other than 0 is an error.
func (h *Host) Output(ctx context.Context, command string) (string, error) {
	res, err := h.Run(ctx, command)
	if err != nil {
		return "", err
	}
	if res.ExitCode != 0 {
		all := append(res.Stdout, res.Stderr...)
		return "", fmt.Errorf("run %q in dom0: exit code %d:\n%s", command, res.ExitCode, lastLines(all, 20))
	}
	return string(res.Stdout), nil
}

// Command starts a command in dom0 by sh -c. The end of ctx kills it and all
// it started.
func (h *Host) Command(ctx context.Context, command string) (*Process, error) {
	p, err := h.agent.run(ctx, wire.Request{Command: command}, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("run %q in dom0: %w", command, err)
	}
	return p, nil
}

// Forward makes a TCP port of dom0 reachable on a loopback address of this
// machine, whose port the kernel picks.
func (h *Host) Forward(ctx context.Context, dom0Port int) (hostAddr string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if addr, ok := h.forwards[dom0Port]; ok {
		return addr, nil
	}
	addr, err := h.qmp.forward(ctx, dom0Port)
	if err != nil {
		return "", err
	}
	h.forwards[dom0Port] = addr
	return addr, nil
}

// Config is what the host was started from, defaults filled in.
func (h *Host) Config() Config { return h.cfg }

// Console returns what Xen and dom0 have written so far.
func (h *Host) Console() string { return h.console.String() }

// ShareDir is a directory of this machine that dom0 has mounted as /share.
func (h *Host) ShareDir() string { return filepath.Join(h.run.path, "share") }

// KernelRelease is the release of dom0's and the guests' Linux, as uname -r
// has it.
func (h *Host) KernelRelease() string { return h.image.kernel }

// XenVersion is the version of the hypervisor's package.
func (h *Host) XenVersion() string {
	if h.cfg.GDBSX {
		return h.image.built.version + " with CONFIG_GDBSX"
	}
	return h.image.xenVersion(h.release)
}

// BootTime is how long it took from QEMU's start until dom0 obeyed.
func (h *Host) BootTime() time.Duration { return h.boot }

// PID is the process id of QEMU, or 0 if it is not running.
func (h *Host) PID() int {
	if h.qemu == nil || !h.qemu.running() {
		return 0
	}
	return h.qemu.cmd.Process.Pid
}

// Done is closed when the machine has ended, by Close or by itself.
func (h *Host) Done() <-chan struct{} { return h.qemu.done }

// Report says, for people, how to start the same machine by hand and what was
// last on all consoles.
func (h *Host) Report() string {
	var b strings.Builder
	if h.qemu != nil && !h.qemu.running() {
		fmt.Fprintf(&b, "qemu ended by itself: %v\n", h.qemu.err)
	}
	fmt.Fprintf(&b, "to boot this machine by hand:\n%s\n", h.machine.commandLine())
	fmt.Fprintf(&b, "--- last lines of xen and dom0 ---\n%s\n", h.console.tail(40))
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range sortedKeys(h.consoles) {
		fmt.Fprintf(&b, "--- last lines of guest %s ---\n%s\n", name, h.consoles[name].tail(25))
		if serial, err := os.ReadFile(h.serialFile(name)); err == nil {
			fmt.Fprintf(&b, "--- serial port of guest %s ---\n%s\n", name, lastLines(serial, 15))
		}
	}
	return b.String()
}

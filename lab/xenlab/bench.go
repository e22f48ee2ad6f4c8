package main

// xenlab bench: this project's server beside its peers, in one run, and the page
// that tells of it.

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/bench"
)

type benchFlags struct {
	hostFlags
	client   string
	profiled string
	parts    []string
	results  string
	page     string
	rounds   int
}

// A benchPart is what can be measured by itself.
type benchPart struct {
	name    string
	measure func(b *bencher, ctx context.Context) error
	section func(page *strings.Builder, r *benchResult)
}

// benchParts are in the order in which they are measured: what needs a guest of 2 GB
// comes last.
var benchParts = []benchPart{
	{"stub", (*bencher).measureStub, stubSection},
	{"works", (*bencher).measureWorks, worksSection},
	{"cost", (*bencher).measureCost, costSection},
	{"profile", (*bencher).measureProfile, profileSection},
	{"gdb", (*bencher).measureGDB, gdbSection},
	{"attach", (*bencher).measureAttach, attachSection},
}

func benchCommand() *cobra.Command {
	var f benchFlags
	var names []string
	for _, p := range benchParts {
		names = append(names, p.name)
	}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "measure the server beside gdbsx and QEMU's stub",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := runBench(cmd.Context(), &f)
			if err != nil && cmd.Context().Err() != nil {
				return errors.New("bench was interrupted")
			}
			return err
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.client, "client", "bin/bench-client", "`path` of the client to copy into dom0")
	flags.StringVar(&f.profiled, "profiled", "bin/gdbserver-xen-profiled", "`path` of a server that profiles itself")
	flags.StringSliceVar(&f.parts, "parts", names, "what to measure; the page has the last results of the others")
	flags.StringVar(&f.results, "results", "out/bench", "`directory` that keeps the results of each part")
	flags.StringVar(&f.page, "page", "docs/benchmarks.md", "`file` to write")
	flags.IntVar(&f.rounds, "rounds", 2, "`number` of turns that each server has")
	return cmd
}

// A bencher measures on one host.
type bencher struct {
	clock
	flags  *benchFlags
	host   *lab.Host  // once it was needed
	guest  *lab.Guest // of 256 MB, whose vCPU is busy in its kernel
	params []string   // of the client: where to read and where to break
	text   span       // of the guest's kernel
	symbol string     // the symbol file
	port   int        // the last that was used
	result benchResult
}

// A span is of addresses.
type span struct{ start, end uint64 }

func runBench(ctx context.Context, f *benchFlags) (err error) {
	for _, file := range []string{f.server, f.client, f.profiled} {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no %s: run make bench", file)
		}
	}
	if err := os.MkdirAll(f.results, 0o755); err != nil {
		return err
	}
	b := &bencher{clock: clock{time.Now()}, flags: f, port: 9100}
	defer func() {
		if b.host != nil {
			if err != nil && ctx.Err() == nil {
				fmt.Fprint(os.Stderr, b.host.Report())
			}
			err = errors.Join(err, b.host.Close())
		}
	}()
	// A part that fails loses what it has measured, but not the others.
	var failed []error
	for _, name := range f.parts {
		i := slices.IndexFunc(benchParts, func(p benchPart) bool { return p.name == name })
		if i < 0 {
			return fmt.Errorf("no part %q to measure", name)
		}
		b.step("measuring: %s", name)
		b.result = newBenchResult(ctx)
		err := benchParts[i].measure(b, ctx)
		if err == nil {
			err = b.result.save(f.results, name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.step("%s failed: %v", name, err)
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	all := map[string]benchResult{}
	for _, p := range benchParts {
		r, err := loadBenchResult(f.results, p.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		all[p.name] = r
	}
	page := benchPage(all)
	fmt.Print(page)
	b.step("written: %s", f.page)
	return errors.Join(append(failed, os.WriteFile(f.page, []byte(page), 0o644))...)
}

// prepare gives the host and the guest, which parts share.
func (b *bencher) prepare(ctx context.Context) error {
	if b.host == nil {
		if err := b.boot(ctx); err != nil {
			return err
		}
	}
	b.result.Xen, b.result.Linux = b.host.XenVersion(), b.host.KernelRelease()
	return nil
}

func (b *bencher) boot(ctx context.Context) error {
	cfg, _ := b.flags.configs()
	cfg.GDBSX = true
	var err error
	if b.host, err = lab.Start(ctx, cfg); err != nil {
		return err
	}
	b.step("xen %s is up", b.host.XenVersion())
	if b.symbol, err = b.host.Symbols(ctx); err != nil {
		return err
	}
	if err := b.findPlaces(); err != nil {
		return err
	}
	for from, to := range map[string]string{
		b.flags.server: serverInDom0, b.flags.client: clientInDom0, b.flags.profiled: profiledInDom0,
	} {
		if err := b.host.CopyIn(ctx, from, to, 0o755); err != nil {
			return err
		}
	}
	b.guest, err = b.createGuest(ctx, "bench", busyGuest, smallMB)
	return err
}

// createGuest starts a guest of one vCPU: gdbsx has the hypervisor walk the tables
// that vCPU 0 is on, whatever thread is selected, and fails while that is in user mode.
func (b *bencher) createGuest(ctx context.Context, name, cmdline string, memoryMB int) (*lab.Guest, error) {
	_, cfg := b.flags.configs()
	cfg.Name, cfg.Cmdline, cfg.MemoryMB, cfg.VCPUs = name, strings.TrimSpace(cmdline+" "+cfg.Cmdline), memoryMB, 1
	g, err := b.host.CreateGuest(ctx, cfg)
	if err == nil {
		b.step("guest %s of %d MB is up", name, memoryMB)
	}
	return g, err
}

// tickTimeout is how long the guest may take to count a second.
const tickTimeout = 90 * time.Second

const (
	clientInDom0   = "/usr/bin/bench-client"
	profiledInDom0 = "/usr/bin/gdbserver-xen-profiled"
	smallMB        = 256
	largeMB        = 2048
	// busyGuest reads /dev/zero all the time. It is not to report that it was stopped
	// for long.
	busyGuest = "work=kernel nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
	// busyFunction is what it comes to for each page.
	busyFunction = "clear_user_rep_good"
	// directMap is where the guest's kernel has all memory.
	directMap = 0xffff888000000000
)

// findPlaces looks the guest's addresses up in the symbol file.
func (b *bencher) findPlaces() error {
	f, err := elf.Open(b.symbol)
	if err != nil {
		return err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return fmt.Errorf("read %s: %w", b.symbol, err)
	}
	at := map[string]uint64{"_text": 0, "_etext": 0, busyFunction: 0}
	for _, s := range symbols {
		if _, wanted := at[s.Name]; wanted {
			at[s.Name] = s.Value
		}
	}
	for name, addr := range at {
		if addr == 0 {
			return fmt.Errorf("no symbol %s in %s", name, b.symbol)
		}
	}
	b.text = span{at["_text"], at["_etext"]}
	size := (b.text.end - b.text.start) &^ 0xfff
	b.params = []string{
		fmt.Sprintf("-read=%#x", b.text.start), fmt.Sprintf("-read-size=%d", size),
		fmt.Sprintf("-code=%#x", b.text.start), fmt.Sprintf("-code-size=%d", size),
		fmt.Sprintf("-bulk=%#x", uint64(directMap+64<<20)), fmt.Sprintf("-bulk-size=%d", 64<<20/b.flags.rounds),
		fmt.Sprintf("-break=%#x", at[busyFunction]),
	}
	return nil
}

// A contender is a server of guests.
type contender struct {
	name    string
	command func(id int, host string, port int) string
	count   string // monitor command that counts
	exit    int    // its exit status when all is well
}

const (
	nameOurs  = "gdbserver-xen"
	nameGDBSX = "gdbsx"
)

var contenders = []contender{
	{name: nameGDBSX, exit: 1, command: func(id int, _ string, port int) string {
		return fmt.Sprintf("gdbsx -a %d 64 %d", id, port)
	}},
	{name: nameOurs, count: "stats", command: func(id int, host string, port int) string {
		return fmt.Sprintf("gdbserver-xen attach --listen %s:%d %d", host, port, id)
	}},
}

// clientTimeout is how long a group of works may take.
const clientTimeout = 3 * time.Minute

// runClient runs the client in dom0 and reads what it prints.
func (b *bencher) runClient(ctx context.Context, args ...string) (bench.Report, error) {
	var r bench.Report
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	line := clientInDom0
	for _, a := range args {
		line += " " + lab.Quote(a)
	}
	out, err := b.host.Output(ctx, line)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return r, fmt.Errorf("read what the client prints: %w", err)
	}
	return r, nil
}

// serve gives the client's arguments to start a server on a guest and connect to it.
func (b *bencher) serve(c contender, id int) []string {
	b.port++
	return []string{
		"-server=" + c.command(id, "127.0.0.1", b.port), fmt.Sprintf("-exit=%d", c.exit),
		fmt.Sprintf("-connect=127.0.0.1:%d", b.port), "-count=" + c.count,
	}
}

// run measures a group of works with a server of its own. That the server fails goes
// into the result, and what comes next has another guest.
func (b *bencher) run(ctx context.Context, c contender, work string, more ...string) (bench.Report, error) {
	args := append(append([]string{"run", "-work=" + work}, b.serve(c, b.guest.ID())...), b.params...)
	r, err := b.runClient(ctx, append(args, more...)...)
	if err != nil {
		return r, fmt.Errorf("%s: %w", c.name, err)
	}
	if r.Failed == "" {
		return r, b.ticks(ctx)
	}
	return r, b.failed(ctx, c, r.Failed)
}

// failed notes that a server has failed, and makes a new guest.
func (b *bencher) failed(ctx context.Context, c contender, why string) error {
	b.step("%s failed: %s", c.name, why)
	b.result.Failures = append(b.result.Failures, c.name+": "+strings.ReplaceAll(why, "\n", "; "))
	err := b.guest.Destroy(ctx)
	if err == nil {
		b.guest, err = b.createGuest(ctx, "bench", busyGuest, smallMB)
	}
	return err
}

// ticks waits until the guest has counted: it was left as it was.
func (b *bencher) ticks(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, tickTimeout)
	defer cancel()
	return b.guest.WaitTick(wait, 1)
}

// measureWorks measures all works, the servers and the limit taking turns.
func (b *bencher) measureWorks(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	b.port++
	limit := fmt.Sprintf("127.0.0.1:%d", b.port)
	echo, err := b.host.Command(ctx, "exec "+clientInDom0+" echo -listen="+limit)
	if err != nil {
		return err
	}
	defer echo.Kill()
	for round := range b.flags.rounds {
		for _, c := range contenders {
			for _, work := range []string{"reads", "registers", "warm", "bulk", "write", "step", "breakpoint", "condition"} {
				r, err := b.run(ctx, c, work, "-most=5s", fmt.Sprintf("-steps=%d", 500/b.flags.rounds))
				if err != nil {
					return err
				}
				b.result.add(c.name, r)
			}
			b.step("round %d: %s is measured", round+1, c.name)
		}
		r, err := b.runClient(ctx, append([]string{"limit", "-connect=" + limit, "-times=1000"}, b.params...)...)
		if err != nil {
			return err
		}
		b.result.add(nameLimit, r)
	}
	return nil
}

// profiledWorks are those in dom0 that have goals.
var profiledWorks = []string{"warm", "registers", "bulk", "step", "breakpoint"}

// measureProfile takes a profile of ours for each group of works.
func (b *bencher) measureProfile(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const inDom0 = "/tmp/profile"
	ours := contender{name: nameOurs, command: func(id int, host string, port int) string {
		return fmt.Sprintf("env GDBSERVER_XEN_PROFILE=%s %s attach --listen %s:%d %d", inDom0, profiledInDom0, host, port, id)
	}}
	b.result.Profiles = map[string]string{}
	for _, work := range profiledWorks {
		r, err := b.run(ctx, ours, work, "-times=2000", "-steps=1000", "-rounds=200", "-most=5s")
		if err != nil {
			return err
		}
		if r.Failed != "" {
			continue
		}
		profile := filepath.Join(dir, work)
		if err := b.host.CopyOut(ctx, inDom0, profile); err != nil {
			return err
		}
		// What is spent below them counts as theirs.
		top, err := profileTop(ctx, b.flags.profiled, profile, `-show=gdbserver-xen/(xen\.\(\*Host\)\.[A-Z]|rsp\.|internal/)`)
		if err != nil {
			return err
		}
		b.result.Profiles[work] = top
	}
	b.step("profiles are taken")
	return nil
}

// Works that are counted, and how often they are done under strace.
var countedWorks = []struct {
	name  string
	times int
}{{"warm", 400}, {"registers", 400}, {"step", 50}}

// measureCost counts what operations cost, as the difference of a session with them
// and one without.
func (b *bencher) measureCost(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, c := range contenders {
		base, err := b.trace(ctx, c, "none", 0)
		if err != nil {
			return err
		}
		idle, err := b.run(ctx, c, "none")
		if err != nil {
			return err
		}
		b.result.Idle = append(b.result.Idle, idleCost{c.name, idle.PeakKB, idle.CPU, base.Total()})
		for _, w := range countedWorks {
			calls, err := b.trace(ctx, c, w.name, w.times)
			if err != nil {
				return err
			}
			plain, err := b.run(ctx, c, w.name, "-times=2000", "-steps=200", "-most=8s", "-count=")
			if err != nil {
				return err
			}
			if len(calls) == 0 || plain.Failed != "" {
				continue
			}
			o := operation{Server: c.name, Work: plain.Results[0].Work, Calls: map[string]float64{}}
			for name, k := range calls {
				o.Calls[name] = float64(k-base[name]) / float64(w.times)
			}
			o.CPU = max(plain.CPU-idle.CPU, 0) / time.Duration(len(plain.Results[0].Samples))
			b.result.Operations = append(b.result.Operations, o)
		}
		b.step("%s is counted", c.name)
	}
	return nil
}

// trace counts the system calls of a session; none are known of one that fails.
func (b *bencher) trace(ctx context.Context, c contender, work string, times int) (bench.Syscalls, error) {
	const file = "/tmp/trace"
	command := c.command
	c.command = func(id int, host string, port int) string {
		return "strace -f -c -o " + file + " " + command(id, host, port)
	}
	r, err := b.run(ctx, c, work, fmt.Sprintf("-times=%d", times), fmt.Sprintf("-steps=%d", times), "-most=60s", "-count=")
	if err != nil || r.Failed != "" {
		return nil, err
	}
	text, err := b.host.Output(ctx, "cat "+file)
	if err != nil {
		return nil, err
	}
	return bench.ParseStrace(text)
}

// measureAttach starts servers on a small guest and on a large one, in turns.
func (b *bencher) measureAttach(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	large, err := b.createGuest(ctx, "large", busyGuest, largeMB)
	if err != nil {
		return err
	}
	guests := map[int]*lab.Guest{smallMB: b.guest, largeMB: large}
	for range 5 {
		for _, c := range contenders {
			for _, size := range slices.Sorted(maps.Keys(guests)) {
				r, err := b.runClient(ctx, append([]string{"attach", "-times=3"}, b.serve(c, guests[size].ID())...)...)
				if err == nil && r.Failed != "" {
					err = errors.New(r.Failed)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				b.result.add(attachName(c.name, size), r)
			}
		}
	}
	return large.Destroy(ctx)
}

func attachName(server string, size int) string { return fmt.Sprintf("%s, %d MB", server, size) }

package main

// What the benchmark keeps, and the page that is made of it.

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"gdbserver-xen/lab/bench"
)

// A benchResult is what one part has measured.
type benchResult struct {
	Date       time.Time
	Version    string // of this project
	Xen, Linux string
	Machine    string
	Tool       string                             // the other program that took part, with its version
	Failures   []string                           // of servers
	Servers    map[string]map[string]bench.Result // by server and work
	Operations []operation
	Idle       []idleCost
	Profile    string            // what ours has spent its CPU time on, if that was taken
	Profiles   map[string]string // the same, by groups of works
	Frames     map[string]string // how many gdb's backtrace has, by server
}

// An operation is what one work costs a server.
type operation struct {
	Server, Work string
	Calls        map[string]float64 // system calls by name
	CPU          time.Duration
}

// An idleCost is what a session without works costs a server.
type idleCost struct {
	Server string
	PeakKB int
	CPU    time.Duration
	Calls  int
}

func newBenchResult(ctx context.Context) benchResult {
	r := benchResult{Date: time.Now().UTC(), Machine: machineLine(), Servers: map[string]map[string]bench.Result{}, Frames: map[string]string{}}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		r.Version = strings.TrimSpace(string(out))
	}
	return r
}

// machineLine tells what this machine is, without its name.
func machineLine() string {
	model, memory := "", ""
	for _, f := range []struct {
		file, key string
		to        *string
	}{{"/proc/cpuinfo", "model name", &model}, {"/proc/meminfo", "MemTotal", &memory}} {
		b, _ := os.ReadFile(f.file) // what is not there is not told
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == f.key && *f.to == "" {
				*f.to = strings.TrimSpace(value)
			}
		}
	}
	return fmt.Sprintf("%d CPUs (%s), %s of memory, %s", runtime.NumCPU(), cmp.Or(model, "unknown"), memory, runtime.Version())
}

// useTool notes the version that a program prints.
func (r *benchResult) useTool(ctx context.Context, name string) error {
	out, err := exec.CommandContext(ctx, name, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	r.Tool = strings.TrimSpace(line)
	return nil
}

func (r *benchResult) add(server string, report bench.Report) {
	if r.Servers[server] == nil {
		r.Servers[server] = map[string]bench.Result{}
	}
	bench.Merge(r.Servers[server], report.Results)
}

// rows are works of two servers side by side.
func (r *benchResult) rows(peer, ours string, rows []bench.Row) []bench.Row {
	for i := range rows {
		rows[i].Peer, rows[i].Ours = r.Servers[peer][rows[i].Name], r.Servers[ours][rows[i].Name]
	}
	return rows
}

func (r *benchResult) save(dir, part string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, part+".json"), b, 0o644)
}

func loadBenchResult(dir, part string) (r benchResult, err error) {
	b, err := os.ReadFile(filepath.Join(dir, part+".json"))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read the results of %s: %w", part, err)
	}
	return r, nil
}

const pageHead = `# Benchmarks

Written by ` + "`make bench`" + `; do not edit. The client is a program of this project's (lab/bench/client) that speaks the
protocol to any server, uses what the server says that it can, as gdb does, and runs beside the server. Servers take
turns; the ratio is the peer's median divided by ours, so more is better for us. 99 % is the 99th percentile, of a
speed the slower end. Speeds are of the guest's bytes, not of what goes over the wire.
`

// benchPage makes the page of the parts that there are.
func benchPage(parts map[string]benchResult) string {
	var b strings.Builder
	b.WriteString(pageHead)
	for _, p := range benchParts {
		r, ok := parts[p.name]
		if !ok {
			continue
		}
		p.section(&b, &r)
		when := fmt.Sprintf("Measured on %s, version %s", r.Date.Format("2006-01-02 15:04 UTC"), cmp.Or(r.Version, "unknown"))
		if r.Xen != "" {
			when += fmt.Sprintf(", Xen %s, guest's and dom0's Linux %s, in QEMU without hardware virtualization", r.Xen, r.Linux)
		}
		if r.Tool != "" {
			when += ", " + r.Tool
		}
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "\nFailed: %s\n", f)
		}
		fmt.Fprintf(&b, "\n%s; %s.\n", when, r.Machine)
	}
	return b.String()
}

func stubSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## The protocol alone: QEMU's stub\n\nOn the machine itself, over Unix sockets: a paused QEMU, and ours over the same memory, which is random bytes.\n\n")
	rows := r.rows(nameStub, nameMemory, []bench.Row{
		{Name: bench.ReadWarm, Goal: 3}, {Name: bench.Registers}, {Name: bench.BulkHex}, {Name: bench.BulkBinary, Goal: 20}})
	// What is compared is the fastest way that each has.
	rows[3].Peer = rows[2].Peer
	rows[3].Name += ", to hex"
	b.WriteString(bench.Table(nameStub, "ours", rows))
	b.WriteString("\nThe limit: an echo, and plain copying, over the same kind of socket.\n\n")
	b.WriteString(bench.Table("limit", "ours", r.limit(nameMemory)))
	r.atMost(b, nameStub, bench.ReadWarm)
	if r.Profile != "" {
		fmt.Fprintf(b, "\nWhat holds what is missed: the CPU profile of ours, over all of these works, is mostly of\n\n```\n%s\n```\n", r.Profile)
	}
}

// atMost tells how much faster than a peer any server could be, by the limit.
func (r *benchResult) atMost(b *strings.Builder, peer string, works ...string) {
	limit, theirs := r.Servers[nameLimit], r.Servers[peer]
	for _, work := range works {
		if ratio, ok := (bench.Row{Peer: theirs[work], Ours: limit[bench.Echo]}).Ratio(); ok {
			fmt.Fprintf(b, "\nWhat holds %q: with one echo of time, no server could be more than %.1f times faster than %s here.\n", work, ratio, peer)
		}
	}
	ready := limit[bench.Ready]
	if ratio, ok := (bench.Row{Peer: theirs[bench.BulkHex], Ours: ready}).Ratio(); ok {
		fmt.Fprintf(b, "\nWhat holds %q: the client takes random bytes from a server that has its replies ready, framed, at %.1f MB/s, "+
			"%.1f times as fast as from %s.\n", bench.BulkBinary, ready.Speed(bench.Median(ready.Samples))/1e6, ratio, peer)
	}
}

// limit compares a server to what none can be faster than.
func (r *benchResult) limit(server string) []bench.Row {
	limit, ours := r.Servers[nameLimit], r.Servers[server]
	return []bench.Row{
		{Name: bench.ReadWarm + ", to an echo", Peer: limit[bench.Echo], Ours: ours[bench.ReadWarm], Goal: 0.667},
		{Name: bench.BulkBinary + ", to copying", Peer: limit[bench.Copy], Ours: ours[bench.BulkBinary], Goal: 0.6},
		{Name: bench.CodeBinary + ", to copying", Peer: limit[bench.Copy], Ours: ours[bench.CodeBinary]},
	}
}

func worksSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## Guests: gdbsx\n\nIn dom0, over its loopback, on a PV guest of 256 MB with one vCPU, which is busy in its kernel.\n\n")
	rows := r.rows(nameGDBSX, nameOurs, []bench.Row{
		{Name: bench.ReadCold},
		{Name: bench.ReadWarm, Goal: 20},
		{Name: bench.Registers, Goal: 20},
		{Name: bench.StopWorth},
		{Name: bench.BulkHex},
		{Name: bench.BulkBinary, Goal: 200},
		{Name: bench.CodeBinary},
		{Name: bench.WriteBack},
		{Name: bench.StepBusy, Goal: 5},
		{Name: bench.BreakHit, Goal: 5},
		{Name: bench.BreakCycle},
		{Name: bench.ConditionClient},
		{Name: bench.ConditionServer},
	})
	for i := range rows {
		// What is compared is the fastest way that each has.
		if name := rows[i].Name; name == bench.BulkBinary || name == bench.CodeBinary {
			rows[i].Peer = r.Servers[nameGDBSX][bench.BulkHex]
			rows[i].Name += ", to hex"
		}
	}
	last := &rows[len(rows)-1]
	last.Peer = bench.Result{Unsupported: "no conditions"}
	b.WriteString(bench.Table(nameGDBSX, "ours", rows))
	b.WriteString("\nThe limit: an echo, and plain copying, over the same loopback.\n\n")
	b.WriteString(bench.Table("limit", "ours", r.limit(nameOurs)))
	r.atMost(b, nameGDBSX, bench.ReadWarm, bench.Registers)
	b.WriteString("\nHypercalls and mapping calls of ours, each, by `monitor stats` (of bulk work, per 16 packets):")
	sep := " "
	for _, work := range []string{bench.ReadCold, bench.ReadWarm, bench.Registers, bench.BulkBinary, bench.StepBusy, bench.BreakCycle} {
		own := r.Servers[nameOurs][work]
		if len(own.Samples) > 0 && own.Calls != nil {
			n := float64(len(own.Samples))
			fmt.Fprintf(b, "%s%s %.2f and %.2f", sep, work, float64(own.Calls["hypercalls"])/n, float64(own.Calls["mappings"])/n)
			sep = "; "
		}
	}
	b.WriteString(".\n")
}

func costSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## Cost\n\nPer operation, as strace counts system calls: the difference of a session with them and one without.\n\n" +
		"| operation | server | system calls | of which | CPU time |\n|---|---|---|---|---|\n")
	slices.SortStableFunc(r.Operations, func(x, y operation) int { return cmp.Compare(x.Work, y.Work) })
	for _, o := range r.Operations {
		total, most := 0.0, []string{}
		for _, name := range slices.Sorted(maps.Keys(o.Calls)) {
			total += o.Calls[name]
			if o.Calls[name] >= 0.1 {
				most = append(most, fmt.Sprintf("%s %.1f", name, o.Calls[name]))
			}
		}
		fmt.Fprintf(b, "| %s | %s | %.1f | %s | %.0f µs |\n", o.Work, o.Server, total, strings.Join(most, ", "), float64(o.CPU)/1e3)
	}
	b.WriteString("\nA session that attaches and detaches:\n\n| server | system calls | CPU time | most memory |\n|---|---|---|---|\n")
	for _, i := range r.Idle {
		fmt.Fprintf(b, "| %s | %d | %.0f ms | %.1f MB |\n", i.Server, i.Calls, float64(i.CPU)/1e6, float64(i.PeakKB)/1024)
	}
}

func profileSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## Profiles\n\nWhat holds ours in dom0: CPU time by what asks for it. Below xen.Host is the hypervisor's own work, and waiting " +
		"for another CPU to let go of a vCPU; below rsp are the kernel's sockets.\n")
	for _, work := range profiledWorks {
		if top, ok := r.Profiles[work]; ok {
			fmt.Fprintf(b, "\n%s:\n\n```\n%s\n```\n", work, top)
		}
	}
}

func gdbSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## Real gdb\n\ngdb on the machine itself, through QEMU's network, with the kernel's symbol file, on the same guest.\n\n")
	b.WriteString(bench.Table(nameGDBSX, "ours", r.rows(nameGDBSX, nameOurs, []bench.Row{
		{Name: gdbConnect}, {Name: gdbBacktrace, Goal: 10}, {Name: gdbAgain}, {Name: gdbCached}, {Name: gdbDump}})))
	if len(r.Frames) > 0 {
		fmt.Fprintf(b, "\nWhen it connects to ours, the server finds the guest's kernel, and gdb reads from it how to unwind that, as it does nothing with gdbsx. "+
			"The backtrace has %s frames with gdbsx and %s with ours.\n", r.Frames[nameGDBSX], r.Frames[nameOurs])
	}
	median := func(server, work string) float64 { return bench.Median(r.Servers[server][work].Samples).Seconds() }
	first, again, cached := median(nameOurs, gdbBacktrace), median(nameOurs, gdbAgain), median(nameOurs, gdbCached)
	if own := first - again + cached; again > 0 && own > 0 {
		fmt.Fprintf(b, "\nWhat holds %q: gdb's own work. The first time it reads the symbols that it needs, which takes %.0f ms, and each time it unwinds, "+
			"which takes %.0f ms with nothing to ask of the server but registers. No server could be more than %.1f times faster than gdbsx here, and %.1f times again.\n",
			gdbBacktrace, 1e3*(first-again), 1e3*cached, median(nameGDBSX, gdbBacktrace)/own, median(nameGDBSX, gdbAgain)/cached)
	}
}

func attachSection(b *strings.Builder, r *benchResult) {
	b.WriteString("\n## Attach\n\nFrom the start of the server's process to the first registers.\n\n")
	result := func(server string, size int) bench.Result { return r.Servers[attachName(server, size)][bench.Attach] }
	var rows []bench.Row
	for _, size := range []int{smallMB, largeMB} {
		rows = append(rows, bench.Row{Name: fmt.Sprintf("guest of %d MB", size), Peer: result(nameGDBSX, size), Ours: result(nameOurs, size)})
	}
	b.WriteString(bench.Table(nameGDBSX, "ours", rows))
	small, large := bench.Median(rows[0].Ours.Samples), bench.Median(rows[1].Ours.Samples)
	if small > 0 {
		ratio := large.Seconds() / small.Seconds()
		verdict := "missed"
		if ratio <= 1.1 {
			verdict = "met"
		}
		fmt.Fprintf(b, "\n%d MB take %.2f times what %d MB take; goal at most 1.1: %s.\n", largeMB, ratio, smallMB, verdict)
	}
}

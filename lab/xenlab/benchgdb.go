package main

// The part of the benchmark in which real gdb is the client, from outside of dom0.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/bench"
)

// What gdb is timed at.
const (
	gdbConnect   = "target remote"
	gdbBacktrace = "thread apply all bt"
	gdbAgain     = "thread apply all bt, again, as at a next stop"
	gdbCached    = "thread apply all bt, from gdb's caches"
	gdbDump      = "dump memory"
)

// What gdb knows of the guest's state, which a stop makes void.
const (
	flushRegisters = "maintenance flush register-cache\n"
	flushMemory    = "maintenance flush dcache\n"
)

// gdbTimed is a line that the script below prints.
var gdbTimed = regexp.MustCompile(`(?m)^timed (.+): ([0-9.]+), (\d+) frames$`)

// measureGDB lets gdb debug the guest through each server in turn.
func (b *bencher) measureGDB(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := lab.EnsureTools(ctx, map[string]string{"gdb": "gdb"}); err != nil {
		return err
	}
	if err := b.result.useTool(ctx, "gdb"); err != nil {
		return err
	}
	for range b.flags.rounds {
		for _, c := range contenders {
			err := b.gdbTurn(ctx, c)
			if err != nil && ctx.Err() == nil {
				err = b.failed(ctx, c, err.Error())
			}
			if err != nil {
				return err
			}
			b.step("gdb has been with %s", c.name)
		}
	}
	return nil
}

func (b *bencher) gdbTurn(ctx context.Context, c contender) error {
	b.port++
	addr, err := b.host.Forward(ctx, b.port)
	if err != nil {
		return err
	}
	server, err := b.host.Command(ctx, "exec "+c.command(b.guest.ID(), "0.0.0.0", b.port))
	if err != nil {
		return err
	}
	defer server.Kill()
	// It says that it listens, or not, as it likes: the kernel knows.
	listens := fmt.Sprintf("for i in $(seq 300); do cat /proc/net/tcp /proc/net/tcp6 | grep -q ':%04X 0*:0000 0A' && exit 0; usleep 100000; done; exit 1", b.port)
	if _, err := b.host.Output(ctx, listens); err != nil {
		return fmt.Errorf("it does not listen: %w", err)
	}
	size := 16 << 20
	if c.name == nameGDBSX {
		size = 32 << 10
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out, err := timeGDB(ctx, b.symbol, []string{
		gdbConnect + " " + addr,
		gdbBacktrace,
		flushRegisters + flushMemory + gdbBacktrace,
		// Unwound anew, of what gdb has of the stacks already: what no server can change.
		flushRegisters + gdbBacktrace,
		fmt.Sprintf("dump binary memory %s %#x %#x", filepath.Join(dir, "dump"), b.text.start, b.text.start+uint64(size)),
	})
	if err != nil {
		return err
	}
	if err := stopServer(ctx, server); err != nil {
		return err
	}
	times := map[string]time.Duration{}
	for _, m := range gdbTimed.FindAllStringSubmatch(string(out), -1) {
		seconds, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		times[m[1]] = time.Duration(seconds * float64(time.Second))
		if m[1] == "2" {
			b.result.Frames[c.name] = m[3]
		}
	}
	if len(times) != 5 {
		return fmt.Errorf("gdb did not do all:\n%s", out)
	}
	b.result.add(c.name, bench.Report{Results: []bench.Result{
		{Work: gdbConnect, Samples: []time.Duration{times["1"]}},
		{Work: gdbBacktrace, Samples: []time.Duration{times["2"]}},
		{Work: gdbAgain, Samples: []time.Duration{times["3"]}},
		{Work: gdbCached, Samples: []time.Duration{times["4"]}},
		{Work: gdbDump, Bytes: size, Samples: []time.Duration{times["5"]}},
	}})
	return b.ticks(ctx)
}

// timeGDB has gdb run commands, and print how long each took, by its number.
func timeGDB(ctx context.Context, vmlinux string, commands []string) ([]byte, error) {
	args := []string{"-nx", "-batch", "-ex", "set width 0", "-ex", "set confirm off", "-ex", "python import time"}
	for i, command := range commands {
		args = append(args, "-ex", fmt.Sprintf(
			`python start = time.monotonic(); text = gdb.execute(%q, to_string=True); print("timed %d: %%.6f, %%d frames" %% (time.monotonic() - start, text.count("\n#")))`, command, i+1))
	}
	// One server ends without a word when gdb detaches.
	args = append(args, "-ex", "python exec(\"try: gdb.execute('detach')\\nexcept gdb.error: pass\")")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "gdb", append(args, vmlinux)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("gdb: %w\n%s", err, out.Bytes())
	}
	return out.Bytes(), nil
}

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab/bench"
)

// Results that were kept make a page, of the parts that there are.
func TestBenchPage(t *testing.T) {
	took := func(ds ...time.Duration) map[string]bench.Result {
		return map[string]bench.Result{bench.Attach: {Work: bench.Attach, Samples: ds}}
	}
	dir := t.TempDir()
	attach := benchResult{
		Date: time.Date(2026, 11, 26, 5, 0, 0, 0, time.UTC), Version: "v1", Xen: "4.17", Linux: "6.1", Machine: "2 CPUs",
		Servers: map[string]map[string]bench.Result{
			attachName(nameOurs, smallMB): took(10 * time.Millisecond), attachName(nameOurs, largeMB): took(12 * time.Millisecond),
			attachName(nameGDBSX, smallMB): took(40 * time.Millisecond), attachName(nameGDBSX, largeMB): took(40 * time.Millisecond),
		},
	}
	if err := attach.save(dir, "attach"); err != nil {
		t.Fatal(err)
	}
	got, err := loadBenchResult(dir, "attach")
	if err != nil {
		t.Fatal(err)
	}
	cost := benchResult{Operations: []operation{{nameGDBSX, bench.ReadWarm, map[string]float64{"ioctl": 1, "read": 2, "futex": 0.01}, 150 * time.Microsecond}}}
	profile := benchResult{Profiles: map[string]string{"step": "flat  flat%\nxen.(*Host).Pause"}}
	sample := func(d time.Duration) bench.Result {
		return bench.Result{Samples: []time.Duration{d * time.Millisecond}}
	}
	gdb := benchResult{Frames: map[string]string{nameGDBSX: "7", nameOurs: "9"}, Servers: map[string]map[string]bench.Result{
		nameGDBSX: {gdbBacktrace: sample(150), gdbAgain: sample(100)},
		nameOurs:  {gdbBacktrace: sample(120), gdbAgain: sample(60), gdbCached: sample(40)},
	}}
	page := benchPage(map[string]benchResult{"attach": got, "cost": cost, "profile": profile, "gdb": gdb})
	for _, want := range []string{
		"\n| guest of 256 MB | 40.0 ms | 40.0 ms | 10.0 ms | 10.0 ms | 4.00× |  |\n",
		"2048 MB take 1.20 times what 256 MB take; goal at most 1.1: missed.",
		"Measured on 2026-11-26 05:00 UTC, version v1, Xen 4.17,",
		"\n| read 8 bytes, warm | gdbsx | 3.0 | ioctl 1.0, read 2.0 | 150 µs |\n",
		"\nstep:\n\n```\nflat  flat%\nxen.(*Host).Pause\n```\n",
		"\n| thread apply all bt | 150 ms | 150 ms | 120 ms | 120 ms | 1.25× | 10×: missed |\n",
		"\n| thread apply all bt, from gdb's caches | not measured |  | 40.0 ms | 40.0 ms |  |  |\n",
		"The backtrace has 7 frames with gdbsx and 9 with ours.",
		"No server could be more than 1.5 times faster than gdbsx here, and 2.5 times again.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "QEMU's stub") || strings.Index(page, "## Cost") > strings.Index(page, "## Attach") {
		t.Errorf("the page has parts that are not there, or in another order:\n%s", page)
	}
}

func TestGDBTimed(t *testing.T) {
	m := gdbTimed.FindAllStringSubmatch("x\ntimed 1: 0.5, 0 frames\nwarning: y\ntimed 2: 12.000001, 14 frames\n", -1)
	if len(m) != 2 || m[1][1] != "2" || m[1][2] != "12.000001" || m[1][3] != "14" {
		t.Errorf("got %q", m)
	}
}

// benchTestFlags are for a benchmark whose programs do nothing but fail.
func benchTestFlags(t *testing.T, parts ...string) *benchFlags {
	t.Helper()
	dir := t.TempDir()
	f := &benchFlags{parts: parts, results: filepath.Join(dir, "results"), page: filepath.Join(dir, "page.md"), rounds: 1}
	f.server, f.client, f.profiled = filepath.Join(dir, "server"), filepath.Join(dir, "client"), filepath.Join(dir, "profiled")
	for _, file := range []string{f.server, f.client, f.profiled} {
		if err := os.WriteFile(file, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// What cannot be measured says why.
func TestBenchFailures(t *testing.T) {
	missing := benchTestFlags(t, "stub")
	missing.client += "s"
	for _, tt := range []struct {
		name, path, want string
		flags            *benchFlags
	}{
		{"no client", "", "run make bench", missing},
		{"no such part", "", `no part "speed" to measure`, benchTestFlags(t, "speed")},
		{"no peer", t.TempDir(), "stub: qemu-system-x86_64 --version: ", benchTestFlags(t, "stub")},
	} {
		if tt.path != "" {
			t.Setenv("PATH", tt.path)
		}
		if err := runBench(t.Context(), tt.flags); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// A part that fails takes neither the others' results nor the page.
func TestBenchKeepsOtherParts(t *testing.T) {
	f := benchTestFlags(t, "stub")
	if err := os.MkdirAll(f.results, 0o755); err != nil {
		t.Fatal(err)
	}
	kept := benchResult{Version: "v1", Failures: []string{"gdbsx: the server: exit status 1"}}
	if err := kept.save(f.results, "gdb"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := runBench(t.Context(), f); err == nil {
		t.Error("a part without its peer is no error")
	}
	page, err := os.ReadFile(f.page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## Real gdb", "not measured", "Failed: gdbsx: the server: exit status 1\n"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	// Results that cannot be read are told, not left out.
	if err := os.WriteFile(filepath.Join(f.results, "gdb.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := runBench(t.Context(), f); err == nil || !strings.Contains(err.Error(), "read the results of gdb") {
		t.Errorf("got %v", err)
	}
}

// All of the part that needs no Xen, with our own server in place of QEMU.
func TestMeasureStub(t *testing.T) {
	f := benchTestFlags(t)
	f.client += "-built"
	if out, err := exec.Command("go", "build", "-o", f.client, "../bench/client").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const peer = `#!/bin/sh
[ "$1" = --version ] && echo peer 1 && exit
for word; do case $word in
socket,*) path=${word##*path=} ;;
loader,*) file=${word#*file=}; addr=${file#*addr=} ;;
esac; done
exec "$CLIENT" memory -bulk="${addr%%,*}" -file "${file%%,*}" -listen "$path"
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(peer), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CLIENT", f.client)
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	b := &bencher{flags: f, result: newBenchResult(t.Context())}
	if err := b.measureStub(t.Context()); err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	stubSection(&page, &b.result)
	if s := page.String(); strings.Contains(s, "not measured") || !strings.Contains(s, "flat  flat%") {
		t.Errorf("the page lacks what was measured:\n%s", s)
	}
	if b.result.Tool != "peer 1" {
		t.Errorf("got tool %q", b.result.Tool)
	}
}

func TestAwaitFile(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitFile(ctx, filepath.Join(t.TempDir(), "socket")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

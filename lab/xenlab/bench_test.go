package main

import (
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
	page := benchPage(map[string]benchResult{"attach": got, "cost": cost})
	for _, want := range []string{
		"\n| guest of 256 MB | 40.0 ms | 40.0 ms | 10.0 ms | 10.0 ms | 4.00× |  |\n",
		"2048 MB take 1.20 times what 256 MB take; goal at most 1.1: missed.",
		"Measured on 2026-11-26 05:00 UTC, version v1, Xen 4.17,",
		"\n| read 8 bytes, warm | gdbsx | 3.0 | ioctl 1.0, read 2.0 | 150 µs |\n",
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
	m := gdbTimed.FindAllStringSubmatch("x\ntimed 1: 0.5\nwarning: y\ntimed 2: 12.000001\n", -1)
	if len(m) != 2 || m[1][1] != "2" || m[1][2] != "12.000001" {
		t.Errorf("got %q", m)
	}
}

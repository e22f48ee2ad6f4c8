// This file counts what a stop costs of a guest with many vCPUs.

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// A stop costs no more for each vCPU if there are many, and the registers of one
// cost nothing for the others.
func TestStopsOfManyVCPUs(t *testing.T) {
	few, many := 4, 16
	if os.Getenv(labtest.EnvAll) == "1" {
		many = 64 // which take a minute to come up
	}
	h := host(t, machine)
	perVCPU := map[int]float64{}
	for _, vcpus := range []int{few, many} {
		g := labtest.Guest(t, h, lab.GuestConfig{VCPUs: vcpus})
		s := attach(t, h, g)
		c := s.dial()
		hypercalls := func() (n int) {
			t.Helper()
			said := c.monitor("stats")
			if _, err := fmt.Sscanf(said, "hypercalls %d", &n); err != nil {
				t.Fatalf("%q: %v", said, err)
			}
			return n
		}
		if n := strings.Count(c.must("qXfer:threads:read::0,8000"), "<thread "); n != vcpus {
			t.Errorf("%d threads, want %d", n, vcpus)
		}
		// With a breakpoint that is not hit, every vCPU is looked at.
		c.want(fmt.Sprintf("Z0,%x,1", symbolAddress(t, h, "panic")), "OK")
		const stops = 10
		c.interruptAfter(time.Second) // vCPUs are made ready once
		before := hypercalls()
		var longest time.Duration
		for range stops {
			longest = max(longest, c.interruptAfter(100*time.Millisecond))
		}
		perVCPU[vcpus] = float64(hypercalls()-before) / stops / float64(vcpus)
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpus), "OK")
		before = hypercalls()
		registers(c)
		one := hypercalls() - before
		t.Logf("%d vCPUs: %.1f hypercalls a stop for each, %d for the registers of one; %v to stop at most",
			vcpus, perVCPU[vcpus], one, longest.Round(time.Millisecond))
		if one > 4 {
			t.Errorf("%d hypercalls for the registers of one of %d vCPUs", one, vcpus)
		}
		c.want("D", "OK")
		s.exit()
		ticks(t, g)
		healthy(t, g)
	}
	if perVCPU[many] > perVCPU[few] {
		t.Errorf("a stop takes %.1f hypercalls for each of %d vCPUs, and %.1f for each of %d", perVCPU[many], many, perVCPU[few], few)
	}
}

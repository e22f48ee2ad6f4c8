// This file tests the engine gdbsx, on a hypervisor that has what it needs.

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// A kprobe's int3, in the guest's kernel, goes on working while breakpoints stop
// the guest, and in the middle of steps.
func TestGDBSXKprobe(t *testing.T) {
	const hits = 10
	t.Run("pv by gdbsx", func(t *testing.T) {
		h := host(t, debuggable)
		// Behind the five bytes at a function's start that ftrace uses.
		g := labtest.Guest(t, h, lab.GuestConfig{Cmdline: "kprobe_event=p:own,hrtimer_nanosleep+5 tp_printk sysctl.debug.kprobes-optimization=0"})
		probed := func() int { return strings.Count(g.Console(), "own: (hrtimer_nanosleep+0x5") }
		ticks(t, g)
		if probed() == 0 {
			t.Fatal("the kprobe is not hit")
		}
		s := attach(t, h, g)
		c := s.dial()
		at := symbolAddress(t, h, "hrtimer_nanosleep")
		c.want(fmt.Sprintf("Z0,%x,1", at), "OK")
		before := probed()
		for range hits {
			if stop := c.resume("vCont;c"); !strings.Contains(stop, "swbreak:") {
				t.Fatalf("got stop reply %q", stop)
			}
		}
		// The first to tick may be late on the console.
		if n := probed() - before; n < hits-2 {
			t.Errorf("the kprobe was hit %d times in %d hits of a breakpoint before it", n, hits)
		}
		thread := stopThread(t, c.must("?"))
		for range 5 {
			if stop := c.resume("vCont;s:" + thread); !strings.HasPrefix(stop, "T05") {
				t.Fatalf("got stop reply %q", stop)
			}
		}
		c.want(fmt.Sprintf("z0,%x,1", at), "OK")
		before = probed()
		c.want("D", "OK")
		s.exit()
		ticks(t, g)
		ticks(t, g)
		if probed() == before {
			t.Error("the kprobe is not hit any more")
		}
		healthy(t, g)
	})
}

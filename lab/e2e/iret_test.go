// This file steps the kernel of a PV guest over the hypercall by which it goes back to
// what it was entered from.

package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// A step over the hypercall iret ends at once where the guest goes back to, in its
// program too, and leaves nothing that takes a trap of the guest's own from it.
func TestStepOutOfKernel(t *testing.T) {
	h := host(t, machine)
	g := labtest.Guest(t, h, lab.GuestConfig{Kind: lab.PV, MemoryMB: 128, Cmdline: "work=traps"})
	counts := readOwnTraps(t, g).worksOn(t, g, "before")
	s := attach(t, h, g)
	c := s.dial()

	const iret = 23 // __HYPERVISOR_iret
	entry := symbolAddress(t, h, "xen_iret")
	code := c.read(entry, 16)
	at := bytes.Index(code, []byte{0x0f, 0x05})
	if at < 0 {
		t.Fatalf("no SYSCALL in % x", code)
	}
	call := entry + uint64(at)
	// Where only what goes back to a program comes: time passes at each stop, so that an
	// interrupted kernel would get no further than to the next timer interrupt.
	place := fmt.Sprintf("0,%x,1", symbolAddress(t, h, "xenpv_restore_regs_and_return_to_usermode"))
	c.want("Z"+place, "OK")
	const (
		rounds = 20
		steps  = 50 // at the most, up to the SYSCALL
		// struct iret_context of Xen's public header arch-x86/xen-x86_64.h
		frameRIP, frameCS = 32, 40
		patience          = 20 * time.Second
	)
	for range rounds {
		stop := c.resume("vCont;c")
		thread := stopThread(t, stop)
		if !strings.Contains(stop, "swbreak") {
			t.Fatalf("got stop reply %q, want a hit", stop)
		}
		regs := registers(c)
		for range steps {
			if regs["rip"] == call {
				break
			}
			c.resume("vCont;s:" + thread)
			regs = registers(c)
		}
		if regs["rip"] != call || regs["rax"] != iret {
			t.Fatalf("got to %#x, rax %d, want %#x and %d", regs["rip"], regs["rax"], call, iret)
		}
		rip, cs := c.word(regs["rsp"]+frameRIP), c.word(regs["rsp"]+frameCS)
		begin := time.Now()
		stop = c.resume("vCont;s:" + thread)
		if took := time.Since(begin); took > patience {
			t.Errorf("the step takes %v", took)
		}
		regs = registers(c)
		if !strings.HasPrefix(stop, "T05") || stopThread(t, stop) != thread || regs["rip"] != rip || int64(rip) < 0 || regs["cs"] != cs&0xffff|3 {
			t.Fatalf("got stop reply %q at %#x, cs %#x to a step, want one in a program at %#x, cs %#x", stop, regs["rip"], regs["cs"], rip, cs)
		}
	}
	c.want("z"+place, "OK")
	c.runs(func() { counts = counts.worksOn(t, g, "after steps") })
	begin := time.Now()
	c.want("D", "OK")
	s.exit()
	t.Logf("detached in %v", time.Since(begin).Round(time.Millisecond))
	counts.worksOn(t, g, "after detach")
	ticks(t, g)
	healthy(t, g)
}

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

	const iret, size = 23, 32 // __HYPERVISOR_iret, and an entry in the hypercall page
	entry := symbolAddress(t, h, "hypercall_page") + iret*size
	at := bytes.Index(c.read(entry, size), []byte{0x0f, 0x05})
	if at < 0 {
		t.Fatalf("no SYSCALL in % x", c.read(entry, size))
	}
	call := entry + uint64(at)
	place := fmt.Sprintf("0,%x,1", call)
	c.want("Z"+place, "OK")
	const (
		rounds, most = 20, 500
		// struct iret_context of Xen's public header arch-x86/xen-x86_64.h
		frameRIP, frameCS = 32, 40
		patience          = 20 * time.Second
	)
	programs := 0
	for tries := 0; programs < rounds; tries++ {
		if tries == most {
			t.Fatalf("%d of %d ways out of the kernel lead to a program", programs, tries)
		}
		stop := c.resume("vCont;c")
		regs := registers(c)
		if !strings.Contains(stop, "swbreak") || regs["rip"] != call || regs["rax"] != iret {
			t.Fatalf("got stop reply %q at %#x, rax %d, want a hit at %#x", stop, regs["rip"], regs["rax"], call)
		}
		frame := regs["rsp"]
		rip, cs := c.word(frame+frameRIP), c.word(frame+frameCS)
		thread := stopThread(t, stop)
		begin := time.Now()
		stop = c.resume("vCont;s:" + thread)
		if took := time.Since(begin); took > patience {
			t.Errorf("the step takes %v", took)
		}
		regs = registers(c)
		if !strings.HasPrefix(stop, "T05") || stopThread(t, stop) != thread || regs["rip"] != rip || regs["cs"] != cs&0xffff|3 {
			t.Fatalf("got stop reply %q at %#x, cs %#x to a step, want one at %#x, cs %#x", stop, regs["rip"], regs["cs"], rip, cs)
		}
		if cs&3 == 3 {
			if int64(rip) < 0 {
				t.Errorf("a program goes on at %#x", rip)
			}
			programs++
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

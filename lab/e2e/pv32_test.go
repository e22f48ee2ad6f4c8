// This file debugs a PV guest of 32 bits, on a hypervisor that runs it: Debian's
// does not.

package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"gdbserver-xen/lab/testguests"
)

// Memory and registers of a 32-bit PV guest are what the guest made them, and
// what is written stays when it runs on.
func TestPV32(t *testing.T) {
	h := host(t, debuggable)
	guest := testguests.PV32()
	program, g := kernelGuest(t, h, guest)
	s := attach(t, h, g, anyEngine)
	c := s.dial()
	check := func(when string) {
		t.Helper()
		regs := rawRegisters(c)
		for name, want := range guest.Values {
			raw, ok := regs[name]
			if high := len(name) > 1 && name[0] == 'r' && strings.ContainsAny(name[1:], "89") || strings.HasPrefix(name, "r1"); high {
				if !ok || raw != nil {
					t.Errorf("%s: %s is %x, want it unknown", when, name, raw)
				}
				continue
			}
			if got := registers(c)[name]; raw == nil || got != want {
				t.Errorf("%s: %s is %#x, want %#x", when, name, got, want)
			}
		}
		if rip := registers(c)["rip"]; rip < program.Park || rip >= program.ParkEnd {
			t.Errorf("%s: rip is %#x, want the loop at %#x", when, rip, program.Park)
		}
		var want []byte
		for addr := program.Pattern; addr < program.PatternEnd; addr++ {
			want = append(want, testguests.Pattern(addr))
		}
		for _, r := range []read{
			{program.Pattern, len(want)}, {program.Pattern + 0xffd, 7}, {program.Pattern + 1, 3 * 4096}, {program.PatternEnd - 3, 3},
		} {
			if got := c.read(r.addr, r.n); !bytes.Equal(got, want[r.addr-program.Pattern:][:r.n]) {
				t.Errorf("%s: %d bytes at %#x differ from the pattern at %d", when, r.n, r.addr, firstDifference(got, want[r.addr-program.Pattern:]))
			}
		}
		for _, hole := range []uint64{0x40000000, 0x100000000, 1 << 63} {
			if got := c.read(hole, 8); len(got) != 0 {
				t.Errorf("%s: read %x at %#x, where nothing is", when, got, hole)
			}
		}
	}
	check("at first")
	want := xenctx(t, h, g, 0)
	for name, theirs := range map[string]string{"rax": "eax", "rip": "eip", "rsp": "esp", "rbp": "ebp"} {
		if got := registers(c)[name]; got != want[theirs] {
			t.Errorf("%s is %#x, xenctx says %#x", name, got, want[theirs])
		}
	}
	c.want("P"+number(c, "rbx")+"="+littleEndian(0x12345678), "OK")
	guest.Values["rbx"] = 0x12345678
	before := c.read(program.PatternEnd-0x1004, 8)
	c.want(fmt.Sprintf("M%x,8:0011223344556677", program.PatternEnd-0x1004), "OK")
	if got := fmt.Sprintf("%x", c.read(program.PatternEnd-0x1004, 8)); got != "0011223344556677" {
		t.Errorf("read back %s", got)
	}
	c.want(fmt.Sprintf("M%x,8:%x", program.PatternEnd-0x1004, before), "OK")
	c.want("D", "OK")
	s.exit()
	spins(t, h, g)
	s = attach(t, h, g, anyEngine)
	c = s.dial()
	check("after it ran on")
	c.want("D", "OK")
	s.exit()
}

// This file writes segment and control registers of guests with hardware
// virtualization, and has xen-hvmctx look at all that the hypervisor knows.

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// hvmState is what xen-hvmctx prints of a domain's save state, without what goes
// on while it is paused: the time stamp counter and other clocks.
func hvmState(t *testing.T, h *lab.Host, g *lab.Guest) []string {
	t.Helper()
	out := labtest.Output(t, h, fmt.Sprintf("/usr/lib/xen-*/bin/xen-hvmctx %d", g.ID()))
	clock := regexp.MustCompile(`^ *tsc 0x|counter 0x|TMR_VAL|RTC: regs|^ *0x2[0-7]0: 0x`)
	var lines []string
	for line := range strings.Lines(out) {
		if !clock.MatchString(line) {
			lines = append(lines, line)
		}
	}
	if len(lines) < 100 {
		t.Fatalf("xen-hvmctx prints:\n%s", out)
	}
	return lines
}

// difference gives the lines in which two texts differ.
func difference(a, b []string) []string {
	var lines []string
	for i := range max(len(a), len(b)) {
		var was, is string
		if i < len(a) {
			was = a[i]
		}
		if i < len(b) {
			is = b[i]
		}
		if was != is {
			lines = append(lines, was, is)
		}
	}
	return lines
}

// number gives the number of a register in the description, in hex.
func number(c *client, name string) string {
	c.t.Helper()
	xml := c.must("qXfer:features:read:target.xml:0,20000")
	i := 0
	for _, m := range regexp.MustCompile(`<reg name="(\w+)"[^>]*?( regnum="(\d+)")?/>`).FindAllStringSubmatch(xml, -1) {
		if m[3] != "" {
			i, _ = strconv.Atoi(m[3])
		}
		if m[1] == name {
			return strconv.FormatInt(int64(i), 16)
		}
		i++
	}
	c.t.Fatalf("description has no %s", name)
	return ""
}

// set writes a register of at most 64 bits.
func (c *client) set(name string, value uint64) string {
	c.t.Helper()
	digits := littleEndian(value)
	if len(name) == 2 && name[1] == 's' {
		digits = digits[:8]
	}
	return c.must("P" + number(c, name) + "=" + digits)
}

// systemWrites are values for registers of Linux in its kernel, from those that
// they have.
var systemWrites = []struct {
	name  string
	value func(old uint64) uint64
}{
	{"cr0", func(old uint64) uint64 { return old ^ 1<<18 }}, // AM
	{"cr3", func(old uint64) uint64 { return old ^ 1<<3 }},  // PWT
	{"cr4", func(old uint64) uint64 { return old ^ 1<<2 }},  // TSD
	{"cr8", func(uint64) uint64 { return 5 }},
	{"efer", func(old uint64) uint64 { return old ^ 1 }}, // SCE
	{"ds", func(uint64) uint64 { return 0x2b }},          // __USER_DS
	{"es", func(uint64) uint64 { return 0x18 }},          // __KERNEL_DS
	{"fs", func(uint64) uint64 { return 0x18 }},
	{"cs", func(uint64) uint64 { return 0x08 }}, // __KERNEL32_CS
	{"fs_base", func(uint64) uint64 { return 0x0000_7f12_3456_7000 }},
	{"gs_base", func(old uint64) uint64 { return old + 0x1000 }},
	{"k_gs_base", func(uint64) uint64 { return 0xffff_8888_1234_5000 }},
}

// Each system register can be written, reads back, shows in what Xen's own tool
// says, and can be put back: then xen-hvmctx prints what it did before.
func TestWriteSystemRegisters(t *testing.T) {
	h, g := working(t, lab.PVH)
	s := attach(t, h, g)
	c := s.dial()
	writeSystemRegisters(t, c, h, g)
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

func writeSystemRegisters(t *testing.T, c *client, h *lab.Host, g *lab.Guest) {
	t.Helper()
	before := hvmState(t, h, g)
	for vcpu := range g.Config().VCPUs {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		all, old := c.must("g"), registers(c)
		if old["rip"]>>63 == 0 {
			t.Logf("vCPU %d is in user mode, where selectors are others", vcpu)
		}
		for _, w := range systemWrites {
			if old["rip"]>>63 == 0 && w.name == "cs" {
				continue
			}
			value := w.value(old[w.name])
			if reply := c.set(w.name, value); reply != "OK" {
				t.Errorf("vCPU %d: writing %#x to %s: got reply %q", vcpu, value, w.name, reply)
				continue
			}
			after := registers(c)
			for name := range old {
				want := old[name]
				if name == w.name {
					want = value
				}
				if after[name] != want {
					t.Errorf("vCPU %d: after writing %s: %s is %#x, want %#x", vcpu, w.name, name, after[name], want)
				}
			}
			if diff := difference(before, hvmState(t, h, g)); len(diff) == 0 {
				t.Errorf("vCPU %d: xen-hvmctx sees nothing of %s", vcpu, w.name)
			}
			if reply := c.set(w.name, old[w.name]); reply != "OK" {
				t.Errorf("vCPU %d: putting %s back: got reply %q", vcpu, w.name, reply)
			}
			// A selector that is put back has what its descriptor says, where it
			// may have had something else.
			if diff := difference(before, hvmState(t, h, g)); len(diff) != 0 && !strings.HasSuffix(w.name, "s") {
				t.Errorf("vCPU %d: after %s, xen-hvmctx sees differences:\n%s", vcpu, w.name, strings.Join(diff, ""))
			}
		}
		if got := c.must("g"); got != all {
			t.Errorf("vCPU %d: registers changed:\n%s\n%s", vcpu, all, got)
		}
		for _, tt := range []struct {
			name  string
			value uint64
			want  string
		}{
			{"cr3", 0x7_7777_7000, "cr3: no processor takes this value: the guest has no memory there"},
			{"cr4", old["cr4"] &^ (1 << 5), "cr4: no processor takes this value: 64-bit mode"},
			{"cr4", old["cr4"] | 1<<40, "the hypervisor finds it invalid"},
			{"efer", old["efer"] | 1<<20, "the hypervisor finds it invalid"},
			{"cs", 0xfff8, "cs: no processor takes this value: selector 0xfff8 is beyond the end of the GDT"},
		} {
			if reply := c.set(tt.name, tt.value); !strings.HasPrefix(reply, "E.") || !strings.Contains(reply, tt.want) {
				t.Errorf("vCPU %d: writing %#x to %s: got reply %q, want an error with %q", vcpu, tt.value, tt.name, reply, tt.want)
			}
			if got := c.must("g"); got != all {
				t.Errorf("vCPU %d: registers changed by a refused write of %s", vcpu, tt.name)
			}
		}
	}
	online := strings.Fields(labtest.Output(t, h, "xl list "+g.Name()+" | tail -n 1"))
	if n := strconv.Itoa(g.Config().VCPUs); !slices.Contains(online[3:4], n) {
		t.Errorf("xl list says %v, want %s vCPUs", online, n)
	}
}

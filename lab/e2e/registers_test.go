// This file compares registers through the server with xenctx's.

package e2e

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// xenctx gives what xenctx prints of a vCPU's registers, by GDB's names.
func xenctx(t *testing.T, h *lab.Host, g *lab.Guest, vcpu int) map[string]uint64 {
	t.Helper()
	out := labtest.Output(t, h, fmt.Sprintf("/usr/lib/xen-*/bin/xenctx -a %d %d", g.ID(), vcpu))
	regs := map[string]uint64{}
	set := func(name, digits string) {
		v, err := strconv.ParseUint(digits, 16, 64)
		if err != nil {
			t.Fatalf("xenctx: %s: %v", name, err)
		}
		regs[name] = v
	}
	for _, m := range regexp.MustCompile(`(?m)\b(\w+): (?:[0-9a-f]{4}:)?([0-9a-f]+)\b`).FindAllStringSubmatch(out, -1) {
		set(map[string]string{"flags": "eflags"}[m[1]]+map[bool]string{true: m[1]}[m[1] != "flags"], m[2])
	}
	if m := regexp.MustCompile(`fs: \w+ @ (\w+)\n gs: \w+ @ (\w+)/(\w+)`).FindStringSubmatch(out); m != nil {
		// xenctx prints the kernel's base of gs first, wherever the vCPU is.
		set("fs_base", m[1])
		set("gs_base", m[2])
		set("k_gs_base", m[3])
	}
	return regs
}

// All registers that xenctx knows have the values that it prints.
func TestRegistersEqualXenctx(t *testing.T) {
	for _, guest := range []lab.GuestConfig{idling, spinning} {
		t.Run(guest.Name, func(t *testing.T) {
			h, g := guestOf(t, machine, guest, lab.PV)
			s := attach(t, h, g)
			c := s.dial()
			compareRegisters(t, c, h, g)
			c.want("D", "OK")
			s.exit()
			ticks(t, g)
			healthy(t, g)
		})
	}
}

// compareRegisters compares the registers of all vCPUs with xenctx's.
func compareRegisters(t *testing.T, c *client, h *lab.Host, g *lab.Guest) {
	t.Helper()
	names := strings.Fields(`rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags
		cs ss ds es fs gs fs_base cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7`)
	for vcpu := range g.Config().VCPUs {
		want := xenctx(t, h, g, vcpu)
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		got := registers(c)
		for _, name := range names {
			if _, known := got[name]; !known && name == "cr2" && g.Config().Kind != lab.PV {
				continue // xenctx prints a stale one
			}
			if w, ok := want[name]; !ok || got[name] != w {
				t.Errorf("vCPU %d: %s: got %#x, want %#x (xenctx has it: %v)", vcpu, name, got[name], w, ok)
			}
		}
		bases := []uint64{got["gs_base"], got["k_gs_base"]}
		if user := got["rip"]>>63 == 0; user {
			slices.Reverse(bases)
		}
		if bases[0] != want["gs_base"] || bases[1] != want["k_gs_base"] {
			t.Errorf("vCPU %d: gs: got bases %#x, want %#x and %#x", vcpu, bases, want["gs_base"], want["k_gs_base"])
		}
	}
}

// registers reads all registers of at most 64 bits that are known, by name.
func registers(c *client) map[string]uint64 {
	c.t.Helper()
	xml := c.must("qXfer:features:read:target.xml:0,10000")
	hexes := c.must("g")
	regs := map[string]uint64{}
	for _, m := range regexp.MustCompile(`<reg name="(\w+)" bitsize="(\d+)"`).FindAllStringSubmatch(xml, -1) {
		bits, _ := strconv.Atoi(m[2])
		if len(hexes) < bits/4 {
			c.t.Fatalf("g is too short for %s", m[1])
		}
		value := hexes[:bits/4]
		hexes = hexes[bits/4:]
		b, err := hex.DecodeString(value)
		if err != nil || bits > 64 {
			continue
		}
		slices.Reverse(b)
		regs[m[1]], _ = strconv.ParseUint(hex.EncodeToString(b), 16, 64)
	}
	return regs
}

// A register that is written reads back, and the others and the guest are none
// the worse: neither for the write, nor for setvcpucontext's habit of resetting
// vector registers.
func TestWriteRegisters(t *testing.T) {
	h, g := busy(t, machine)
	s := attach(t, h, g)
	c := s.dial()
	for vcpu := range 2 {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), vcpu+1), "OK")
		before := c.must("g")
		old := registers(c)
		const r15 = 15 // its number in the description
		c.want(fmt.Sprintf("P%x=efcdab8967452301", r15), "OK")
		if got := registers(c)["r15"]; got != 0x0123456789abcdef {
			t.Errorf("vCPU %d: r15 reads %#x after the write", vcpu, got)
		}
		c.want(fmt.Sprintf("P%x=%s", r15, littleEndian(old["r15"])), "OK")
		if after := c.must("g"); after != before {
			t.Errorf("vCPU %d: registers changed:\n%s\n%s", vcpu, before, after)
		}
	}
	if reply := c.must("P" + cr3Number(c) + "=0010000000000000"); !strings.HasPrefix(reply, "E.") || !strings.Contains(reply, "cr3") {
		t.Errorf("writing cr3: got reply %q, want an error that names it", reply)
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

func littleEndian(v uint64) string {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
	return hex.EncodeToString(b)
}

// cr3Number gives the number of cr3 in the description, in hex.
func cr3Number(c *client) string {
	c.t.Helper()
	m := regexp.MustCompile(`name="cr3"[^>]*regnum="(\d+)"`).FindStringSubmatch(c.must("qXfer:features:read:target.xml:0,10000"))
	if m == nil {
		c.t.Fatal("description has no cr3")
	}
	n, _ := strconv.Atoi(m[1])
	return strconv.FormatInt(int64(n), 16)
}

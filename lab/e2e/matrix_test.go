// This file tries every kind of guest on every release of Xen, and makes the
// table of what works.

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// envSupport names the file that the table of the whole matrix goes to.
const envSupport = "GDBSERVER_XEN_SUPPORT"

// A trial is one column of the matrix.
type trial struct {
	name string
	try  func(t *testing.T, m *trialOf)
}

// trialOf is what trials are made on.
type trialOf struct {
	host   *lab.Host
	guest  *lab.Guest
	server *server
	client *client
}

var trials = []trial{
	{"attach", func(t *testing.T, m *trialOf) {
		m.server = attach(t, m.host, m.guest)
		if !paused(t, m.host, m.guest) {
			t.Error("guest is not paused")
		}
		m.client = m.server.dial()
	}},
	{"registers", func(t *testing.T, m *trialOf) { compareRegisters(t, m.client, m.host, m.guest) }},
	{"memory", func(t *testing.T, m *trialOf) { compareStack(t, m) }},
	{"threads", func(t *testing.T, m *trialOf) {
		xml := m.client.must("qXfer:threads:read::0,4000")
		if n := strings.Count(xml, "<thread "); n != m.guest.Config().VCPUs {
			t.Errorf("got %d threads, want %d: %s", n, m.guest.Config().VCPUs, xml)
		}
	}},
	{"write", func(t *testing.T, m *trialOf) { writeAndRestore(t, m.client) }},
	{"bt", func(t *testing.T, m *trialOf) {
		// One client at a time: gdb comes when the plain client has gone. A stop
		// that meets all vCPUs in hypercalls, where gdb alone loses the stack,
		// shows nothing.
		m.client.Close()
		vmlinux := symbols(t, m.host)
		for range 10 {
			ticks(t, m.guest)
			if entryFrame.MatchString(m.server.gdb("-ex", "thread apply all bt", "-ex", "disconnect", vmlinux)) {
				m.server.dial().want("D", "OK")
				return
			}
		}
		t.Error("no stack reaches the kernel's entry in 10 stops")
	}},
	{"detach", func(t *testing.T, m *trialOf) {
		m.server.exit()
		if paused(t, m.host, m.guest) {
			t.Error("guest is still paused")
		}
		ticks(t, m.guest)
		healthy(t, m.guest)
	}},
}

// entryFrame is a frame of the kernel's entry or of its idle loop's start, with
// file and line.
var entryFrame = regexp.MustCompile(`#\d+ .*(entry_SYSCALL_64|asm_cpu_bringup_and_idle|secondary_startup_64).* at \S+:\d+`)

// guestKind is a row of the matrix, for each release.
type guestKind struct {
	name   string
	kind   lab.Kind
	shadow bool
}

func guestKinds(release string) []guestKind {
	var all []guestKind
	for _, kind := range lab.Kinds() {
		name := strings.ToUpper(string(kind))
		all = append(all, guestKind{name, kind, false})
		if kind != lab.PV && lab.HasShadow(release) {
			all = append(all, guestKind{name + " without HAP", kind, true})
		}
	}
	return all
}

// TestMatrix tries the kinds of guest on the releases of Xen. With
// GDBSERVER_XEN_LAB_ALL=1 it tries all on all and, if GDBSERVER_XEN_SUPPORT
// names a file, writes the table there; else only PV guests on the releases that
// the other tests do not run on.
func TestMatrix(t *testing.T) {
	labtest.Require(t)
	whole := os.Getenv(labtest.EnvAll) == "1"
	table := newTable()
	for _, release := range lab.Releases() {
		for _, kind := range guestKinds(release) {
			if !whole && (release == lab.DefaultRelease || kind.kind != lab.PV) {
				continue
			}
			t.Run(release+"/"+kind.name, func(t *testing.T) {
				h := host(t, lab.Config{Release: release})
				m := &trialOf{host: h, guest: labtest.Guest(t, h, lab.GuestConfig{
					Kind: kind.kind, Shadow: kind.shadow, Cmdline: "work=kernel nokaslr",
				})}
				for _, tr := range trials {
					if !whole && tr.name == "bt" {
						m.client.want("D", "OK") // symbols of all kernels are a large download
						continue
					}
					table.set(h, kind.name, tr.name, "FAIL")
					tr.try(t, m)
					if t.Failed() {
						break
					}
					table.set(h, kind.name, tr.name, "pass")
				}
			})
		}
	}
	t.Log("\n" + table.String())
	if path := os.Getenv(envSupport); whole && path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(table.document()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// table is what the matrix has shown, a row for each guest kind and release.
type table struct {
	rows []string
	seen map[string]map[string]string
}

func newTable() *table { return &table{seen: map[string]map[string]string{}} }

func (tb *table) set(h *lab.Host, kind, trial, result string) {
	row := fmt.Sprintf("%s | %s | %s", kind, h.XenVersion(), h.KernelRelease())
	tb.row(row)
	tb.seen[row][trial] = result
}

// row adds a row, if it is not there yet.
func (tb *table) row(row string) {
	if tb.seen[row] == nil {
		tb.rows = append(tb.rows, row)
		tb.seen[row] = map[string]string{}
	}
}

// String gives the table in Markdown. A trial that was not made shows as such.
func (tb *table) String() string {
	var b strings.Builder
	b.WriteString("| guest | Xen | Linux |")
	for _, tr := range trials {
		fmt.Fprintf(&b, " %s |", tr.name)
	}
	b.WriteString("\n|" + strings.Repeat("---|", 3+len(trials)) + "\n")
	for _, row := range tb.rows {
		fmt.Fprintf(&b, "| %s |", row)
		for _, tr := range trials {
			result := tb.seen[row][tr.name]
			if result == "" {
				result = "not tried"
			}
			fmt.Fprintf(&b, " %s |", result)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (tb *table) document() string {
	return "<!-- Written by `make matrix`; do not edit. -->\n# What works where\n\n" +
		"What `make matrix` saw on Debian's packages of Xen and Linux, in QEMU: each test\n" +
		"ran against a live guest with two vCPUs, one of them in a system call.\n\n" + tb.String() +
		"\nRegisters and stacks are compared with what Xen's own `xenctx` reads, backtraces\n" +
		"are gdb's, and after the detach the guest must run on with nothing in its log.\n" +
		"Without HAP the hypervisor keeps shadows of the guest's page tables; only\n" +
		"Debian's 4.14 can.\n"
}

// symbols gives the path of the symbol file of a host's kernel.
func symbols(t *testing.T, h *lab.Host) string {
	t.Helper()
	path, err := h.Symbols(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// compareStack compares the stack of each vCPU with what xenctx prints of it.
func compareStack(t *testing.T, m *trialOf) {
	for vcpu := range m.guest.Config().VCPUs {
		m.client.want(fmt.Sprintf("Hgp%x.%x", m.guest.ID(), vcpu+1), "OK")
		for try := 0; ; try++ {
			want, said := xenctxStack(t, m, vcpu)
			if len(want) < 16 {
				if try == 20 {
					t.Fatalf("xenctx prints no stack of vCPU %d:\n%s", vcpu, said)
				}
				// It is in user mode, for which xenctx has none.
				m.client.interruptAfter(20 * time.Millisecond)
				m.client.want(fmt.Sprintf("Hgp%x.%x", m.guest.ID(), vcpu+1), "OK")
				continue
			}
			rsp := registers(m.client)["rsp"]
			if got := m.client.read(rsp, len(want)); !bytes.Equal(got, want) {
				t.Errorf("vCPU %d: stack at %#x:\ngot  %x\nwant %x", vcpu, rsp, got, want)
			}
			break
		}
	}
}

// xenctxStack gives the stack that xenctx prints, and all that it prints.
func xenctxStack(t *testing.T, m *trialOf, vcpu int) (stack []byte, said string) {
	t.Helper()
	said = labtest.Output(t, m.host, fmt.Sprintf("/usr/lib/xen-*/bin/xenctx %d %d", m.guest.ID(), vcpu))
	_, text, _ := strings.Cut(said, "Stack:")
	text, _, _ = strings.Cut(text, "Call Trace")
	words := regexp.MustCompile(`(?m)^ ?([0-9a-f]{16}(?: [0-9a-f]{16})*) ?$`)
	for _, line := range words.FindAllStringSubmatch(text, -1) {
		for word := range strings.FieldsSeq(line[1]) {
			v, err := strconv.ParseUint(word, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			stack = binary.LittleEndian.AppendUint64(stack, v)
		}
	}
	return stack, said
}

// writeAndRestore writes memory that a kernel at 16 MB leaves alone, across a
// page's end, and puts back what was there.
func writeAndRestore(t *testing.T, c *client) {
	t.Helper()
	const addr = uint64(directMap + 0xfff000 - 8)
	before := c.read(addr, 16)
	if len(before) != 16 {
		t.Fatalf("read %d bytes, want 16", len(before))
	}
	c.want(fmt.Sprintf("M%x,10:00112233445566778899aabbccddeeff", addr), "OK")
	if got := fmt.Sprintf("%x", c.read(addr, 16)); got != "00112233445566778899aabbccddeeff" {
		t.Errorf("read back %s", got)
	}
	c.want(fmt.Sprintf("M%x,10:%x", addr, before), "OK")
	if got := c.read(addr, 16); !bytes.Equal(got, before) {
		t.Errorf("restored to %x, want %x", got, before)
	}
}

// This file shows every CPU mode of HVM-type guests: tiny guests that were made
// for it have laid patterns in memory and loaded registers, and a debugger must
// see exactly that.

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
	"gdbserver-xen/lab/testguests"
)

// In each mode, memory and registers are what the guest made them.
func TestModes(t *testing.T) {
	for _, guest := range testguests.Guests() {
		t.Run(guest.Name, func(t *testing.T) {
			h := host(t, vectors)
			program, err := guest.Build(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			g, err := h.CreateKernelGuest(t.Context(), lab.KernelConfig{
				Name: guest.Name, Kernel: program.Path, Park: program.Park, ParkEnd: program.ParkEnd,
				VCPUs: guest.VCPUs, MemoryMB: guest.MemoryMB,
			})
			if err != nil {
				t.Fatal(err)
			}
			// At once, not at the end of the test: it keeps a CPU busy.
			defer func() {
				if err := g.Destroy(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			t.Logf("%s: up after %.1f s", guest.Mode, g.BootTime().Seconds())

			s := attach(t, h, g)
			m := &modeTest{t: t, guest: guest, program: program, domain: g.ID(), client: s.dialNumbers()}
			m.threads()
			m.registers()
			m.probes()
			m.edges()
			m.holes()
			m.aliases()
			m.refusedWrites()
			m.Close()
			m.dumps(s)
			s.exit()
			spins(t, h, g)
		})
	}
}

// dialNumbers connects a client that gets errors as numbers, as gdb 13 does.
func (s *server) dialNumbers() *client {
	s.t.Helper()
	return s.dialAs("multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386;binary-upload+")
}

// modeTest is the test of one guest.
type modeTest struct {
	t       *testing.T
	guest   *testguests.Guest
	program *testguests.Program
	domain  int
	*client
}

// all sends packets in batches, which saves the way there and back for each,
// and gives the replies.
func (m *modeTest) all(packets []string) []string {
	m.t.Helper()
	var replies []string
	for batch := range slices.Chunk(packets, 32) {
		for _, p := range batch {
			if err := m.Post(p); err != nil {
				m.t.Fatalf("%s: %v", p, err)
			}
		}
		for _, p := range batch {
			reply, err := m.Receive()
			if err != nil {
				m.t.Fatalf("%s: %v", p, err)
			}
			replies = append(replies, reply)
		}
	}
	return replies
}

// one reads memory by one packet.
func (m *modeTest) one(addr uint64, n int) []byte {
	m.t.Helper()
	data, _ := strings.CutPrefix(m.must(fmt.Sprintf("x%x,%x", addr, n)), "b")
	return []byte(data)
}

// threads checks that the one vCPU that was started is the one thread, and that
// it is said to be in kernel or user mode as it is.
func (m *modeTest) threads() {
	m.t.Helper()
	m.want("qfThreadInfo", fmt.Sprintf("mp%x.1", m.domain))
	m.want("qsThreadInfo", "l")
	want := map[bool]string{false: "kernel mode", true: "user mode"}[m.guest.User]
	info, err := hex.DecodeString(m.must(fmt.Sprintf("qThreadExtraInfo,p%x.1", m.domain)))
	if err != nil || !strings.Contains(string(info), want) {
		m.t.Errorf("thread's description is %q, %v, want %q", info, err, want)
	}
	if m.guest.VCPUs > 1 {
		if reply := m.must(fmt.Sprintf("Hgp%x.2", m.domain)); !strings.HasPrefix(reply, "E") {
			m.t.Errorf("a vCPU that was never started can be chosen: got reply %q", reply)
		}
	}
}

// xenMayNotKnow are registers whose values may be out of Xen's reach. On AMD, Xen
// before 2026-05 lets the processor keep CR2 of guests with nested paging and
// never looks. QEMU 7.2 lets XSETBV of a guest pass Xen by, which then does not
// know that there is AVX state to keep.
var xenMayNotKnow = regexp.MustCompile(`^(cr2|ymm\d+h)$`)

// registers checks all registers that the description offers and the guest has
// loaded.
func (m *modeTest) registers() {
	m.t.Helper()
	got := rawRegisters(m.client)
	var equal int
	var missing, unknown []string
	check := func(name string, want []byte) {
		raw, ok := got[name]
		switch {
		case !ok:
			missing = append(missing, name)
		case raw == nil && xenMayNotKnow.MatchString(name):
			unknown = append(unknown, name)
		case raw == nil:
			m.t.Errorf("%s is said to be unknown, want %x", name, want)
		case bytes.Equal(raw, want[:min(len(raw), len(want))]):
			equal++
		default:
			m.t.Errorf("%s: got bytes %x, want %x", name, raw, want)
		}
	}
	values := maps.Clone(m.guest.Values)
	if m.program.Root != 0 {
		values["cr3"] = m.program.Root
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		check(name, binary.LittleEndian.AppendUint64(nil, values[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(m.guest.Vectors)) {
		check(name, m.guest.Vectors[name])
	}
	m.t.Logf("%d registers equal, not offered: %v, unknown: %v", equal, missing, unknown)
	if equal < 60 {
		m.t.Errorf("only %d registers could be compared", equal)
	}
	rip := binary.LittleEndian.Uint64(got["rip"])
	if rip < m.program.Park || rip >= m.program.ParkEnd {
		m.t.Errorf("rip is %#x, want the loop at %#x", rip, m.program.Park)
	}
}

// rawRegisters reads all registers by name, of any size; nil is unknown.
func rawRegisters(c *client) map[string][]byte {
	c.t.Helper()
	xml := c.must("qXfer:features:read:target.xml:0,20000")
	hexes := c.must("g")
	regs := map[string][]byte{}
	for _, m := range regexp.MustCompile(`<reg name="(\w+)" bitsize="(\d+)"`).FindAllStringSubmatch(xml, -1) {
		bits, _ := strconv.Atoi(m[2])
		if len(hexes) < bits/4 {
			c.t.Fatalf("g is too short for %s", m[1])
		}
		regs[m[1]], _ = hex.DecodeString(hexes[:bits/4])
		if strings.HasPrefix(hexes, "x") {
			regs[m[1]] = nil
		}
		hexes = hexes[bits/4:]
	}
	return regs
}

// probes checks that the guest's own CPU agrees with us on what it has mapped.
func (m *modeTest) probes() {
	m.t.Helper()
	table := m.read(m.program.Probes, int(m.program.ProbesEnd-m.program.Probes))
	if len(table) != int(m.program.ProbesEnd-m.program.Probes) || len(table) == 0 {
		m.t.Fatalf("table of probes: read %d bytes", len(table))
	}
	for probe := range slices.Chunk(table, 16) {
		addr := binary.LittleEndian.Uint64(probe)
		if want := m.guest.Want(addr, 4); !bytes.Equal(probe[8:12], want) {
			m.t.Errorf("the guest's CPU read %x at %#x, we expect %x", probe[8:12], addr, want)
		}
	}
}

// edges reads across every edge, by m and x in turn: from the last 3 bytes
// before to the first 3 after, 1 to 17 bytes, and several pages by both.
func (m *modeTest) edges() {
	m.t.Helper()
	type read struct {
		packet string
		want   []byte
	}
	var reads []read
	add := func(kind byte, addr, n uint64) {
		reads = append(reads, read{fmt.Sprintf("%c%x,%x", kind, addr, n), m.guest.Want(addr, int(n))})
	}
	edges := m.guest.Edges()
	for _, edge := range edges {
		for start := edge - 3; start != edge+3; start++ {
			for n := range uint64(17) {
				add("mx"[(start+n)%2], start, n+1)
			}
		}
	}
	for _, r := range m.guest.Ranges {
		const inside, several = 5, 3*4096 + 100
		n := uint64(several)
		if r.OpenHigh {
			n = min(n, r.Size-inside)
		}
		add('m', r.Virtual+inside, n)
		add('x', r.Virtual+inside, n)
	}
	packets := make([]string, len(reads))
	for i := range reads {
		packets[i] = reads[i].packet
	}
	wrong := 0
	for i, got := range m.all(packets) {
		want := "b" + string(reads[i].want)
		switch {
		case len(reads[i].want) == 0:
			want = "E14"
		case packets[i][0] == 'm':
			want = hex.EncodeToString(reads[i].want)
		}
		if got == want {
			continue
		}
		m.t.Errorf("%s: got %.80q, want %.80q", packets[i], got, want)
		if wrong++; wrong == 20 {
			m.t.Fatal("too many to go on")
		}
	}
	m.t.Logf("%d reads across %d edges", len(packets), len(edges))
}

// holes reads where nothing is.
func (m *modeTest) holes() {
	m.t.Helper()
	for _, addr := range m.guest.Holes {
		for _, packet := range []string{"m%x,1", "m%x,4", "x%x,1", "x%x,2000"} {
			packet = fmt.Sprintf(packet, addr)
			// A hole may end within the read.
			if got := m.must(packet); got != "E14" {
				m.t.Errorf("%s: got %.80q, want E14", packet, got)
			}
		}
	}
}

// aliases writes through one address what must be seen through another.
func (m *modeTest) aliases() {
	m.t.Helper()
	for _, a := range m.guest.Aliases {
		before := m.guest.Want(a.A, 1)
		changed := []byte{before[0] ^ 0xff}
		for _, step := range []struct {
			write, see uint64
			value      []byte
		}{{a.A, a.B, changed}, {a.B, a.A, before}} {
			m.want(fmt.Sprintf("M%x,1:%x", step.write, step.value), "OK")
			for _, addr := range []uint64{step.write, step.see} {
				if got := m.read(addr, 1); !bytes.Equal(got, step.value) {
					m.t.Errorf("after writing %x at %#x: got %x at %#x", step.value, step.write, got, addr)
				}
			}
		}
	}
}

// refusedWrites writes over the edges to holes: nothing must be written. Edges
// within memory can be written across.
func (m *modeTest) refusedWrites() {
	m.t.Helper()
	refused, done := 0, 0
	for _, edge := range m.guest.Edges() {
		addr := edge - 2
		before := m.guest.Want(addr, 4)
		if len(before) == 0 {
			continue
		}
		reply := m.must(fmt.Sprintf("M%x,4:%x", addr, []byte("\xde\xad\xbe\xef")))
		if len(before) == 4 {
			done++
			if got := m.one(addr, 4); reply != "OK" || string(got) != "\xde\xad\xbe\xef" {
				m.t.Errorf("write at %#x: got reply %q, and then read %x", addr, reply, got)
			}
			m.want(fmt.Sprintf("M%x,4:%x", addr, before), "OK")
		} else {
			refused++
			if !strings.HasPrefix(reply, "E") {
				m.t.Errorf("write at %#x, over the edge to a hole: got reply %q, want an error", addr, reply)
			}
		}
		if got := m.one(addr, 4); !bytes.Equal(got, before) {
			m.t.Errorf("after a write at %#x: got %x, want %x as before", addr, got, before)
		}
	}
	m.t.Logf("%d writes across edges, %d refused", done, refused)
}

// dumps makes gdb dump memory around all edges.
func (m *modeTest) dumps(s *server) {
	m.t.Helper()
	const around = 0x1800
	type dump struct {
		start, end uint64
		path       string
	}
	var dumps []dump
	var args []string
	dir := m.t.TempDir()
	add := func(start, end uint64) {
		d := dump{start, end, filepath.Join(dir, fmt.Sprint(len(dumps)))}
		dumps = append(dumps, d)
		args = append(args, "-ex", fmt.Sprintf("dump binary memory %s %#x %#x", d.path, start, end))
	}
	for _, edge := range m.guest.Edges() {
		// The pattern before and behind the edge, as far as it goes.
		start := edge
		for start != 0 && edge-start < around && len(m.guest.Want(start-1, 1)) == 1 {
			start--
		}
		end := edge + uint64(len(m.guest.Want(edge, around)))
		if end < start {
			end-- // gdb has no number for the end of the address space
		}
		if start != end {
			add(start, end)
		}
	}
	hole := m.guest.Holes[0]
	nothing := filepath.Join(dir, "nothing")
	args = append(args, "-ex", fmt.Sprintf("dump binary memory %s %#x %#x", nothing, hole, hole+16), "-ex", "detach")
	out := s.gdb(args...)
	if want := fmt.Sprintf("Cannot access memory at address %#x", hole); !strings.Contains(out, want) {
		m.t.Errorf("gdb does not say %q of a hole:\n%s", want, out)
	}
	total := 0
	for _, d := range dumps {
		got, err := os.ReadFile(d.path)
		if err != nil {
			m.t.Errorf("gdb: %v\n%s", err, out)
			return
		}
		total += len(got)
		want := m.guest.Want(d.start, int(d.end-d.start))
		if i := firstDifference(got, want); i >= 0 {
			m.t.Errorf("gdb's dump of %#x to %#x (%d bytes) differs at byte %#x", d.start, d.end, len(got), i)
		}
	}
	m.t.Logf("gdb dumped %d bytes in %d pieces", total, len(dumps))
}

// spins checks that a guest uses the CPU.
func spins(t *testing.T, h *lab.Host, g *lab.Guest) {
	t.Helper()
	used := func() float64 {
		f := strings.Fields(labtest.Output(t, h, "xl list "+g.Name()+" | tail -n 1"))
		seconds, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	before := used()
	for deadline := time.Now().Add(20 * time.Second); used() <= before; {
		if time.Now().After(deadline) {
			t.Fatalf("guest does not run: it has used %.1f s of CPU time for long", before)
		}
	}
}

package bench

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// dial connects a client to a server of a target.
func dial(t *testing.T, target rsp.Target) *Conn {
	t.Helper()
	near, far := rsptest.Pipe(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- rsp.Serve(ctx, far, target, rsp.Config{}) }()
	t.Cleanup(func() {
		near.Close()
		cancel()
		<-served
	})
	c, err := NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// few is little of everything, in the memory of the fake target.
var few = Params{
	Read:  Range{rsptest.Text, 0x2000},
	Bulk:  Range{rsptest.Text, 0x2000},
	Code:  Range{rsptest.Text, 0x2000},
	Break: rsptest.Bump,
	Times: 2 * readsPerStop, Steps: 5, Rounds: 8,
}

// Every work is done against a server that knows everything.
func TestWorks(t *testing.T) {
	target := rsptest.NewProgram(2)
	before := target.Clone()
	c := dial(t, target)
	all := map[string]Result{}
	for _, group := range Groups() {
		if group == "condition" { // needs a target that counts hits
			continue
		}
		results, err := Run(c, group, few)
		if err != nil {
			t.Fatal(err)
		}
		Merge(all, results)
	}
	for work, n := range map[string]int{
		ReadCold: 40, ReadWarm: 80, Registers: 40, BulkHex: 1, BulkBinary: 1, CodeBinary: 1, WriteBack: 1,
		StepBusy: 5, BreakHit: 8, BreakCycle: 8, StopWorth: 2, ConditionClient: 4,
	} {
		if got := len(all[work].Samples); got != n {
			t.Errorf("%s: got %d samples, want %d", work, got, n)
		}
	}
	if b := all[BulkBinary].Bytes; b != 0x2000 {
		t.Errorf("a sample of bulk work moves %#x bytes", b)
	}
	if n := len(target.Breakpoints()); n != 0 {
		t.Errorf("%d breakpoints are left", n)
	}
	if err := c.Detach(); err != nil || !target.Detached() {
		t.Errorf("detach: %v", err)
	}
	if diff := cmp.Diff(before[2].Data[:0x1000], target.Memory[2].Data[:0x1000]); diff != "" {
		t.Errorf("the program was changed (-before +after):\n%s", diff)
	}
	if m := target.Misuse(); len(m) > 0 {
		t.Errorf("misuse: %v", m)
	}
}

// A server that knows no breakpoints gets them written into memory, and what has run
// into one is put back.
func TestWrittenBreakpoints(t *testing.T) {
	target := rsptest.NewTarget(2)
	const at = rsptest.Text + 0x110
	regs := target.Registers(2)
	rip, _ := regs.Index("rip")
	regs.SetUint(rip, at+1)
	for range 3 {
		target.Stops = append(target.Stops, rsp.StopReply{Signal: 5, Thread: rsp.ThreadID{PID: 1, TID: 2}})
	}
	before := target.Clone()
	c := dial(t, struct {
		rsp.Target
		rsp.Stepper
	}{target, target})
	if err := c.selectLast(); err != nil {
		t.Fatal(err)
	}
	if err := c.plant(at, ""); err != nil {
		t.Fatal(err)
	}
	if b := target.Memory[2].Data[at-rsptest.Text]; b != int3 {
		t.Errorf("got byte %#x at the breakpoint", b)
	}
	for stop := range 2 {
		if err := cycle(c, at, stop == 0, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := c.register(ripOffset); err != nil || got != at {
			t.Errorf("stop %d: got rip %#x, %v", stop, got, err)
		}
	}
	if err := c.plant(at, never); err == nil {
		t.Error("a condition is taken by a server that knows none")
	}
	if err := c.pull(at); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, target.Memory); diff != "" {
		t.Errorf("memory was changed (-before +after):\n%s", diff)
	}
	results, err := Run(c, "condition", few)
	if err != nil || len(results) != 1 || results[0].Unsupported == "" {
		t.Errorf("got %v, %v for conditions", results, err)
	}
}

// A server of the old kind says nothing of itself.
func TestOldServer(t *testing.T) {
	near, far := rsptest.Pipe(t)
	go func() {
		defer far.Close()
		r := rsp.NewReader(far, 1<<10)
		for {
			kind, packet, err := r.Next(nil)
			if err != nil {
				return
			}
			if kind != rsp.Packet {
				continue
			}
			reply := map[string]string{"?": "T05thread:1;", "g": strings.Repeat("0", 600), "qfThreadInfo": "m0,1l", "Hg1": "OK"}[string(packet)]
			far.Write(rsp.AppendPacket([]byte{'+'}, []byte(reply)))
		}
	}()
	defer near.Close()
	c, err := NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	if c.packetSize != 600 || c.binary || c.actions || !c.acks || c.thread != "1" {
		t.Errorf("got %+v", c)
	}
	results, err := Run(c, "registers", Params{Times: 3})
	if err != nil || len(results) != 1 || len(results[0].Samples) != 3 {
		t.Errorf("got %v, %v", results, err)
	}
	if _, err := Run(c, "reads", few); err == nil {
		t.Error("reads of a server that cannot do them are no error")
	}
}

func TestCounters(t *testing.T) {
	target := rsptest.NewTarget(1)
	target.Commands = func(_ context.Context, line string, out func(string)) error {
		out("hypercalls 12\nhits       3, 2 of them not told\n")
		out("nothing here\n\n")
		return nil
	}
	c := dial(t, target)
	got, err := c.counters("stats")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"hypercalls": 12, "hits": 3}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go ServeLimit(l)
	results, err := MeasureLimit("unix", path, Params{Times: 10, Bulk: Range{Size: 5 << 20}})
	if err != nil || len(results) != 3 {
		t.Fatalf("got %v, %v", results, err)
	}
	e, c, r := results[0], results[1], results[2]
	if len(e.Samples) != 10 || len(c.Samples) != 2 || c.Bytes != 2<<20 || len(r.Samples) != 2 || r.Bytes != 16*readySize {
		t.Errorf("got %v", results)
	}
}

func TestMemory(t *testing.T) {
	m := &Memory{Addr: 0x1000, Data: make([]byte, 0x3000)}
	c := dial(t, m)
	in := Range{0x1000, 0x3000}
	for _, group := range []string{"warm", "registers", "bulk", "write"} {
		if _, err := Run(c, group, Params{Read: in, Bulk: in, Code: in, Times: 5}); err != nil {
			t.Error(err)
		}
	}
	for _, addr := range []uint64{0xfff, 0x4000} {
		if n, err := m.ReadMemory(memoryThread, addr, make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%#x can be read", addr)
		}
		if err := m.WriteMemory(memoryThread, addr-1, make([]byte, 2)); err == nil {
			t.Errorf("%#x can be written", addr)
		}
	}
}

func TestPercentile(t *testing.T) {
	var samples []time.Duration
	for i := range 200 {
		samples = append(samples, time.Duration(200-i))
	}
	for p, want := range map[float64]time.Duration{0.1: 1, 50: 100, 99: 198, 100: 200} {
		if got := Percentile(samples, p); got != want {
			t.Errorf("percentile %v: got %d, want %d", p, got, want)
		}
	}
	if samples[0] != 200 {
		t.Error("the samples were sorted in place")
	}
	if got := Percentile([]time.Duration{7}, 99); got != 7 {
		t.Errorf("of one sample: got %d", got)
	}
	if got := Median(nil); got != 0 {
		t.Errorf("of none: got %d", got)
	}
}

func TestMerge(t *testing.T) {
	all := map[string]Result{}
	one := Result{Work: "w", Samples: []time.Duration{1}, Count: 2, Calls: map[string]int{"a": 1}}
	Merge(all, []Result{one, {Work: "v", Unsupported: "no"}})
	Merge(all, []Result{one})
	want := map[string]Result{
		"w": {Work: "w", Samples: []time.Duration{1, 1}, Count: 4, Calls: map[string]int{"a": 2}},
		"v": {Work: "v", Unsupported: "no"},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTable(t *testing.T) {
	times := func(ds ...time.Duration) Result { return Result{Samples: ds} }
	got := Table("theirs", "ours", []Row{
		{Name: "read", Peer: times(5 * time.Millisecond), Ours: times(100*time.Microsecond, 100*time.Microsecond, 2*time.Millisecond), Goal: 20},
		{Name: "step", Peer: times(10 * time.Millisecond), Ours: times(5 * time.Millisecond), Goal: 5},
		{Name: "bulk", Peer: Result{Bytes: 1000, Samples: []time.Duration{time.Millisecond}}, Ours: Result{Bytes: 4e6, Samples: []time.Duration{2 * time.Second}}},
		{Name: "condition", Peer: Result{Unsupported: "no conditions"}, Ours: Result{Count: 300, Samples: []time.Duration{time.Second, time.Second}}, Goal: 2},
		{Name: "later"},
	})
	want := `| work | theirs, median | 99 % | ours, median | 99 % | ratio | goal |
|---|---|---|---|---|---|---|
| read | 5.00 ms | 5.00 ms | 100 µs | 2.00 ms | 50.0× | 20×: met |
| step | 10.0 ms | 10.0 ms | 5.00 ms | 5.00 ms | 2.00× | 5×: missed |
| bulk | 1.00 MB/s | 1.00 MB/s | 2.00 MB/s | 2.00 MB/s | 2.00× |  |
| condition | cannot: no conditions |  | 150/s |  |  | 2×: met |
| later | not measured |  | not measured |  |  |  |
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseStrace(t *testing.T) {
	const text = `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.001200           3       400           ioctl
 40.00    0.000800           2       410         7 read
------ ----------- ----------- --------- --------- ----------------
100.00    0.002000           2       810         7 total
`
	got, err := ParseStrace(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Syscalls{"ioctl": 400, "read": 410}, got); diff != "" || got.Total() != 810 {
		t.Errorf("total %d (-want +got):\n%s", got.Total(), diff)
	}
	for _, bad := range []string{"", "strace: no\n", strings.Replace(text, "400 ", "4x0 ", 1)} {
		if _, err := ParseStrace(bad); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
}

func FuzzParseStrace(f *testing.F) {
	f.Add(" 60.00    0.001200           3       400           ioctl\n")
	f.Fuzz(func(t *testing.T, text string) {
		calls, err := ParseStrace(text)
		if (err == nil) == (len(calls) == 0) {
			t.Errorf("got %v and %v", calls, err)
		}
	})
}

func TestPlaces(t *testing.T) {
	in := Range{0x1000, 0x800}
	a := places(in, 100, 3)
	if !slices.Equal(a, places(in, 100, 3)) || slices.Equal(a, places(in, 100, 4)) {
		t.Error("the places do not follow from the seed")
	}
	for _, addr := range a {
		if addr < in.Addr || addr+8 > in.Addr+uint64(in.Size) || addr%8 != 0 {
			t.Errorf("%#x is outside", addr)
		}
	}
}

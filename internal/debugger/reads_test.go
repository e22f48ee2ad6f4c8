package debugger

import (
	"net"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// readPackets are what a client asks most often of a guest that stands still.
var readPackets = []string{"g", "p10", "mffffffff81000004,8", "xffffffff81000000,1000", "Hg2", "T1"}

// readTarget reads registers and memory of a guest by its Target.
func readTarget(tb testing.TB, target *Target) (registers, memory func()) {
	regs, mem := rsp.NewRegisters(target.Description()), make([]byte, 64)
	return func() {
			if err := target.ReadRegisters(thread(1), regs); err != nil {
				tb.Fatal(err)
			}
		}, func() {
			if n, err := target.ReadMemory(thread(1), text+4, mem); n != len(mem) || err != nil {
				tb.Fatal(n, err)
			}
		}
}

// readClient gives a connection to a server of a target, and a function that sends a
// frame there and waits for its reply.
func readClient(tb testing.TB, target *Target) (net.Conn, func(frame []byte)) {
	near, far := rsptest.Pipe(tb)
	go rsp.Serve(tb.Context(), far, target, rsp.Config{})
	if err := rsptest.NewClient(near).NoAck(); err != nil {
		tb.Fatal(err)
	}
	near.SetDeadline(time.Time{})
	reply := make([]byte, 1<<14)
	return near, func(frame []byte) {
		if _, err := near.Write(frame); err != nil {
			tb.Fatal(err)
		}
		for n := 0; n < 4 || reply[n-3] != '#'; {
			m, err := near.Read(reply[n:])
			if err != nil {
				tb.Fatal(err)
			}
			n += m
		}
	}
}

// Reading a guest that stands still allocates nothing, on the whole way from packet to
// reply.
func TestAllocations(t *testing.T) {
	none := func(what any, read func()) {
		t.Helper()
		if n := testing.AllocsPerRun(200, read); n != 0 {
			t.Errorf("%v: %v allocations", what, n)
		}
	}
	for _, kind := range []xen.Kind{xen.PV, xen.PVH} {
		target, _, _ := newTarget(t, xentest.Config{}, kind, 2, nil)
		registers, memory := readTarget(t, target)
		none(kind, registers)
		none(kind, memory)
		near, trip := readClient(t, target)
		defer near.Close()
		for _, packet := range readPackets {
			frame := rsp.AppendRequest(nil, []byte(packet))
			none(packet, func() { trip(frame) })
		}
	}
}

func BenchmarkReads(b *testing.B) {
	target, _, _ := newTarget(b, xentest.Config{}, xen.PV, 2, nil)
	registers, memory := readTarget(b, target)
	run := func(name string, read func()) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				read()
			}
		})
	}
	run("ReadRegisters", registers)
	run("ReadMemory", memory)
	near, trip := readClient(b, target)
	defer near.Close()
	for _, packet := range readPackets {
		frame := rsp.AppendRequest(nil, []byte(packet))
		run(packet, func() { trip(frame) })
	}
}

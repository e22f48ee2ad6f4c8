// This file measures how a kernel is found and call-frame information made.

package linux

import (
	"encoding/binary"
	"fmt"
	"testing"

	"gdbserver-xen/internal/linux/linuxtest"
)

// A kernel is found that has as much code and as many symbols as most.
func BenchmarkFind(b *testing.B) {
	const code, count = 20 << 20, 150_000
	var variables []linuxtest.Symbol
	for i := range count {
		variables = append(variables, linuxtest.Symbol{Addr: linuxtest.Base + 2*code + uint64(8*i), Name: fmt.Sprintf("variable_%d", i)})
	}
	mem := linuxtest.Spaces{
		{Addr: linuxtest.Base - code, Bytes: make([]byte, code)},
		linuxtest.Image(linuxtest.Layouts[2], variables...),
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Find(mem, linuxtest.Function("leaf")); err != nil {
			b.Fatal(err)
		}
	}
}

// Call-frame information is made of ORC tables with an entry for each four bytes of
// code, most of which have saved RBP.
func BenchmarkFrameInfo(b *testing.B) {
	const perEntry = 4
	l := linuxtest.Layouts[2]
	k, err := Find(linuxtest.Image(l), linuxtest.Function("leaf"))
	if err != nil {
		b.Fatal(err)
	}
	k.orc.offsets, k.orc.entries = nil, nil
	for at := k.code[0].first; at < k.code[0].end; at += perEntry {
		n := len(k.orc.offsets) / 4
		entry := l.CallEntry(int16(8*(1+n%8)), int16(-16*(n%4)))
		k.orc.offsets = binary.LittleEndian.AppendUint32(k.orc.offsets, uint32(at-k.orc.start-uint64(4*n)))
		k.orc.entries = append(k.orc.entries, entry[:]...)
	}
	b.ReportAllocs()
	for b.Loop() {
		k.frames = nil
		k.frameInfo(false)
	}
}

package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux/linuxtest"
)

// vmcoreInfo makes a kernel's VMCOREINFO say something.
func (d *fakeData) vmcoreInfo(text string) {
	d.Variable("vmcoreinfo_data", d.Text(text))
	d.Variable("vmcoreinfo_size", uint64(len(text)))
}

// vmcoreOffsets are lines that say what BTF does of some structures.
func (d *fakeData) vmcoreOffsets(keys []string) string {
	text := "OSRELEASE=6.1.0\nPAGESIZE=4096\n"
	for _, key := range keys {
		what := "SIZE"
		if strings.Contains(key, ".") {
			what = "OFFSET"
		}
		text += fmt.Sprintf("%s(%s)=%d\n", what, key, d.Field(0, key))
	}
	return text
}

// ring makes a ring of 8 messages with 256 bytes of text. It has gone around: the
// first messages are lost.
func (d *fakeData) ring(messages ...string) {
	const countBits, sizeBits = 3, 8
	const number = 8 // of a descriptor, before its text
	ring := d.New(88)
	descs, data := d.Field(ring, "printk_ringbuffer.desc_ring"), d.Field(ring, "printk_ringbuffer.text_data_ring")
	table, infos := d.New(24<<countBits), d.New(88<<countBits)
	text := d.New(1 << sizeBits)
	first := uint64(1<<62 - 3) // numbers go around too
	lpos := uint64(3<<sizeBits - 64)
	for i, m := range messages {
		id := (first + uint64(i)) & ringID
		slot := id % (1 << countBits)
		desc, info := table+slot*24, infos+slot*88
		begin, next := lpos, lpos+uint64(alignUp(number+len(m), 8))
		at := begin % (1 << sizeBits)
		if begin>>sizeBits != next>>sizeBits && next%(1<<sizeBits) != 0 {
			next = next>>sizeBits<<sizeBits + uint64(alignUp(number+len(m), 8))
			at = 0
		}
		if m == "" {
			begin, next = 3, 3
		} else {
			d.Put(text+at, id)
			copy(d.At(text + at + number)[:len(m)], m)
			lpos = next
		}
		d.Put(desc, uint64(ringFinalized)<<62|id)
		d.Put(desc+8, begin)
		d.Put(desc+16, next)
		d.Put(info+8, uint64(i)*1_000_001_000)
		binary.LittleEndian.PutUint16(d.At(info+16), uint16(len(m)))
		d.At(info + 18)[0], d.At(info + 19)[0] = byte(i), byte(i%8<<5|3)
	}
	d.PutHalf(descs, countBits)
	d.Put(descs+8, table)
	d.Put(descs+16, infos)
	d.Put(descs+24, (first+uint64(len(messages)-1))&ringID|uint64(ringFinalized)<<62)
	d.Put(descs+32, first)
	d.PutHalf(data, sizeBits)
	d.Put(data+8, text)
	d.Variable("prb", ring)
}

var fakeMessages = []string{"Linux version", strings.Repeat("x", 48), "", "two\nlines", "colour \x1b[31m and \xff", strings.Repeat("y", 60)}

// The log is read by VMCOREINFO and, where that does not tell, by BTF.
func TestLog(t *testing.T) {
	for _, by := range []string{"VMCOREINFO", "BTF"} {
		d := newFakeData("6.1")
		d.ring(fakeMessages...)
		if by == "VMCOREINFO" {
			d.vmcoreInfo(d.vmcoreOffsets(ringKeys))
			d.symbols[0].name = "no BTF"
		}
		got, err := d.Log(d.Mem)
		if err != nil {
			t.Fatalf("%s: %v", by, err)
		}
		var want []LogRecord
		for i, m := range fakeMessages {
			want = append(want, LogRecord{Time: time.Duration(i) * 1_000_001_000, Level: i, Facility: i, Text: m})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", by, diff)
		}
	}
}

func TestWriteLog(t *testing.T) {
	var b bytes.Buffer
	err := WriteLog(&b, []LogRecord{
		{Text: "first"}, {Time: 123456789012345 * time.Nanosecond, Text: "two\nlines\tof \"text\\\""},
		{Time: time.Second, Text: "a \x1b[31mcolour\xff\r"}, {Time: time.Second},
	})
	want := "[    0.000000] first\n[123456.789012] two\n                lines\tof \"text\\\"\n" +
		"[    1.000000] a \\x1b[31mcolour\\xff\\x0d\n[    1.000000] \n"
	if diff := cmp.Diff(want, b.String()); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// A message that is being written, or whose text has been overwritten, is not
// shown, or not its text.
func TestLogUnfinished(t *testing.T) {
	d := newFakeData("6.1")
	d.ring("one", "two", "three")
	table := binary.LittleEndian.Uint64(d.At(binary.LittleEndian.Uint64(d.At(d.symbols[2].addr)) + 8))
	second := table + (1<<62-2)%8*24
	d.Put(second, 1<<62-2) // reserved
	third := table + (1<<62-1)%8*24
	d.Put(third+8, 1<<20)
	d.Put(third+16, 1<<20+16)
	got, err := d.Log(d.Mem)
	if want := []LogRecord{{Text: "one"}, {Time: 2_000_002_000, Level: 2, Facility: 2}}; err != nil || !cmp.Equal(want, got) {
		t.Errorf("got %v, %v", got, err)
	}
}

// oldLog makes a log as kernels before 5.10 have it. It has gone around.
func (d *fakeData) oldLog() {
	d.vmcoreInfo("SIZE(printk_log)=16\nOFFSET(printk_log.ts_nsec)=0\nOFFSET(printk_log.len)=8\nOFFSET(printk_log.text_len)=10\n")
	buffer := d.New(256)
	put := func(at int, ts uint64, level byte, text string) int {
		entry := buffer + uint64(at)
		size := alignUp(16+len(text), 8)
		d.Put(entry, ts)
		binary.LittleEndian.PutUint16(d.At(entry+8), uint16(size))
		binary.LittleEndian.PutUint16(d.At(entry+10), uint16(len(text)))
		d.At(entry + 15)[0] = level << 5
		copy(d.At(entry+16), text)
		return at + size
	}
	end := put(0, 3e9, 4, "three")
	at := put(128, 1e9, 6, "one")
	put(at, 2e9, 7, "two, and more")
	d.Variable("log_buf", buffer)
	d.Variable("log_buf_len", 256)
	d.Variable("log_first_idx", 128)
	d.Variable("log_next_idx", uint64(end))
}

func TestOldLog(t *testing.T) {
	d := newFakeData("5.10")
	d.oldLog()
	got, err := d.Log(d.Mem)
	want := []LogRecord{{1e9, 6, 0, "one"}, {2e9, 7, 0, "two, and more"}, {3e9, 4, 0, "three"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestNoLog(t *testing.T) {
	if _, err := (&Kernel{}).Log(linuxtest.Spaces{}); err == nil || !strings.Contains(err.Error(), "CONFIG_PRINTK") {
		t.Errorf("got %v", err)
	}
	k := &Kernel{symbols: []symbol{{name: "prb", addr: 8}}}
	if _, err := k.Log(linuxtest.Spaces{}); !errors.Is(err, ErrNoBTF) {
		t.Errorf("neither VMCOREINFO nor BTF: got %v", err)
	}
}

func TestVMCoreInfo(t *testing.T) {
	info := parseVMCoreInfo("OSRELEASE=6.1.0\nSYMBOL(prb)=ffffffff82c3b1f8\nSIZE(prb_desc)=24\nOFFSET(prb_desc.state_var)=8\nSIZE(prb_desc)=32\nno line\nLAST(x)=1")
	if v, ok := info.Symbol("prb"); !ok || v != 0xffffffff82c3b1f8 {
		t.Errorf("prb is at %#x", v)
	}
	if v, ok := info.Size("prb_desc"); !ok || v != 24 {
		t.Errorf("prb_desc has %d bytes", v)
	}
	if v, ok := info.Offset("prb_desc.state_var"); !ok || v != 8 {
		t.Errorf("state_var is at %d", v)
	}
	if _, ok := info.Offset("prb_desc.none"); ok || info["LAST(x)"] != "1" || info["OSRELEASE"] != "6.1.0" {
		t.Errorf("got %v", info)
	}
}

func FuzzVMCoreInfo(f *testing.F) {
	f.Add("OSRELEASE=6.1.0\nSYMBOL(prb)=ffffffff82c3b1f8\nSIZE(prb_desc)=24\n")
	f.Fuzz(func(t *testing.T, text string) {
		info := parseVMCoreInfo(text)
		info.Symbol("prb")
		info.offsets(ringKeys)
	})
}

// FuzzLog gives a kernel a log that is changed at places.
func FuzzLog(f *testing.F) {
	for i := range 4 {
		f.Add(i%2 == 0, uint64(i), bytes.Repeat([]byte{byte(1 << i)}, 3*i))
	}
	ring, old := newFakeData("6.1"), newFakeData("5.10")
	ring.ring(fakeMessages...)
	old.oldLog()
	f.Fuzz(func(t *testing.T, isOld bool, seed uint64, changes []byte) {
		d := ring
		if isOld {
			d = old
		}
		d.damage(seed, changes, func(k *Kernel, mem Memory) {
			records, _ := k.Log(mem)
			WriteLog(&bytes.Buffer{}, records)
		})
	})
}

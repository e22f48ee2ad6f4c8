package rsp_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// sizeOf gives how many bytes the first n registers take, as the next begins there.
func sizeOf(r *rsp.Registers, n int) (size int) {
	for i := range n {
		size += r.Size(i)
	}
	return size
}

func TestRegistersValues(t *testing.T) {
	d := rsptest.Description()
	r := rsp.NewRegisters(d)
	if r.Len() != 66 {
		t.Errorf("%d registers", r.Len())
	}
	for _, tt := range []struct {
		name                string
		index, offset, size int
	}{
		{"rax", 0, 0, 8}, {"rip", 16, 128, 8}, {"eflags", 17, 136, 4}, {"st0", 24, 164, 10},
		{"fop", 39, 272, 4}, {"xmm0", 40, 276, 16}, {"mxcsr", 56, 532, 4}, {"fs_base", 57, 536, 8}, {"efer", 65, 600, 8},
	} {
		i, ok := r.Index(tt.name)
		if offset := sizeOf(r, i); !ok || i != tt.index || offset != tt.offset || r.Size(i) != tt.size {
			t.Errorf("%s: register %d (%v) at %d of %d bytes", tt.name, i, ok, offset, r.Size(i))
		}
	}
	if _, ok := r.Index("eax"); ok {
		t.Error("there is a register eax")
	}

	rip, _ := r.Index("rip")
	eflags, _ := r.Index("eflags")
	if _, known := r.Bytes(rip); known || r.Known(rip) {
		t.Error("rip is known at first")
	}
	r.SetUint(rip, 0xffffffff81000000)
	r.SetUint(eflags, 0x1_0000_0246) // cut to 32 bits
	if b, known := r.Bytes(rip); !known || !bytes.Equal(b, []byte{0, 0, 0, 0x81, 0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("rip is % x, %v", b, known)
	}
	if v, known := r.Uint(eflags); !known || v != 0x246 {
		t.Errorf("eflags is %#x, %v", v, known)
	}
	if v, _ := r.Uint(rip); v != 0xffffffff81000000 {
		t.Errorf("rip is %#x beside eflags", v)
	}
	other := rsp.NewRegisters(d)
	other.SetUint(0, 1)
	other.CopyFrom(r)
	if v, known := other.Uint(rip); !known || v != 0xffffffff81000000 || !other.Known(0) {
		t.Errorf("copied rip is %#x, %v", v, known)
	}
	r.Clear()
	if v, known := r.Uint(rip); known || v != 0 {
		t.Errorf("cleared rip is %#x, %v", v, known)
	}
	defer func() {
		if recover() == nil {
			t.Error("a value of the wrong size is taken")
		}
	}()
	r.Set(rip, make([]byte, 4))
}

func TestTargetXML(t *testing.T) {
	path := filepath.Join("testdata", "target.xml")
	got := rsptest.Description().AppendXML(nil)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("target.xml is not as in testdata (%v):\n%s", err, got)
	}
	d := &rsp.Description{Features: []rsp.Feature{{Name: "a<b>\"&\x01", Registers: []rsp.Register{{Name: "r", Bits: 8}}}}}
	if x := string(d.AppendXML(nil)); !strings.Contains(x, `name="a&lt;b&gt;&quot;&amp;?"`) {
		t.Errorf("unquoted: %s", x)
	}
}

func TestValidate(t *testing.T) {
	flags := []rsp.FlagsType{{ID: "f", Bytes: 4, Flags: []rsp.Flag{{Name: "A", Start: 0, End: 31}}}}
	for _, tt := range []struct {
		want string
		f    rsp.Feature
	}{
		{"", rsp.Feature{Types: flags, Registers: []rsp.Register{{Name: "r", Bits: 32, Type: "f"}}}},
		{"without registers", rsp.Feature{}},
		{"whole bytes", rsp.Feature{Registers: []rsp.Register{{Name: "r", Bits: 12}}}},
		{"whole bytes", rsp.Feature{Registers: []rsp.Register{{Name: "r"}}}},
		{"there twice", rsp.Feature{Registers: []rsp.Register{{Name: "r", Bits: 8}, {Name: "r", Bits: 8}}}},
		{"4 bytes", rsp.Feature{Types: flags, Registers: []rsp.Register{{Name: "r", Bits: 64, Type: "f"}}}},
		{"bits 4 to 64", rsp.Feature{Types: []rsp.FlagsType{{ID: "f", Bytes: 8, Flags: []rsp.Flag{{Name: "A", Start: 4, End: 64}}}}}},
	} {
		err := (&rsp.Description{Features: []rsp.Feature{tt.f}}).Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
	if err := (*rsp.Description)(nil).Validate(); err == nil {
		t.Error("no description is valid")
	}
}

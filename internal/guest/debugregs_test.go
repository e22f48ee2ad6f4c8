package guest_test

import (
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// What a guest does with its debug registers while we use DR3: all of it stays done,
// whether we set ours again, detach, or are killed.
func TestGuestsOwnDebugRegs(t *testing.T) {
	const (
		ours     = text + 0x3000
		ourPart  = 1<<6 | 0xd<<28 // DR3, 4 bytes written
		fixed    = 0x400
		ownFirst = 2<<0 | 0x1<<16 // DR0
	)
	type registers = [8]uint64
	before := registers{0: text, 3: text + 0x30, 6: 0xffff0ff0, 7: fixed | ownFirst}
	set := func(d registers, dr7 uint64, more map[int]uint64) registers {
		d[7] = dr7
		for i, v := range more {
			d[i] = v
		}
		return d
	}
	tests := []struct {
		name  string
		guest func(d *registers) // what it does to its registers, as they are then
		want  registers
		lost  bool // ours are off
	}{
		{"nothing", func(d *registers) {}, before, false},
		{"one more", func(d *registers) {
			d[1] = text + 0x10
			d[7] |= 2<<2 | 3<<20
		}, set(before, before[7]|2<<2|3<<20, map[int]uint64{1: text + 0x10}), false},
		{"one more, without a look at ours", func(d *registers) {
			d[1] = text + 0x10
			d[7] = before[7] | 2<<2 | 3<<20
		}, set(before, before[7]|2<<2|3<<20, map[int]uint64{1: text + 0x10}), true},
		{"its own switched off", func(d *registers) { d[7] &^= 2<<0 | 0xf<<16 }, set(before, fixed, nil), false},
		{"all switched off", func(d *registers) { d[7] = fixed }, set(before, fixed, nil), true},
		{"all cleared", func(d *registers) { *d = registers{6: 0xffff0ff0, 7: fixed} }, registers{6: 0xffff0ff0, 7: fixed}, true},
		{"ours taken", func(d *registers) {
			d[3] = text + 0x40
			d[7] = before[7] | 2<<6 | 0x3<<28
		}, set(before, before[7]|2<<6|0x3<<28, map[int]uint64{3: text + 0x40}), true},
		{"ours taken, for the same address", func(d *registers) { d[7] = before[7] | 2<<6 | 0x3<<28 },
			set(before, before[7]|2<<6|0x3<<28, map[int]uint64{3: ours}), true},
		{"ours taken, address first", func(d *registers) { d[3] = text + 0x40 },
			set(before, before[7]|ourPart, map[int]uint64{3: text + 0x40}), true},
		{"another bit of DR7", func(d *registers) { d[7] |= 1 << 9 }, set(before, before[7]|1<<9, nil), false},
		{"a trap of its own, and one of ours", func(d *registers) { d[6] |= 1<<0 | 1<<3 },
			set(before, before[7], map[int]uint64{6: before[6] | 1}), false},
	}
	ends := map[string]func(t *testing.T, f *fixture, g *guest.Guest, lend func(), mem []byte){
		"detach": func(t *testing.T, f *fixture, g *guest.Guest, lend func(), mem []byte) {
			if err := g.Detach(); err != nil {
				t.Error(err)
			}
		},
		"set again": func(t *testing.T, f *fixture, g *guest.Guest, lend func(), mem []byte) {
			for range 2 {
				lend()
				if d := f.d.VCPU(0).Context.DebugRegs; d[3] != ours || d[7]&(1<<6) == 0 {
					t.Errorf("ours are not there again: %#x", d)
				}
			}
			if err := g.Detach(); err != nil {
				t.Error(err)
			}
		},
		"killed": func(t *testing.T, f *fixture, g *guest.Guest, lend func(), mem []byte) {
			lend()
			f.ReleaseMappings()
			left, err := guest.OpenLedger(mem)
			if err != nil {
				t.Fatal(err)
			}
			heir, err := guest.TakeOver(f.Host(), left)
			if err != nil {
				t.Fatal(err)
			}
			if err := heir.Detach(); err != nil {
				t.Error(err)
			}
		},
	}
	for _, tt := range tests {
		for end, finish := range ends {
			t.Run(tt.name+", "+end, func(t *testing.T) {
				eachKind(t, func(t *testing.T, kind xen.Kind) {
					f := newFixture(t, kind, 1)
					f.d.VCPU(0).Context.DebugRegs = before
					mem := make([]byte, guest.LedgerSize)
					ledger, err := guest.NewLedger(mem)
					if err != nil {
						t.Fatal(err)
					}
					g, err := guest.Attach(f.Host(), 3, ledger)
					if err != nil {
						t.Fatal(err)
					}
					lend := func() {
						t.Helper()
						addr, dr7, err := g.OwnDebugRegs(0)
						if err != nil {
							t.Fatal(err)
						}
						addr[3] = ours
						if err := g.SetDebugRegs(0, addr, dr7&^(3<<6|0xf<<28)|ourPart); err != nil {
							t.Fatal(err)
						}
					}
					lend()
					if err := g.Resume(); err != nil {
						t.Fatal(err)
					}
					f.Do(func() { tt.guest(&f.d.VCPU(0).Context.DebugRegs) })
					if err := g.Pause(); err != nil {
						t.Fatal(err)
					}
					bits := uint64(1 << 3)
					if tt.lost {
						bits = 0
					}
					if got, err := g.OurDebugRegs(0); err != nil || got != bits {
						t.Errorf("ours are %#x, %v, want %#x", got, err, bits)
					}
					addr, dr7, err := g.OwnDebugRegs(0)
					if err != nil || addr != [4]uint64(tt.want[:4]) || dr7 != tt.want[7] {
						t.Errorf("its own are %#x, dr7 %#x, %v, want %#x", addr, dr7, err, tt.want)
					}
					finish(t, f, g, lend, mem)
					if got := f.d.VCPU(0).Context.DebugRegs; got != tt.want {
						t.Errorf("the guest gets back %#x, want %#x", got, tt.want)
					}
				})
			})
		}
	}
}

// A debug register that a task of the guest's has only while it runs: what the guest
// has at the end counts, not what it had at a stop before.
func TestGuestsDebugRegComesAndGoes(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	g, err := guest.Attach(f.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &f.d.VCPU(0).Context.DebugRegs
	before := *d
	for i := range 5 {
		addr, dr7, err := g.OwnDebugRegs(0)
		if err != nil {
			t.Fatal(err)
		}
		if in := addr[0] == text && dr7&3 == 2; in != (i%2 == 1) {
			t.Errorf("stop %d: its own are %#x, dr7 %#x", i, addr, dr7)
		}
		addr[3] = text + 8
		if err := g.SetDebugRegs(0, addr, dr7|1<<6); err != nil {
			t.Fatal(err)
		}
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
		f.Do(func() {
			d[0], d[7] = before[0], before[7]
			if i%2 == 0 {
				d[0], d[7] = text, before[7]|2
			}
		})
		if err := g.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	want := before
	want[0], want[7] = text, before[7]|2
	if err := g.Detach(); err != nil || *d != want {
		t.Errorf("the guest gets back %#x, %v, want %#x", *d, err, want)
	}
}

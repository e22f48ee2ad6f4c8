package engine

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// programAt is where a program calls its kernel, and entryAt where it comes to that.
const (
	programAt = userText + 0x10
	entryAt   = kernelText + 0x300
)

// newProgram gives a guest with a program that is about to call its kernel by code.
func newProgram(t *testing.T, code []byte) *fixture {
	f := newFixture(t, 1)
	copy(f.bytes(programAt, len(code)), code)
	c := &f.d.VCPU(0).Context
	c.SyscallCallback = entryAt
	c.Traps[0x80] = xen.TrapInfo{Vector: 0x80, Flags: 3, CS: 0xe033, Address: entryAt}
	c.RIP, c.Flags, c.R11 = programAt, c.Flags&^xen.VGCFInKernel, 0x77
	return f
}

// calls are the instructions by which a program calls its kernel.
var calls = map[string][]byte{"syscall": {0x0f, 0x05}, "int 0x80": {0xcd, 0x80}}

// checkEntered checks that the vCPU has come to the kernel, which will find nothing of
// the step.
func (f *fixture) checkEntered(g *guest.Guest, stops []Stop) {
	f.t.Helper()
	if diff := cmp.Diff([]Stop{{VCPU: 0, Trap: Debug, DR6: DR6BS}}, stops); diff != "" {
		f.t.Fatalf("stops (-want +got):\n%s", diff)
	}
	r, err := g.Registers(0)
	if check(f.t, r, err); r.RIP != entryAt || r.RFLAGS&x86.RFLAGSTF != 0 || r.R11&x86.RFLAGSTF != 0 || r.DR6 != 0xffff0ff0 {
		f.t.Errorf("got rip %#x, rflags %#x, r11 %#x, dr6 %#x", r.RIP, r.RFLAGS, r.R11, r.DR6)
	}
	if back, flags := f.word(r.RSP+16), f.word(r.RSP+32); back != programAt+2 || flags != 0x202 {
		f.t.Errorf("it goes back to %#x with flags %#x", back, flags)
	}
	if r11 := f.word(r.RSP + 8); r11 != 0x77 && r11 != 0x202 {
		f.t.Errorf("it goes back with r11 %#x", r11)
	}
}

// A program's call of its kernel is stepped to the kernel, which may never come back.
func TestRedirectStepIntoKernel(t *testing.T) {
	for name, code := range calls {
		t.Run(name, func(t *testing.T) {
			f := newProgram(t, code)
			g, e := f.start()
			// It comes from a breakpoint, as it mostly does.
			plant, err := g.Plant(0, programAt, []byte{guest.Int3})
			check(t, plant, err)
			if stops := f.goOn(e, 3, Run); len(stops) != 1 {
				t.Fatalf("got stops %v", stops)
			}
			if err := g.Unplant(plant); err != nil {
				t.Fatal(err)
			}
			f.checkEntered(g, f.goOn(e, 0, Step))
			for i := range uint64(3) {
				stops := f.goOn(e, 4, Step)
				r, err := g.Registers(0)
				if check(t, r, err); len(stops) != 1 || r.RIP != entryAt+1+i {
					t.Errorf("got stops %v at %#x", stops, r.RIP)
				}
			}
		})
	}
}

package engine

import (
	"encoding/binary"
	"fmt"
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

// iretFrame gives a guest whose kernel is about to go back by the hypercall iret, with
// flags, to its program or to itself.
func (f *fixture) iretFrame(flags uint64, toUser bool) {
	c := &f.d.VCPU(0).Context
	copy(f.bytes(iretAt, 2), []byte{0x0f, 0x05})
	c.RIP, c.RAX, c.RSP = iretAt, 23, f.stack(0)+0xf00-72
	words := []uint64{0xa7, 0x1111, 0xcccc, flags, programAt, 0x33, 0x202, userText + 0x800, 0x2b}
	if !toUser {
		words[4], words[5], words[7], words[8] = entryAt, 0xe030, f.stack(0)+0xf80, 0xe02b
	}
	for i, w := range words {
		binary.LittleEndian.PutUint64(f.bytes(c.RSP+8*uint64(i), 8), w)
	}
}

// iretAt is a SYSCALL instruction by which the kernel makes the hypercall iret.
const iretAt = kernelText + 0x700

// A kernel's way back to its program is stepped to that, although the hypervisor takes
// RFLAGS from the kernel's frame; and nothing is left to trap.
func TestRedirectStepOutOfKernel(t *testing.T) {
	const inSyscall = 1 << 8
	for _, tt := range []struct {
		name   string
		flags  uint64
		toUser bool
		parked bool // it comes from a breakpoint
		back   uint64
	}{
		{"to a program", 0, true, false, programAt},
		{"to a program from a breakpoint", 0, true, true, programAt},
		{"to a program as by SYSRET", inSyscall, true, true, programAt},
		{"to the kernel", 0, false, true, entryAt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, 1)
			f.iretFrame(tt.flags, tt.toUser)
			g, e := f.start()
			if tt.parked {
				plant, err := g.Plant(0, iretAt, []byte{guest.Int3})
				check(t, plant, err)
				if stops := f.goOn(e, 2, Run); len(stops) != 1 {
					t.Fatalf("got stops %v", stops)
				}
				if err := g.Unplant(plant); err != nil {
					t.Fatal(err)
				}
			}
			done := []Stop{{VCPU: 0, Trap: Debug, DR6: DR6BS}}
			if diff := cmp.Diff(done, f.goOn(e, 3, Step)); diff != "" {
				t.Fatalf("stops (-want +got):\n%s", diff)
			}
			rcx, r11 := uint64(0xcccc), uint64(0x1111)
			if tt.flags != 0 {
				rcx, r11 = programAt, 0x202
			}
			r, err := g.Registers(0)
			if check(t, r, err); r.RIP != tt.back || r.RAX != 0xa7 || r.RCX != rcx || r.R11 != r11 || r.RFLAGS != 0x202 {
				t.Errorf("got rip %#x, rax %#x, rcx %#x, r11 %#x, rflags %#x", r.RIP, r.RAX, r.RCX, r.R11, r.RFLAGS)
			}
			if s, err := g.State(0); err != nil || s.UserMode != tt.toUser {
				t.Errorf("state %+v, %v", s, err)
			}
			if g.Stepping(0) || g.Ledger().Marked(0) {
				t.Errorf("stepping %v, still to trap %v", g.Stepping(0), g.Ledger().Marked(0))
			}
			if diff := cmp.Diff(done, f.goOn(e, 3, Step)); diff != "" {
				t.Fatalf("stops of the next step (-want +got):\n%s", diff)
			}
			if r, err := g.Registers(0); check(t, r, err).RIP != tt.back+1 || r.RFLAGS != 0x202 {
				t.Errorf("the next step leads to %#x, rflags %#x", r.RIP, r.RFLAGS)
			}
			f.goOn(e, 2, Run)
			c := &f.d.VCPU(0).Context
			if c.RIP != tt.back+2 || c.RCX != rcx || c.R11 != r11 || c.RFLAGS&x86.RFLAGSTF != 0 || f.mask[0] || f.fate[0] != "" ||
				(c.Flags&xen.VGCFInKernel == 0) != tt.toUser {
				t.Errorf("runs on at %#x, rcx %#x, r11 %#x, rflags %#x, events masked %v, the guest got %q",
					c.RIP, c.RCX, c.R11, c.RFLAGS, f.mask[0], f.fate[0])
			}
		})
	}
}

// A frame that the hypervisor could not read either is left to it.
func TestRedirectStepOutOfKernelUnreadable(t *testing.T) {
	f := newFixture(t, 1)
	f.iretFrame(0, true)
	c := &f.d.VCPU(0).Context
	c.RSP = stacks + 0x1000
	_, e := f.start()
	if err := e.Resume([]Motion{Step}); err != nil {
		t.Fatal(err)
	}
	if c.RIP != iretAt || c.RSP != stacks+0x1000 {
		t.Errorf("the kernel is at %#x, rsp %#x", c.RIP, c.RSP)
	}
	c.RIP, c.RSP = kernelText, f.stack(0)+0xf80
	f.run(0) // so that nothing is left to trap
}

// A guest whose step out of the kernel a server was killed in goes back as it would have.
func TestRedirectStepOutOfKernelKilled(t *testing.T) {
	for calls := 0; ; calls++ {
		f := newFixture(t, 1)
		f.iretFrame(0, true)
		mem := make([]byte, guest.LedgerSize)
		ledger, err := guest.NewLedger(mem)
		check(t, ledger, err)
		k := &killer{Transport: f.Transport(), left: calls}
		done := untilKilled(func() bool {
			host, err := xen.NewHost(k)
			_, e := f.attach(check(t, host, err), ledger)
			f.goOn(e, 3, Step)
			return true
		})
		k.release()
		where := fmt.Sprintf("killed at call %d", calls)
		f.recover(mem, where)
		f.run(0)
		f.run(0)
		c := &f.d.VCPU(0).Context
		if c.RIP < programAt || c.RIP > programAt+4 || c.RSP != userText+0x800 || c.RAX != 0xa7 || c.RCX != 0xcccc || c.R11 != 0x1111 ||
			c.RFLAGS != 0x202 || c.Flags&xen.VGCFInKernel != 0 || f.mask[0] || f.fate[0] != "" {
			t.Fatalf("%s: runs on at %#x, rsp %#x, rflags %#x, the guest got %q", where, c.RIP, c.RSP, c.RFLAGS, f.fate[0])
		}
		if done {
			return
		}
	}
}

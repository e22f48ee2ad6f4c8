// This file shows that vector registers survive what is done to a vCPU.

package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
	"gdbserver-xen/lab/testguests"
)

// A guest that has loaded all AVX registers finds them as they were after its
// other registers were written, and changed after they were.
func TestVectorsSurviveWrites(t *testing.T) {
	h := host(t, vectors)
	guest := testguests.Vectors()
	program, g := kernelGuest(t, h, guest)
	s := attach(t, h, g)
	c := s.dial()
	// run lets the guest look at its registers, and gives how often they were
	// not as it had left them.
	run := func() uint64 {
		t.Helper()
		rounds, failures := c.word(program.Rounds), c.word(program.Failures)
		for deadline := time.Now().Add(20 * time.Second); c.word(program.Rounds) < rounds+1000; {
			if time.Now().After(deadline) {
				t.Fatal("the guest does not go on")
			}
			if err := c.Post("vCont;c"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			if err := c.Interrupt(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Receive(); err != nil {
				t.Fatal(err)
			}
		}
		return c.word(program.Failures) - failures
	}
	same := func(when string) {
		t.Helper()
		regs := rawRegisters(c)
		for name, want := range guest.Vectors {
			if got, ok := regs[name]; !ok || !bytes.Equal(got, want) {
				t.Errorf("%s: %s holds %x, want %x", when, name, got, want)
			}
		}
	}
	same("at first")
	if n := run(); n != 0 || c.word(program.Failures) != 0 {
		t.Errorf("%d failures before anything was written", c.word(program.Failures))
	}
	for _, name := range []string{"r15", "dr0", "xmm7"} {
		digits := littleEndian(registers(c)[name] + 0x1000)
		if name == "xmm7" { // as it is
			digits = hex.EncodeToString(guest.Vectors[name])
		}
		c.want("P"+number(c, name)+"="+digits, "OK")
		same("after " + name)
		if n := run(); n != 0 {
			t.Errorf("after writing %s: the guest finds its registers changed %d times", name, n)
		}
	}
	for _, name := range []string{"xmm3", "ymm5h", "ymm15h"} {
		c.want(fmt.Sprintf("P%s=%032x", number(c, name), 0x1234), "OK")
		if n := run(); n != 1 {
			t.Errorf("after writing %s: the guest finds its registers changed %d times, want once", name, n)
		}
		same("after it has loaded them again")
	}
	c.want("D", "OK")
	s.exit()
}

// kernelGuest builds and starts a PV guest that is a kernel of the tests' own. It is
// destroyed when the test ends.
func kernelGuest(t *testing.T, h *lab.Host, guest *testguests.Guest) (*testguests.Program, *lab.Guest) {
	t.Helper()
	program, err := guest.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.CreateKernelGuest(t.Context(), lab.KernelConfig{
		Name: guest.Name, Kind: lab.PV, Kernel: program.Path, Park: program.Park, ParkEnd: program.ParkEnd, MemoryMB: guest.MemoryMB,
	})
	if err != nil {
		t.Fatal(err)
	}
	labtest.DestroyAtEnd(t, g)
	return program, g
}

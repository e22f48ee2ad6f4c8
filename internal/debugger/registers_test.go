package debugger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
)

// full is the layout of a processor with all there is.
var full = newLayout(^x86.Feature(0))

func TestDescriptionIsValid(t *testing.T) {
	if err := full.description.Validate(); err != nil {
		t.Error(err)
	}
}

// GDB wants the registers of its own features in an order of its own, and knows
// them by number.
func TestRegisterNumbers(t *testing.T) {
	regs := rsp.NewRegisters(full.description)
	if regs.Len() != len(full.registers) {
		t.Fatalf("%d registers described, %d in the table", regs.Len(), len(full.registers))
	}
	for name, want := range map[string]int{
		"rax": 0, "rbp": 6, "rsp": 7, "r8": 8, "r15": 15, "rip": 16, "eflags": 17, "cs": 18, "gs": 23,
		"st0": 24, "st7": 31, "fctrl": 32, "fop": 39, "xmm0": 40, "xmm15": 55, "mxcsr": 56,
		"fs_base": 57, "gs_base": 58, "k_gs_base": 59, "cr0": 60, "efer": 65,
	} {
		if got, ok := regs.Index(name); !ok || got != want {
			t.Errorf("%s is number %d (%v), want %d", name, got, ok, want)
		}
	}
	var names []string
	for _, i := range expedited {
		names = append(names, full.registers[i].Name)
	}
	if !slices.Equal(names, []string{"rbp", "rsp", "rip"}) {
		t.Errorf("expedited registers %q", names)
	}
}

// allKnown are the registers that may be unknown.
const allKnown = x86.KnownEFER | x86.KnownCR8 | x86.KnownCR2 | x86.KnownHighGPRs | x86.KnownBases | x86.KnownAVX | x86.KnownAVX512 | x86.KnownPKRU

// anyState gives registers at random, in what hardware can hold of them.
func anyState(random *rand.Rand) x86.Registers {
	r := x86.Registers{Known: allKnown}
	for i := range full.registers {
		reg := &full.registers[i]
		if reg.wide != nil {
			for j, b := 0, reg.wide(&r); j < len(b); j++ {
				b[j] = byte(random.Uint32())
			}
			continue
		}
		v := random.Uint64()
		if reg.Bits < 64 {
			v &= 1<<reg.Bits - 1
		}
		switch reg.Name {
		case "cs", "ss", "ds", "es", "fs", "gs", "fctrl", "fstat", "fop":
			v &= 0xffff
		case "ftag", "fiseg", "fioff", "foseg", "fooff":
			continue // below: what is in use decides, and halves of one
		}
		reg.store(&r, v)
	}
	r.FX[4] = byte(random.Uint32())
	r.FX.SetInstructionPointer(random.Uint64())
	r.FX.SetDataPointer(random.Uint64())
	return r
}

// What a client is given and gives back is the state that it came from.
func TestRegistersRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		want := anyState(random)
		regs := rsp.NewRegisters(full.description)
		full.toClient(&want, regs)
		got := x86.Registers{Known: want.Known}
		if name := full.fromClient(regs, &got); name != "" {
			t.Fatalf("%s is unknown", name)
		}
		if got != want {
			t.Fatalf("%s differs", x86.Difference(&got, &want))
		}
	}
}

// One register written by a client changes that one only, and reads back.
func TestEachRegisterAlone(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for i := range full.registers {
		reg := &full.registers[i]
		t.Run(reg.Name, func(t *testing.T) {
			state, source := anyState(random), anyState(random)
			before := rsp.NewRegisters(full.description)
			full.toClient(&state, before)
			values := rsp.NewRegisters(full.description)
			full.toClient(&source, values)
			value, _ := values.Bytes(i)
			value = bytes.Clone(value)
			switch reg.Name {
			case "ftag": // only empty or not can be written; the rest follows
				binary.LittleEndian.PutUint32(value, 0xffff)
			}
			one := rsp.NewRegisters(full.description)
			one.Set(i, value)
			if name := full.fromClient(one, &state); name != "" {
				t.Fatalf("%s is unknown", name)
			}
			after := rsp.NewRegisters(full.description)
			full.toClient(&state, after)
			for j := range full.registers {
				was, _ := before.Bytes(j)
				is, _ := after.Bytes(j)
				switch {
				case j == i:
					if !bytes.Equal(is, value) {
						t.Errorf("wrote % x, reads % x", value, is)
					}
				case full.registers[j].Name == "ftag":
					// It tells of the values of st0 to st7 and depends on the
					// top of the stack in fstat.
				case !bytes.Equal(is, was):
					t.Errorf("%s changed from % x to % x", full.registers[j].Name, was, is)
				}
			}
		})
	}
}

// The upper half of rflags has no place in the protocol, and stays.
func TestUpperHalfOfRFLAGSStays(t *testing.T) {
	regs := rsp.NewRegisters(full.description)
	r := x86.Registers{RFLAGS: 0x1_0000_0246}
	i, _ := regs.Index("eflags")
	regs.SetUint(i, 0x346)
	if name := full.fromClient(regs, &r); name != "" || r.RFLAGS != 0x1_0000_0346 {
		t.Errorf("rflags %#x, unknown %q", r.RFLAGS, name)
	}
}

// numbered gives the names of n registers.
func numbered(format string, from, n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf(format, from+i))
	}
	return names
}

func TestUnknownRegistersStayUnknown(t *testing.T) {
	for known, names := range map[x86.Known][]string{
		allKnown &^ x86.KnownEFER:     {"efer"},
		allKnown &^ x86.KnownCR8:      {"cr8"},
		allKnown &^ x86.KnownHighGPRs: {"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"},
		allKnown &^ x86.KnownCR2:      {"cr2"},
		allKnown &^ x86.KnownBases:    {"fs_base", "gs_base", "k_gs_base"},
		allKnown &^ x86.KnownAVX:      numbered("ymm%dh", 0, 16),
		allKnown &^ x86.KnownAVX512: slices.Concat(numbered("k%d", 0, 8), numbered("zmm%dh", 0, 32),
			numbered("xmm%d", 16, 16), numbered("ymm%dh", 16, 16)),
		allKnown &^ x86.KnownPKRU: {"pkru"},
	} {
		r := anyState(rand.New(rand.NewPCG(7, 8)))
		r.Known = known
		regs := rsp.NewRegisters(full.description)
		full.toClient(&r, regs)
		for i := range full.registers {
			if want := !slices.Contains(names, full.registers[i].Name); regs.Known(i) != want {
				t.Errorf("%s known: %v, want %v", full.registers[i].Name, regs.Known(i), want)
			}
		}
		for _, name := range names {
			one := rsp.NewRegisters(full.description)
			i, _ := one.Index(name)
			one.SetUint(i, 1)
			before := r
			if got := full.fromClient(one, &r); got != name || r != before {
				t.Errorf("writing %s: refused for %q, changed: %v", name, got, r != before)
			}
		}
	}
}

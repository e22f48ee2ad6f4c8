// This file prints registers for people.

package debugger

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/rsp"
	"gdbserver-xen/x86"
)

// registerLines are the registers that are printed, each line together.
var registerLines = [][]string{
	{"rip"}, {"eflags"},
	{"rax", "rbx", "rcx", "rdx"}, {"rsi", "rdi", "rbp", "rsp"}, {"r8", "r9", "r10", "r11"}, {"r12", "r13", "r14", "r15"},
	{"cs", "ss", "ds", "es", "fs", "gs"}, {"fs_base", "gs_base", "k_gs_base"},
	{"cr0"}, {"cr4"}, {"efer"}, {"cr2", "cr3", "cr8"},
	{"dr0", "dr1", "dr2", "dr3"}, {"dr6"}, {"dr7"},
}

// Registers prints the registers of all vCPUs and, if the guest is a Linux, the
// functions that they are in.
// Preconditions: the guest is paused. It is not when anything is printed, nor after.
func Registers(w io.Writer, g *guest.Guest) error { return makeReport(w, g, stateReport) }

// readRegisters reads the registers of all vCPUs. There may be no kernel, and without
// modules, their functions have no names.
func readRegisters(s source) func(w io.Writer) error {
	type standing struct {
		vcpu  int
		state guest.State
		r     x86.Registers
	}
	var list []standing
	err := eachVCPU(s.g, func(n int, state guest.State, r x86.Registers) error {
		list = append(list, standing{n, state, r})
		return nil
	})
	return func(w io.Writer) error {
		for i, v := range list {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "vCPU %d, %s:\n", v.vcpu, stateText(v.state))
			for _, line := range registerLines {
				text := registerLine(&v.r, line)
				if line[0] == "rip" && s.k != nil {
					if place, ok := s.k.Place(linux.Frame{RIP: v.r.RIP, UserMode: v.state.UserMode}); ok {
						text += "  " + place
					}
				}
				fmt.Fprintln(w, text)
			}
		}
		return err
	}
}

// printedRegisters are those that registerLines names.
var printedRegisters = slices.Concat(coreRegisters, segmentRegisters, systemRegisters)

// registerLine makes a line of registers: their names, values, and flags.
func registerLine(r *x86.Registers, names []string) string {
	var b strings.Builder
	for _, name := range names {
		i := slices.IndexFunc(printedRegisters, func(p register) bool { return p.Name == name })
		reg := &printedRegisters[i]
		digits := reg.Bits / 4
		if reg.Type == "int32" { // a selector, which has fewer
			digits = 4
		}
		value := strings.Repeat("-", digits) // not known
		if r.Known&reg.known == reg.known {
			value = fmt.Sprintf("%0*x", digits, reg.load(r))
		}
		fmt.Fprintf(&b, "  %-9s %s", name, value)
		if t, ok := flagTypes[reg.Type]; ok && r.Known&reg.known == reg.known {
			b.WriteString("  " + flagText(t, reg.load(r)))
		}
	}
	return b.String()
}

// flagTypes are the types of registers that are flags.
var flagTypes = func() map[string]rsp.FlagsType {
	types := map[string]rsp.FlagsType{}
	for _, t := range []rsp.FlagsType{eflagsType, cr0Type, cr4Type, eferType, dr6Type, dr7Type} {
		types[t.ID] = t
	}
	return types
}()

// flagText names the flags that are set, and gives the fields of several bits that
// are not zero.
func flagText(t rsp.FlagsType, v uint64) string {
	text := "["
	for _, f := range t.Flags {
		field := v >> f.Start & (1<<(f.End-f.Start+1) - 1)
		switch {
		case field == 0 || f.Name == "":
		case f.Start == f.End:
			text += " " + f.Name
		default:
			text += fmt.Sprintf(" %s=%d", f.Name, field)
		}
	}
	return text + " ]"
}

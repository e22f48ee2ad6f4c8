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
// Preconditions: the guest is paused, and is so after.
func Registers(w io.Writer, g *guest.Guest) error {
	k, mem, err := findWhileRunning(g)
	if err != nil { // and the guest may be something else
		if g.Paused() {
			return writeRegisters(w, g, nil, nil)
		}
		return err
	}
	return writeRegisters(w, g, k, mem)
}

// writeRegisters prints the registers of all vCPUs. There may be no kernel.
func writeRegisters(w io.Writer, g *guest.Guest, k *linux.Kernel, mem linux.Memory) error {
	if k != nil {
		// Without modules, their functions have no names.
		k.Modules(mem)
	}
	first := true
	return eachVCPU(g, func(n int, state guest.State, r x86.Registers) error {
		place := ""
		if k != nil {
			place, _ = k.Place(linux.Frame{RIP: r.RIP, UserMode: state.UserMode})
		}
		if !first {
			fmt.Fprintln(w)
		}
		first = false
		fmt.Fprintf(w, "vCPU %d, %s:\n", n, stateText(state))
		for _, line := range registerLines {
			text := registerLine(&r, line)
			if line[0] == "rip" && place != "" {
				text += "  " + place
			}
			fmt.Fprintln(w, text)
		}
		return nil
	})
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

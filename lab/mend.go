package lab

// QEMU's emulation of AMD's virtualization lacks what a debugger of guests needs
// (until version 10 at least), so that the lab runs a mended copy of the installed
// QEMU, in which
//
//   - a hypervisor is told of a guest's INT3. QEMU looks whether the hypervisor
//     wants to hear of INT n (raise_interrupt2 in target/i386/tcg/excp_helper.c),
//     where a processor looks at exception 3 (AMD64 Architecture Programmer's
//     Manual, vol. 2, section 15.12.4). INT n of a guest then counts as INT3, while
//     the hypervisor wants to hear of that; guests of the lab have none.
//   - the breakpoints in a guest's debug registers are armed. QEMU keeps the DR7
//     that VMRUN and an exit load, and does no more (helper_vmrun and do_vmexit in
//     target/i386/tcg/sysemu/svm_helper.c), where MOV to DR7 arms what it enables
//     (section 15.5.1: VMRUN loads DR7).
//   - a hit of a breakpoint that is gone is forgotten, as when the hypervisor has
//     loaded other debug registers before the instruction that hit it was done. QEMU
//     takes it for one of its own gdb stub (breakpoint_handler in
//     target/i386/tcg/sysemu/bpt_helper.c), and crashes if that is not in use.
//   - an interrupt that VMRUN injects is delivered once. QEMU notes it as an
//     exception to come, too, when it has delivered it (helper_vmrun): if the thread
//     of that CPU is woken right then, the guest gets it again, with interrupts
//     disabled.

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Codes of exits to the hypervisor (Appendix C of the same manual).
const (
	exitException3 = 0x43
	exitINTn       = 0x75
)

// qemu returns the path of the QEMU to run: a mended copy of the installed
// one, or that itself if it is not as expected.
func (c *cache) qemu(ctx context.Context) (string, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if mendQEMU(program) != nil {
		return path, nil
	}
	dir, err := c.get(ctx, "qemu-"+key(string(program)), func(dir string) error {
		bin := filepath.Join(dir, "bin")
		if err := os.Mkdir(bin, 0o755); err != nil {
			return err
		}
		// It finds its firmware and its modules next to itself.
		for _, beside := range []string{"share", "lib"} {
			installed := filepath.Join(filepath.Dir(filepath.Dir(path)), beside)
			if err := os.Symlink(installed, filepath.Join(dir, beside)); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(bin, filepath.Base(path)), program, 0o755)
	})
	return filepath.Join(dir, "bin", filepath.Base(path)), err
}

var errNotMended = errors.New("qemu is not as expected")

// A program is one whose code is changed where it is known, by the names that it
// exports.
type program struct {
	code    []byte            // of the segment with the code
	first   uint64            // its address
	address map[string]uint64 // of functions
}

// mendQEMU mends a QEMU in place. After an error it is as it was.
func mendQEMU(file []byte) error {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return err
	}
	mended := bytes.Clone(file)
	p := program{address: map[string]uint64{}}
	for _, s := range f.Progs {
		if s.Type == elf.PT_LOAD && s.Flags&elf.PF_X != 0 && s.Off+s.Filesz <= uint64(len(file)) {
			p.code, p.first = mended[s.Off:s.Off+s.Filesz], s.Vaddr
		}
	}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Value >= p.first && s.Value-p.first < uint64(len(p.code)) {
			p.address[s.Name] = s.Value
		}
	}
	if err := errors.Join(p.mendInt3(), p.mendDR7(), p.mendGone(), p.mendInjected()); err != nil {
		return err
	}
	copy(file, mended)
	return nil
}

// function gives where an exported function is in the code.
func (p *program) function(name string) (int, error) {
	addr, ok := p.address[name]
	if !ok {
		return 0, fmt.Errorf("%w: no %s", errNotMended, name)
	}
	return int(addr - p.first), nil
}

// find gives the places between two others where a pattern is that match knows.
func (p *program) find(from, to int, pattern []byte, match func(code []byte, at int) bool) []int {
	var found []int
	for at := max(from, 0); at < min(to, len(p.code)-len(pattern)); at++ {
		if bytes.HasPrefix(p.code[at:], pattern) && match(p.code, at) {
			found = append(found, at)
		}
	}
	return found
}

// Instructions with a distance to where they go, and their length.
const (
	call = 0xe8
	jump = 0xe9
	goes = 5
)

// calls tells whether there is a call of what is at target.
func calls(code []byte, at, target int) bool {
	return code[at] == call && at+goes+int(int32(binary.LittleEndian.Uint32(code[at+1:]))) == target
}

// goTo makes an instruction that goes to target from at.
func goTo(instruction byte, at, target int) []byte {
	return binary.LittleEndian.AppendUint32([]byte{instruction}, uint32(target-at-goes))
}

// mendInt3 changes the check for INT n to one for exception 3. It is in
// raise_interrupt2, which is right before raise_interrupt and makes the call
// check(env, exitINTn, ...).
func (p *program) mendInt3() error {
	raise, err1 := p.function("raise_interrupt")
	check, err2 := p.function("cpu_svm_check_intercept_param")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	number := []byte{0xbe, exitINTn, 0, 0, 0} // mov $exitINTn,%esi
	const near = 0x400
	found := p.find(raise-near, raise, number, func(code []byte, at int) bool { return calls(code, at+len(number), check) })
	if len(found) != 1 {
		return fmt.Errorf("%w: %d checks for INT n", errNotMended, len(found))
	}
	p.code[found[0]+1] = exitException3
	return nil
}

// mendDR7 has VMRUN and an exit arm what DR7 enables. Where they keep the DR7 that
// they have loaded, they call cpu_x86_update_dr7(env, dr7), by way of what is put into
// the padding before a function, as there is no room for the arguments.
func (p *program) mendDR7() error {
	load, err1 := p.function("x86_ldq_phys")
	update, err2 := p.function("cpu_x86_update_dr7")
	first, err3 := p.function("cpu_vmexit")
	exit, err4 := p.function("do_vmexit")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	const near = 0x100
	getOld := []byte{0x48, 0x8b, 0x87} // mov DR7(%rdi),%rax, with DR7's distance from env
	old := p.find(update, update+near, getOld, func([]byte, int) bool { return true })
	if len(old) == 0 {
		return fmt.Errorf("%w: cpu_x86_update_dr7 does not read DR7", errNotMended)
	}
	again := []byte{0x48, 0x89, 0xef}                                                   // mov %rbp,%rdi: the next call's first argument
	keep := slices.Concat(again, []byte{0x48, 0x89, 0x83}, p.code[old[0]+3:old[0]+3+4]) // and mov %rax,DR7(%rbx)
	const most = 0x1000                                                                 // more than do_vmexit has
	sites := p.find(first, exit+most, keep, func(code []byte, at int) bool { return calls(code, at-goes, load) })
	padding := []byte{0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0} // cs nopw 0x0(%rax,%rax,1)
	room := -1
	for _, addr := range slices.Sorted(maps.Values(p.address)) {
		if at := int(addr-p.first) - len(padding); at >= 0 && bytes.HasPrefix(p.code[at:], padding) {
			room = at
			break
		}
	}
	if len(sites) != 2 || room < 0 {
		return fmt.Errorf("%w: DR7 is loaded at %d places, padding at %d", errNotMended, len(sites), room)
	}
	for _, at := range sites {
		// And nop, as that is shorter.
		copy(p.code[at:], slices.Concat(goTo(call, at, room), again, []byte{0x66, 0x90}))
	}
	arguments := []byte{0x48, 0x89, 0xdf, 0x89, 0xc6} // mov %rbx,%rdi; mov %eax,%esi
	copy(p.code[room:], append(arguments, goTo(jump, room+len(arguments), update)...))
	return nil
}

// mendGone has breakpoint_handler go on with the guest where it has found nothing to
// tell it: it would return then.
func (p *program) mendGone() error {
	handler, err1 := p.function("breakpoint_handler")
	goOn, err2 := p.function("cpu_loop_exit_noexc")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	const size = 0x7f // of what is looked at, for short jumps
	isGuests := []byte{
		0xf6, 0x42, 0x1c, 0x20, // testb $BP_CPU,0x1c(%rdx)
		0x75, 0x04, // jne over the next two
		0x5b, 0xc3, // pop %rbx; ret
	}
	returns := p.find(handler, handler+size, isGuests, func([]byte, int) bool { return true })
	if len(returns) != 1 {
		return fmt.Errorf("%w: %d checks for whose a watchpoint is", errNotMended, len(returns))
	}
	argument := []byte{0x48, 0x89, 0xdf} // mov %rbx,%rdi
	goesOn := p.find(returns[0], handler+size, argument, func(code []byte, at int) bool { return calls(code, at+len(argument), goOn) })
	if len(goesOn) != 1 {
		return fmt.Errorf("%w: breakpoint_handler goes on at %d places", errNotMended, len(goesOn))
	}
	const jumpNear = 0xeb
	branch := p.code[returns[0]+4:]
	branch[0] = jumpNear // all watchpoints are the guest's
	branch[2], branch[3] = jumpNear, byte(goesOn[0]-(returns[0]+len(isGuests)))
	return nil
}

// mendInjected has VMRUN not note what it injects as an exception: the call
// do_interrupt_x86_hardirq(env, vector, 1) is all that is to be done.
func (p *program) mendInjected() error {
	deliver, err1 := p.function("do_interrupt_x86_hardirq")
	first, err2 := p.function("cpu_svm_check_intercept_param") // is before helper_vmrun
	exit, err3 := p.function("do_vmexit")                      // is behind it
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	sites := p.find(first, exit, []byte{call}, func(code []byte, at int) bool { return calls(code, at, deliver) })
	if len(sites) != 1 {
		return fmt.Errorf("%w: VMRUN delivers at %d places", errNotMended, len(sites))
	}
	const near = 0x40
	note := []byte{0x89, 0xb3} // mov %esi,exception_index(%rbx), which is before env
	isBefore := func(code []byte, at int) bool { return int32(binary.LittleEndian.Uint32(code[at+len(note):])) < 0 }
	notes := p.find(sites[0]-near, sites[0], note, isBefore)
	if len(notes) != 1 {
		return fmt.Errorf("%w: VMRUN notes what it delivers at %d places", errNotMended, len(notes))
	}
	copy(p.code[notes[0]:], []byte{0x66, 0x0f, 0x1f, 0x44, 0, 0}) // nop
	return nil
}

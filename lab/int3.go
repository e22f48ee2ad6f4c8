package lab

// QEMU's emulation of AMD's virtualization never tells a hypervisor of a
// guest's INT3, which a debugger needs: it looks whether the hypervisor wants
// to hear of INT n (raise_interrupt2 in target/i386/tcg/excp_helper.c, until
// version 10 at least), where a processor looks at exception 3 (AMD64
// Architecture Programmer's Manual, vol. 2, section 15.12.4). So the lab runs a
// copy of the installed QEMU in which the number of that check is another.
// INT n of a guest then counts as INT3, while the hypervisor wants to hear of
// that; guests of the lab have none.

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	name := "qemu-" + key(string(program))
	if mendInt3(program) != nil {
		return path, nil
	}
	dir, err := c.get(ctx, name, func(dir string) error {
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

var errNotMended = errors.New("no single check of INT n's interception")

// mendInt3 changes the check for INT n to one for exception 3.
func mendInt3(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return err
	}
	address := map[string]uint64{}
	for _, s := range symbols {
		address[s.Name] = s.Value
	}
	raise, check := address["raise_interrupt"], address["cpu_svm_check_intercept_param"]
	// The function before it is raise_interrupt2, which makes the call
	// check(env, exitINTn, ...).
	const before = 0x400
	offset := -1
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && raise >= p.Vaddr+before && raise < p.Vaddr+p.Filesz {
			offset = int(p.Off + raise - p.Vaddr)
		}
	}
	if raise == 0 || check == 0 || offset < before || offset > len(program) {
		return errNotMended
	}
	found := -1
	for at := offset - before; at+10 <= offset; at++ {
		code := program[at:]
		next := raise - uint64(offset-at) + 10
		target := next + uint64(int64(int32(binary.LittleEndian.Uint32(code[6:]))))
		if bytes.HasPrefix(code, []byte{0xbe, exitINTn, 0, 0, 0, 0xe8}) && target == check { // mov esi,exitINTn; call
			if found >= 0 {
				return fmt.Errorf("%w: there are several", errNotMended)
			}
			found = at
		}
	}
	if found < 0 {
		return errNotMended
	}
	program[found+1] = exitException3
	return nil
}

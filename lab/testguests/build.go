package testguests

// How a guest becomes a file that Xen boots.

import (
	"context"
	"debug/elf"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"gdbserver-xen/lab"
)

//go:embed asm
var sources embed.FS

// A Program is a guest's file, and addresses in it that the debugger is to see.
type Program struct {
	Path string
	// The loop that the guest stays in: what rip can be. In real mode that is
	// an offset within the code segment.
	Park, ParkEnd uint64
	// Root is the value of CR3, or 0 without paging.
	Root uint64
	// Probes to ProbesEnd is a table of virtual addresses, each followed by the
	// word that the guest's own CPU has read there: two numbers of 64 bits.
	Probes, ProbesEnd uint64
	// Rounds and Failures are where the guest of Vectors counts: how often it
	// has looked at its registers, and how often they were not as it left them.
	Rounds, Failures uint64
	// Pattern to PatternEnd has the pattern of PV32, by virtual address.
	Pattern, PatternEnd uint64
}

// Build assembles and links a guest in a directory.
func (g *Guest) Build(ctx context.Context, dir string) (*Program, error) {
	p, err := g.build(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("build test guest %s: %w", g.Name, err)
	}
	return p, nil
}

func (g *Guest) build(ctx context.Context, dir string) (*Program, error) {
	if err := lab.EnsureTools(ctx, map[string]string{"as": "binutils", "ld": "binutils"}); err != nil {
		return nil, err
	}
	src := filepath.Join(dir, "src-"+g.Name)
	if err := os.CopyFS(src, sources); err != nil {
		return nil, err
	}
	defer os.RemoveAll(src)
	asm, object, path := filepath.Join(src, "asm"), filepath.Join(src, "guest.o"), filepath.Join(dir, g.Name)
	width, format := "--64", "elf_x86_64"
	if g.Bits == 32 {
		width, format = "--32", "elf_i386"
	}
	for _, args := range [][]string{
		{"as", width, "--fatal-warnings", "-o", object, g.Name + ".s"},
		{"ld", "-m", format, "-static", "-nostdlib", "--no-warn-rwx-segments", "-T", "guest.ld", "-o", path, object},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = asm
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", args[0], err, out)
		}
	}
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	p := &Program{Path: path}
	fields := map[string]*uint64{
		"park": &p.Park, "park_end": &p.ParkEnd, "root": &p.Root, "probes": &p.Probes, "probes_end": &p.ProbesEnd,
		"rounds": &p.Rounds, "failures": &p.Failures,
		"pattern": &p.Pattern, "pattern_end": &p.PatternEnd,
	}
	for _, s := range symbols {
		if field := fields[s.Name]; field != nil {
			*field = s.Value
		}
	}
	return p, nil
}

package linux

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gdbserver-xen/internal/linux/linuxtest"
)

// A kernel's own word for how far KASLR has moved it counts, where it can be true.
func TestSlide(t *testing.T) {
	const base = imageFirst + 0x12e00000
	for said, want := range map[string]uint64{
		"KERNELOFFSET=11c00000": 0x11c00000, // it was linked to 18 MB
		"KERNELOFFSET=0":        0,
		"KERNELOFFSET=12e01000": base - linkBase,
		"KERNELOFFSET=11c00001": base - linkBase,
		"KERNELOFFSET=-200000":  base - linkBase,
		"OSRELEASE=6.1":         base - linkBase,
	} {
		d := newFakeData("6.1")
		d.symbols = append(d.symbols, symbol{addr: base, kind: 'T', name: "_text"})
		d.vmcoreInfo(said + "\n")
		if d.findSlide(d.Mem); d.Slide() != want {
			t.Errorf("%s: slide %#x, want %#x", said, d.Slide(), want)
		}
	}
}

// The file that stands for a kernel has its symbols where they are, the segment that
// debuggers count from at its beginning, and the identification of its build.
func TestExecutable(t *testing.T) {
	for _, l := range linuxtest.Layouts {
		t.Run(l.Name, func(t *testing.T) {
			_, k := foundKernel(t, l)
			if k.Release() != l.Version || k.SymbolPackage() != "" || k.Slide() != linuxtest.Base-linkBase {
				t.Errorf("release %s, package %q, slide %#x", k.Release(), k.SymbolPackage(), k.Slide())
			}
			file, symbols := k.Executable(true)
			if again, _ := k.Executable(true); !bytes.Equal(file, again) {
				t.Error("it is not the same each time")
			}
			f, err := elf.NewFile(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			if p := f.Progs[0]; p.Type != elf.PT_LOAD || p.Vaddr != linuxtest.Base || p.Filesz != 0 {
				t.Errorf("the first segment is %+v", p.ProgHeader)
			}
			if s := f.Section(".symtab"); symbols < int(s.Offset) || symbols >= int(s.Offset+s.Size) {
				t.Errorf("symbols at %#x are not in %+v", symbols, s.SectionHeader)
			}
			const packet = 4096 // the least that clients read at once
			head, err := elf.NewFile(bytes.NewReader(file[:packet]))
			if err != nil {
				t.Fatalf("gdb sees what it is from more than its first packet: %v", err)
			}
			note, err := head.Section(".note.gnu.build-id").Data()
			if err != nil || string(note[16:]) != linuxtest.BuildID {
				t.Errorf("the build id is %q, %v", note, err)
			}
			list, err := f.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]elf.Symbol{}
			for _, s := range list {
				got[s.Name] = s
			}
			for _, tt := range []struct {
				name, section string
				addr, size    uint64
				kind          elf.SymType
				bind          elf.SymBind
			}{
				{"leaf", ".text", linuxtest.Function("leaf"), linuxtest.FunctionSize, elf.STT_FUNC, elf.STB_GLOBAL},
				{"new_task", ".text", linuxtest.Function("ret_from_fork") - 1, 1, elf.STT_FUNC, elf.STB_LOCAL},
				{"__switch_to_asm", ".text", linuxtest.Function("__switch_to_asm"), linuxtest.FunctionSize - 1, elf.STT_FUNC, elf.STB_GLOBAL},
				{"_text", ".text", linuxtest.Base, linuxtest.FunctionSize, elf.STT_FUNC, elf.STB_GLOBAL},
				{"startup_xen", ".text", linuxtest.Base, 0, elf.STT_FUNC, elf.STB_GLOBAL},                                   // the second of two names
				{"__start_orc_unwind", ".data.other", got["__stop_orc_unwind_ip"].Value, 0, elf.STT_OBJECT, elf.STB_GLOBAL}, // so here
				{"second_variable", ".bss", got["first_variable"].Value + 8, 0xff8, elf.STT_OBJECT, elf.STB_LOCAL},
				{"runqueues", "ABS", 0x15000, 0, elf.STT_NOTYPE, elf.STB_GLOBAL},
			} {
				if tt.name == "runqueues" && !l.PerCPU {
					continue
				}
				s, section := got[tt.name], "ABS"
				if s.Section != elf.SHN_ABS {
					section = f.Sections[s.Section].Name
				}
				if s.Value != tt.addr || s.Size != tt.size || section != tt.section || elf.ST_TYPE(s.Info) != tt.kind || elf.ST_BIND(s.Info) != tt.bind {
					t.Errorf("%s is %+v in %s, want %+v", tt.name, s, section, tt)
				}
			}
			frames, err := elf.NewFile(bytes.NewReader(k.FrameInfo(true)))
			if err != nil || frames.Section(".debug_frame") == nil || frames.Sections[1].Addr != marks {
				t.Errorf("frames: %v", err)
			}
			for _, s := range frames.Sections {
				if s.Flags&elf.SHF_COMPRESSED != 0 && s.Size/mostCompressed > s.FileSize {
					t.Errorf("frames: gdb takes %s for damaged: %d bytes in the file, of %d", s.Name, s.FileSize, s.Size)
				}
			}
		})
	}
}

// An identification of a build that is larger than any is none: files have it in
// their names.
func TestBuildIDSize(t *testing.T) {
	for size, want := range map[int]bool{20: true, mostBuildID: true, mostBuildID + 4: false} {
		d := newFakeData("6.1")
		at := d.New(16 + size)
		copy(d.At(at), fmt.Sprintf("\x04\x00\x00\x00%c\x00\x00\x00\x03\x00\x00\x00GNU\x00", size))
		d.Symbol("__start_notes", at)
		d.Symbol("__stop_notes", at+16+uint64(size))
		d.findBuildID(d.Mem)
		if id := d.BuildID(); len(id) != 2*size && want || id != "" && !want {
			t.Errorf("of %d bytes: %q", size, id)
		}
	}
}

// Banners of distributions tell where the symbol files of their kernels are.
func TestSymbolPackage(t *testing.T) {
	for banner, want := range map[string]string{
		"Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0": "linux-image-6.1.0-56-amd64-dbg",
		"Linux version 6.8.0-31-generic (buildd@lcy02-amd64-080) (x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23)":     "linux-image-6.8.0-31-generic-dbgsym",
		"Linux version 6.11.4-301.fc41.x86_64 (mockbuild@0123456789) (gcc (GCC) 14.2.1":                           "kernel-debuginfo-6.11.4-301.fc41.x86_64",
		"Linux version 6.1.0 (someone@somewhere)":                                                                 "",
		"Some other system": "",
	} {
		if got := (&Kernel{Banner: banner}).SymbolPackage(); got != want {
			t.Errorf("%s: %q", banner, got)
		}
	}
}

// readelf finds nothing to complain of.
func TestReadelf(t *testing.T) {
	readelf, err := exec.LookPath("readelf")
	if err != nil {
		t.Skip("readelf is not installed")
	}
	_, k := foundKernel(t, linuxtest.Layouts[2])
	executable, _ := k.Executable(true)
	d := newFakeData("6.1")
	d.SetModules(fakeLoaded, linuxtest.Layouts[2].CallEntry(24, -16))
	d.orc = k.orc
	modules, err := d.Modules(linuxtest.Spaces{d.Mem, d.Loaded})
	if err != nil {
		t.Fatal(err)
	}
	module, _ := d.File(modules[0])
	for name, file := range map[string][]byte{"executable": executable, "frames": k.FrameInfo(true), "module": module} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(readelf, "--wide", "--all", "--debug-dump=frames-interp", path).CombinedOutput()
		if text := strings.ToLower(string(out)); err != nil || strings.Contains(text, "warning") || strings.Contains(text, "error:") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

package debugger

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/internal/linux"
	"gdbserver-xen/internal/linux/linuxtest"
)

// Without a kernel clients go on as with a target that has no files. It is looked for
// once at each stop.
func TestNoKernelFiles(t *testing.T) {
	looked := 0
	f := &kernelFiles{find: func() (*linux.Kernel, linux.Memory, error) {
		looked++
		return nil, nil, linux.ErrNotLinux
	}}
	for stop := range 2 {
		if name, err := f.Executable(); !errors.Is(err, linux.ErrNotLinux) {
			t.Errorf("executable %q, %v", name, err)
		}
		if list, err := f.Libraries(); len(list) > 0 || err != nil {
			t.Errorf("libraries %v, %v", list, err)
		}
		if _, ok := f.Relocation(); ok {
			t.Error("there is a relocation")
		}
		if looked != stop+1 {
			t.Errorf("looked %d times at stop %d", looked, stop)
		}
		f.resumed()
	}
	if cs := kernelCapabilities(f.known()); len(cs) != 1 || cs[0].Can {
		t.Errorf("capabilities %v", cs)
	}
}

// The kernel's file is there by its name alone, and who reads symbols of it gets no
// library beside it.
func TestKernelFiles(t *testing.T) {
	f := &kernelFiles{find: func() (*linux.Kernel, linux.Memory, error) {
		return &linux.Kernel{Banner: "Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)"}, nil, nil
	}}
	const want = "/gdbserver-xen/linux-image-6.1.0-56-amd64-dbg/vmlinux-6.1.0-56-amd64"
	name, err := f.Executable()
	if name != want || err != nil {
		t.Fatalf("got %q, %v", name, err)
	}
	for _, other := range []string{"", "/etc/passwd", "/gdbserver-xen/../etc/passwd", "/gdbserver-xen", want + "/", "/gdbserver-xen/vmlinux-6.1.0-56-amd64", "/gdbserver-xen/frames-6.1.0-56-amd64"} {
		if _, err := f.OpenFile(other); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", other, err)
		}
	}
	file, err := f.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 64)
	if _, err := file.ReadAt(head, 0); err != nil || string(head[:4]) != "\x7fELF" || f.symbolised {
		t.Errorf("% x, %v; symbols were read: %v", head, err, f.symbolised)
	}
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, file.Size()), make([]byte, file.Size())); err != nil || !f.symbolised {
		t.Errorf("%v; symbols were read: %v", err, f.symbolised)
	}
	cs := kernelCapabilities(f.known())
	if len(cs) != 2 || !strings.HasSuffix(cs[1].Detail, "in package linux-image-6.1.0-56-amd64-dbg") {
		t.Errorf("capabilities %v", cs)
	}
}

// Who has asked for the name of the kernel's file gets it without types first, which take
// long to make, and then with them.
func TestTypesOnSecondOpen(t *testing.T) {
	g := newFilesOfGuest(t)
	for i, step := range []struct{ asks, types bool }{{true, false}, {false, true}, {true, true}} {
		if step.asks {
			if _, err := g.Executable(); err != nil {
				t.Fatal(err)
			}
		}
		file, err := g.OpenFile(executableFileName(g.k))
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if symbols, err := f.Symbols(); len(symbols) == 0 || err != nil {
			t.Errorf("open %d: %d symbols, %v", i, len(symbols), err)
		}
		if got := f.Section(".debug_info") != nil; got != step.types {
			t.Errorf("open %d: types %v, want %v", i, got, step.types)
		}
	}
}

// A real gdb has the kernel's symbols and types, with no file and when it is told later to
// read the server's. For gdb with the kernel's own the server makes no types. Of a task
// that has not run yet gdb names no function that has not called it.
func TestGDBKernel(t *testing.T) {
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		t.Skipf("needs gdb: %v", err)
	}
	vmlinux := filepath.Join(t.TempDir(), "vmlinux")
	k := newFilesOfGuest(t).k
	file, _ := k.Executable(true)
	if err := os.WriteFile(vmlinux, file, 0o644); err != nil {
		t.Fatal(err)
	}
	const stack = 0x1000
	ask := []string{"-ex", fmt.Sprintf("info symbol %#x", linuxtest.Function("middle")+5), "-ex", "info address leaf",
		"-ex", "ptype struct task_struct",
		"-ex", fmt.Sprintf("set $rip=%#x", linuxtest.Function("leaf")), "-ex", fmt.Sprintf("set $rsp=%#x", stack),
		"-ex", fmt.Sprintf("set {long}%#x=%#x", stack, linuxtest.Function("ret_from_fork")), "-ex", "bt", "-ex", "detach"}
	for name, tt := range map[string]struct {
		args  []string
		types bool // the server makes them
	}{
		"no file":                       {ask, true},
		"file":                          {append([]string{vmlinux}, ask...), false},
		"file later":                    {append([]string{"-ex", "file " + vmlinux}, ask...), true},
		"symbols of the server's later": {append([]string{vmlinux, "-ex", "symbol-file target:" + executableFileName(k)}, ask...), true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newFilesOfGuest(t, live("slhc"))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for range 2 { // the second time it has all files
				addr, served := serveTCP(ctx, t, g.target())
				out, err := exec.CommandContext(ctx, gdb, append([]string{"-nx", "-batch", "-ex", "target remote " + addr}, tt.args...)...).CombinedOutput()
				if err != nil {
					t.Fatalf("gdb: %v\n%s", err, out)
				}
				for _, want := range []string{
					`(?m)^middle \+ 5 in section \.text`, fmt.Sprintf(`(?m)^Symbol "leaf" is .*%#x`, linuxtest.Function("leaf")),
					`(?m)^type = struct task_struct \{$`, `(?m)^#0 .* leaf \(\)\n#1  .* in new_task \(\)$`, `detached`,
				} {
					if !regexp.MustCompile(want).Match(out) {
						t.Errorf("gdb does not print %s:\n%s", want, out)
					}
				}
				if regexp.MustCompile(`(?i)error|can't|could not|mismatch|no debugging symbols`).Match(out) {
					t.Errorf("gdb complains:\n%s", out)
				}
				if err := <-served; err != nil {
					t.Error(err)
				}
			}
			if made := g.executable != nil; made != tt.types {
				t.Errorf("types were made: %v, want %v", made, tt.types)
			}
		})
	}
}

// gdb prints this name if its user's file is another build's. It stays where it is,
// whatever a guest says of itself.
func TestExecutableFileName(t *testing.T) {
	for banner, want := range map[string]string{
		"Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)":      "/gdbserver-xen/linux-image-6.1.0-56-amd64-dbg/vmlinux-6.1.0-56-amd64",
		"Linux version 5.15.0-91-generic (buildd@x) (Ubuntu 5.15.0-91.101)":  "/gdbserver-xen/linux-image-5.15.0-91-generic-dbgsym/vmlinux-5.15.0-91-generic",
		"Linux version 6.6.8-200.fc39.x86_64 (mockbuild@x)":                  "/gdbserver-xen/kernel-debuginfo-6.6.8-200.fc39.x86_64/vmlinux-6.6.8-200.fc39.x86_64",
		"Linux version 6.12.1 (someone@somewhere)":                           "/gdbserver-xen/vmlinux-6.12.1",
		"Linux version ../../../etc/passwd (debian-kernel@lists.debian.org)": "/gdbserver-xen/passwd-dbg/vmlinux-passwd",
		"Linux version ../.. (debian-kernel@lists.debian.org)":               "/gdbserver-xen/..-dbg/vmlinux-..",
	} {
		if got := executableFileName(&linux.Kernel{Banner: banner}); got != want {
			t.Errorf("%s: got %s, want %s", banner, got, want)
		}
	}
}

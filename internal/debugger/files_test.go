package debugger

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"gdbserver-xen/internal/linux"
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

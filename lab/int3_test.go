package lab

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// One byte of the installed QEMU is changed, and that only once.
func TestMendInt3(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mended := bytes.Clone(program)
	if err := mendInt3(mended); err != nil {
		t.Fatal(err)
	}
	changes := 0
	for i := range program {
		if program[i] != mended[i] {
			changes++
			if program[i] != exitINTn || mended[i] != exitException3 {
				t.Errorf("byte %#x is %#x, was %#x", i, mended[i], program[i])
			}
		}
	}
	if changes != 1 {
		t.Errorf("%d bytes are changed, want 1", changes)
	}
	if err := mendInt3(mended); err == nil {
		t.Error("it can be mended again")
	}
	if mendInt3([]byte("no program")) == nil {
		t.Error("no program can be mended")
	}
}

package lab

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// Of the installed QEMU only what is to be mended is changed, and that only once.
func TestMendQEMU(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mended := bytes.Clone(program)
	if err := mendQEMU(mended); err != nil {
		t.Fatal(err)
	}
	// One byte for INT3, for DR7 ten each at VMRUN, at the exit, and in padding, three
	// for hits of what is gone, and six for what is injected.
	changes, numbers := 0, 0
	for i := range program {
		if program[i] == mended[i] {
			continue
		}
		changes++
		if program[i] == exitINTn && mended[i] == exitException3 {
			numbers++
		}
	}
	if numbers != 1 || changes > 40 {
		t.Errorf("%d bytes are changed, %d of them for INT3", changes, numbers)
	}
	once := bytes.Clone(mended)
	if err := mendQEMU(mended); err == nil || !bytes.Equal(mended, once) {
		t.Errorf("mended again: %v", err)
	}
	if mendQEMU([]byte("no program")) == nil {
		t.Error("no program can be mended")
	}
}

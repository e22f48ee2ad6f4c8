package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteDisk(t *testing.T) {
	dir := t.TempDir()
	grub := bytes.Repeat([]byte{0xaa}, 3*sectorSize+5)
	for name, data := range map[string][]byte{"grub": grub, "vmlinuz": []byte("the kernel"), "initrd": []byte("the rest")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "disk")
	if err := writeDisk(dir, path, "a=b c"); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(disk)%sectorSize != 0 {
		t.Errorf("the disk has %d bytes, not whole sectors", len(disk))
	}
	entry := disk[0x1be:0x1ce]
	start, size := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
	if entry[0] != 0x80 || start != partitionStart || int(start+size)*sectorSize != len(disk) {
		t.Errorf("partition % x does not fit a disk of %d sectors", entry, len(disk)/sectorSize)
	}
	if !bytes.Equal(disk[510:512], []byte{0x55, 0xaa}) {
		t.Errorf("boot sector ends in % x", disk[510:512])
	}
	if !bytes.Equal(disk[:0x1be], grub[:0x1be]) || !bytes.Equal(disk[sectorSize:len(grub)], grub[sectorSize:]) {
		t.Error("grub is not at the start of the disk")
	}
	files := string(disk[partitionStart*sectorSize:])
	if !strings.HasPrefix(files, "070701") {
		t.Errorf("partition starts with %.8q, not with an archive", files)
	}
	for _, want := range []string{"linux /vmlinuz a=b c\n", "the kernel", "the rest", "TRAILER!!!"} {
		if !strings.Contains(files, want) {
			t.Errorf("no %q on the partition", want)
		}
	}
}

func TestHVMCommandLine(t *testing.T) {
	for _, bad := range []string{"a;reboot", "$x", "a\nb", `"`, "'", "{", "#"} {
		g := &Guest{cfg: GuestConfig{Kind: HVM, Name: "g", Cmdline: bad}}
		if _, err := g.config(context.Background()); err == nil || !strings.Contains(err.Error(), "command line") {
			t.Errorf("%q: got %v, want an error", bad, err)
		}
	}
}

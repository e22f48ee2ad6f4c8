package lab

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readCpio is a reader of the format, written from its description alone, so
// that it does not share the writer's mistakes.
func readCpio(t *testing.T, b []byte) []string {
	t.Helper()
	var entries []string
	for off := 0; ; {
		if len(b)-off < 110 || string(b[off:off+6]) != "070701" {
			t.Fatalf("no header at offset %d", off)
		}
		field := func(n int) int {
			v, err := strconv.ParseUint(string(b[off+6+8*n:off+14+8*n]), 16, 32)
			if err != nil {
				t.Fatalf("header at %d, field %d: %v", off, n, err)
			}
			return int(v)
		}
		mode, size, major, minor, nameLen := field(1), field(6), field(9), field(10), field(11)
		name := string(b[off+110 : off+110+nameLen-1])
		if b[off+110+nameLen-1] != 0 {
			t.Errorf("name %q does not end with NUL", name)
		}
		data := (off + 110 + nameLen + 3) &^ 3
		if name == "TRAILER!!!" {
			return entries
		}
		entries = append(entries, fmt.Sprintf("%s %o %d,%d %q", name, mode, major, minor, b[data:data+size]))
		off = (data + size + 3) &^ 3
	}
}

func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := newCpioWriter(&b)
	c.file("a/b/odd", 0o755, []byte("12345"))
	c.file("a/empty", 0o644, nil)
	c.symlink("bin", "usr/bin")
	c.charDevice("dev/console", 0o600, 5, 1)
	c.dir("a/b")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("archive of %d bytes, want a multiple of 512", b.Len())
	}
	want := []string{
		`a 40755 0,0 ""`,
		`a/b 40755 0,0 ""`,
		`a/b/odd 100755 0,0 "12345"`,
		`a/empty 100644 0,0 ""`,
		`bin 120777 0,0 "usr/bin"`,
		`dev 40755 0,0 ""`,
		`dev/console 20600 5,1 ""`,
	}
	if diff := cmp.Diff(want, readCpio(t, b.Bytes())); diff != "" {
		t.Error(diff)
	}
}

func TestCpioKeepsFirstError(t *testing.T) {
	c := newCpioWriter(brokenWriter{})
	c.file("a", 0o644, []byte("x"))
	c.copyFile("b", "/nonexistent")
	err := c.close()
	if err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("got %v, want the writer's error", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

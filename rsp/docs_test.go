package rsp_test

import (
	"os"
	"path/filepath"
	"testing"

	"gdbserver-xen/rsp"
)

func TestPacketsDoc(t *testing.T) {
	path := filepath.Join("..", "docs", "packets.md")
	want := rsp.PacketsDoc()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("docs/packets.md is not what the table of packets says (%v); run go generate ./rsp", err)
	}
}

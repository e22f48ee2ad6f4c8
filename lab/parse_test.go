package lab

import (
	"strings"
	"testing"
)

func TestLastTick(t *testing.T) {
	for text, want := range map[string]int{
		"":                                   0,
		"tick 7":                             0, // not a whole line yet
		"boot\r\ntick 1\r\ntick 2\r\ntick 3": 2,
		"tick 12\n[ 3.0] noise\n":            12,
		"tick 5\n" + strings.Repeat("[ 9.9] a long trace\n", 1000): 5,
		"atick 3\ntick x\n": 0,
	} {
		if got := lastTick(text); got != want {
			t.Errorf("%.30q: got %d, want %d", text, got, want)
		}
	}
}

func TestParseUsernet(t *testing.T) {
	const text = "Hub -1 (n0):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[ESTABLISHED]   31       127.0.0.1 50000       10.0.2.15  9000     0     0\r\n" +
		"  TCP[HOST_FORWARD]  12       127.0.0.1 36601       10.0.2.15  7070     0     0\r\n"
	if addr, ok := parseUsernet(text, 7070); !ok || addr != "127.0.0.1:36601" {
		t.Errorf("got %q, %v", addr, ok)
	}
	if addr, ok := parseUsernet(text, 9000); ok {
		t.Errorf("a connection passes for a forward: %q", addr)
	}
}

func TestGuestConfig(t *testing.T) {
	c := GuestConfig{Name: "g", Kind: PVH, VCPUs: 3, MemoryMB: 128, Cmdline: "work=busy"}
	text, err := c.xl()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`type = "pvh"`, `vcpus = 3`, `memory = 128`, `nokaslr work=busy"`, `on_crash = "preserve"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	c.KASLR = true
	if text, _ := c.xl(); strings.Contains(text, "nokaslr") {
		t.Error("nokaslr in spite of KASLR")
	}
	for _, bad := range []GuestConfig{{Kind: "vm"}, {Kind: PV, Cmdline: `a" b="`}} {
		if _, err := bad.xl(); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func TestReproductionStandsAlone(t *testing.T) {
	m := machine{image: image{dir: "/x"}, initrd: "/x/initrd", share: "/private", cfg: Config{}.withDefaults()}
	line := m.commandLine()
	for _, bad := range []string{"/private", "fd=3"} {
		if strings.Contains(line, bad) {
			t.Errorf("%s in: %s", bad, line)
		}
	}
}

func TestUnknownRelease(t *testing.T) {
	_, err := findRelease("3.0")
	if err == nil || !strings.Contains(err.Error(), "4.17") {
		t.Errorf("got %v, want an error that names what there is", err)
	}
}

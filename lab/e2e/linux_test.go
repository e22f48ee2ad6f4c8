// This file compares what the product says of a Linux guest with what the guest
// says itself.

package e2e

import (
	"regexp"
	"strings"
	"testing"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// logLine is a line of the kernel's log, as the kernel prints it on its console.
var logLine = regexp.MustCompile(`^\[ *\d+\.\d{6}\] \S`)

// The log, the processes, the modules and the registers of a live guest are told
// without a debugger, and the guest runs on.
func TestLinuxCommands(t *testing.T) {
	eachLinux(t, inSystemCalls, linuxCommands)
}

func linuxCommands(t *testing.T, h *lab.Host, g *lab.Guest) {
	t.Helper()
	console := g.Console()
	said := func(command string) string { return labtest.Output(t, h, "gdbserver-xen "+command+" "+g.Name()) }

	log := map[string]bool{}
	for line := range strings.Lines(said("dmesg")) {
		log[strings.TrimSpace(line)] = true
	}
	lines := 0
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		if !logLine.MatchString(line) {
			continue
		}
		lines++
		// The console has the time before each line of a record, dmesg before the first.
		_, text, _ := strings.Cut(line, "] ")
		if !log[line] && !log[strings.TrimSpace(text)] {
			t.Errorf("dmesg does not have what the guest has printed: %q", line)
		}
	}
	t.Logf("%d lines of the console compared with %d of dmesg", lines, len(log))
	if lines < 50 {
		t.Errorf("the guest has printed %d lines", lines)
	}
	for command, patterns := range map[string][]string{
		"ps":    {`(?m)^ *1\s.*\b(init|sh)\b`, `(?m)^ *2\s.*\[kthreadd\]`, `\[kswapd0\]`},
		"lsmod": {`(?m)^Module +Size +Used by`},
		"regs":  {`rip .*0x[0-9a-f]+`, `cr3`},
	} {
		out := said(command)
		t.Logf("%s:\n%s", command, out)
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(out) {
				t.Errorf("%s does not print %q", command, p)
			}
		}
	}
	ticks(t, g)
	healthy(t, g)
}

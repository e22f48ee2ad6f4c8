package rsp

import (
	"fmt"
	"strings"
	"testing"
)

// PacketsDoc writes docs/packets.md from the table of packets.
func PacketsDoc() string {
	var b strings.Builder
	b.WriteString(`# Packets

The packets of the GDB Remote Serial Protocol that the server knows, in the
order in which they are tried. To any other packet it answers with an empty
reply, which says: not supported.

Written from the table in rsp/dispatch.go by ` + "`go generate ./rsp`" + `; do not edit.

- Arguments in braces are hex numbers, but for ` + "`{thread}`" + ` (a thread id),
  ` + "`{op}`" + ` (one character), ` + "`{annex}`" + ` and ` + "`{data}`" + ` (text, hex or bytes). What
  stands in brackets may be missing.
- *While running*: the packet is served while the target runs. The others get
  an error then, and the target runs on. The interrupt byte 0x03 stops it.
- *Stop reply*: the answer is a stop reply, at once or when the target stops
  (later).
- *Error text*: a gdb, known by its qSupported, gets errors in words (` + "`E.text`" + `)
  in answer, whatever its version. To the other packets it does only if it says
  ` + "`error-message+`" + ` (gdb 16). An lldb that has sent QEnableErrorStrings gets
  ` + "`Enn;text`" + ` always. Who can take no words gets ` + "`Enn`" + `, and the words on its
  console if the answer ends a resumption. There a gdb gets the words on its
  console, too, and a stop reply with signal 0: of an error it would believe
  that the thread has stopped for the same reason as before.
- A breakpoint that the target does not support: a gdb, which would not print
  why, gets OK, and the error when it resumes, until it removes the breakpoint.
- Error numbers: E14 memory is not mapped, E22 malformed packet, E01 all else.

| packet | while running | stop reply | error text | what it does |
|---|---|---|---|---|
`)
	mark := map[bool]string{true: "yes"}
	for _, c := range commands {
		stop := mark[c.mayStop]
		if c.resumes {
			stop = "later"
		}
		fmt.Fprintf(&b, "| `%s%s` | %s | %s | %s | %s |\n", c.name, c.args, mark[c.running], stop, mark[c.textErrors], c.doc)
	}
	return b.String()
}

// Each row is found by its own packet, so no row hides another.
func TestLookup(t *testing.T) {
	fill := strings.NewReplacer("{thread}", "p1.1", "{op}", "g", "{annex}", "target.xml", "{data}", "00",
		"{addr}", "1000", "{length}", "4", "{offset}", "0", "{reg}", "0", "{sig}", "05", "{pid}", "1", "{size}", "1",
		"{fd}", "0", "{count}", "1", "{flags}", "0", "{mode}", "0",
		"[", "", "]", "")
	var a arguments
	for i := range commands {
		c := &commands[i]
		packet := c.name + fill.Replace(c.args)
		got, args := lookup([]byte(packet))
		if got != c {
			t.Errorf("%s is not found by %s", c.name, packet)
			continue
		}
		if err := c.parse(&a, args); err != nil {
			t.Errorf("%s: %v", packet, err)
		}
		if c.doc == "" || strings.Contains(c.doc, "|") {
			t.Errorf("%s: doc %q", c.name, c.doc)
		}
	}
	for _, packet := range []string{"", "qCRC:0,4", "qAttachedX", "vContX", "qXfer:auxv:read::0,4", "gg"} {
		if c, _ := lookup([]byte(packet)); c != nil {
			t.Errorf("%s is taken for %s", packet, c.name)
		}
	}
}

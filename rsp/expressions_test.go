package rsp_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"gdbserver-xen/rsp/agent"
	"gdbserver-xen/rsp/rsptest"
)

// expressions are what a real gdb makes bytecode of, over the fake target.
var expressions = []string{
	"0", "1", "-1", "300", "70000", "5000000000",
	"$rax", "$rip", "$rip == 0xffffffff81000100", "$rsp", "(long)$rsp < 0", "(unsigned long)$rsp > 0x8000000000000000",
	"$rax == 0x1000000000000001", "$rbx != 5", "$rax < $rbx", "$rax >= $rbx", "$rax > $rbx", "$rax <= $rbx",
	"$rax + 1", "$rax - $rbx", "$rcx * 3", "$rax / 7", "-$rax / 7", "(unsigned long)$rsp / 7",
	"$rax % 10", "-$rax % 10", "(unsigned long)$rsp % 10",
	"$rax << 3", "(long)$rsp >> 3", "(unsigned long)$rsp >> 3",
	"!$rax", "~$rax", "$rax & 0xff", "$rax | 0xf0", "$rax ^ $rbx",
	"(char)$rsp", "(int)$rip", "(unsigned char)$rip", "(unsigned short)$rip", "(unsigned int)$rip",
	"*(char*)0x1000", "*(signed char*)0x1030", "*(unsigned char*)0x1030", "*(short*)0x1030", "*(unsigned short*)0x1030",
	"*(int*)0x1030", "*(unsigned int*)0x1030", "*(long*)0x1030", "*((char*)0x1000 + 3) == 21",
	"$rax && *(char*)0x1001", "$rax && *(char*)0x1000", "*(char*)0x1000 || 0", "$rax ? 3 : 4", "!$rax ? 3 : 4",
	"$rax == 1 || ($rbx == 0x1000000000000002 && *(int*)0x1000 == 0x150e0700)",
	"(1, 2)", "*(int*)($rax - 0x1000000000000001 + 0x1000) > -5",
}

// formats are arguments of dprintf, of which a real gdb makes bytecode, too.
var formats = []string{
	`"plain\n"`, `"100%%\t\\ \"quoted\" \a\b\e\f\r\v\n"`,
	`"rax=%lx rbx=%ld\n", $rax, $rbx`, `"%d %i %u\n", -1, 7, -1`, `"%c%c[%3c]\n", 0x68, 0x69, 0x21`,
	`"%#x %#lX %o [%8d] [%-8d] [%08d] [%+d] [% d] [%.3d]\n", 255, $rax, 8, 42, 42, -42, 42, 42, 7`,
	`"%hd %hx %lld %llu %zu\n", 98304, 0x1ffff, -5, -5, 5`,
	`"[%s] [%.3s] [%8.2s] [%-8.2s]\n", (char*)0x100a, (char*)0x100a, (char*)0x100a, (char*)0x100a`,
	`"%5c|%-5c|%10s|%lu\n", 65, 66, (char*)0x1020, *(unsigned long*)0x1030`,
}

// gdb's bytecode has the values that gdb itself gives the expressions, and
// prints what gdb prints. With -update, package agent gets them for its tests.
func TestGDBExpressions(t *testing.T) {
	f := rsptest.NewTarget(1)
	var transcript rsptest.Transcript
	addr, served := serveTCP(t, f, &transcript)
	commands := []string{"set breakpoint always-inserted on", "set dprintf-style agent"}
	place := uint64(rsptest.Text + 0x200)
	for i, e := range expressions {
		commands = append(commands,
			fmt.Sprintf("break *%#x if %s", place+uint64(i), e),
			fmt.Sprintf(`printf "<%#x %%lu>\n", (unsigned long)(%s)`, place+uint64(i), e))
	}
	for i, format := range formats {
		at := place + uint64(len(expressions)+i)
		commands = append(commands, fmt.Sprintf("dprintf *%#x,%s", at, format),
			fmt.Sprintf(`printf "<%#x "`, at), "printf "+format, `printf ">\n"`)
	}
	out := runClient(t, served, "gdb", gdbArgs(addr, append(commands, "detach")...)...)
	checkTarget(t, f)

	code := make(map[uint64]string)
	for _, m := range regexp.MustCompile(`> \$Z0,([0-9a-f]+),1;(?:cmds:\d,)?X[0-9a-f]+,([0-9a-f]+)#`).FindAllStringSubmatch(transcript.String(), -1) {
		at, _ := strconv.ParseUint(m[1], 16, 64)
		code[at] = m[2]
	}
	var rows strings.Builder
	rows.WriteString("# Bytecode of a real gdb, what gdb itself says that it is or prints, and its source.\n" +
		"# Written by go test ./rsp -run TestGDBExpressions -update.\n")
	for i, source := range append(append([]string{}, expressions...), formats...) {
		at := place + uint64(i)
		_, want, _ := strings.Cut(out, fmt.Sprintf("<%#x ", at))
		want, _, _ = strings.Cut(want, ">\n")
		if i >= len(expressions) {
			want = strconv.Quote(want)
		}
		got, err := evaluate(f, code[at])
		if err != nil || got != want {
			t.Errorf("%s (%s): %s, %v, want %s", source, code[at], got, err, want)
		}
		fmt.Fprintf(&rows, "%s\t%s\t%s\n", code[at], want, source)
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(filepath.Join("agent", "testdata", "gdb.txt"), []byte(rows.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// evaluate returns the value of an expression in the first thread, or what it
// prints.
func evaluate(f *rsptest.Target, digits string) (string, error) {
	code, err := hex.DecodeString(digits)
	if err != nil {
		return "", err
	}
	e, err := agent.Parse(code)
	if err != nil {
		return "", err
	}
	printed := ""
	v, err := e.Eval(f.Machine(1), func(text string) { printed += text })
	if printed != "" {
		return strconv.Quote(printed), err
	}
	return strconv.FormatUint(v, 10), err
}

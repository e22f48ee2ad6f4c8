package agent

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// sample is the machine of the tests, and what the fake target of rsptest has in
// its first thread: register n, if it has 64 bits and no better use, is
// 0x1000000000000001 + n, and byte i of the memory from 0x1000 to 0x3000 is
// i*7 + i>>8.
type sample struct{}

func (sample) Register(n int) (uint64, error) {
	switch {
	case n == 7:
		return 0xffffc90000004f00, nil
	case n == 16:
		return 0xffffffff81000100, nil
	case n < 16:
		return 0x1000000000000001 + uint64(n), nil
	}
	return 0, errors.New("no such register")
}

func (sample) ReadMemory(addr uint64, p []byte) error {
	for i := range p {
		a := addr + uint64(i)
		if a < 0x1000 || a >= 0x3000 {
			return fmt.Errorf("no memory at %#x", a)
		}
		a -= 0x1000
		p[i] = byte(a*7 + a>>8)
	}
	return nil
}

// asm makes bytecode of numbers and opcodes' names.
func asm(parts ...any) []byte {
	var code []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			code = append(code, byte(p))
		case string:
			for op, o := range opcodes {
				if o.name == p {
					code = append(code, byte(op))
				}
			}
		case []byte:
			code = append(code, p...)
		}
	}
	return code
}

// number pushes a number.
func number(v uint64) []byte {
	return []byte{opConst64, byte(v >> 56), byte(v >> 48), byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// format is the operands of printf.
func format(args int, text string) []byte {
	n := len(text) + 1
	return append([]byte{byte(args), byte(n >> 8), byte(n)}, text+"\x00"...)
}

func TestEval(t *testing.T) {
	const minInt = 1 << 63
	minus := func(v uint64) uint64 { return -v }
	two := func(a, b uint64, op string) []byte { return asm(number(a), number(b), op, "end") }
	one := func(a uint64, rest ...any) []byte { return asm(append(append([]any{number(a)}, rest...), "end")...) }
	for _, tt := range []struct {
		code []byte
		want uint64
	}{
		{two(5, 7, "add"), 12},
		{two(math.MaxUint64, 2, "add"), 1},
		{two(5, 7, "sub"), minus(2)},
		{two(5, 7, "mul"), 35},
		{two(minus(7), 2, "div_signed"), minus(3)},
		{two(minus(7), 2, "div_unsigned"), (math.MaxUint64 - 6) / 2},
		{two(minInt, minus(1), "div_signed"), minInt},
		{two(minus(7), 2, "rem_signed"), minus(1)},
		{two(minInt, minus(1), "rem_signed"), 0},
		{two(minus(7), 4, "rem_unsigned"), 1},
		{two(1, 63, "lsh"), minInt},
		{two(1, 64, "lsh"), 0},
		{two(minInt, 62, "rsh_signed"), minus(2)},
		{two(minInt, 99, "rsh_signed"), minus(1)},
		{two(minInt, 62, "rsh_unsigned"), 2},
		{two(minInt, 64, "rsh_unsigned"), 0},
		{two(6, 3, "bit_and"), 2},
		{two(6, 3, "bit_or"), 7},
		{two(6, 3, "bit_xor"), 5},
		{two(6, 6, "equal"), 1},
		{two(6, 3, "equal"), 0},
		{two(minus(1), 1, "less_signed"), 1},
		{two(minus(1), 1, "less_unsigned"), 0},
		{two(3, 3, "less_unsigned"), 0},
		{two(1, 2, "swap"), 1},
		{two(1, 2, "pop"), 1},
		{one(0, "log_not"), 1},
		{one(7, "log_not"), 0},
		{one(7, "bit_not"), minus(8)},
		{one(0x180, "ext", 8), minus(128)},
		{one(0x17f, "ext", 8), 127},
		{one(0x80000000, "ext", 32), 0xffffffff80000000},
		{one(0x180, "ext", 64), 0x180},
		{one(0x180, "ext", 255), 0x180},
		{one(0x1ff, "zero_ext", 8), 0xff},
		{one(0x1ff, "zero_ext", 0), 0},
		{one(math.MaxUint64, "zero_ext", 63), math.MaxInt64},
		{one(minus(1), "zero_ext", 64), minus(1)},
		{one(0x1001, "ref8"), 7},
		{one(0x1001, "ref16"), 0x0e07},
		{one(0x1001, "ref32"), 0x1c150e07},
		{one(0x1001, "ref64"), 0x38312a231c150e07},
		{one(3, "dup", "mul"), 9},
		{asm("const8", 0xff, "end"), 0xff},
		{asm("const16", 0xff, 0xfe, "end"), 0xfffe},
		{asm("const32", 0xff, 0xfe, 0xfd, 0xfc, "end"), 0xfffefdfc},
		{asm("reg", 0, 5, "end"), 0x1000000000000006},
		{asm("const8", 1, "const8", 2, "const8", 3, "pick", 0, "end"), 3},
		{asm("const8", 1, "const8", 2, "const8", 3, "pick", 2, "end"), 1},
		{asm("const8", 1, "const8", 2, "const8", 3, "rot", "end"), 2},
		{asm("const8", 1, "const8", 2, "const8", 3, "rot", "pop", "end"), 1},
		{asm("const8", 1, "const8", 2, "const8", 3, "rot", "pop", "pop", "end"), 3},
		{asm("end"), 0},
		{asm("const8", 1, "if_goto", 0, 8, "const8", 2, "end", "const8", 3, "end"), 3},
		{asm("const8", 0, "if_goto", 0, 8, "const8", 2, "end", "const8", 3, "end"), 2},
		{asm("goto", 0, 5, "const8", 2, "const8", 3, "end"), 3},
		// 10 times round a loop.
		{asm("const8", 10, "const8", 1, "sub", "dup", "if_goto", 0, 2, "log_not", "end"), 1},
	} {
		e, err := Parse(tt.code)
		if err != nil {
			t.Errorf("%x: %v", tt.code, err)
			continue
		}
		if got, err := e.Eval(sample{}, nil); got != tt.want || err != nil {
			t.Errorf("%s: %#x, %v, want %#x", e, got, err, tt.want)
		}
	}
}

func TestEvalFails(t *testing.T) {
	for _, tt := range []struct {
		code []byte
		want string
	}{
		{asm("const8", 1, "const8", 0, "div_signed", "end"), "division by zero"},
		{asm("const8", 1, "const8", 0, "div_unsigned", "end"), "division by zero"},
		{asm("const8", 1, "const8", 0, "rem_signed", "end"), "division by zero"},
		{asm("const8", 1, "const8", 0, "rem_unsigned", "end"), "division by zero"},
		{asm("goto", 0, 0), "agent expression does not end after 65536 steps"},
		{asm("const8", 1, "dup", "if_goto", 0, 2, "end"), "agent expression does not end after 65536 steps"},
		{asm("reg", 1, 0, "end"), "no such register"},
		{asm("const8", 0, "ref8", "end"), "no memory at 0x0"},
		{asm("const16", 0x2f, 0xff, "ref16", "end"), "no memory at 0x3000"},
		{asm(number(math.MaxUint64), "ref16", "end"), "2 bytes at 0xffffffffffffffff run past the end of memory"},
		{asm("const16", 0x30, 0, "const8", 0, "const8", 0, "printf", format(1, "%s"), "end"), "no memory at 0x3000"},
		{asm("const8", 0, "const8", 0, "const8", 0, "printf", format(1, "%4000d"), "goto", 0, 0), "agent expression prints more than 65536 bytes"},
	} {
		e, err := Parse(tt.code)
		if err != nil {
			t.Errorf("%x: %v", tt.code, err)
			continue
		}
		if got, err := e.Eval(sample{}, nil); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %#x, %v, want %s", e, got, err, tt.want)
		}
	}
	if _, err := (Expr{}).Eval(sample{}, nil); err == nil {
		t.Error("no code at all has a value")
	}
}

func TestParseFails(t *testing.T) {
	const invalid = "invalid agent expression: "
	for _, tt := range []struct {
		code []byte
		want string
	}{
		{nil, invalid + "no instruction at 0"},
		{asm(0), invalid + "opcode 0x00 at 0"},
		{asm(0x35), invalid + "opcode 0x35 at 0"},
		{asm("end", 0xff), invalid + "opcode 0xff at 1"},
		{asm("const8"), invalid + "const8 at 0 is cut off"},
		{asm("const64", 1, 2, 3, 4, 5, 6, 7), invalid + "const64 at 0 is cut off"},
		{asm("const8", 1), invalid + "no instruction at 2"},
		{asm("goto", 0, 9), invalid + "no instruction at 9"},
		{asm("goto", 0, 1), invalid + "no instruction at 1"},
		{asm("add", "end"), invalid + "stack of 0 values at 0"},
		{asm("const8", 1, "add", "end"), invalid + "stack of 1 values at 2"},
		{asm("const8", 1, "pick", 1, "end"), invalid + "stack of 1 values at 2"},
		{asm("const8", 1, "dup", "goto", 0, 2), invalid + "stack of 1 and of 2 values at 2"},
		{bytes.Repeat(asm("const8", 1), 257), invalid + "stack of 256 values at 512"},
		{asm("const8", 1, "ext", 0, "end"), invalid + "sign of a number of no bits at 2"},
		{make([]byte, maxSize+1), invalid + "65537 bytes are more than 65536"},
		{asm("float"), "unsupported agent expression: floating point (float)"},
		{asm("trace_quick", 1), "unsupported agent expression: collecting trace data (trace_quick)"},
		{asm("getv", 0, 1), "unsupported agent expression: trace state variables (getv)"},
		{asm("printf"), invalid + "printf at 0 is cut off"},
		{asm("printf", 0), invalid + "printf at 0 is cut off"},
		{asm("printf", 0, 0, 0), invalid + "format of printf at 0 does not end"},
		{asm("printf", 0, 0, 3, 'a', 'b', 'c'), invalid + "format of printf at 0 does not end"},
		{asm("printf", 0, 0xff, 0xff, 'a', 0), invalid + "format of printf at 0 does not end"},
		{asm("const8", 0, "printf", format(0, "hi"), "end"), invalid + "stack of 1 values at 2"},
		{asm("printf", format(1, "hi"), "end"), invalid + `format "hi" takes 0 arguments, not 1`},
		{asm("printf", format(0, "%d"), "end"), invalid + `format "%d" takes 1 arguments, not 0`},
		{asm("printf", format(0, `a\`), "end"), invalid + "format ends in a backslash"},
		{asm("printf", format(0, `\x41`), "end"), invalid + `escape \x in a format`},
		{asm("printf", format(1, "%"), "end"), invalid + "format ends in a directive"},
		{asm("printf", format(1, "%5000d"), "end"), invalid + "width over 4096"},
		{asm("printf", format(1, "%.99999999999999999999d"), "end"), invalid + "precision over 4096"},
		{asm("printf", format(1, "%05s"), "end"), invalid + "flags 0 of %s"},
		{asm("printf", format(1, "%f"), "end"), "unsupported agent expression: directive %f"},
		{asm("printf", format(1, "%hhd"), "end"), "unsupported agent expression: directive %h"},
		{asm("printf", format(1, "%n"), "end"), "unsupported agent expression: directive %n"},
		{asm("printf", format(1, "%*d"), "end"), "unsupported agent expression: directive %*"},
		{asm("printf", format(1, "%ls"), "end"), "unsupported agent expression: %ls"},
	} {
		e, err := Parse(tt.code)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%x: %v, %v, want %s", tt.code, e, err, tt.want)
		}
		if e != (Expr{}) {
			t.Errorf("%x: an expression beside the error", tt.code)
		}
	}
}

func TestPrintf(t *testing.T) {
	minus := func(v uint64) uint64 { return -v }
	for _, tt := range []struct {
		format string
		args   []uint64
		want   string
	}{
		{`plain`, nil, "plain"},
		{``, nil, ""},
		{`100%%\n\t\\\"\a\b\e\f\r\v`, nil, "100%\n\t\\\"\a\b\x1b\f\r\v"},
		{`before" after`, nil, "before"},
		{`%d %d`, []uint64{1, minus(2)}, "1 -2"},
		{`%d`, []uint64{0x1ffffffff}, "-1"},
		{`%u`, []uint64{minus(1)}, "4294967295"},
		{`%ld %lu`, []uint64{minus(1), minus(1)}, "-1 18446744073709551615"},
		{`%lld %zu`, []uint64{1 << 63, 1 << 63}, "-9223372036854775808 9223372036854775808"},
		{`%hd %hx`, []uint64{0x18000, 0x12345}, "-32768 2345"},
		{`%x %X %o %i`, []uint64{0xbeef, 0xbeef, 8, 8}, "beef BEEF 10 8"},
		{`%#x %#X %#o %#x %#o`, []uint64{0xbeef, 0xbeef, 8, 0, 0}, "0xbeef 0XBEEF 010 0 0"},
		{`[%5d] [%-5d] [%05d] [%+d] [% d] [%-05d]`, []uint64{42, 42, 42, 42, 42, 42}, "[   42] [42   ] [00042] [+42] [ 42] [42   ]"},
		{`[%05d] [%5.3d] [%05.3d] [%.0d] [%.d]`, []uint64{minus(42), minus(4), 4, 0, 0}, "[-0042] [ -004] [  004] [] []"},
		{`[%#8x] [%#08x] [%#.4x] [%#.4o]`, []uint64{0xab, 0xab, 0xab, 8}, "[    0xab] [0x0000ab] [0x00ab] [0010]"},
		{`%c%c[%3c][%-3c]`, []uint64{'h', 0x100 + 'i', 'x', 'y'}, "hi[  x][y  ]"},
		{`%p %p [%6p]`, []uint64{0xffffffff81000000, 0, 1}, "0xffffffff81000000 (nil) [   0x1]"},
		{`%s`, []uint64{0}, "(null)"},
		{`[%.3s] [%-5.2s] [%5.2s] [%.0s]`, []uint64{0x100a, 0x100a, 0x100a, 0x100a}, "[FMT] [FM   ] [   FM] []"},
	} {
		var code []byte
		for i := len(tt.args) - 1; i >= 0; i-- {
			code = asm(code, number(tt.args[i]))
		}
		e, err := Parse(asm(code, "const8", 0, "const8", 0, "printf", format(len(tt.args), tt.format), "end"))
		if err != nil {
			t.Errorf("%s: %v", tt.format, err)
			continue
		}
		got := ""
		v, err := e.Eval(sample{}, func(text string) { got += text })
		if got != tt.want || v != 0 || err != nil {
			t.Errorf("%s: %q, %d, %v, want %q", tt.format, got, v, err, tt.want)
		}
	}
}

// A string goes over the blocks in which it is read, and is cut.
func TestPrintString(t *testing.T) {
	for _, tt := range []struct{ length, want int }{{0, 0}, {63, 63}, {64, 64}, {200, 200}, {maxString, maxString}, {5000, maxString}} {
		m := text{0x1fd0, append(make([]byte, tt.length), 0)}
		for i := range tt.length {
			m.data[i] = 'a' + byte(i%26)
		}
		e, err := Parse(asm("const16", 0x1f, 0xd0, "const8", 0, "const8", 0, "printf", format(1, "%s"), "end"))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if _, err := e.Eval(m, func(text string) { got += text }); err != nil || got != string(m.data[:tt.want]) {
			t.Errorf("string of %d bytes: %d are printed, %v", tt.length, len(got), err)
		}
	}
}

// text is a machine with a string in its memory, after which there are zeros up
// to the end of the block.
type text struct {
	addr uint64
	data []byte
}

func (text) Register(int) (uint64, error) { return 0, nil }

func (m text) ReadMemory(addr uint64, p []byte) error {
	clear(p)
	if addr < m.addr || addr+uint64(len(p)) > m.addr+uint64(len(m.data)+64) {
		return errors.New("no memory")
	}
	if off := addr - m.addr; off < uint64(len(m.data)) {
		copy(p, m.data[off:])
	}
	return nil
}

func TestString(t *testing.T) {
	e, err := Parse(asm("reg", 0, 5, "zero_ext", 32, "const8", 7, "equal", "if_goto", 0, 14, "goto", 0, 14,
		"const8", 0, "const8", 0, "printf", format(0, `a\n`), "end"))
	want := `reg 5; zero_ext 32; const8 7; equal; if_goto 14; goto 14; const8 0; const8 0; printf 0 "a\\n"; end`
	if got := e.String(); got != want || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}

// recorded are expressions that a real gdb made (see TestGDBExpressions of
// package rsp), with what gdb itself says that they are, or print.
func recorded(tb testing.TB) [][3]string {
	data, err := os.ReadFile(filepath.Join("testdata", "gdb.txt"))
	if err != nil {
		tb.Fatal(err)
	}
	var rows [][3]string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSuffix(line, "\n"); strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 3 {
			tb.Fatalf("not three columns: %q", line)
		}
		rows = append(rows, [3]string(f))
	}
	return rows
}

// What a real gdb makes of expressions has the value that gdb gives them.
func TestRecorded(t *testing.T) {
	for _, row := range recorded(t) {
		code, err := hex.DecodeString(row[0])
		if err != nil {
			t.Fatal(err)
		}
		e, err := Parse(code)
		if err != nil {
			t.Errorf("%s: %v", row[2], err)
			continue
		}
		printed := ""
		v, err := e.Eval(sample{}, func(text string) { printed += text })
		got := strconv.FormatUint(v, 10)
		if printed != "" {
			got = strconv.Quote(printed)
		}
		if got != row[1] || err != nil {
			t.Errorf("%s (%s) is %s, %v, want %s", row[2], e, got, err, row[1])
		}
	}
}

// Whatever Parse accepts, Eval comes to an end without a panic, and what Parse
// refuses is no expression.
func FuzzExpr(f *testing.F) {
	for _, row := range recorded(f) {
		code, err := hex.DecodeString(row[0])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(code)
	}
	f.Add(asm("const8", 10, "const8", 1, "sub", "dup", "if_goto", 0, 2, "log_not", "end"))
	f.Add(asm("const8", 1, "const8", 2, "const8", 3, "rot", "pick", 2, "swap", "div_signed", "end"))
	f.Add(asm(number(1<<63), number(math.MaxUint64), "rem_signed", "ref64", "end"))
	f.Add(asm("const16", 0x10, 1, "const8", 0, "const8", 0, "printf", format(1, `%-#8.3s%%\n`), "end"))
	f.Add(asm("goto", 0, 0))
	f.Fuzz(func(t *testing.T, code []byte) {
		e, err := Parse(code)
		if err != nil {
			if e != (Expr{}) {
				t.Fatalf("an expression beside %v", err)
			}
			return
		}
		printed := 0
		v, err := e.Eval(sample{}, func(text string) { printed += len(text) })
		if err != nil && v != 0 {
			t.Fatalf("%d beside %v", v, err)
		}
		if printed > maxOutput {
			t.Fatalf("%d bytes are printed", printed)
		}
		if again, err2 := e.Eval(sample{}, nil); again != v || (err == nil) != (err2 == nil) {
			t.Fatalf("%s is %d, %v, and then %d, %v", e, v, err, again, err2)
		}
		if e.String() == "" {
			t.Fatal("no text")
		}
	})
}

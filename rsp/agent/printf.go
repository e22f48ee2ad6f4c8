// This file is the instruction printf. Formats are those that gdb's own printf
// takes, which are C89's without the floating-point ones (GDB manual, node
// "Output"). Escapes stand in them as in C source.

package agent

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Bounds on what is printed.
const (
	maxOutput = 1 << 16 // by one evaluation
	maxString = 1 << 12 // by one %s
	maxWidth  = 1 << 12 // width or precision of a directive
)

// A directive is a part of a format: text that stands for itself, or how to
// print an argument.
type directive struct {
	text      string
	verb      byte // 0 for text
	flags     string
	width     int
	precision int // -1 for none
	bits      int // of the argument
}

func (d *directive) flag(c byte) bool { return strings.IndexByte(d.flags, c) >= 0 }

// parseFormat takes a format apart. As in gdb it ends at a quotation mark, too.
func parseFormat(format string) ([]directive, error) {
	var (
		list []directive
		text []byte
	)
	for i := 0; i < len(format) && format[i] != '"'; i++ {
		switch c := format[i]; {
		case c == '\\':
			i++
			if i == len(format) {
				return nil, fmt.Errorf("%w: format ends in a backslash", errInvalid)
			}
			e, ok := escapes[format[i]]
			if !ok {
				return nil, fmt.Errorf("%w: escape \\%c in a format", errInvalid, format[i])
			}
			text = append(text, e)
		case c == '%' && strings.HasPrefix(format[i:], "%%"):
			i++
			text = append(text, '%')
		case c == '%':
			d, n, err := parseDirective(format[i+1:])
			if err != nil {
				return nil, err
			}
			i += n
			list = append(list, directive{text: string(text)}, d)
			text = text[:0]
		default:
			text = append(text, c)
		}
	}
	return append(list, directive{text: string(text)}), nil
}

// escapes are the characters after a backslash that gdb knows.
var escapes = map[byte]byte{
	'\\': '\\', '"': '"', 'a': '\a', 'b': '\b', 'e': 0x1b, 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
}

// parseDirective reads a directive after its %, and returns its length.
func parseDirective(s string) (d directive, n int, err error) {
	rest := strings.TrimLeft(s, "0-+ #")
	d.flags = s[:len(s)-len(rest)]
	d.precision = -1
	var ok bool
	if d.width, rest, ok = parseWidth(rest); !ok {
		return d, 0, fmt.Errorf("%w: width over %d", errInvalid, maxWidth)
	}
	if after, found := strings.CutPrefix(rest, "."); found {
		if d.precision, rest, ok = parseWidth(after); !ok {
			return d, 0, fmt.Errorf("%w: precision over %d", errInvalid, maxWidth)
		}
	}
	size := ""
	for _, m := range []string{"h", "ll", "l", "z"} {
		if after, found := strings.CutPrefix(rest, m); found {
			size, rest = m, after
			break
		}
	}
	switch size {
	case "h":
		d.bits = 16
	case "":
		d.bits = 32
	default:
		d.bits = 64
	}
	if rest == "" {
		return d, 0, fmt.Errorf("%w: format ends in a directive", errInvalid)
	}
	d.verb = rest[0]
	switch d.verb {
	case 'd', 'i', 'u', 'o', 'x', 'X':
	case 'c', 's', 'p':
		if size != "" {
			return d, 0, fmt.Errorf("%w: %%%s%c", ErrUnsupported, size, d.verb)
		}
		if strings.Trim(d.flags, "-") != "" {
			return d, 0, fmt.Errorf("%w: flags %s of %%%c", errInvalid, d.flags, d.verb)
		}
	default:
		return d, 0, fmt.Errorf("%w: directive %%%c", ErrUnsupported, d.verb)
	}
	return d, len(s) - len(rest) + 1, nil
}

// parseWidth reads a decimal number that may be missing.
func parseWidth(s string) (n int, rest string, ok bool) {
	for s != "" && '0' <= s[0] && s[0] <= '9' {
		n = 10*n + int(s[0]-'0')
		if n > maxWidth {
			return 0, s, false
		}
		s = s[1:]
	}
	return n, s, true
}

// countArguments returns how many arguments a format takes.
func countArguments(list []directive) int {
	n := 0
	for _, d := range list {
		if d.verb != 0 {
			n++
		}
	}
	return n
}

// printf pops what the instruction takes and returns the text. gdb pushes the
// first argument last, and upon it a channel and a function.
func (s *stack) printf(in *instruction, m Machine) (string, error) {
	s.pop()
	s.pop()
	list, err := parseFormat(in.format)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, d := range list {
		if d.verb == 0 {
			b.WriteString(d.text)
			continue
		}
		text, err := d.print(s.pop(), m)
		if err != nil {
			return "", err
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// print prints an argument, to C's rules.
func (d *directive) print(v uint64, m Machine) (string, error) {
	switch d.verb {
	case 'c':
		return d.pad("", string([]byte{byte(v)})), nil
	case 's':
		text := "(null)"
		if v != 0 {
			var err error
			if text, err = d.readString(v, m); err != nil {
				return "", err
			}
		}
		if d.precision >= 0 {
			text = text[:min(len(text), d.precision)]
		}
		return d.pad("", text), nil
	case 'p':
		if v == 0 {
			return d.pad("", "(nil)"), nil
		}
		return d.pad("", "0x"+strconv.FormatUint(v, 16)), nil
	}
	return d.number(v), nil
}

// readString reads a string from memory, up to the zero byte or the address
// space's end, or as far as it is printed.
func (d *directive) readString(addr uint64, m Machine) (string, error) {
	most := maxString
	if d.precision >= 0 {
		most = min(most, d.precision)
	}
	var text []byte
	for len(text) < most {
		// A block of memory is there or not there as a whole.
		var block [64]byte
		p := block[:len(block)-int(addr%uint64(len(block)))]
		if err := m.ReadMemory(addr, p); err != nil {
			return "", err
		}
		end := bytes.IndexByte(p, 0)
		if end >= 0 {
			p = p[:end]
		}
		text = append(text, p...)
		if addr += uint64(len(p)); end >= 0 || addr == 0 {
			break
		}
	}
	text = text[:min(len(text), most)]
	return string(text), nil
}

// number prints an integer.
func (d *directive) number(v uint64) string {
	shift := 64 - d.bits
	v = v << shift >> shift
	sign := ""
	if d.verb == 'd' || d.verb == 'i' {
		n := int64(v<<shift) >> shift
		switch {
		case n < 0:
			sign, v = "-", -uint64(n)
		case d.flag('+'):
			sign = "+"
		case d.flag(' '):
			sign = " "
		}
	}
	base := 10
	switch d.verb {
	case 'o':
		base = 8
	case 'x', 'X':
		base = 16
	}
	digits := strconv.FormatUint(v, base)
	if d.verb == 'X' {
		digits = strings.ToUpper(digits)
	}
	if v == 0 && d.precision == 0 {
		digits = ""
	}
	if n := d.precision - len(digits); n > 0 {
		digits = strings.Repeat("0", n) + digits
	}
	if d.flag('#') {
		switch {
		case base == 8 && !strings.HasPrefix(digits, "0"):
			digits = "0" + digits
		case base == 16 && v != 0:
			sign = "0" + string(d.verb)
		}
	}
	return d.pad(sign, digits)
}

// pad fills a text up to the width: with zeros after the sign, or with spaces
// around.
func (d *directive) pad(sign, text string) string {
	n := d.width - len(sign) - len(text)
	switch {
	case n <= 0:
		return sign + text
	case d.flag('-'):
		return sign + text + strings.Repeat(" ", n)
	case d.flag('0') && d.precision < 0:
		return sign + strings.Repeat("0", n) + text
	}
	return strings.Repeat(" ", n) + sign + text
}

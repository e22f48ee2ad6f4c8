// This file writes a Description as target.xml (GDB manual, nodes "Target
// Description Format", "Predefined Target Types" and "Standard Target
// Features").

package rsp

import (
	"errors"
	"fmt"
	"strconv"
)

// compound are types of gdb's own descriptions that are not predefined: a
// feature that uses one brings it along.
var compound = []struct{ id, xml string }{
	{"vec128", vec128},
	{"v2ui128", "<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>\n"},
}

// vec128 is the type of an SSE register.
const vec128 = `<vector id="v8bf16" type="bfloat16" count="8"/>
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v8_bfloat16" type="v8bf16"/>
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
`

// Validate checks that d can be served: registers of whole bytes, each name
// once, and types of the right size.
func (d *Description) Validate() error {
	if d == nil {
		return errors.New("no target description")
	}
	names := make(map[string]bool)
	types := make(map[string]FlagsType)
	for _, f := range d.Features {
		for _, t := range f.Types {
			types[t.ID] = t
			for _, flag := range t.Flags {
				if flag.Start < 0 || flag.End < flag.Start || flag.End >= 8*t.Bytes {
					return fmt.Errorf("type %s: flag %s has bits %d to %d", t.ID, flag.Name, flag.Start, flag.End)
				}
			}
		}
		for _, r := range f.Registers {
			if r.Bits <= 0 || r.Bits%8 != 0 {
				return fmt.Errorf("register %s: %d bits are not whole bytes", r.Name, r.Bits)
			}
			if names[r.Name] {
				return fmt.Errorf("register %s is there twice", r.Name)
			}
			names[r.Name] = true
			if t, ok := types[r.Type]; ok && 8*t.Bytes != r.Bits {
				return fmt.Errorf("register %s: %d bits of type %s, which has %d bytes", r.Name, r.Bits, t.ID, t.Bytes)
			}
		}
	}
	if len(names) == 0 {
		return errors.New("target description without registers")
	}
	return nil
}

// AppendXML appends the description as target.xml.
func (d *Description) AppendXML(x []byte) []byte {
	x = append(x, "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n"...)
	if d.Architecture != "" {
		x = appendXMLText(append(x, "<architecture>"...), d.Architecture)
		x = append(x, "</architecture>\n"...)
	}
	number := 0
	for _, f := range d.Features {
		x = appendXMLText(append(x, `<feature name="`...), f.Name)
		x = append(x, "\">\n"...)
		for _, t := range f.Types {
			x = t.appendXML(x)
		}
		for _, t := range compound {
			if f.uses(t.id) {
				x = append(x, t.xml...)
			}
		}
		for _, r := range f.Registers {
			x = r.appendXML(x, number)
			number++
		}
		x = append(x, "</feature>\n"...)
	}
	return append(x, "</target>\n"...)
}

func (f *Feature) uses(typ string) bool {
	for _, r := range f.Registers {
		if r.Type == typ {
			return true
		}
	}
	return false
}

func (t *FlagsType) appendXML(x []byte) []byte {
	x = appendXMLText(append(x, `<flags id="`...), t.ID)
	x = appendXMLNumber(append(x, `" size="`...), t.Bytes)
	x = append(x, "\">\n"...)
	for _, f := range t.Flags {
		x = appendXMLText(append(x, `<field name="`...), f.Name)
		x = appendXMLNumber(append(x, `" start="`...), f.Start)
		x = appendXMLNumber(append(x, `" end="`...), f.End)
		x = append(x, "\"/>\n"...)
	}
	return append(x, "</flags>\n"...)
}

func (r *Register) appendXML(x []byte, number int) []byte {
	x = appendXMLText(append(x, `<reg name="`...), r.Name)
	x = appendXMLNumber(append(x, `" bitsize="`...), r.Bits)
	if r.Type != "" {
		x = appendXMLText(append(x, `" type="`...), r.Type)
	}
	x = appendXMLNumber(append(x, `" regnum="`...), number)
	if r.Group != "" {
		x = appendXMLText(append(x, `" group="`...), r.Group)
	}
	return append(x, "\"/>\n"...)
}

func appendXMLNumber(x []byte, n int) []byte { return strconv.AppendInt(x, int64(n), 10) }

// appendXMLText appends text for an element or a quoted attribute. What XML
// cannot hold at all becomes a question mark.
func appendXMLText(x []byte, text string) []byte {
	for _, c := range text {
		switch {
		case c == '&':
			x = append(x, "&amp;"...)
		case c == '<':
			x = append(x, "&lt;"...)
		case c == '>':
			x = append(x, "&gt;"...)
		case c == '"':
			x = append(x, "&quot;"...)
		case c < ' ' || c > '~':
			x = append(x, '?')
		default:
			x = append(x, byte(c))
		}
	}
	return x
}

package rsp_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"gdbserver-xen/rsp"
)

func TestAppendPacket(t *testing.T) {
	for _, tt := range []struct{ payload, want string }{
		{"", "$#00"},
		{"OK", "$OK#9a"},
		{"000", "$000#90"},
		{"0000", "$0* #7a"},          // the shortest run that pays
		{"x0000", "$x0000#38"},       // where it is not looked for
		{"x0000000", "$x0*\"0#24"},   // 6 further copies would be written #
		{"00000000", "$0*\"00#dc"},   // 7 would be $
		{"#", "$}\x03#80"},           // escaped
		{"****", "$}\n}\n}\n}\n#1c"}, // escaped bytes make no runs
		{"}]]]]", "$}]]]]]#9e"},
		{"}]]]]]]]", "$}]]*\"]#9e"},
	} {
		got := string(rsp.AppendPacket(nil, []byte(tt.payload)))
		if got[:strings.LastIndexByte(got, '#')] != tt.want[:strings.LastIndexByte(tt.want, '#')] {
			t.Errorf("%q: got %q, want %q", tt.payload, got, tt.want)
		}
	}
	for n := range 400 {
		payload := bytes.Repeat([]byte{'0'}, n)
		frame := rsp.AppendPacket(nil, payload)
		body := frame[1 : len(frame)-3]
		if bytes.ContainsAny(body, "#$+-") {
			t.Errorf("run of %d has a byte of the framing: %q", n, frame)
		}
		if n > 0 && len(body) > 3*(n/95+1)+2 {
			t.Errorf("run of %d takes %d bytes", n, len(body))
		}
	}
}

func TestReader(t *testing.T) {
	type item struct {
		kind    rsp.Kind
		payload string
	}
	for _, tt := range []struct {
		name, wire string
		want       []item
	}{
		{"acks and interrupts", "+-\x03", []item{{rsp.Ack, ""}, {rsp.Nack, ""}, {rsp.Interrupt, ""}}},
		{"junk between packets", "ab\n$g#67\x00#00$?#3f", []item{{rsp.Packet, "g"}, {rsp.Packet, "?"}}},
		{"interrupt inside is data", "$\x03#03", []item{{rsp.Packet, "\x03"}}},
		{"lost end", "$qSup$g#67", []item{{rsp.Packet, "g"}}},
		{"wrong checksum", "$g#68$g#67", []item{{rsp.Corrupt, ""}, {rsp.Packet, "g"}}},
		{"upper-case checksum", "$OK#9A", []item{{rsp.Packet, "OK"}}},
		{"no checksum", "$g#$g#67", []item{{rsp.Corrupt, ""}, {rsp.Packet, "g"}}},
		{"escape", "$}\x03#80", []item{{rsp.Packet, "#"}}},
		{"unfinished escape", "$a}#de", []item{{rsp.Malformed, ""}}},
		{"run", "$0* #7a", []item{{rsp.Packet, "0000"}}},
		{"run of nothing", "$* #4a", []item{{rsp.Malformed, ""}}},
		{"run without a count", "$0*#5a", []item{{rsp.Malformed, ""}}},
		{"run too short", "$0*\x1f#79", []item{{rsp.Malformed, ""}}},
		{"too long", "$12345678901234567#79$g#67", []item{{rsp.Oversize, ""}, {rsp.Packet, "g"}}},
		{"run too long", "$0*~0*~#b0", []item{{rsp.Oversize, ""}}},
	} {
		for _, src := range []io.Reader{strings.NewReader(tt.wire), iotest.OneByteReader(strings.NewReader(tt.wire))} {
			r := rsp.NewReader(src, 16)
			for i := 0; ; i++ {
				kind, p, err := r.Next(nil)
				if err == io.EOF {
					if i != len(tt.want) {
						t.Errorf("%s: %d items, want %d", tt.name, i, len(tt.want))
					}
					break
				}
				if err != nil || i >= len(tt.want) || kind != tt.want[i].kind || kind == rsp.Packet && string(p) != tt.want[i].payload {
					t.Errorf("%s: item %d is %d %q %v", tt.name, i, kind, p, err)
					break
				}
			}
		}
	}
}

// What is encoded must decode to the same, in a frame without stray bytes of
// the framing.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("qSupported:multiprocess+"))
	f.Add([]byte("m000000000000000000000000000000000000"))
	f.Add([]byte("}]]]]]]]]]]*******########$$$$$$\x03\x03\x03"))
	f.Add(bytes.Repeat([]byte{'x'}, 300))
	f.Add(bytes.Repeat([]byte{0}, 7))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, frame := range [][]byte{rsp.AppendPacket(nil, payload), rsp.AppendRequest(nil, payload)} {
			if bytes.Count(frame, []byte{'$'}) != 1 || bytes.Count(frame, []byte{'#'}) != 1 {
				t.Fatalf("frame %q", frame)
			}
			if len(frame) > 2*len(payload)+4 {
				t.Fatalf("%d bytes became %d", len(payload), len(frame))
			}
			r := rsp.NewReader(bytes.NewReader(frame), 2*len(payload)+1)
			kind, got, err := r.Next(nil)
			if kind != rsp.Packet || !bytes.Equal(got, payload) || err != nil {
				t.Fatalf("%q became %q, which is %d %q %v", payload, frame, kind, got, err)
			}
			if _, _, err := r.Next(nil); err != io.EOF {
				t.Fatalf("something follows the frame %q", frame)
			}
		}
	})
}

// Whatever comes, a Reader gives bounded packets and comes to the end.
func FuzzReader(f *testing.F) {
	f.Add([]byte("+$qSupported#37-\x03$g#67"))
	f.Add([]byte("$0*~0*~0*~#0a"))
	f.Add([]byte("$$}}#*#00$#00#"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		const limit = 64
		r := rsp.NewReader(bytes.NewReader(wire), limit)
		var buf []byte
		for i := 0; ; i++ {
			kind, p, err := r.Next(buf)
			buf = p
			if err != nil {
				if err != io.EOF {
					t.Fatal(err)
				}
				return
			}
			if len(p) > limit || i > len(wire) {
				t.Fatalf("item %d: %d bytes", i, len(p))
			}
			if kind < rsp.Packet || kind > rsp.Oversize {
				t.Fatalf("kind %d", kind)
			}
		}
	})
}

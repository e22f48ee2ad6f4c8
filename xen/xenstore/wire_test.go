package xenstore

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessageWireForm(t *testing.T) {
	m := message{typ: typeRead, req: 0x01020304, tx: 5, payload: []byte("/a\x00")}
	want := []byte("\x02\x00\x00\x00\x04\x03\x02\x01\x05\x00\x00\x00\x03\x00\x00\x00/a\x00")
	if got := m.append(nil); !bytes.Equal(got, want) {
		t.Errorf("wire form %q, want %q", got, want)
	}
}

func TestReadMessageErrors(t *testing.T) {
	whole := message{typ: typeRead, payload: []byte("/a\x00")}.append(nil)
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"in the header", whole[:15], io.ErrUnexpectedEOF},
		{"after the header", whole[:16], io.ErrUnexpectedEOF},
		{"in the payload", whole[:18], io.ErrUnexpectedEOF},
		{"payload of 4097", append(bytes.Repeat([]byte{0}, 12), 0x01, 0x10, 0, 0), errMalformed},
		{"payload of 4 GiB", bytes.Repeat([]byte{0xff}, 16), errMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := readMessage(bytes.NewReader(tt.in)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := readMessage(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("end between messages: got %v, want io.EOF itself", err)
	}
}

func TestTerminated(t *testing.T) {
	tests := []struct {
		in   string
		want []string
		ok   bool
	}{
		{"", nil, true},
		{"a\x00", []string{"a"}, true},
		{"a\x00b\x00", []string{"a", "b"}, true},
		{"\x00", []string{""}, true},
		{"a", nil, false},
		{"a\x00b", nil, false},
	}
	for _, tt := range tests {
		got, err := terminated([]byte(tt.in))
		if (err == nil) != tt.ok || !cmp.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v", tt.in, got, err)
		}
	}
}

// FuzzReadMessage checks that what is accepted is written back byte for byte,
// and that nothing is accepted beyond the limits.
func FuzzReadMessage(f *testing.F) {
	f.Add(message{typ: typeRead, req: 1, payload: []byte("/local/domain/0/name\x00")}.append(nil))
	f.Add(message{typ: typeWatchEvent, payload: []byte("@releaseDomain\x001\x00")}.append(nil))
	f.Add(message{typ: typeError, req: 7, payload: []byte("ENOENT\x00")}.append(nil))
	f.Add(message{typ: typeDirectory, payload: bytes.Repeat([]byte("ab\x00"), 1365)}.append(nil))
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			start := len(in) - r.Len()
			m, err := readMessage(r)
			if err != nil {
				if m.payload != nil {
					t.Fatalf("a message with error %v", err)
				}
				return
			}
			if len(m.payload) > payloadMax {
				t.Fatalf("payload of %d bytes", len(m.payload))
			}
			if taken := in[start : len(in)-r.Len()]; !bytes.Equal(m.append(nil), taken) {
				t.Fatalf("read %q, would write %q", taken, m.append(nil))
			}
			if s, err := terminated(m.payload); err == nil && len(s) > 0 {
				if got := strings.Join(s, "\x00") + "\x00"; got != string(m.payload) {
					t.Fatalf("strings of %q: %q", m.payload, s)
				}
			}
			if named, malformed := replyError(m.payload); (named == nil) == (malformed == nil) {
				t.Fatalf("error reply %q: %v and %v", m.payload, named, malformed)
			}
		}
	})
}

// FuzzClient checks that no bytes from the other side make the client panic or
// leave a caller waiting once they end.
func FuzzClient(f *testing.F) {
	event := message{typ: typeWatchEvent, payload: []byte("/a/b\x001\x00")}.append(nil)
	f.Add(append(message{typ: typeWatch, req: 1, payload: []byte("OK\x00")}.append(nil), event...))
	f.Add(message{typ: typeError, req: 1, payload: []byte("EACCES\x00")}.append(nil))
	f.Add(message{typ: typeRead, req: 1}.append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := New(struct {
			io.Reader
			io.Writer
			io.Closer
		}{bytes.NewReader(in), io.Discard, io.NopCloser(nil)})
		defer c.Close()
		w, err := c.Watch(t.Context(), "/a")
		if err != nil {
			return
		}
		for {
			if _, err := w.Next(t.Context()); err != nil {
				return
			}
		}
	})
}

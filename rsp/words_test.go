package rsp

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// checkWords compares what looks at eight bytes at a time to what looks at one.
func checkWords(t *testing.T, p []byte) {
	t.Helper()
	marks := findSpecial(p)
	for i := range len(p) + 1 {
		want := i
		for want < len(p) && !special[p[want]] {
			want++
		}
		if got := marks.next(i); got != want {
			t.Errorf("%q: from %d on, the first special byte is at %d, not at %d", p, i, want, got)
		}
		checkAlike(t, p, i)
	}
	var total byte
	for _, c := range p {
		total += c
	}
	if got := sum(p); got != total {
		t.Errorf("%q: checksum %#x, want %#x", p, got, total)
	}
	// There and back, however the bytes come in.
	for _, frame := range [][]byte{AppendPacket(nil, p), AppendRequest(nil, p)} {
		for _, r := range []*Reader{
			NewReader(bytes.NewReader(frame), len(frame)+len(p)),
			NewReader(iotest.OneByteReader(bytes.NewReader(frame)), len(frame)+len(p)),
			NewReader(iotest.HalfReader(bytes.NewReader(frame)), len(frame)+len(p)),
		} {
			kind, got, err := r.Next(nil)
			if err != nil || kind != Packet || !bytes.Equal(got, p) {
				t.Errorf("%q: came back as kind %d, %q, %v", p, kind, got, err)
			}
		}
	}
}

// checkAlike compares alike to a look at each byte.
func checkAlike(t *testing.T, p []byte, i int) {
	t.Helper()
	// run is the length of the stretch that begins at a place.
	run := func(at int) int {
		n := 0
		for at+n < len(p) && p[at+n] == p[at] && !special[p[at]] {
			n++
		}
		return n
	}
	start, end := alike(p, i)
	if start < len(p) && (end-start <= minRun || run(start) != end-start) {
		t.Errorf("%q: from %d on, bytes %d to %d are alike?", p, i, start, end)
	}
	for at := i; at < start; at++ {
		if n := run(at); n > 2*minRun || n > minRun && at == i {
			t.Errorf("%q: from %d on, the %d bytes at %d were not found", p, i, n, at)
		}
	}
}

func TestWords(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	alphabets := []string{"\x00", "01", "ab#", "0*}$#", "\xff\x80\x7f\x23\x24\x2a\x7d\x22\x25"}
	for range 20000 {
		p := make([]byte, random.IntN(40))
		alphabet := alphabets[random.IntN(len(alphabets))]
		for i := range p {
			p[i] = alphabet[random.IntN(len(alphabet))]
		}
		checkWords(t, p)
	}
	for c := range 256 { // each byte at each place
		for at := range 20 {
			p := bytes.Repeat([]byte("ab"), 10)
			p[at] = byte(c)
			checkWords(t, p)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add([]byte("0123456789abcdef#$*}0000000000000"))
	f.Fuzz(checkWords)
}

func BenchmarkCodec(b *testing.B) {
	data := make([]byte, 128<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	var frame, payload []byte
	b.Run("append", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			frame = AppendPacket(frame[:0], data)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		src := bytes.NewReader(frame)
		r := NewReader(src, 1<<20)
		for b.Loop() {
			src.Reset(frame)
			_, payload, _ = r.Next(payload)
		}
	})
}

package xencore

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

// The documented cost of an index.
func TestRunSize(t *testing.T) {
	if n := reflect.TypeFor[run]().Size(); n != 16 {
		t.Errorf("%d bytes", n)
	}
}

func TestIndexRuns(t *testing.T) {
	var ix index
	for page := range uint32(1000) {
		if err := ix.add(0x5000+uint64(page), page); err != nil {
			t.Fatal(err)
		}
	}
	ix.finish()
	if len(ix) != 1 {
		t.Errorf("%d runs", len(ix))
	}
}

func TestIndexLimit(t *testing.T) {
	ix := make(index, maxRuns) // never touched, so never resident
	if err := ix.add(7, maxRuns); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// Against a table of all claims: every frame that was claimed has one of the
// pages that were claimed for it, and no other frame has any.
func TestIndexAgainstTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 6))
	for range 500 {
		const frames = 64
		var ix index
		claims := make(map[uint64]map[uint32]bool)
		frame := uint64(0)
		for page := range uint32(rng.IntN(100)) {
			switch rng.IntN(4) {
			case 0:
				frame = uint64(rng.IntN(frames))
			case 1:
				frame = noFrame
			default:
				frame++
			}
			if err := ix.add(frame, page); err != nil {
				t.Fatal(err)
			}
			if frame == noFrame {
				continue
			}
			if claims[frame] == nil {
				claims[frame] = make(map[uint32]bool)
			}
			claims[frame][page] = true
		}
		ix.finish()
		for frame := range uint64(2 * frames) {
			page, ok := ix.page(frame)
			if ok != (claims[frame] != nil) || ok && !claims[frame][page] {
				t.Fatalf("frame %d: page %d, %v of %v in %v", frame, page, ok, claims[frame], ix)
			}
		}
		for i := 1; i < len(ix); i++ {
			if ix[i].frame < ix[i-1].end() {
				t.Fatalf("runs overlap: %v", ix)
			}
		}
	}
}

// This file tests what is planted in a guest.

package guest_test

import (
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
)

// What was taken back while it was lifted is not planted again.
func TestReplantTakenBack(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	frame := f.pt.MapPage(text, pattern(1, xen.PageSize))
	g := f.attach(t)
	plant, err := g.Plant(0, text+5, []byte{guest.Int3})
	if err != nil {
		t.Fatal(err)
	}
	was := pattern(1, xen.PageSize)[5]
	for _, do := range []func() error{
		func() error { return g.Lift(plant) },
		g.Disarm,
		func() error { return g.Replant(plant) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if now := f.d.Frame(frame)[5]; now != was {
		t.Errorf("the guest has %#x there, had %#x", now, was)
	}
}

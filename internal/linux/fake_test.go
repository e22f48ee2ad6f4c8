package linux

import (
	"testing"

	"gdbserver-xen/internal/linux/linuxtest"
)

// fakeStack is where stacks are.
const fakeStack = 0xffffc90000004000

// foundKernel gives a kernel's image and what Find makes of it.
func foundKernel(t *testing.T, l linuxtest.Layout) (linuxtest.Space, *Kernel) {
	t.Helper()
	image := linuxtest.Image(l)
	k, err := Find(image, linuxtest.Function("leaf"))
	if err != nil {
		t.Fatal(err)
	}
	return image, k
}

// fakeData is a kernel of which there is only data.
type fakeData struct {
	*Kernel
	*linuxtest.Data
}

// newFakeData makes a kernel of a version.
func newFakeData(version string) *fakeData {
	d := &fakeData{Kernel: &Kernel{}}
	d.Data = linuxtest.NewData(version, func(name string, addr uint64) {
		d.symbols = append(d.symbols, symbol{addr: addr, kind: 'd', name: name})
	})
	return d
}

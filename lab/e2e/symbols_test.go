package e2e

import (
	"debug/elf"
	"sync"
	"testing"

	"gdbserver-xen/lab"
)

var symbolTables sync.Map // by path, map[string][]uint64

// symbolAddress gives the address of a function of a guest's kernel that was
// started with nokaslr, the first if there are several.
func symbolAddress(t *testing.T, h *lab.Host, name string) uint64 {
	t.Helper()
	return symbolAddresses(t, h, name)[0]
}

// symbolAddresses gives the addresses of all functions of a name.
func symbolAddresses(t *testing.T, h *lab.Host, name string) []uint64 {
	t.Helper()
	path := symbols(t, h)
	table, ok := symbolTables.Load(path)
	if !ok {
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		list, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		addresses := map[string][]uint64{}
		for _, s := range list {
			addresses[s.Name] = append(addresses[s.Name], s.Value)
		}
		table, _ = symbolTables.LoadOrStore(path, addresses)
	}
	found := table.(map[string][]uint64)[name]
	if len(found) == 0 {
		t.Fatalf("the kernel has no symbol %s", name)
	}
	return found
}

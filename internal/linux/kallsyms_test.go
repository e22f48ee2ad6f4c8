// This file tests tables of symbols that were made to cost much.

package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"gdbserver-xen/internal/linux/linuxtest"
)

// checkRefused finds no kernel in an image, for a reason, and with no more memory than
// that of any kernel whose tables are damaged.
func checkRefused(t *testing.T, image []byte, reason string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Find(linuxtest.Space{Addr: linuxtest.Base, Bytes: image}, linuxtest.Base)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrNotLinux) || !strings.Contains(fmt.Sprint(err), reason) {
		t.Errorf("got %v, want %s", err, reason)
	}
	if size := after.TotalAlloc - before.TotalAlloc; size > mostDamage+uint64(len(image)) {
		t.Errorf("%d MB were allocated", size>>20)
	}
}

// Where each word may be the number of symbols, and names follow each, the search ends.
func TestManyTables(t *testing.T) {
	// A number of 327,681, or two names of one and five tokens.
	image := bytes.Repeat([]byte{1, 0, 5, 0, 0, 0, 0, 0}, namesMost/8)
	image = append(image, linuxtest.Tokens(map[byte]string{0: "Tx"})...)
	checkRefused(t, image, fmt.Sprintf("%d of what may be names", mostWalked))
}

// manyNames makes an image with n names, all of the same tokens.
func manyNames(n int, name []byte, given map[byte]string) []byte {
	image := binary.LittleEndian.AppendUint64(nil, uint64(n))
	one := append([]byte{byte(len(name))}, name...)
	image = append(image, bytes.Repeat(one, n)...)
	image = append(image, make([]byte, -len(image)&7)...)
	for i := 0; i < n; i += perMarker {
		image = binary.LittleEndian.AppendUint32(image, uint32(i*len(one)))
	}
	image = append(image, make([]byte, -len(image)&7)...)
	return append(image, linuxtest.Tokens(given)...)
}

// Names that are more than a kernel has are not expanded.
func TestLongNames(t *testing.T) {
	const n = 2_000_000
	long := map[byte]string{0: "T" + strings.Repeat("x", 92)}
	checkRefused(t, manyNames(n, make([]byte, 11), long), fmt.Sprintf("its %d names have %d bytes", n, n*11*93))
	checkRefused(t, manyNames(n, make([]byte, 2), map[byte]string{0: "Tx"}), fmt.Sprintf("its %d names have no addresses", n))
	checkRefused(t, manyNames(leastSymbols, make([]byte, 12), long), "one has 1116 bytes")
	checkRefused(t, manyNames(leastSymbols, make([]byte, 1), map[byte]string{0: "T"}), "one has 1 bytes")
}

// Functions of which very many are at one address cost no more than others.
func TestSameAddress(t *testing.T) {
	const n = 1 << 19
	k := &Kernel{code: []extent{{linuxtest.Base, linuxtest.Base + pageSize}}}
	add := func(addr uint64, name string) {
		k.text = append(k.text, len(k.symbols))
		k.symbols = append(k.symbols, symbol{addr: addr, kind: 't', name: name})
	}
	const same = linuxtest.Base + 0x10
	add(linuxtest.Base, "before")
	add(same, "first")
	for range n {
		add(same, "another")
	}
	add(same, "__switch_to_asm")
	add(same, "__switch_to_asm")
	add(same+8, "behind")
	specials := k.findSpecials(linuxtest.Spaces{})
	if len(specials) != 1 || specials[0].extent != (extent{same, same + 8}) {
		t.Errorf("specials are %+v", specials)
	}
	looked := 0
	name, offset, ok := findFunction(len(k.text), func(i int) *symbol { looked++; return &k.symbols[i] }, same+1)
	if name != "first" || offset != 1 || !ok {
		t.Errorf("found %s+%d, %v", name, offset, ok)
	}
	if looked > 100 {
		t.Errorf("looked at %d functions", looked)
	}
}

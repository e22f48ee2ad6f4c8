// This file finds a kernel in memory.

package linux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// What is missing in a guest. Everything that does not need it works all the same.
var (
	// ErrNotLinux says that no kernel was found.
	ErrNotLinux = errors.New("no Linux kernel with kallsyms was found in the guest's memory")
	// ErrNoKallsyms is ErrNotLinux where there is an image, but none with symbols.
	ErrNoKallsyms = fmt.Errorf("%w: what is in place of one has no symbols", ErrNotLinux)
	// ErrNoORC says that a kernel has no tables to unwind stacks by.
	ErrNoORC = errors.New("the guest's kernel has no ORC tables (CONFIG_UNWINDER_ORC)")
)

// Memory is a guest's memory by virtual address, as its kernel sees it.
type Memory interface {
	// Read reads up to the first byte that cannot be had, and gives an error only
	// if that is the first one.
	Read(addr uint64, p []byte) (int, error)
}

// A symbol is a name of the kernel's, as in /proc/kallsyms.
type symbol struct {
	addr uint64
	kind byte // as nm prints it
	name string
}

func (s *symbol) isText() bool { return strings.IndexByte("tTwW", s.kind) >= 0 }

// A Kernel is a Linux kernel in a guest's memory.
type Kernel struct {
	// Banner is what the kernel says of itself, as in /proc/version.
	Banner string

	symbols []symbol // by address
	text    []int    // those that are code
	code    []extent // where code is
	orc     *orc     // nil: none,
	noORC   error    // for this reason
	buildID []byte   // nil: none
	slide   uint64   // how far KASLR has moved it

	specials []special // code of which ORC does not tell all

	frames []byte // what call-frame information says of it, once it was made

	btf       *btf       // its types; nil: none, or not asked for yet
	offsets   offsets    // of structures, once they were asked for
	noOffsets error      // why there are none
	vmcore    VMCoreInfo // nil: none, or not asked for yet
	noVMCore  error      // why there is none
	modules   []*Module
	// moduleTypes are the struct btf of modules, by their struct module; nil: not
	// asked for yet.
	moduleTypes map[uint64]uint64
	moduleCode  []codePiece // by address
	mem         Memory      // what the modules are read from
	room        uint64      // bytes that more of their tables may have
}

// extent is from an address to before another.
type extent struct{ first, end uint64 }

// Where an x86-64 kernel can be (Linux, Documentation/arch/x86/x86_64/mm.rst).
const (
	imageFirst = 0xffffffff80000000
	imageEnd   = 0xffffffffc0000000
	imageAlign = 2 << 20
	// imageMost is how much of an image is looked at.
	imageMost = 96 << 20
	// holeMost is more than there is between the parts of an image.
	holeMost = 8 << 20
	pageSize = 4096
)

// Find looks for a kernel around an address that is in its code, as a trap
// handler's. It reads some 30 MB.
func Find(mem Memory, inside uint64) (*Kernel, error) {
	if inside < imageFirst || inside >= imageEnd {
		return nil, fmt.Errorf("%w: %#x is not where a kernel is", ErrNotLinux, inside)
	}
	first := inside &^ (imageAlign - 1)
	for first > imageFirst && inside-first < imageMost && readable(mem, first-pageSize) {
		first -= imageAlign
	}
	symbols, err := findSymbols(mem, first)
	if err != nil {
		return nil, err
	}
	k := &Kernel{symbols: symbols}
	for i := range k.symbols {
		if k.symbols[i].isText() {
			k.text = append(k.text, i)
		}
	}
	for _, names := range [][2]string{{"_text", "_etext"}, {"_sinittext", "_einittext"}} {
		first, ok1 := k.Lookup(names[0])
		end, ok2 := k.Lookup(names[1])
		if ok1 && ok2 {
			k.code = append(k.code, extent{first, end})
		}
	}
	if at, ok := k.Lookup("linux_banner"); ok {
		b := make([]byte, bannerSize)
		n, _ := mem.Read(at, b)
		k.Banner = banner(b[:n])
	}
	k.findBuildID(mem)
	k.findSlide(mem)
	k.orc, k.noORC = k.findORC(mem)
	if k.orc != nil {
		k.specials = k.findSpecials(mem)
	}
	return k, nil
}

// Missing tells what the kernel does not say of itself, as far as it was looked for:
// errors that are ErrNoORC, ErrNoBTF or ErrNoVMCoreInfo.
func (k *Kernel) Missing() []error {
	var list []error
	for _, err := range []error{k.noORC, k.noOffsets, k.noVMCore} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// bannerSize is more than a banner has.
const bannerSize = 512

// banner reads the line that a kernel says of itself.
func banner(b []byte) string {
	line, _, _ := bytes.Cut(b, []byte("\x00"))
	return printable(string(bytes.TrimSpace(line)))
}

// printable makes text of a guest's fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func readable(mem Memory, addr uint64) bool {
	var b [1]byte
	n, err := mem.Read(addr, b[:])
	return err == nil && n == 1
}

// Lookup gives the address of a name, the first of several.
func (k *Kernel) Lookup(name string) (uint64, bool) {
	i := slices.IndexFunc(k.symbols, func(s symbol) bool { return s.name == name })
	if i < 0 {
		return 0, false
	}
	return k.symbols[i].addr, true
}

// Function gives the function that an address is in, the first of those names if
// it has several, and how far into it the address is. Those of modules are known
// once Modules was called.
func (k *Kernel) Function(addr uint64) (name string, offset uint64, ok bool) {
	if k.isText(addr) {
		return findFunction(len(k.text), func(i int) *symbol { return &k.symbols[k.text[i]] }, addr)
	}
	if m := k.module(addr); m != nil {
		return findFunction(len(m.symbols), func(i int) *symbol { return &m.symbols[i] }, addr)
	}
	return "", 0, false
}

// findFunction looks for the function of an address among n, which are in order.
func findFunction(n int, at func(i int) *symbol, addr uint64) (name string, offset uint64, ok bool) {
	i := sort.Search(n, func(i int) bool { return at(i).addr > addr }) - 1
	if i < 0 {
		return "", 0, false
	}
	begin := at(i).addr
	i = sort.Search(i, func(i int) bool { return at(i).addr == begin })
	return at(i).name, addr - at(i).addr, true
}

// Place says what function a frame is in, as "vfs_read+0x9b" or, for a module's,
// "ppp_open+0x12 [ppp_generic]".
func (k *Kernel) Place(f Frame) (text string, ok bool) {
	name, offset, ok := k.Function(f.Place())
	if !ok || f.UserMode {
		return "", false
	}
	text = fmt.Sprintf("%s+%#x", name, offset+f.RIP-f.Place())
	if m := k.module(f.Place()); m != nil {
		text += " [" + m.Name + "]"
	}
	return text, true
}

// Sees tells whether this kernel is what is in some memory.
func (k *Kernel) Sees(mem Memory) bool {
	at, ok := k.Lookup("linux_banner")
	if !ok {
		return false
	}
	b := make([]byte, bannerSize)
	n, _ := mem.Read(at, b)
	return n > 0 && banner(b[:n]) == k.Banner
}

// isText tells whether an address is in the kernel's own code, not a module's.
func (k *Kernel) isText(addr uint64) bool {
	return within(k.code, addr)
}

// readSparse reads memory, with zeros where there is none, and tells whether there
// is any.
func readSparse(mem Memory, addr uint64, p []byte) (found bool) {
	for done := 0; done < len(p); {
		n, err := mem.Read(addr+uint64(done), p[done:])
		if err == nil && n > 0 {
			done += n
			found = true
			continue
		}
		done += pageSize - int((addr+uint64(done))%pageSize)
	}
	return found
}

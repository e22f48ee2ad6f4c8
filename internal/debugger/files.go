// This file gives clients the kernel of a Linux guest and its modules as files, made
// of what the guest says of itself: symbols without a symbol file, stacks without
// gaps, and where KASLR has put the kernel.

package debugger

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"path"
	"slices"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/internal/linux"
	"gdbserver-xen/rsp"
)

// Names of the files, before the kernel's release.
const (
	executableName = "vmlinux-"
	framesName     = "frames-"
)

// fileName names a file of a kernel. gdb prints the name if the file that its user
// has given it is another build's, so the identification is in it. A client that
// looks for it on its own machine finds nothing.
func fileName(k *linux.Kernel, name string) string {
	return path.Join("/gdbserver-xen", k.BuildID(), name+path.Base(k.Release()))
}

// executableFileName names the kernel's own file: with the package, too, that has the
// right one, if it is known.
func executableFileName(k *linux.Kernel) string {
	dir, file := path.Split(fileName(k, executableName))
	return path.Join(dir, path.Base(k.SymbolPackage()), file)
}

// kernelFiles makes files of the kernel of a guest, once they are asked for.
type kernelFiles struct {
	log     *slog.Logger
	find    func() (*linux.Kernel, linux.Memory, error)
	asked   bool          // at this stop
	of      *linux.Kernel // nil: none was found,
	missing error         // for this reason
	mem     linux.Memory  // what it is in, at this stop; nil: no vCPU sees it
	named   bool          // the client has asked for the name of its file, and not opened that since
	*made                 // of it; nil: there is none
}

// made are the files of one kernel.
type made struct {
	executable []byte            // with types; nil: not made yet
	symbols    int               // who reads its symbols reads this byte of it
	symbolised bool              // the client has read them
	frames     []byte            // nil: not made yet, or the kernel does not say
	keeps      bool              // what they were made with
	listed     bool              // the modules, at this stop
	modules    map[string][]byte // those that were listed last, by name
	libraries  []rsp.Library     // these, in order
}

// resumed notes that the guest runs, and may have another kernel or other modules at the
// next stop.
func (f *kernelFiles) resumed() {
	f.asked = false
	if f.made != nil {
		f.listed = false
	}
}

// known gives the kernel, looking for it once at each stop.
func (f *kernelFiles) known() (*linux.Kernel, error) {
	if !f.asked {
		f.asked = true
		k, mem, err := f.find()
		switch f.mem = mem; {
		case err != nil:
			f.missing = err
		case k != f.of:
			f.of, f.made = k, &made{}
		}
	}
	if f.of == nil {
		return nil, f.missing
	}
	return f.of, nil
}

// Executable names the kernel.
func (f *kernelFiles) Executable() (string, error) {
	k, err := f.known()
	if err != nil {
		return "", err
	}
	f.named = true
	return executableFileName(k), nil
}

// Relocation tells where the kernel is.
func (f *kernelFiles) Relocation() (r rsp.Relocation, ok bool) {
	k, err := f.known()
	if err != nil {
		return r, false
	}
	first, ok := k.Base()
	return rsp.Relocation{First: first, Slide: k.Slide(), BuildID: k.BuildID()}, ok
}

// Libraries gives how to unwind the kernel's stacks, and the modules that there are now,
// or were when a vCPU last saw the kernel. A client that has a symbol file of its own
// looks there first, and here for assembly, of which that says nothing.
func (f *kernelFiles) Libraries() ([]rsp.Library, error) {
	k, err := f.known()
	if err != nil {
		return nil, nil
	}
	var list []rsp.Library
	if keeps := !f.symbolised; f.frames == nil || keeps != f.keeps {
		f.frames, f.keeps = k.FrameInfo(keeps), keeps
	}
	if f.frames != nil {
		list = append(list, rsp.Library{Name: fileName(k, framesName), Sections: []uint64{0}})
	}
	if !f.listed && f.mem != nil {
		f.listModules()
	}
	return append(list, f.libraries...), nil
}

// listModules makes files of the modules.
func (f *kernelFiles) listModules() {
	modules, err := f.of.Modules(f.mem)
	if err != nil && !errors.Is(err, linux.ErrNoBTF) { // which monitor caps tells
		f.log.Warn("the list of modules is not whole", "err", err)
	}
	f.listed, f.modules, f.libraries = true, map[string][]byte{}, nil
	for _, m := range modules {
		addr, ok := m.Address()
		if !ok {
			continue
		}
		file, sections := f.of.File(m)
		name := moduleName(f.of, m, addr, file)
		f.modules[name] = file
		f.libraries = append(f.libraries, rsp.Library{Name: name, Sections: slices.Repeat([]uint64{addr}, sections)})
	}
}

// moduleName names the file of a module, by its address and by what is in it too: gdb
// takes what has the same name for the same, and a module that was built anew is often
// loaded where it was before.
func moduleName(k *linux.Kernel, m *linux.Module, addr uint64, file []byte) string {
	load := fmt.Sprintf("%x-%08x", addr, crc32.ChecksumIEEE(file))
	return path.Join("/gdbserver-xen", k.BuildID(), load, path.Base(m.Name)+".ko")
}

// OpenFile opens one of these files.
func (f *kernelFiles) OpenFile(name string) (rsp.File, error) {
	if k := f.of; k != nil {
		switch {
		case name == executableFileName(k):
			return f.openExecutable(k), nil
		case name == fileName(k, framesName) && f.frames != nil:
			return bytes.NewReader(f.frames), nil
		}
		if file, ok := f.modules[name]; ok {
			return bytes.NewReader(file), nil
		}
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// openExecutable opens the kernel's own file. gdb does so when it has asked for the name, to
// see the sections and which build it is, and once more, to read symbols, if its user has
// given it no file. So the first has no types, which take long to make, but names all the
// same, for a client that opens it once.
func (f *kernelFiles) openExecutable(k *linux.Kernel) *executable {
	types := !f.named
	f.named = false
	file, symbols := f.executable, f.symbols
	if file == nil {
		file, symbols = k.Executable(types)
	}
	if types {
		f.executable, f.symbols = file, symbols
	}
	return &executable{bytes.NewReader(file), int64(symbols), f.made}
}

// executable is the kernel as a file that a client has open.
type executable struct {
	*bytes.Reader
	symbols int64 // who reads its symbols reads this byte
	files   *made
}

// ReadAt reads, and notes if it is symbols. gdb reads the build's identification,
// too, of a kernel whose symbol file its user has given it.
func (e *executable) ReadAt(p []byte, at int64) (int, error) {
	if at <= e.symbols && e.symbols-at < int64(len(p)) {
		e.files.symbolised = true
	}
	return e.Reader.ReadAt(p, at)
}

// kernelCapabilities tells which kernel a guest has, where its symbols are, and what
// it does not say of itself.
func kernelCapabilities(k *linux.Kernel, err error) []guest.Capability {
	if err != nil {
		return []guest.Capability{{Name: "kernel", Detail: err.Error()}}
	}
	cs := []guest.Capability{
		{Name: "kernel", Can: true, Detail: k.Banner},
		{Name: "symbols", Can: true, Detail: "names from the guest's memory; lines and types from the kernel's symbol file"},
	}
	if k.KnowsTypes() {
		cs[1].Detail = "names and types from the guest's memory; lines from the kernel's symbol file"
	}
	if id := k.BuildID(); id != "" {
		cs[0].Detail += ", build id " + id
	}
	if p := k.SymbolPackage(); p != "" {
		cs[1].Detail += ", in package " + p
	}
	if slide := k.Slide(); slide != 0 {
		cs[1].Detail += fmt.Sprintf("; KASLR has moved the kernel, so in gdb, once it is connected, load it with `symbol-file -o %#x FILE`", slide)
	}
	for _, err := range k.Missing() {
		c := guest.Capability{Name: "structures", Detail: err.Error()}
		switch {
		case errors.Is(err, linux.ErrNoORC):
			c.Name = "stacks"
		case errors.Is(err, linux.ErrNoVMCoreInfo):
			c.Name = "crash information"
		}
		cs = append(cs, c)
	}
	return cs
}

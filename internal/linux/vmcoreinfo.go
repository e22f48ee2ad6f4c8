// This file reads VMCOREINFO, what a kernel tells readers of its crash dumps
// (Documentation/admin-guide/kdump/vmcoreinfo.rst in Linux): lines of KEY=VALUE.

package linux

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNoVMCoreInfo says that a kernel has no VMCOREINFO.
var ErrNoVMCoreInfo = errors.New("the guest's kernel has no VMCOREINFO (CONFIG_VMCORE_INFO, before Linux 6.9 CONFIG_CRASH_CORE)")

// mostVMCoreInfo is more than there is. Kernels have a page or two.
const mostVMCoreInfo = 64 << 10

// VMCoreInfo is what a kernel tells readers of its crash dumps.
type VMCoreInfo map[string]string

// parseVMCoreInfo reads lines. The first of several with one key counts.
func parseVMCoreInfo(text string) VMCoreInfo {
	info := VMCoreInfo{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if _, twice := info[key]; ok && !twice {
			info[printable(key)] = printable(value)
		}
	}
	return info
}

// VMCoreInfo gives the kernel's VMCOREINFO, read once.
func (k *Kernel) VMCoreInfo(mem Memory) (VMCoreInfo, error) {
	if k.vmcore == nil && k.noVMCore == nil {
		k.vmcore, k.noVMCore = k.readVMCoreInfo(mem)
	}
	return k.vmcore, k.noVMCore
}

func (k *Kernel) readVMCoreInfo(mem Memory) (VMCoreInfo, error) {
	at, ok1 := k.Lookup("vmcoreinfo_data")
	size, ok2 := k.Lookup("vmcoreinfo_size")
	if !ok1 || !ok2 {
		return nil, ErrNoVMCoreInfo
	}
	data, err := readWord(mem, at)
	if err != nil {
		return nil, fmt.Errorf("%w that can be read: %w", ErrNoVMCoreInfo, err)
	}
	n, err := readWord(mem, size)
	if err == nil && n > mostVMCoreInfo {
		err = fmt.Errorf("it has %d bytes", n)
	}
	text := make([]byte, min(n, mostVMCoreInfo))
	if err == nil {
		err = readFull(mem, data, text)
	}
	if err != nil {
		return nil, fmt.Errorf("%w that can be read: %w", ErrNoVMCoreInfo, err)
	}
	return parseVMCoreInfo(string(text)), nil
}

// Symbol gives the address of a symbol.
func (v VMCoreInfo) Symbol(name string) (uint64, bool) { return v.number("SYMBOL", name, 16) }

// Size gives the size of a structure.
func (v VMCoreInfo) Size(name string) (uint64, bool) { return v.number("SIZE", name, 10) }

// Offset gives the offset of a member, as "prb_desc.state_var".
func (v VMCoreInfo) Offset(member string) (uint64, bool) { return v.number("OFFSET", member, 10) }

func (v VMCoreInfo) number(what, name string, base int) (uint64, bool) {
	n, err := strconv.ParseUint(v[what+"("+name+")"], base, 64)
	return n, err == nil
}

// offsets gives what VMCOREINFO knows of keys that btf.lookup has as well.
func (v VMCoreInfo) offsets(keys []string) offsets {
	o := offsets{}
	for _, key := range keys {
		n, ok := v.Size(key)
		if strings.Contains(key, ".") {
			n, ok = v.Offset(key)
		}
		if ok {
			o[key] = n
		}
	}
	return o
}

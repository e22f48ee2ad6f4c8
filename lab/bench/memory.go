package bench

// A target that is nothing but memory, for the protocol alone.

import (
	"context"
	"fmt"

	"gdbserver-xen/rsp"
)

// Memory is an rsp.Target of one thread that stands still: bytes at an address.
type Memory struct {
	Addr uint64
	Data []byte
}

var _ rsp.Target = (*Memory)(nil)

// memoryThread is the one thread.
var memoryThread = rsp.ThreadID{PID: 1, TID: 1}

// Description gives the registers of x86-64 that every client knows.
func (m *Memory) Description() *rsp.Description {
	f := rsp.Feature{Name: "org.gnu.gdb.i386.core"}
	for _, name := range []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"} {
		f.Registers = append(f.Registers, rsp.Register{Name: name, Bits: 64, Type: "int64"})
	}
	f.Registers = append(f.Registers, rsp.Register{Name: "rip", Bits: 64, Type: "code_ptr"})
	return &rsp.Description{Architecture: "i386:x86-64", Features: []rsp.Feature{f}}
}

// Threads gives the one thread.
func (m *Memory) Threads() ([]rsp.Thread, error) {
	return []rsp.Thread{{ID: memoryThread, Name: "memory"}}, nil
}

// ReadRegisters gives zeros.
func (m *Memory) ReadRegisters(_ rsp.ThreadID, regs *rsp.Registers) error {
	for i := range regs.Len() {
		regs.SetUint(i, 0)
	}
	return nil
}

// WriteRegisters refuses.
func (m *Memory) WriteRegisters(rsp.ThreadID, *rsp.Registers) error { return rsp.ErrNotSupported }

// at gives the bytes from an address on.
func (m *Memory) at(addr uint64) ([]byte, error) {
	if addr < m.Addr || addr-m.Addr >= uint64(len(m.Data)) {
		return nil, fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr)
	}
	return m.Data[addr-m.Addr:], nil
}

// ReadMemory reads up to the end.
func (m *Memory) ReadMemory(_ rsp.ThreadID, addr uint64, p []byte) (int, error) {
	data, err := m.at(addr)
	return copy(p, data), err
}

// WriteMemory writes all or nothing.
func (m *Memory) WriteMemory(_ rsp.ThreadID, addr uint64, p []byte) error {
	data, err := m.at(addr)
	if err == nil && len(data) < len(p) {
		err = fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr+uint64(len(data)))
	}
	if err == nil {
		copy(data, p)
	}
	return err
}

// Stop gives the stop that it has always been in.
func (m *Memory) Stop() rsp.StopReply { return rsp.StopReply{Signal: 5, Thread: memoryThread} }

// Resume refuses.
func (m *Memory) Resume([]rsp.Action) error { return rsp.ErrNotSupported }

// Wait waits for nothing.
func (m *Memory) Wait(ctx context.Context) (rsp.StopReply, error) {
	<-ctx.Done()
	return rsp.StopReply{}, ctx.Err()
}

// Interrupt does nothing: it stands still.
func (m *Memory) Interrupt() error { return nil }

// Detach does nothing.
func (m *Memory) Detach() error { return nil }

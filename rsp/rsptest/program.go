// This file makes the fake target execute a program: enough of one for a real
// debugger to set breakpoints, step and watch in.

package rsptest

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"encoding/binary"
	"fmt"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/agent"
)

//go:embed testdata/program.elf
var programELF []byte

// ProgramFile is the program of NewProgram, with its symbols, seen from this
// package.
const ProgramFile = "testdata/program.elf"

// Addresses in the program.
const (
	Bump    = Text + 0x24
	Counter = Text + 0x1000 // that bump increments and reads
	Rounds  = Text + 0x1008
)

// NewProgram returns a stopped target whose n threads are about to execute the
// program in testdata/program.s, each on a stack of its own. The threads that
// move execute one instruction each in turn. Breakpoints and watchpoints stop
// it; Stops is not used.
func NewProgram(n int) *Target {
	t := NewTarget(n)
	t.program = true
	f, err := elf.NewFile(bytes.NewReader(programELF))
	if err != nil {
		panic(err)
	}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Size == 0 {
			continue
		}
		data, err := s.Data()
		if err != nil {
			panic(err)
		}
		copy(t.find(s.Addr), data)
	}
	for i := range t.threads {
		c := cpu{t: t, thread: i}
		c.set("rip", f.Entry)
		c.set("rsp", Stack+0x400*uint64(i+1))
		c.set("rbp", 0)
	}
	return t
}

// A cpu executes instructions for a thread of a target.
type cpu struct {
	t      *Target
	thread int
	// What an instruction has read or written beside the stack.
	accessed uint64
	read     bool
	written  bool
}

func (c *cpu) get(name string) uint64 {
	i, _ := c.t.regs[c.thread].Index(name)
	v, _ := c.t.regs[c.thread].Uint(i)
	return v
}

func (c *cpu) set(name string, v uint64) {
	i, _ := c.t.regs[c.thread].Index(name)
	c.t.regs[c.thread].SetUint(i, v)
}

func (c *cpu) push(v uint64) {
	sp := c.get("rsp") - 8
	c.set("rsp", sp)
	binary.LittleEndian.PutUint64(c.t.find(sp), v)
}

func (c *cpu) pop() uint64 {
	sp := c.get("rsp")
	c.set("rsp", sp+8)
	return binary.LittleEndian.Uint64(c.t.find(sp))
}

// step executes one instruction, of those that the program has. It reports
// whether it has: a thread whose instruction is another one, or hlt, is idle.
func (c *cpu) step() bool {
	const zeroFlag = 1 << 6
	pc := c.get("rip")
	code := c.t.find(pc)
	is := func(bytes ...byte) bool { return len(code) >= 16 && string(code[:len(bytes)]) == string(bytes) }
	next := func(n uint64) { c.set("rip", pc+n) }
	// operand is the 32-bit number that ends an instruction of n bytes.
	operand := func(n uint64) uint64 { return uint64(int64(int32(binary.LittleEndian.Uint32(code[n-4:])))) }
	switch {
	case is(0x90): // nop
		next(1)
	case is(0x55): // push %rbp
		c.push(c.get("rbp"))
		next(1)
	case is(0x5d): // pop %rbp
		c.set("rbp", c.pop())
		next(1)
	case is(0x48, 0x89, 0xe5): // mov %rsp, %rbp
		c.set("rbp", c.get("rsp"))
		next(3)
	case is(0xe8): // call
		c.push(pc + 5)
		next(5 + operand(5))
	case is(0xc3): // ret
		c.set("rip", c.pop())
	case is(0xb9): // mov $n, %ecx
		c.set("rcx", operand(5))
		next(5)
	case is(0xff, 0xc9): // dec %ecx
		ecx := uint64(uint32(c.get("rcx")) - 1)
		c.set("rcx", ecx)
		flags := c.get("eflags") &^ zeroFlag
		if ecx == 0 {
			flags |= zeroFlag
		}
		c.set("eflags", flags)
		next(2)
	case is(0x75) && c.get("eflags")&zeroFlag == 0, is(0xeb): // jnz, jmp
		next(2 + uint64(int64(int8(code[1]))))
	case is(0x75):
		next(2)
	case is(0x48, 0xff, 0x05), is(0x48, 0x8b, 0x05): // incq, mov to %rax, at an offset from %rip
		c.accessed, c.read, c.written = pc+7+operand(7), true, code[1] == 0xff
		cell := c.t.find(c.accessed)
		v := binary.LittleEndian.Uint64(cell)
		if c.written {
			binary.LittleEndian.PutUint64(cell, v+1)
		} else {
			c.set("rax", v)
		}
		next(7)
	default:
		return false
	}
	return true
}

// Machine returns a thread, from 1, for agent expressions to be evaluated over
// while the target is not served.
func (t *Target) Machine(tid int) agent.Machine { return &cpu{t: t, thread: tid - 1} }

// Register implements agent.Machine.
func (c *cpu) Register(n int) (uint64, error) {
	r := c.t.regs[c.thread]
	if n >= r.Len() || r.Size(n) > 8 {
		return 0, fmt.Errorf("register %d is no number", n)
	}
	v, known := r.Uint(n)
	if !known {
		return 0, fmt.Errorf("register %d is not known", n)
	}
	return v, nil
}

// ReadMemory implements agent.Machine.
func (c *cpu) ReadMemory(addr uint64, p []byte) error {
	if n := c.t.read(addr, p); n < len(p) {
		return fmt.Errorf("%w: %#x", rsp.ErrUnmapped, addr+uint64(n))
	}
	return nil
}

// execute lets the program run until it has to stop.
func (t *Target) execute(ctx context.Context) (rsp.StopReply, error) {
	for {
		select {
		case <-t.interrupted:
			return rsp.StopReply{Signal: 2, Thread: t.threads[0].ID}, nil
		case <-ctx.Done():
			return rsp.StopReply{}, ctx.Err()
		default:
		}
		for i := range t.threads {
			stop, ok := t.turn(i)
			if ok {
				return stop, nil
			}
		}
	}
}

// turn lets one thread execute one instruction, if it is to move. It reports
// whether that stops the target.
func (t *Target) turn(thread int) (rsp.StopReply, bool) {
	c := cpu{t: t, thread: thread}
	stop := rsp.StopReply{Signal: 5, Thread: t.threads[thread].ID, Expedite: []int{16, 7, 6}}
	act := rsp.ActionFor(t.actions, stop.Thread)
	if act.Kind == rsp.Halt {
		return stop, false
	}
	for _, kind := range []rsp.BreakpointKind{rsp.SoftwareBreakpoint, rsp.HardwareBreakpoint} {
		b, ok := t.breakpoints[rsp.Place{Kind: kind, Addr: c.get("rip"), Size: 1}]
		if ok && t.hit(&b, &c) {
			stop.Cause = kind
			return stop, true
		}
	}
	moved := c.step()
	if b, ok := c.watched(); ok {
		stop.Cause, stop.WatchAddr = b.Kind, c.accessed
		return stop, true
	}
	if !moved {
		return stop, false
	}
	switch pc := c.get("rip"); act.Kind {
	case rsp.Step:
		return stop, true
	case rsp.StepRange:
		return stop, pc < act.Start || pc >= act.End
	}
	return stop, false
}

// watched returns the first watchpoint that the last instruction has hit.
func (c *cpu) watched() (rsp.Breakpoint, bool) {
	if !c.read {
		return rsp.Breakpoint{}, false
	}
	for _, b := range c.t.Breakpoints() {
		inside := c.accessed >= b.Addr && c.accessed-b.Addr < uint64(b.Size)
		fires := b.Kind == rsp.Watch && c.written || b.Kind == rsp.ReadWatch && !c.written || b.Kind == rsp.AccessWatch
		if fires && inside {
			return b, true
		}
	}
	return rsp.Breakpoint{}, false
}

// hit reports whether a thread that hits a breakpoint stops the target.
func (t *Target) hit(b *rsp.Breakpoint, c *cpu) bool {
	stop, err := b.Hit(c, t.Say)
	if err != nil {
		t.Say(err.Error() + "\n")
	}
	return stop
}

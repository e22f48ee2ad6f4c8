// Package agent is GDB's agent expressions: the bytecode in which gdb sends the
// conditions of breakpoints, and the format and arguments of dprintf, to be
// evaluated where the target is (GDB manual, appendix "The GDB Agent Expression
// Mechanism").
//
// Parse checks all that can be known beforehand: that the bytecode is whole,
// where jumps go, how deep the stack is at each instruction. What is left to go
// wrong in Eval is registers and memory that cannot be read, a division by
// zero, and bytecode that does not come to an end.
package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Bounds on what a client may send. Jumps have 16 bits, so that gdb sends no
// longer expressions either.
const (
	maxSize  = 1 << 16 // of an expression, in bytes
	maxStack = 256     // what pick can reach
)

var (
	// ErrUnsupported says that an expression needs what there is none of here:
	// floating point, or tracepoints.
	ErrUnsupported = errors.New("unsupported agent expression")

	errInvalid = errors.New("invalid agent expression")
)

// An Expr is an expression that has been checked. Two can be compared by ==.
type Expr struct{ code string }

// Parse checks bytecode and makes an expression of it.
func Parse(code []byte) (Expr, error) {
	if len(code) > maxSize {
		return Expr{}, fmt.Errorf("%w: %d bytes are more than %d", errInvalid, len(code), maxSize)
	}
	e := Expr{string(code)}
	starts, err := e.scan()
	if err != nil {
		return Expr{}, err
	}
	if err := e.checkStack(starts); err != nil {
		return Expr{}, err
	}
	return e, nil
}

// String returns the instructions, as in "reg 5; const8 7; equal; end".
func (e Expr) String() string {
	var b strings.Builder
	for pc := 0; pc < len(e.code); {
		in, err := e.decode(pc)
		if err != nil {
			return err.Error() // not from Parse
		}
		if pc > 0 {
			b.WriteString("; ")
		}
		b.WriteString(in.name)
		switch {
		case in.op == opPrintf:
			fmt.Fprintf(&b, " %d %q", in.operand, in.format)
		case in.operandSize > 0:
			fmt.Fprintf(&b, " %d", in.operand)
		}
		pc = in.next
	}
	return b.String()
}

// An instruction of an expression.
type instruction struct {
	opcode
	op      byte
	operand uint64
	format  string // of printf
	pops    int
	next    int // where the next one begins
}

// decode reads the instruction at pc.
//
// Preconditions: pc is inside of the code.
func (e Expr) decode(pc int) (instruction, error) {
	op := e.code[pc]
	if int(op) >= len(opcodes) || opcodes[op].name == "" {
		return instruction{}, fmt.Errorf("%w: opcode %#02x at %d", errInvalid, op, pc)
	}
	in := instruction{opcode: opcodes[op], op: op}
	if in.unsupported != "" {
		return in, fmt.Errorf("%w: %s (%s)", ErrUnsupported, in.unsupported, in.name)
	}
	in.pops = in.consumes
	rest := e.code[pc+1:]
	if len(rest) < in.operandSize {
		return in, fmt.Errorf("%w: %s at %d is cut off", errInvalid, in.name, pc)
	}
	for i := range in.operandSize {
		in.operand = in.operand<<8 | uint64(rest[i])
	}
	in.next = pc + 1 + in.operandSize
	if op != opPrintf {
		return in, nil
	}
	// Beside the arguments it pops a function and a channel, which only mean
	// something to a program that is its own target.
	in.pops = int(in.operand) + 2
	rest = rest[in.operandSize:]
	if len(rest) < 2 {
		return in, fmt.Errorf("%w: printf at %d is cut off", errInvalid, pc)
	}
	size := int(binary.BigEndian.Uint16([]byte(rest[:2])))
	rest = rest[2:]
	if size == 0 || len(rest) < size || rest[size-1] != 0 {
		return in, fmt.Errorf("%w: format of printf at %d does not end", errInvalid, pc)
	}
	in.format = rest[:size-1]
	in.next += 2 + size
	return in, nil
}

// scan decodes all instructions and returns where they begin.
func (e Expr) scan() (starts []bool, err error) {
	starts = make([]bool, len(e.code))
	for pc := 0; pc < len(e.code); {
		in, err := e.decode(pc)
		switch {
		case err != nil:
			return nil, err
		case in.op == opExt && in.operand == 0:
			return nil, fmt.Errorf("%w: sign of a number of no bits at %d", errInvalid, pc)
		case in.op == opPrintf:
			directives, err := parseFormat(in.format)
			if err != nil {
				return nil, err
			}
			if n := countArguments(directives); n != int(in.operand) {
				return nil, fmt.Errorf("%w: format %q takes %d arguments, not %d", errInvalid, in.format, n, in.operand)
			}
		}
		starts[pc] = true
		pc = in.next
	}
	return starts, nil
}

// checkStack follows all ways through the code and checks that each comes from
// one instruction to another, with a stack that is as deep by one way as by any
// other, and that has what the instruction takes.
func (e Expr) checkStack(starts []bool) error {
	const unseen = -1
	depths := make([]int, len(e.code))
	for i := range depths {
		depths[i] = unseen
	}
	type place struct{ pc, depth int }
	for open := []place{{0, 0}}; len(open) > 0; {
		at := open[len(open)-1]
		open = open[:len(open)-1]
		if at.pc >= len(starts) || !starts[at.pc] {
			return fmt.Errorf("%w: no instruction at %d", errInvalid, at.pc)
		}
		if depths[at.pc] != unseen {
			if depths[at.pc] != at.depth {
				return fmt.Errorf("%w: stack of %d and of %d values at %d", errInvalid, depths[at.pc], at.depth, at.pc)
			}
			continue
		}
		depths[at.pc] = at.depth
		in, err := e.decode(at.pc)
		if err != nil {
			return err
		}
		needs := in.pops
		if in.op == opPick {
			needs = int(in.operand) + 1
		}
		depth := at.depth - in.pops + in.produces
		if at.depth < needs || depth > maxStack {
			return fmt.Errorf("%w: stack of %d values at %d", errInvalid, at.depth, at.pc)
		}
		if in.op == opGoto || in.op == opIfGoto {
			open = append(open, place{int(in.operand), depth})
		}
		if in.op != opGoto && in.op != opEnd {
			open = append(open, place{in.next, depth})
		}
	}
	return nil
}

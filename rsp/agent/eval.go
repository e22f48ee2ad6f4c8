// This file evaluates expressions.

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// maxSteps is how many instructions an evaluation may execute. No expression
// without loops has more, and gdb makes no loops.
const maxSteps = maxSize

var (
	errDivision = errors.New("division by zero")
	errSteps    = fmt.Errorf("agent expression does not end after %d steps", maxSteps)
)

// A Machine is what expressions are evaluated over: a thread that stands still.
type Machine interface {
	// Register returns a register's value by its number in the target
	// description, without sign extension.
	Register(n int) (uint64, error)
	// ReadMemory reads all of p or returns an error.
	ReadMemory(addr uint64, p []byte) error
}

// Eval evaluates the expression over a machine. It returns what is on top of the
// stack at the end, or 0 if nothing is. What the expression prints goes to out,
// if out is not nil.
func (e Expr) Eval(m Machine, out func(text string)) (uint64, error) {
	var s stack
	printed := 0
	for pc, steps := 0, 0; pc < len(e.code); steps++ {
		if steps == maxSteps {
			return 0, errSteps
		}
		in, err := e.decode(pc)
		if err != nil {
			return 0, err
		}
		pc = in.next
		switch in.op {
		case opEnd:
			if s.depth == 0 {
				return 0, nil
			}
			return s.pop(), nil
		case opGoto:
			pc = int(in.operand)
		case opIfGoto:
			if s.pop() != 0 {
				pc = int(in.operand)
			}
		case opPrintf:
			text, err := s.printf(&in, m)
			if err != nil {
				return 0, err
			}
			if printed += len(text); printed > maxOutput {
				return 0, fmt.Errorf("agent expression prints more than %d bytes", maxOutput)
			}
			if out != nil {
				out(text)
			}
		default:
			if err := s.execute(&in, m); err != nil {
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("%w: no end", errInvalid) // not from Parse
}

// A stack of values. Parse has seen to it that it is neither too deep nor too
// shallow.
type stack struct {
	values [maxStack]uint64
	depth  int
}

func (s *stack) push(v uint64) {
	s.values[s.depth] = v
	s.depth++
}

func (s *stack) pop() uint64 {
	s.depth--
	return s.values[s.depth]
}

// execute executes an instruction other than jumps, end and printf.
func (s *stack) execute(in *instruction, m Machine) error {
	switch in.op {
	case opConst8, opConst16, opConst32, opConst64:
		s.push(in.operand)
	case opReg:
		v, err := m.Register(int(in.operand))
		if err != nil {
			return err
		}
		s.push(v)
	case opDup:
		s.push(s.values[s.depth-1])
	case opPick:
		s.push(s.values[s.depth-1-int(in.operand)])
	case opPop:
		s.pop()
	case opSwap:
		b, a := s.pop(), s.pop()
		s.push(b)
		s.push(a)
	case opRot:
		c, b, a := s.pop(), s.pop(), s.pop()
		s.push(c)
		s.push(a)
		s.push(b)
	default:
		var (
			v   uint64
			err error
		)
		if in.consumes == 1 {
			v, err = unary(in, s.pop(), m)
		} else {
			b := s.pop()
			v, err = binaryOp(in.op, s.pop(), b)
		}
		if err != nil {
			return err
		}
		s.push(v)
	}
	return nil
}

// unary executes an instruction that makes one value of another.
func unary(in *instruction, a uint64, m Machine) (uint64, error) {
	switch in.op {
	case opLogNot:
		return truth(a == 0), nil
	case opBitNot:
		return ^a, nil
	case opExt:
		if in.operand < 64 {
			shift := 64 - in.operand
			a = uint64(int64(a<<shift) >> shift)
		}
		return a, nil
	case opZeroExt:
		if in.operand < 64 {
			a &= 1<<in.operand - 1
		}
		return a, nil
	}
	var buf [8]byte
	size := 1 << (in.op - opRef8)
	if a > math.MaxUint64-uint64(size-1) {
		return 0, fmt.Errorf("%d bytes at %#x run past the end of memory", size, a)
	}
	if err := m.ReadMemory(a, buf[:size]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(buf[:]), nil
}

// binaryOp executes an instruction that makes one value of two.
func binaryOp(op byte, a, b uint64) (uint64, error) {
	switch op {
	case opDivSigned, opDivUnsigned, opRemSigned, opRemUnsigned:
		if b == 0 {
			return 0, errDivision
		}
	}
	switch op {
	case opAdd:
		a += b
	case opSub:
		a -= b
	case opMul:
		a *= b
	case opDivSigned:
		a = uint64(int64(a) / int64(b))
	case opDivUnsigned:
		a /= b
	case opRemSigned:
		a = uint64(int64(a) % int64(b))
	case opRemUnsigned:
		a %= b
	case opLsh:
		a <<= b
	case opRshSigned:
		a = uint64(int64(a) >> b)
	case opRshUnsigned:
		a >>= b
	case opBitAnd:
		a &= b
	case opBitOr:
		a |= b
	case opBitXor:
		a ^= b
	case opEqual:
		a = truth(a == b)
	case opLessSigned:
		a = truth(int64(a) < int64(b))
	case opLessUnsign:
		a = truth(a < b)
	}
	return a, nil
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

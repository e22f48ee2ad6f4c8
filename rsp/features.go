// This file is what client and server tell each other of themselves: features,
// the target description, and lldb's questions about host and process (GDB
// manual, nodes "General Query Packets", qSupported, and "Target Descriptions";
// lldb's document "GDB Remote Protocol Extensions").

package rsp

import (
	"bytes"
	"fmt"
	"strconv"
)

// A dialect is the client's family where gdb and lldb differ: the form of x,
// words in errors.
type dialect int

const (
	unknown dialect = iota
	gdb
	lldb
)

func (d dialect) String() string {
	return [...]string{"unknown", "gdb", "lldb"}[d]
}

// negotiate handles qSupported.
func (s *session) negotiate(a *arguments) error {
	var binaryUpload bool
	s.multiprocess, s.errorMessages, s.swbreak, s.hwbreak = false, false, false, false
	for feature := range bytes.SplitSeq(a.data, []byte{';'}) {
		switch string(feature) {
		case "multiprocess+":
			s.multiprocess = true
		case "error-message+", "error_message+": // as released, and as first proposed
			s.errorMessages = true
		case "swbreak+":
			s.swbreak = true
		case "hwbreak+":
			s.hwbreak = true
		case "binary-upload+":
			binaryUpload = true
		case "qRelocInsn+", "no-resumed+", "xmlRegisters=i386":
			s.dialect = gdb
		default:
			// lldb lists the architectures whose registers it could name.
			if bytes.HasPrefix(feature, []byte("xmlRegisters=i386,")) {
				s.dialect = lldb
			}
		}
	}
	// lldb offers multiprocess, but old ones mix plain thread ids into it.
	if s.dialect == lldb {
		s.multiprocess = false
	}
	// gdb knows of x from this answer only, and never offers it itself; an lldb
	// that does not offer it finds out with x0,0, and wants the bare form.
	s.bareBinary = s.dialect == lldb && !binaryUpload
	s.log.Debug("client features", "dialect", s.dialect.String(), "multiprocess", s.multiprocess,
		"error-message", s.errorMessages)

	s.out = strconv.AppendInt(append(s.out, "PacketSize="...), int64(s.packetSize), 16)
	s.out = append(s.out, ";QStartNoAckMode+;vContSupported+;qXfer:features:read+;qXfer:threads:read+"...)
	if _, ok := s.target.(Breakpointer); ok {
		s.out = append(s.out, ";swbreak+;hwbreak+;ConditionalBreakpoints+;BreakpointCommands+"...)
	}
	if _, ok := s.target.(Informer); ok {
		s.out = append(s.out, ";qXfer:osdata:read+"...)
	}
	// lldb cannot read a target's files.
	if _, ok := s.target.(FileServer); ok && s.dialect != lldb {
		s.out = append(s.out, ";qXfer:exec-file:read+"...)
	}
	if _, ok := s.target.(Librarian); ok && s.dialect != lldb {
		s.out = append(s.out, ";qXfer:libraries:read+"...)
	}
	if s.multiprocess {
		s.out = append(s.out, ";multiprocess+"...)
	}
	if !s.bareBinary {
		s.out = append(s.out, ";binary-upload+"...)
	}
	if s.errorMessages {
		s.out = append(s.out, ";error-message+"...)
	}
	return nil
}

// startNoAck handles QStartNoAckMode. The request itself is still acknowledged,
// and so may be the reply to it.
func (s *session) startNoAck(*arguments) error {
	s.acks = false
	return s.ok()
}

// featuresXML handles qXfer:features:read.
func (s *session) featuresXML(a *arguments) error {
	if string(a.annex) != "target.xml" {
		return fmt.Errorf("no description is called %s", a.annex)
	}
	s.transfer(s.targetXML, a.num[0], a.num[1])
	return nil
}

// transfer replies to a qXfer read with a piece of an object: l before the last
// piece, m before others. Past the end there is an empty last piece.
func (s *session) transfer(object []byte, offset, length uint64) {
	size := uint64(len(object))
	offset = min(offset, size)
	end := offset + min(length, uint64(s.packetSize-1), size-offset)
	c := byte('m')
	if end == size {
		c = 'l'
	}
	s.out = append(append(s.out, c), object[offset:end]...)
}

// suffixThreads handles QThreadSuffixSupported.
func (s *session) suffixThreads(*arguments) error {
	s.threadSuffix = true
	return s.ok()
}

// listStopThreads handles QListThreadsInStopReply.
func (s *session) listStopThreads(*arguments) error {
	s.listThreads = true
	return s.ok()
}

// enableErrorStrings handles QEnableErrorStrings.
func (s *session) enableErrorStrings(*arguments) error {
	s.errorStrings = true
	return s.ok()
}

// triple tells lldb what runs in the target; without one it guesses.
const triple = "x86_64-unknown-linux"

// hostInfo handles qHostInfo.
func (s *session) hostInfo(*arguments) error {
	s.out = appendHexString(append(s.out, "triple:"...), triple)
	s.out = append(s.out, ";ptrsize:8;endian:little;"...)
	if _, ok := s.target.(Breakpointer); ok {
		// x86 reports an access to memory when it has been made.
		s.out = append(s.out, "watchpoint_exceptions_received:after;"...)
	}
	return nil
}

// processInfo handles qProcessInfo. lldb looks for the symbol file of the build that
// is identified, and moves it by the slide.
func (s *session) processInfo(*arguments) error {
	r, known := s.relocation()
	s.out = strconv.AppendInt(append(s.out, "pid:"...), int64(s.general.PID), 16)
	s.out = appendHexString(append(s.out, ";triple:"...), triple)
	s.out = append(s.out, ";ptrsize:8;endian:little;"...)
	if known && r.BuildID != "" {
		s.out = fmt.Appendf(s.out, "main-binary-uuid:%s;main-binary-slide:%x;", r.BuildID, r.Slide)
	}
	return nil
}

// relocation asks the target where what it runs is.
func (s *session) relocation() (r Relocation, known bool) {
	if t, ok := s.target.(Relocator); ok {
		s.patiently(func() { r, known = t.Relocation() })
	}
	return r, known
}

// offsets handles qOffsets. gdb wants the address of a symbol file's first segment,
// and without an answer takes the file to be where it was linked to; lldb wants
// offsets, and without an answer takes the file for loaded nowhere.
func (s *session) offsets(*arguments) error {
	r, known := s.relocation()
	switch {
	case s.dialect == lldb:
		s.out = fmt.Appendf(s.out, "Text=%x;Data=%[1]x;Bss=%[1]x", r.Slide)
	case known:
		s.out = strconv.AppendUint(append(s.out, "TextSeg="...), r.First, 16)
	}
	return nil
}

// attached handles qAttached: always, so that gdb detaches when it quits rather
// than kills.
func (s *session) attached(*arguments) error {
	s.out = append(s.out, '1')
	return nil
}

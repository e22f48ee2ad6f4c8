// This file is the table of packets, from which they are dispatched and
// docs/packets.md is written.

package rsp

import (
	"bytes"
	"fmt"
	"strings"
)

//go:generate go test -run TestPacketsDoc -update .

// A command is a packet that the server knows.
type command struct {
	// name is how the packet begins.
	name string
	// args is what follows: literals and, in braces, arguments:
	//	{addr} {length} {offset} {reg} {sig} {pid} {size}
	//	{fd} {count} {flags} {mode}  numbers, in hex
	//	{thread}  a thread id
	//	{op}      one character
	//	{annex}   what stands before the next literal
	//	{data}    the rest
	// A part in brackets at the end may be missing.
	args string
	// doc is one line on what it does.
	doc string
	// handle appends the reply to s.out or returns an error.
	handle func(s *session, a *arguments) error

	mayStop    bool // a stop reply answers it
	resumes    bool // a stop reply answers it when the target stops
	running    bool // it is served while the target runs
	textErrors bool // any gdb takes E.text in answer, not only gdb 16

	fields   []field
	required int // fields before the optional part
}

// commands is the table. A packet that it does not have gets an empty reply.
var commands = []command{
	{name: "?", doc: "why the target stands still", handle: (*session).queryStop, mayStop: true},
	{name: "c", args: "[{addr}]", doc: "continue, all or the thread of Hc", handle: (*session).resumeAt, resumes: true, textErrors: true},
	{name: "C", args: "{sig}[;{addr}]", doc: "continue with a signal", handle: (*session).resumeAt, resumes: true, textErrors: true},
	{name: "s", args: "[{addr}]", doc: "step a thread; an error where the target cannot", handle: (*session).resumeAt, resumes: true, textErrors: true},
	{name: "S", args: "{sig}[;{addr}]", doc: "step with a signal", handle: (*session).resumeAt, resumes: true, textErrors: true},
	{name: "D", args: "[;{pid}]", doc: "detach: the target is given back as it was found", handle: (*session).detach, running: true, textErrors: true},
	{name: "g", doc: "read all registers; x for digits that cannot be known, but an error for lldb", handle: (*session).readRegisters, textErrors: true},
	{name: "G", args: "{data}", doc: "write all registers but those given as x", handle: (*session).writeRegisters, textErrors: true},
	{name: "H", args: "{op}{thread}", doc: "select the thread for g (registers, memory) or c (resumption)", handle: (*session).selectThread, textErrors: true},
	{name: "k", doc: "detach: nothing is ever killed; no reply", handle: (*session).kill, running: true},
	{name: "m", args: "{addr},{length}", doc: "read memory as hex, up to the first unmapped byte", handle: (*session).readHex},
	{name: "M", args: "{addr},{length}:{data}", doc: "write memory, all or nothing, from hex", handle: (*session).writeHex, textErrors: true},
	{name: "p", args: "{reg}", doc: "read a register; unknown digits as in g", handle: (*session).readRegister, textErrors: true},
	{name: "P", args: "{reg}={data}", doc: "write a register", handle: (*session).writeRegister, textErrors: true},
	{name: "T", args: "{thread}", doc: "is the thread there", handle: (*session).threadAlive, textErrors: true},
	{name: "x", args: "{addr},{length}", doc: "read memory as bytes: after a b, or bare for an lldb that does not say binary-upload+", handle: (*session).readBinary},
	{name: "X", args: "{addr},{length}:{data}", doc: "write memory, all or nothing, from bytes", handle: (*session).writeBinary, textErrors: true},
	{name: "Z", args: "{op},{addr},{size}[;{data}]", doc: "insert a breakpoint (0, 1) or watchpoint (2 write, 3 read, 4 access), or give it new conditions and commands; empty where the target has none", handle: (*session).insertBreakpoint, textErrors: true},
	{name: "z", args: "{op},{addr},{size}[;{data}]", doc: "remove a breakpoint or watchpoint, if it is there", handle: (*session).removeBreakpoint, textErrors: true},

	{name: "vCont?", doc: "the actions of vCont: c C t, and s S r if the target can step", handle: (*session).queryActions},
	{name: "vCont", args: ";{data}", doc: "resume; each thread does what the first action for it says", handle: (*session).resumeActions, resumes: true, textErrors: true},
	{name: "vCtrlC", doc: "interrupt, as the byte 0x03 does", handle: (*session).interruptPacket, running: true, textErrors: true},
	{name: "vKill", args: ";{pid}", doc: "detach: nothing is ever killed", handle: (*session).detach, running: true, textErrors: true},
	{name: "vMustReplyEmpty", doc: "shows how an unknown packet is answered", handle: (*session).empty},

	{name: "vFile:setfs", args: ":{pid}", doc: "files are the same for all", handle: withFiles((*session).setFileSystem)},
	{name: "vFile:open", args: ":{annex},{flags},{mode}", doc: "open a file that the target makes up, for reading; none is one of the server's", handle: withFiles((*session).openFile)},
	{name: "vFile:pread", args: ":{fd},{count},{offset}", doc: "read a file", handle: withOpened((*session).readFile)},
	{name: "vFile:fstat", args: ":{fd}", doc: "how large an open file is", handle: withOpened((*session).statOpened)},
	{name: "vFile:stat", args: ":{data}", doc: "how large a file is", handle: withFiles((*session).statFile)},
	{name: "vFile:lstat", args: ":{data}", doc: "the same: no file is a link", handle: withFiles((*session).statFile)},
	{name: "vFile:readlink", args: ":{data}", doc: "an error: no file is a link", handle: withFiles((*session).readLink)},
	{name: "vFile:close", args: ":{fd}", doc: "close a file", handle: withOpened((*session).closeOpened)},
	{name: "vFile:pwrite", args: ":{data}", doc: "an error: files cannot be written", handle: withFiles((*session).refuseWrite)},
	{name: "vFile:unlink", args: ":{data}", doc: "an error: files cannot be written", handle: withFiles((*session).refuseWrite)},

	{name: "qSupported", args: "[:{data}]", doc: "features of client and server, and the largest packet", handle: (*session).negotiate},
	{name: "QStartNoAckMode", doc: "no more + and -", handle: (*session).startNoAck},
	{name: "qXfer:features:read", args: ":{annex}:{offset},{length}", doc: "target.xml, the target description", handle: (*session).featuresXML, textErrors: true},
	{name: "qXfer:threads:read", args: ":{annex}:{offset},{length}", doc: "threads with core, name and state", handle: (*session).threadsXML, textErrors: true},
	{name: "qXfer:osdata:read", args: ":{annex}:{offset},{length}", doc: "tables of the system that the target is part of (info os), if it has any; without an annex, which they are", handle: (*session).osdataXML, textErrors: true},
	{name: "qXfer:exec-file:read", args: ":{annex}:{offset},{length}", doc: "the file that stands for what runs, if the target knows", handle: withFiles((*session).executable), textErrors: true},
	{name: "qXfer:libraries:read", args: ":{annex}:{offset},{length}", doc: "files of what the target has loaded, as the modules of a Linux, and information of its own for debuggers", handle: (*session).libraries, textErrors: true},
	{name: "qAttached", args: "[:{pid}]", doc: "always 1, so that the client detaches when it quits", handle: (*session).attached},
	{name: "qC", doc: "the selected thread", handle: (*session).currentThread},
	{name: "qfThreadInfo", doc: "threads, first part", handle: (*session).firstThreads, textErrors: true},
	{name: "qsThreadInfo", doc: "threads, further parts", handle: (*session).nextThreads, textErrors: true},
	{name: "qThreadExtraInfo", args: ",{thread}", doc: "a thread's name and state, for people", handle: (*session).threadInfo, textErrors: true},
	{name: "qRcmd", args: ",{data}", doc: "monitor command, if the target has any", handle: (*session).runMonitor},
	{name: "qSymbol", args: ":{data}", doc: "the client offers symbols; none are wanted", handle: (*session).accept},

	{name: "QEnableErrorStrings", doc: "lldb: errors in words", handle: (*session).enableErrorStrings},
	{name: "QListThreadsInStopReply", doc: "lldb: all threads and where they are in each stop reply", handle: (*session).listStopThreads},
	{name: "QThreadSuffixSupported", doc: "lldb: g G p P may end in ;thread:TID;", handle: (*session).suffixThreads},
	{name: "qHostInfo", doc: "lldb: architecture and byte order", handle: (*session).hostInfo},
	{name: "qMemoryRegionInfo", args: ":{addr}", doc: "lldb: what is mapped around an address, if the target can tell", handle: (*session).memoryRegion},
	{name: "qOffsets", doc: "where what runs is, if the target knows: an address for gdb, offsets for lldb, which are zero if not", handle: (*session).offsets},
	{name: "qProcessInfo", doc: "lldb: process number, architecture, and which kernel runs where", handle: (*session).processInfo},
	{name: "qThreadStopInfo", args: "{thread}", doc: "lldb: a stop reply for one thread", handle: (*session).threadStop, mayStop: true},
	{name: "qWatchpointSupportInfo", args: "[:]", doc: "lldb: how many watchpoints there can be", handle: (*session).watchpointSupport},
}

// commandsByByte finds the rows for a packet's first byte. Of two rows that fit,
// the one further up in the table wins.
var commandsByByte [256][]*command

func init() {
	for i := range commands {
		c := &commands[i]
		c.compile()
		commandsByByte[c.name[0]] = append(commandsByByte[c.name[0]], c)
	}
}

// A field is a literal or an argument.
type field struct {
	literal byte // 0 for an argument
	kind    string
}

// compile takes the arguments apart.
func (c *command) compile() {
	c.required = -1
	for rest := c.args; rest != ""; {
		switch rest[0] {
		case '[':
			c.required = len(c.fields)
			rest = rest[1:]
		case ']':
			rest = rest[1:]
		case '{':
			kind, after, _ := strings.Cut(rest[1:], "}")
			c.fields = append(c.fields, field{kind: kind})
			rest = after
		default:
			c.fields = append(c.fields, field{literal: rest[0]})
			rest = rest[1:]
		}
	}
	if c.required < 0 {
		c.required = len(c.fields)
	}
}

// match reports whether a packet is this one, and returns its arguments. Right
// ones or not is not decided here, but m without an address is still an m.
func (c *command) match(packet []byte) (args []byte, ok bool) {
	if len(packet) < len(c.name) || string(packet[:len(c.name)]) != c.name {
		return nil, false
	}
	args = packet[len(c.name):]
	switch {
	case len(c.fields) == 0:
		return args, len(args) == 0
	case c.fields[0].literal == 0:
		return args, true
	case len(args) == 0:
		return args, c.required == 0
	}
	return args, args[0] == c.fields[0].literal
}

// lookup finds a packet in the table.
func lookup(packet []byte) (c *command, args []byte) {
	if len(packet) == 0 {
		return nil, nil
	}
	for _, c := range commandsByByte[packet[0]] {
		if args, ok := c.match(packet); ok {
			return c, args
		}
	}
	return nil, nil
}

// arguments are what a packet came with. They are valid while it is handled.
type arguments struct {
	name   byte      // first byte of the packet
	num    [3]uint64 // numbers, in order
	nums   int       // how many there are
	thread ThreadID
	op     byte
	annex  []byte
	data   []byte
}

// parse reads a packet's arguments.
func (c *command) parse(a *arguments, text []byte) error {
	*a = arguments{name: c.name[0]}
	rest, ok := text, true
	for i, f := range c.fields {
		if i == c.required && len(rest) == 0 {
			return nil
		}
		switch f.kind {
		case "":
			ok = len(rest) > 0 && rest[0] == f.literal
			if ok {
				rest = rest[1:]
			}
		case "thread":
			a.thread, rest, ok = parseThreadID(rest)
		case "op":
			ok = len(rest) > 0
			if ok {
				a.op, rest = rest[0], rest[1:]
			}
		case "annex":
			end := bytes.IndexByte(rest, c.fields[i+1].literal)
			ok = end >= 0
			if ok {
				a.annex, rest = rest[:end], rest[end:]
			}
		case "data":
			a.data, rest = rest, nil
		default:
			a.num[a.nums], rest, ok = parseNumber(rest)
			a.nums++
		}
		if !ok {
			break
		}
	}
	if !ok || len(rest) > 0 {
		return fmt.Errorf("%w: want %s%s", errMalformed, c.name, c.args)
	}
	return nil
}

// handle serves one packet and leaves the reply in s.out. It reports whether
// there is a reply now.
func (s *session) handle(packet []byte) (reply bool) {
	s.out = s.out[:0]
	packet, err := s.cutSuffix(packet)
	c, text := lookup(packet)
	if c == nil {
		return true
	}
	if err == nil {
		err = c.parse(&s.args, text)
	}
	if err == nil && s.running && !c.running {
		err = fmt.Errorf("%w: %s has to wait for a stop", ErrRunning, c.name)
	}
	if err == nil {
		err = c.handle(s, &s.args)
	}
	switch err {
	case nil:
	case errNoReply:
		return false
	default:
		s.replyError(c, err)
	}
	return true
}

// cutSuffix takes lldb's ;thread:TID; from a packet about registers.
func (s *session) cutSuffix(packet []byte) ([]byte, error) {
	s.suffix = ThreadID{}
	if !s.threadSuffix || len(packet) == 0 || strings.IndexByte("gGpP", packet[0]) < 0 {
		return packet, nil
	}
	const mark = ";thread:"
	i := bytes.LastIndex(packet, []byte(mark))
	if i < 0 {
		return packet, nil
	}
	id, rest, ok := parseThreadID(packet[i+len(mark):])
	packet = packet[:i]
	if !ok || len(rest) > 1 || len(rest) == 1 && rest[0] != ';' {
		return packet, fmt.Errorf("%w: thread suffix", errMalformed)
	}
	if s.running {
		return packet, nil // and it will be refused
	}
	var err error
	s.suffix, err = s.resolve(id)
	return packet, err
}

// ok makes the reply OK.
func (s *session) ok() error {
	s.out = append(s.out, "OK"...)
	return nil
}

// accept handles packets that only have to be heard.
func (s *session) accept(*arguments) error { return s.ok() }

// empty handles vMustReplyEmpty.
func (s *session) empty(*arguments) error { return nil }

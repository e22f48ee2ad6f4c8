// Package rsp serves the GDB Remote Serial Protocol, as gdb and lldb speak it,
// over a Target: a debuggee with threads, registers, memory and run control.
//
// The package knows nothing of what the debuggee is. Package rsptest has a fake
// one, and a scripted client.
//
// # While the target runs
//
// A client that has resumed the target waits for a stop reply, and may send an
// interrupt (the byte 0x03, or vCtrlC) or let go (D, vKill, k). To anything else
// the server answers at once with an error and the target runs on; the stop
// reply still follows. Neither gdb nor lldb sends anything else. What the target
// has to say then, if it is a Talker, goes to the client's console.
//
// # Breakpoints
//
// A Breakpointer plants them, evaluates their conditions and runs their commands
// (Breakpoint.Hit) where it is, so that a hit that does not count costs no round
// trip. From other targets clients get no word of breakpoints and write them into
// memory.
//
// # Letting go
//
// D, vKill and k all give the target back by Target.Detach; nothing is ever
// killed. The server does not detach for any other reason.
package rsp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// DefaultPacketSize is that of Config.
const DefaultPacketSize = 0x20000

// minPacketSize holds the longest fixed request and keeps paging useful.
const minPacketSize = 256

// Config is how to serve. The zero value is good.
type Config struct {
	// Log gets packets at debug level, and what went wrong. Nil for none.
	Log *slog.Logger
	// PacketSize is the longest request in bytes, without its frame, and about
	// the longest reply. 0 for DefaultPacketSize; at least 256.
	PacketSize int
}

// Serve serves one client on conn until it detaches, goes away, or ctx ends. It
// closes conn, which has to end a Read or Write that blocks.
//
// It returns nil if the client detached, and only then has Target.Detach been
// called with success. With any other result the target is still attached,
// running or not, and the caller has to detach: ErrDisconnected, wrapped, when
// the client went away; ctx's error; the error of Detach itself. No call of a
// method of t is under way after Serve has returned.
//
// Preconditions: the target is stopped.
func Serve(ctx context.Context, conn io.ReadWriteCloser, t Target, cfg Config) error {
	defer conn.Close()
	s, err := newSession(conn, t, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s.ctx = ctx
	go s.readAside()
	go s.wait()
	err = s.loop()
	s.abandonWait()
	s.closeFiles()
	close(s.waits)
	close(s.reads)
	return err
}

// A session is one client's connection.
type session struct {
	ctx    context.Context
	conn   io.Writer
	target Target
	log    *slog.Logger

	reader *Reader
	spare  []byte // a buffer for the next event, or nil
	reads  chan read
	events chan event // that were read aside
	aside  bool       // one is being read, or is in events

	regs      *Registers
	targetXML []byte
	pc        int // number of the program counter, or -1

	packetSize int

	// What the client said of itself.
	dialect       dialect
	acks          bool
	multiprocess  bool
	errorMessages bool // E.text everywhere (gdb 16)
	errorStrings  bool // Enn;text (lldb)
	bareBinary    bool // x without b (lldb)
	swbreak       bool // wants to be told
	hwbreak       bool
	threadSuffix  bool // lldb
	listThreads   bool // lldb

	general    ThreadID // Hg
	resumed    ThreadID // Hc; TID 0 or -1 for all
	stopThread ThreadID // of the last stop reply
	suffix     ThreadID // of the packet being handled; zero for none
	listed     []Thread // that qsThreadInfo still has to list
	threadList []byte   // as XML
	table      []byte   // as XML, the last of the target's tables that was read
	tableName  string

	files       []File // that the client has open, by descriptor
	libraryList []byte // as XML

	refused    map[Place]error // breakpoints that gdb believes to be there
	running    bool
	actions    []Action // of the last resumption
	talk       talk
	cancelWait context.CancelFunc
	waits      chan context.Context // of the target
	stops      chan stop

	over bool  // the target was detached, or could not be
	err  error // why not

	args   arguments
	out    []byte // payload of the reply
	wire   []byte // frame of the last reply, to send again
	ack    [1]byte
	memory []byte
}

// An event is something that the client sent, or the end of the connection.
type event struct {
	kind   Kind
	packet []byte
	err    error
}

// A read is an event to be read aside.
type read struct {
	buf    []byte // for the packet
	cancel func() // called if it is an interrupt or the end; may be nil
}

func newSession(conn io.ReadWriter, t Target, cfg Config) (*session, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.PacketSize == 0 {
		cfg.PacketSize = DefaultPacketSize
	}
	if cfg.PacketSize < minPacketSize {
		return nil, fmt.Errorf("packet size %d is under %d", cfg.PacketSize, minPacketSize)
	}
	d := t.Description()
	if err := d.Validate(); err != nil {
		return nil, err
	}
	s := &session{
		conn:       conn,
		target:     t,
		log:        cfg.Log.With("layer", "rsp"),
		reader:     NewReader(conn, cfg.PacketSize),
		reads:      make(chan read),
		events:     make(chan event, 1),
		regs:       NewRegisters(d),
		targetXML:  d.AppendXML(nil),
		pc:         -1,
		packetSize: cfg.PacketSize,
		acks:       true,
		refused:    make(map[Place]error),
		waits:      make(chan context.Context),
		stops:      make(chan stop, 1),
		talk:       talk{news: make(chan struct{}, 1)},
	}
	if talker, ok := t.(Talker); ok {
		talker.SetConsole(s.talk.say)
	}
	for i := range s.regs.Len() {
		if s.regs.list[i].Type == "code_ptr" {
			s.pc = i
			break
		}
	}
	s.stopThread = t.Stop().Thread
	id, err := s.resolve(ThreadID{allThreads, allThreads})
	if err != nil && !errors.Is(err, ErrNoThread) {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	s.general = id
	return s, nil
}

// loop serves until the session ends. A failed write needs no answer of its
// own: the read side sees the end of the connection too.
//
// While the target stands still there is nothing to wait for but the client, which
// is read right here: to be told by another goroutine costs as much as a small read.
func (s *session) loop() error {
	for !s.over {
		if !s.running && !s.aside {
			if err := s.serve(s.next(s.takeSpare())); err != nil {
				return err
			}
			continue
		}
		s.readOn(nil)
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case e := <-s.events:
			s.aside = false
			if err := s.serve(e); err != nil {
				return err
			}
		case st := <-s.stops:
			s.stopped(st)
		case <-s.talk.news:
			s.flushTalk()
		}
	}
	return s.err
}

// next waits for what the client sends.
func (s *session) next(buf []byte) event {
	kind, packet, err := s.reader.Next(buf)
	return event{kind, packet, err}
}

// takeSpare gives the buffer that no event has, or nil: while a packet is handled, the
// next one needs another.
func (s *session) takeSpare() []byte {
	buf := s.spare
	s.spare = nil
	return buf
}

// readOn has the next event read aside, if none is, as none is while a packet is
// handled. cancel is called if that is an interrupt or the end.
func (s *session) readOn(cancel func()) {
	if !s.aside {
		s.aside = true
		s.reads <- read{s.takeSpare(), cancel}
	}
}

// readAside reads beside the loop what that asks for.
func (s *session) readAside() {
	for r := range s.reads {
		e := s.next(r.buf)
		if r.cancel != nil && (e.err != nil || e.kind == Interrupt) {
			r.cancel()
		}
		s.events <- e
	}
}

// serve answers what the client sent. It returns an error if that is the end.
func (s *session) serve(e event) error {
	if e.err != nil {
		switch {
		case s.ctx.Err() != nil:
			return context.Cause(s.ctx)
		case e.err == io.EOF:
			return ErrDisconnected
		}
		return fmt.Errorf("%w: %w", ErrDisconnected, e.err)
	}
	s.answer(e)
	s.spare = e.packet
	return nil
}

// answer answers what is not the end.
func (s *session) answer(e event) {
	switch e.kind {
	case Packet:
		s.acknowledge('+')
		s.logPacket("received", e.packet)
		if s.handle(e.packet) {
			s.send()
		}
	case Interrupt:
		s.log.Debug("interrupt")
		if err := s.interrupt(); err != nil {
			s.log.Error("interrupt the target", "err", err)
		}
	case Nack:
		if s.acks && len(s.wire) > 0 {
			s.write(s.wire)
		}
	case Corrupt:
		// Without acknowledgements a client cannot be asked to send again, and
		// must not be left waiting.
		if s.acks {
			s.acknowledge('-')
			return
		}
		s.refuse("the checksum is wrong")
	case Oversize:
		s.acknowledge('+')
		s.refuse(fmt.Sprintf("longer than %d bytes", s.packetSize))
	case Malformed:
		s.acknowledge('+')
		s.refuse("bad escape or run length")
	}
}

// refuse answers a packet that cannot be read.
func (s *session) refuse(why string) {
	s.replyError(&command{name: "?"}, fmt.Errorf("%w: %s", errMalformed, why))
	s.send()
}

// acknowledge sends + or - at once: a reply may take longer than a client waits
// for them.
func (s *session) acknowledge(c byte) {
	if s.acks {
		s.ack[0] = c
		s.write(s.ack[:])
	}
}

// send frames the reply in s.out and sends it.
func (s *session) send() {
	s.logPacket("sent", s.out)
	s.wire = AppendPacket(s.wire[:0], s.out)
	s.write(s.wire)
}

func (s *session) write(p []byte) {
	if _, err := s.conn.Write(p); err != nil {
		s.log.Debug("write", "err", err)
	}
}

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
	"sync/atomic"
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
// closes conn.
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
	// A read or write that blocks ends with the connection.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s.ctx = ctx
	go s.read(ctx.Done())
	go s.wait()
	err = s.loop()
	s.abandonWait()
	s.closeFiles()
	close(s.waits)
	return err
}

// A session is one client's connection.
type session struct {
	ctx    context.Context
	conn   io.Writer
	target Target
	log    *slog.Logger

	reader *Reader
	events chan event
	free   chan []byte // buffers for events

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

	refused       map[Place]error // breakpoints that gdb believes to be there
	running       bool
	actions       []Action // of the last resumption
	talk          talk
	cancelWait    context.CancelFunc
	waits         chan context.Context // of the target
	stops         chan stop
	cancelCommand atomic.Pointer[context.CancelFunc] // of the monitor command
	interrupted   atomic.Bool                        // an interrupt or the end was read, and not yet served

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
		events:     make(chan event),
		free:       make(chan []byte, 2),
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
	for range cap(s.free) {
		s.free <- nil
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

// read passes on what the client sends. It reads at most one packet ahead.
func (s *session) read(done <-chan struct{}) {
	for {
		var buf []byte
		select {
		case buf = <-s.free:
		case <-done:
			return
		}
		kind, buf, err := s.reader.Next(buf)
		if err != nil || kind == Interrupt {
			s.interrupted.Store(true)
			if cancel := s.cancelCommand.Load(); cancel != nil {
				(*cancel)()
			}
		}
		select {
		case s.events <- event{kind, buf, err}:
		case <-done:
			return
		}
		if err != nil {
			return
		}
	}
}

// loop serves until the session ends. A failed write needs no answer of its
// own: the read side sees the end of the connection too.
func (s *session) loop() error {
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case e := <-s.events:
			if e.err != nil {
				if err := s.ctx.Err(); err != nil {
					return context.Cause(s.ctx)
				}
				if e.err == io.EOF {
					return ErrDisconnected
				}
				return fmt.Errorf("%w: %w", ErrDisconnected, e.err)
			}
			s.serve(e)
			s.free <- e.packet
		case st := <-s.stops:
			s.stopped(st)
		case <-s.talk.news:
			s.flushTalk()
		}
		if s.over {
			return s.err
		}
	}
}

// serve answers what the client sent.
func (s *session) serve(e event) {
	switch e.kind {
	case Packet:
		s.acknowledge('+')
		s.logPacket("received", e.packet)
		if s.handle(e.packet) {
			s.send()
		}
	case Interrupt:
		s.interrupted.Store(false)
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

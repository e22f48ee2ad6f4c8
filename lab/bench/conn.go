package bench

// A client of any server: it uses what the server says that it can, as gdb does.

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"gdbserver-xen/rsp"
)

const (
	// patience is how long a reply may take at the least: a stop on an emulated machine.
	patience = 15 * time.Second
	// replyLimit is the longest reply.
	replyLimit = 1 << 20
	// oldPacketSize is what gdb takes a server to understand that does not say, if
	// its registers are not longer.
	oldPacketSize = 400
	// ripOffset is where rip is in the registers of x86-64, whatever follows.
	ripOffset = 16 * 8
	rspOffset = 7 * 8
	int3      = 0xcc
)

// A Conn is a connection to a server. Its methods must not be called from several
// goroutines at once.
type Conn struct {
	conn   net.Conn
	reader *rsp.Reader
	acks   bool
	frame  []byte
	buf    []byte
	extend time.Time // when to put the deadline off

	packetSize int
	binary     bool // it knows x
	actions    bool // it knows vCont, with s
	noPlants   bool // it does not know Z0
	thread     string
	planted    map[uint64]byte // by us, and what was there
}

// Dial connects to a server, which may be about to come up, until ctx ends.
func Dial(ctx context.Context, network, addr string) (*Conn, error) {
	for {
		conn, err := net.Dial(network, addr)
		if err == nil {
			return NewConn(conn)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to the server: %w", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// NewConn finds out what a server can do. With an error, the connection is closed.
func NewConn(conn net.Conn) (*Conn, error) {
	c := &Conn{conn: conn, reader: rsp.NewReader(conn, replyLimit), acks: true, planted: map[uint64]byte{}}
	if err := c.shakeHands(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) shakeHands() error {
	reply, err := c.Send("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386;vContSupported+;binary-upload+")
	if err != nil {
		return err
	}
	noAck := false
	for feature := range strings.SplitSeq(string(reply), ";") {
		size, isSize := strings.CutPrefix(feature, "PacketSize=")
		switch {
		case isSize:
			n, err := strconv.ParseUint(size, 16, 31)
			if err != nil {
				return fmt.Errorf("packet size %q: %w", size, err)
			}
			c.packetSize = min(int(n), replyLimit)
		case feature == "binary-upload+":
			c.binary = true
		case feature == "QStartNoAckMode+":
			noAck = true
		}
	}
	if noAck {
		if err := c.want("QStartNoAckMode", "OK"); err != nil {
			return err
		}
		c.acks = false
	}
	if reply, err = c.Send("vCont?"); err != nil {
		return err
	}
	c.actions = bytes.Contains(reply, []byte(";s"))
	if reply, err = c.Send("?"); err != nil {
		return err
	}
	c.thread = stopThread(reply)
	if c.packetSize == 0 {
		if reply, err = c.Send("g"); err != nil {
			return err
		}
		c.packetSize = max(oldPacketSize, len(reply))
	}
	return nil
}

// Close closes the connection and leaves the server to find that out.
func (c *Conn) Close() error { return c.conn.Close() }

// Detach lets the target go.
func (c *Conn) Detach() error {
	err := c.want("D", "OK")
	if errors.Is(err, io.EOF) {
		err = nil // one server lets go and does not say so
	}
	return errors.Join(err, c.conn.Close())
}

// Send sends a packet and gives the reply, which is valid until the next.
func (c *Conn) Send(packet string) ([]byte, error) {
	if err := c.post([]byte(packet)); err != nil {
		return nil, err
	}
	return c.receive()
}

func (c *Conn) post(packet []byte) error {
	c.frame = rsp.AppendRequest(c.frame[:0], packet)
	_, err := c.conn.Write(c.frame)
	return err
}

func (c *Conn) receive() ([]byte, error) {
	// Not for each reply: it takes its time.
	if now := time.Now(); now.After(c.extend) {
		c.conn.SetReadDeadline(now.Add(2 * patience))
		c.extend = now.Add(patience)
	}
	for {
		kind, p, err := c.reader.Next(c.buf)
		c.buf = p
		if err != nil {
			return nil, err
		}
		switch kind {
		case rsp.Packet:
			if c.acks {
				_, err = c.conn.Write([]byte{'+'})
			}
			return p, err
		case rsp.Ack:
		default:
			return nil, fmt.Errorf("bad reply (kind %d)", kind)
		}
	}
}

// want sends a packet that has one good reply.
func (c *Conn) want(packet, want string) error {
	reply, err := c.Send(packet)
	if err == nil && string(reply) != want {
		err = fmt.Errorf("%.20s: got reply %.60q, want %q", packet, reply, want)
	}
	return err
}

// readHex reads memory, all of it, in one packet.
func (c *Conn) readHex(addr uint64, n int) error {
	reply, err := c.Send(fmt.Sprintf("m%x,%x", addr, n))
	if err == nil && len(reply) != 2*n {
		err = fmt.Errorf("read of %d bytes at %#x: got reply %.20q of %d bytes", n, addr, reply, len(reply))
	}
	return err
}

// readBinary reads memory with x, all of it, in one packet.
func (c *Conn) readBinary(addr uint64, n int) error {
	reply, err := c.Send(fmt.Sprintf("x%x,%x", addr, n))
	if err == nil && (len(reply) != n+1 || reply[0] != 'b') {
		err = fmt.Errorf("binary read of %d bytes at %#x: got reply %.20q of %d bytes", n, addr, reply, len(reply))
	}
	return err
}

// read gives the bytes of memory.
func (c *Conn) read(addr uint64, n int) ([]byte, error) {
	if err := c.readHex(addr, n); err != nil {
		return nil, err
	}
	return hex.DecodeString(string(c.buf))
}

// register gives a register of 64 bits, by its place.
func (c *Conn) register(offset int) (uint64, error) {
	reply, err := c.Send("g")
	if err != nil {
		return 0, err
	}
	if len(reply) < 2*(offset+8) {
		return 0, fmt.Errorf("g: got reply %.20q of %d bytes", reply, len(reply))
	}
	b, err := hex.DecodeString(string(reply[2*offset:][:16]))
	if err != nil {
		return 0, fmt.Errorf("g: %w", err)
	}
	return binary.LittleEndian.Uint64(b), nil
}

// threads lists the threads.
func (c *Conn) threads() ([]string, error) {
	reply, err := c.Send("qfThreadInfo")
	if err != nil {
		return nil, err
	}
	// One server ends the list in the packet that begins it.
	list, ok := strings.CutPrefix(strings.TrimSuffix(string(reply), "l"), "m")
	if !ok {
		return nil, fmt.Errorf("qfThreadInfo: got reply %.60q", reply)
	}
	return strings.Split(list, ","), nil
}

// selectLast selects the last thread, for registers, memory and steps.
func (c *Conn) selectLast() error {
	threads, err := c.threads()
	if err != nil {
		return err
	}
	return c.selectThread(threads[len(threads)-1])
}

func (c *Conn) selectThread(thread string) error {
	c.thread = thread
	return c.want("Hg"+thread, "OK")
}

// plant inserts a breakpoint, by the server if it knows how, with a condition for
// it to evaluate, if any. Others are written into memory.
func (c *Conn) plant(addr uint64, condition string) error {
	if !c.noPlants {
		reply, err := c.Send(fmt.Sprintf("Z0,%x,1%s", addr, condition))
		switch {
		case err != nil:
			return err
		case len(reply) > 0 && string(reply) != "OK":
			return fmt.Errorf("breakpoint at %#x: got reply %.60q", addr, reply)
		case len(reply) > 0:
			return nil
		}
		c.noPlants = true
	}
	if condition != "" {
		return errors.ErrUnsupported
	}
	old, err := c.read(addr, 1)
	if err != nil {
		return err
	}
	c.planted[addr] = old[0]
	return c.want(fmt.Sprintf("M%x,1:%02x", addr, int3), "OK")
}

// pull removes a breakpoint.
func (c *Conn) pull(addr uint64) error {
	old, ours := c.planted[addr]
	if !ours {
		return c.want(fmt.Sprintf("z0,%x,1", addr), "OK")
	}
	delete(c.planted, addr)
	return c.want(fmt.Sprintf("M%x,1:%02x", addr, old), "OK")
}

// goOn lets all threads run and waits for the stop by a trap. One server has stops
// left over, which it takes for interrupts.
func (c *Conn) goOn() error {
	packet := "c"
	if c.actions {
		packet = "vCont;c"
	}
	const leftOver = 8
	for i := 0; ; i++ {
		if err := c.post([]byte(packet)); err != nil {
			return err
		}
		if err := c.stopped(); !errors.Is(err, errInterrupted) || i == leftOver {
			return err
		}
	}
}

// errInterrupted says that the target has stopped as if it had been asked to.
var errInterrupted = errors.New("stopped by an interrupt that was not sent")

// step steps the selected thread.
func (c *Conn) step() error {
	packet := "s"
	if c.actions {
		packet = "vCont;s:" + c.thread
	}
	if err := c.post([]byte(packet)); err != nil {
		return err
	}
	return c.stopped()
}

// stopped waits for a stop by a trap, and selects the thread that it names.
func (c *Conn) stopped() error {
	for {
		reply, err := c.receive()
		switch {
		case err != nil:
			return err
		case len(reply) > 0 && reply[0] == 'O':
			continue
		case bytes.HasPrefix(reply, []byte("T02")):
			return errInterrupted
		case !bytes.HasPrefix(reply, []byte("T05")):
			return fmt.Errorf("got stop reply %.60q", reply)
		}
		if thread := stopThread(reply); thread != "" {
			c.thread = thread
		}
		return nil
	}
}

// atPlant puts the thread that has stopped back on the breakpoint, if it ran into
// one that was written into memory and stands behind it.
func (c *Conn) atPlant(addr uint64) error {
	if _, ours := c.planted[addr]; !ours {
		return nil
	}
	rip, err := c.register(ripOffset)
	if err != nil || rip == addr {
		return err
	}
	if rip != addr+1 {
		return fmt.Errorf("stopped at %#x, not at the breakpoint at %#x", rip, addr)
	}
	next := append([]byte("G"), c.buf...)
	hex.Encode(next[1+2*ripOffset:], binary.LittleEndian.AppendUint64(nil, addr))
	return c.want(string(next), "OK")
}

// stopThread gives the thread that a stop reply names, if any.
func stopThread(reply []byte) string {
	for part := range strings.SplitSeq(string(reply), ";") {
		if _, thread, ok := strings.Cut(part, "thread:"); ok {
			return thread
		}
	}
	return ""
}

// interrupt stops a target that runs.
func (c *Conn) interrupt() error {
	if _, err := c.conn.Write([]byte{0x03}); err != nil {
		return err
	}
	for {
		reply, err := c.receive()
		if err != nil || len(reply) > 0 && (reply[0] == 'T' || reply[0] == 'S') {
			return err
		}
	}
}

// counters runs a monitor command and gives the numbers that its lines begin with a
// name for. A server that does not know it has none.
func (c *Conn) counters(command string) (map[string]int, error) {
	if command == "" {
		return nil, nil
	}
	if err := c.post([]byte("qRcmd," + hex.EncodeToString([]byte(command)))); err != nil {
		return nil, err
	}
	var text []byte
	for {
		reply, err := c.receive()
		if err != nil {
			return nil, err
		}
		if len(reply) > 0 && reply[0] == 'O' && string(reply) != "OK" {
			part, err := hex.DecodeString(string(reply[1:]))
			if err != nil {
				return nil, fmt.Errorf("monitor %s: %w", command, err)
			}
			text = append(text, part...)
			continue
		}
		break
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(text)) {
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' })
		if len(words) < 2 {
			continue
		}
		if n, err := strconv.Atoi(words[1]); err == nil {
			counts[words[0]] = n
		}
	}
	return counts, nil
}

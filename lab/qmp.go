package lab

// The QEMU machine protocol: JSON commands over a socket pair that QEMU
// inherits, so that nobody else can reach it.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type qmp struct {
	mu    sync.Mutex // one command at a time
	conn  net.Conn
	lines *bufio.Reader
	ready bool
}

// newQMP makes the socket pair; theirs is for QEMU.
func newQMP() (q *qmp, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create qmp socket: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "qmp")
	theirs = os.NewFile(uintptr(fds[1]), "qmp")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("create qmp socket: %w", err)
	}
	return &qmp{conn: conn, lines: bufio.NewReader(conn)}, theirs, nil
}

// execute runs a command and stores its result in result, if not nil.
func (q *qmp) execute(ctx context.Context, command string, args, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Not ctx's deadline: a reply that is half read would spoil the next one,
	// and QEMU answers at once.
	if err := q.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("qmp: %w", err)
	}
	if !q.ready {
		if _, err := q.lines.ReadBytes('\n'); err != nil { // greeting
			return fmt.Errorf("qmp: read greeting: %w", err)
		}
		if err := q.call("qmp_capabilities", nil, nil); err != nil {
			return err
		}
		q.ready = true
	}
	return q.call(command, args, result)
}

func (q *qmp) call(command string, args, result any) error {
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(req); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	for {
		line, err := q.lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("qmp %s: %w", command, err)
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("qmp %s: %w", command, err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("qmp %s: %s", command, reply.Error.Desc)
		case reply.Return == nil: // an event
		case result == nil:
			return nil
		default:
			return json.Unmarshal(reply.Return, result)
		}
	}
}

// monitor runs a command of QEMU's human monitor.
func (q *qmp) monitor(ctx context.Context, line string) (string, error) {
	var out string
	err := q.execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &out)
	return out, err
}

// forward lets a loopback port that the kernel picks lead to a port of the
// machine, and returns its address.
func (q *qmp) forward(ctx context.Context, port int) (string, error) {
	out, err := q.monitor(ctx, fmt.Sprintf("hostfwd_add n0 tcp:127.0.0.1:0-:%d", port))
	if err != nil {
		return "", err
	}
	if out != "" {
		return "", fmt.Errorf("forward port %d: %s", port, out)
	}
	return q.forwarded(ctx, port)
}

// forwarded asks QEMU for the loopback address of a forwarded port.
func (q *qmp) forwarded(ctx context.Context, port int) (string, error) {
	out, err := q.monitor(ctx, "info usernet")
	if err != nil {
		return "", err
	}
	addr, ok := parseUsernet(out, port)
	if !ok {
		return "", fmt.Errorf("port %d is not forwarded:\n%s", port, out)
	}
	return addr, nil
}

// A line such as
//
//	TCP[HOST_FORWARD]  12  127.0.0.1 36601  10.0.2.15  7070  0  0
var usernetLine = regexp.MustCompile(`(?m)^\s*TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s`)

func parseUsernet(text string, port int) (string, bool) {
	for _, m := range usernetLine.FindAllStringSubmatch(text, -1) {
		if m[3] == fmt.Sprint(port) {
			return net.JoinHostPort(m[1], m[2]), true
		}
	}
	return "", false
}

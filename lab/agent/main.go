// The agent runs in the lab's dom0: it runs commands, and reads and writes
// files, for whoever knows its token. See package wire for the protocol.
package main

import (
	"crypto/subtle"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"gdbserver-xen/lab/agent/wire"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen on")
	tokenFile := flag.String("token-file", "", "`file` that holds the token of requests")
	flag.Parse()
	err := serve(*listen, *tokenFile) // ends by an error only
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}

func serve(listen, tokenFile string) error {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("lab: agent listens on %s\n", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			handle(conn, strings.TrimSpace(string(token)))
		}()
	}
}

// handle serves the one request of a connection.
func handle(conn net.Conn, token string) {
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	kind, payload, err := wire.Read(conn)
	if err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	var req wire.Request
	if err := json.Unmarshal(payload, &req); err != nil || kind != wire.KindRequest {
		exit(conn, -1, fmt.Errorf("the first frame is not a request"))
		return
	}
	if subtle.ConstantTimeCompare([]byte(req.Token), []byte(token)) != 1 {
		exit(conn, -1, fmt.Errorf("wrong token"))
		return
	}
	switch req.Op {
	case wire.Ping:
		exit(conn, 0, nil)
	case wire.Run:
		run(conn, req)
	case wire.Put:
		exit(conn, 0, put(conn, req))
	case wire.Get:
		exit(conn, 0, get(conn, req))
	default:
		exit(conn, -1, fmt.Errorf("unknown request %q", req.Op))
	}
}

// exit ends an answer. An error of the connection needs no care: the other
// side is gone.
func exit(conn net.Conn, code int, err error) {
	e := wire.Exit{Code: code}
	if err != nil {
		e.Error = err.Error()
	}
	_ = wire.WriteJSON(conn, wire.KindExit, e)
}

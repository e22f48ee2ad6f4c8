// Package wire is what the lab and its agent in dom0 say to each other.
//
// A connection carries one request. The lab sends a [Request] as JSON in a
// frame; then both sides send frames until the agent has sent [Exit]. Closing
// the connection ends whatever the request started.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// What a request asks for.
const (
	Ping = "ping" // answer at once
	Run  = "run"  // run Command by sh -c in a process group of its own
	Put  = "put"  // write Path from the Data frames that follow, up to End
	Get  = "get"  // send Path in Data frames
)

// A Request is the first frame of a connection.
type Request struct {
	Token   string // proves that the sender may ask
	Op      string
	Command string `json:",omitempty"`
	Path    string `json:",omitempty"`
	Mode    uint32 `json:",omitempty"`
	// Terminal runs the command on a terminal of its own, of this size.
	Terminal   bool   `json:",omitempty"`
	Rows, Cols uint16 `json:",omitempty"`
}

// An Exit ends an answer.
type Exit struct {
	Code  int    // of the command; 128+n if signal n ended it
	Error string `json:",omitempty"` // why the request could not be done
}

// Kinds of frames.
const (
	KindRequest byte = iota + 1
	KindExit         // agent to lab
	KindStdout       // agent to lab, of a command
	KindStderr
	KindStdin  // lab to agent, to a command; empty: no more will come
	KindSignal // lab to agent: one byte, for the command's process group
	KindData   // of a file
	KindEnd    // no more data
)

// MaxFrame bounds the payload of a frame.
const MaxFrame = 1 << 20

// Write sends one frame.
func Write(w io.Writer, kind byte, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("frame of %d bytes, limit is %d", len(payload), MaxFrame)
	}
	frame := make([]byte, 5, 5+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	_, err := w.Write(append(frame, payload...))
	return err
}

// WriteJSON sends one frame with v as JSON.
func WriteJSON(w io.Writer, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, kind, b)
}

// Read receives one frame. At the end of the stream the error is io.EOF;
// within a frame it is io.ErrUnexpectedEOF.
func Read(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes, limit is %d", n, MaxFrame)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return head[0], payload, nil
}

// This file is thread ids and the packets about threads: H, T, qC and the two
// ways to list them (GDB manual, nodes "Packets", thread-id syntax, "General
// Query Packets" and "Thread List Format").

package rsp

import (
	"fmt"
	"strconv"
)

// allThreads in a thread id stands for all of them; 0 stands for any.
const allThreads = -1

// parseThreadID reads a thread id from the start of p: pPID.TID, pPID for all
// threads of a process, or TID alone. A TID alone leaves the process open.
func parseThreadID(p []byte) (id ThreadID, rest []byte, ok bool) {
	if len(p) == 0 || p[0] != 'p' {
		id.TID, rest, ok = parseThreadNumber(p)
		if id.TID == allThreads {
			id.PID = allThreads
		}
		return id, rest, ok
	}
	id.PID, rest, ok = parseThreadNumber(p[1:])
	if !ok {
		return id, p, false
	}
	if len(rest) == 0 || rest[0] != '.' {
		id.TID = allThreads
		return id, rest, true
	}
	id.TID, rest, ok = parseThreadNumber(rest[1:])
	return id, rest, ok
}

func parseThreadNumber(p []byte) (n int, rest []byte, ok bool) {
	if len(p) >= 2 && p[0] == '-' && p[1] == '1' {
		return allThreads, p[2:], true
	}
	u, rest, ok := parseNumber(p)
	if u > 1<<31-1 {
		return 0, p, false
	}
	return int(u), rest, ok
}

// appendThreadID appends an id in the form that the client understands.
func (s *session) appendThreadID(dst []byte, id ThreadID) []byte {
	if s.multiprocess {
		dst = append(dst, 'p')
		dst = strconv.AppendInt(dst, int64(id.PID), 16)
		dst = append(dst, '.')
	}
	return strconv.AppendInt(dst, int64(id.TID), 16)
}

// resolve finds the thread that an id names. Where the id leaves a choice, that
// is the thread of the last stop if it will do, else the first that does.
func (s *session) resolve(id ThreadID) (ThreadID, error) {
	threads, err := s.target.Threads()
	if err != nil {
		return ThreadID{}, err
	}
	var found ThreadID
	for _, t := range threads {
		if id.PID > 0 && id.PID != t.ID.PID || id.TID > 0 && id.TID != t.ID.TID {
			continue
		}
		if t.ID == s.stopThread {
			return t.ID, nil
		}
		if found == (ThreadID{}) {
			found = t.ID
		}
	}
	if found == (ThreadID{}) {
		return found, fmt.Errorf("%w: %d.%d", ErrNoThread, id.PID, id.TID)
	}
	return found, nil
}

// registerThread returns the thread whose registers a packet is about: that of
// the packet's suffix or else of Hg.
func (s *session) registerThread() ThreadID {
	if s.suffix != (ThreadID{}) {
		return s.suffix
	}
	return s.general
}

// selectThread handles H.
func (s *session) selectThread(a *arguments) error {
	id, err := s.resolve(a.thread)
	if err != nil {
		return err
	}
	switch a.op {
	case 'g':
		s.general = id
	case 'c':
		s.resumed = a.thread
		if a.thread.TID > 0 {
			s.resumed = id
		}
	default:
		return fmt.Errorf("%w: H selects for g and c only", errMalformed)
	}
	return s.ok()
}

// threadAlive handles T.
func (s *session) threadAlive(a *arguments) error {
	if _, err := s.resolve(a.thread); err != nil {
		return err
	}
	return s.ok()
}

// currentThread handles qC.
func (s *session) currentThread(*arguments) error {
	s.out = s.appendThreadID(append(s.out, "QC"...), s.general)
	return nil
}

// firstThreads handles qfThreadInfo.
func (s *session) firstThreads(a *arguments) error {
	threads, err := s.target.Threads()
	if err != nil {
		return err
	}
	s.listed = threads
	return s.nextThreads(a)
}

// nextThreads handles qsThreadInfo: as many ids as fit, l when there are none
// left.
func (s *session) nextThreads(*arguments) error {
	const longest = 20 // ,p7fffffff.7fffffff
	if len(s.listed) == 0 {
		s.out = append(s.out, 'l')
		return nil
	}
	for len(s.listed) > 0 && (len(s.out) == 0 || len(s.out)+longest <= s.packetSize) {
		c := byte(',')
		if len(s.out) == 0 {
			c = 'm'
		}
		s.out = s.appendThreadID(append(s.out, c), s.listed[0].ID)
		s.listed = s.listed[1:]
	}
	return nil
}

// threadInfo handles qThreadExtraInfo.
func (s *session) threadInfo(a *arguments) error {
	t, err := s.thread(a.thread)
	if err != nil {
		return err
	}
	text := s.describe(t.ID)
	switch {
	case text == "":
		text = t.Name
	case t.Name != "":
		text = t.Name + ": " + text
	}
	s.out = appendHexString(s.out, text[:min(len(text), s.packetSize/2)])
	return nil
}

// thread returns the thread that an id names.
func (s *session) thread(id ThreadID) (Thread, error) {
	id, err := s.resolve(id)
	if err != nil {
		return Thread{}, err
	}
	threads, err := s.target.Threads()
	if err != nil {
		return Thread{}, err
	}
	for _, t := range threads {
		if t.ID == id {
			return t, nil
		}
	}
	return Thread{}, ErrNoThread
}

// describe gives how a thread stands, for people.
func (s *session) describe(id ThreadID) string {
	if d, ok := s.target.(Describer); ok {
		return d.Describe(id)
	}
	return ""
}

// threadsXML handles qXfer:threads:read. The list is made when it is read from
// the start, so that its pages fit together.
func (s *session) threadsXML(a *arguments) error {
	if len(a.annex) > 0 {
		return fmt.Errorf("%w: annex of the thread list", errMalformed)
	}
	if a.num[0] == 0 || s.threadList == nil {
		threads, err := s.target.Threads()
		if err != nil {
			return err
		}
		x := append(s.threadList[:0], "<?xml version=\"1.0\"?>\n<threads>\n"...)
		for _, t := range threads {
			x = s.appendThreadID(append(x, `<thread id="`...), t.ID)
			x = strconv.AppendInt(append(x, `" core="`...), int64(t.Core), 10)
			if t.Name != "" {
				x = appendXMLText(append(x, `" name="`...), t.Name)
			}
			x = appendXMLText(append(x, `">`...), s.describe(t.ID))
			x = append(x, "</thread>\n"...)
		}
		s.threadList = append(x, "</threads>\n"...)
	}
	s.transfer(s.threadList, a.num[0], a.num[1])
	return nil
}

// This file is the run-length encoding of replies: a byte, *, and a printable
// byte that tells how often to repeat the first (GDB manual, node "Overview" of
// the remote protocol).

package rsp

// A run is written as its byte, runMark and runBias plus the number of further
// copies. The shortest run that pays has minRun copies: 4 bytes in 3.
const (
	runBias = 29
	minRun  = 3
	maxRun  = '~' - runBias
)

// runLength returns how many further copies a count byte stands for.
func runLength(c byte) (int, bool) {
	if c < minRun+runBias || c > maxRun+runBias {
		return 0, false
	}
	return int(c) - runBias, true
}

// countByte returns the count byte for the longest run of at most n further
// copies that can be written, and its length. The count is never a byte that
// the framing could mistake for its own.
//
// Preconditions: minRun <= n <= maxRun.
func countByte(n int) (byte, int) {
	for {
		switch c := byte(n + runBias); c {
		case packetStart, packetEnd, '+', '-':
			n--
		default:
			return c, n
		}
	}
}

// appendRuns appends payload to dst, escaped and run-length encoded. Escaped
// bytes take no part in runs: clients differ on whether a run repeats the byte
// before the mark as it stood on the wire (gdb) or as it was decoded (lldb).
func appendRuns(dst, payload []byte) []byte {
	for i := 0; i < len(payload); {
		n := single(payload[i:])
		dst = append(dst, payload[i:i+n]...)
		i += n
		if i == len(payload) {
			break
		}
		c := payload[i]
		i++
		if special[c] {
			dst = append(dst, escape, c^escapeXOR)
			continue
		}
		n = minRun
		for n < maxRun && i+n < len(payload) && payload[i+n] == c {
			n++
		}
		count, n := countByte(n)
		dst = append(dst, c, runMark, count)
		i += n
	}
	return dst
}

// runAt reports whether a run that pays begins at byte i.
func runAt(p []byte, i int) bool {
	if i+minRun >= len(p) || p[i] != p[i+1] {
		return false
	}
	return p[i] == p[i+2] && p[i] == p[i+3]
}

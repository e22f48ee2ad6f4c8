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

// appendRuns appends payload to dst, escaped and run-length encoded where that makes
// much of a difference. Escaped bytes take no part in runs: clients differ on whether
// a run repeats the byte before the mark as it stood on the wire (gdb) or as it was
// decoded (lldb).
func appendRuns(dst, payload []byte) []byte {
	marks := findSpecial(payload)
	for i := 0; i < len(payload); {
		start, end := alike(payload, i)
		dst = appendEscaped(dst, &marks, i, start)
		for i = start; end-i > minRun; {
			count, n := countByte(min(end-i-1, maxRun))
			dst = append(dst, payload[i], runMark, count)
			i += 1 + n
		}
		dst = append(dst, payload[i:end]...)
		i = end
	}
	return dst
}

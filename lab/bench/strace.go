package bench

// What strace -c counts.

import (
	"fmt"
	"strconv"
	"strings"
)

// Syscalls counts system calls by name.
type Syscalls map[string]int

// ParseStrace reads the table that strace -c writes: per line the share of time,
// seconds, microseconds per call, calls, errors if there are any, and the name.
func ParseStrace(text string) (Syscalls, error) {
	calls := Syscalls{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 && len(f) != 6 || f[len(f)-1] == "total" {
			continue
		}
		if _, err := strconv.ParseFloat(f[0], 64); err != nil {
			continue // the head
		}
		n, err := strconv.Atoi(f[3])
		if err != nil {
			return nil, fmt.Errorf("strace: line %q: %w", strings.TrimSpace(line), err)
		}
		calls[f[len(f)-1]] += n
	}
	if len(calls) == 0 {
		return nil, fmt.Errorf("strace has counted nothing: %.200q", text)
	}
	return calls, nil
}

// Total gives the number of calls.
func (s Syscalls) Total() int {
	n := 0
	for _, calls := range s {
		n += calls
	}
	return n
}

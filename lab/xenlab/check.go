package main

// What a session with gdb must have shown.

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	threadLine = regexp.MustCompile(`^[* ] +(\d+(?:\.\d+)?) +(?:Thread|Remote target|LWP|vCPU)`)
	frameLine  = regexp.MustCompile(`^#(\d+) +(?:0x[0-9a-f]+ in )?([A-Za-z_][A-Za-z0-9_.]*) \(.*\) at (\S+):(\d+)$`)
)

// Where the stacks of Linux on x86-64 begin: the way in from user mode, the
// start of a kernel thread, the boot CPU's idle task and those of the others.
var entries = []string{
	"entry_SYSCALL_64", "entry_SYSCALL_64_after_hwframe", "entry_SYSCALL_64_safe_stack",
	"xen_entry_SYSCALL_64", "ret_from_fork", "ret_from_fork_asm",
	"startup_xen", "x86_64_start_kernel", "secondary_startup_64",
	"asm_cpu_bringup_and_idle", "cpu_bringup_and_idle",
}

var errNoEntry = errors.New("no backtrace reaches an entry with file and line")

// checkSession looks for all vCPUs among the threads, and for a backtrace
// that reaches an entry with file and line, in what gdb printed.
func checkSession(text string, vcpus int) error {
	threads := map[string]bool{}
	reached, detached := "", false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if m := threadLine.FindStringSubmatch(line); m != nil {
			threads[m[1]] = true
		}
		if m := frameLine.FindStringSubmatch(line); m != nil && m[1] != "0" && slices.Contains(entries, m[2]) {
			reached = line
		}
		detached = detached || strings.Contains(line, "detached]") || strings.HasPrefix(line, "Detaching")
	}
	switch {
	case len(threads) != vcpus:
		return fmt.Errorf("gdb lists %d threads, the guest has %d vCPUs", len(threads), vcpus)
	case reached == "":
		return errNoEntry
	case !detached:
		return fmt.Errorf("gdb did not detach")
	}
	return nil
}

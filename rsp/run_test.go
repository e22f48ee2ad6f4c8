package rsp_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

var programFile = filepath.Join("rsptest", rsptest.ProgramFile)

// gdbRun is a session that uses all of run control. *(long*)0xffffffff81001000
// is the program's counter: gdb makes no bytecode of a symbol without a type.
var gdbRun = []string{
	"file " + programFile,
	"tbreak main", "continue",
	"break bump", "continue", "bt",
	"finish", // the other thread comes to bump first
	"next", "next", "next", "next", "next", "until", "stepi", "delete",
	"hbreak *0xffffffff81000028", "continue", "delete",
	"watch *(long*)0xffffffff81001008", "continue", "delete",
	"rwatch *(long*)0xffffffff81001000", "continue", "delete",
	"awatch *(long*)0xffffffff81001000", "continue", "continue", "delete",
	"break bump if *(long*)0xffffffff81001000 == 12", "continue", "info breakpoints", "delete",
	"set dprintf-style agent", `dprintf *0xffffffff8100002f,"counter is %ld at %#lx\n", *(long*)0xffffffff81001000, $rip`,
	"condition 8 *(long*)0xffffffff81001000 == 13", // so that it says one thing, which is one packet
	"tbreak *0xffffffff8100001b", "continue", "delete",
	"thread 2", "set scheduler-locking on", "stepi", "next", "info threads", "finish", "set scheduler-locking off",
	"advance bump", "until *0xffffffff81000037",
	"hbreak *0xffffffff81000100", "hbreak *0xffffffff81000101", "hbreak *0xffffffff81000102", "hbreak *0xffffffff81000103",
	"watch *(long*)0xffffffff81001008", "continue",
	"detach",
}

// A real gdb breaks, watches and steps.
func TestGDBRun(t *testing.T) {
	f := runs()
	addr, served := serveTCP(t, f, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr, gdbRun...)...)
	checkOutput(t, out, []string{
		`hit Temporary breakpoint 1, main \(\)`,
		`Thread 1 "vCPU 0" hit Breakpoint 2, bump \(\)`,
		`#1  0xffffffff81000012 in main \(\)`,
		`Thread 2 "vCPU 1" hit Breakpoint 2, bump \(\)`,
		`hit Breakpoint 3, bump \(\) at program.s:`,
		`hit Hardware watchpoint 4: \*\(long\*\)0xffffffff81001008\n\nOld value = \d\nNew value = \d\n`,
		`hit Hardware read watchpoint 5: \*\(long\*\)0xffffffff81001000\n\nValue = \d\n`,
		`hit Hardware access \(read/write\) watchpoint 6: .*\n\nOld value = \d\nNew value = \d\n`,
		`hit Hardware access \(read/write\) watchpoint 6: .*\n\nValue = \d+\n`,
		`stop only if \*\(long\*\)0xffffffff81001000 == 12 \(target evals\)\n\tbreakpoint already hit 1 time\n`,
		`\ncounter is 13 at 0xffffffff8100002f\n\nThread`,
		`hit Temporary breakpoint 9, main`,
		`\nnot supported: a write watchpoint at 0xffffffff81001008: all 4 debug registers are in use`,
		`detached`,
	})
	checkTarget(t, f)
}

// A gdb whose target can have no breakpoints is told why, and goes on.
func TestGDBRefused(t *testing.T) {
	f := runs()
	f.Fail["InsertBreakpoint"] = fmt.Errorf("%w: breakpoints: no engine", rsp.ErrNotSupported)
	addr, served := serveTCP(t, f, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr, "break *0xffffffff81000024", "continue", "next", "stepi",
		"delete", "stepi", "p $rip", "detach")...)
	checkOutput(t, out, []string{
		`(?s)(\nnot supported: breakpoints: no engine\n\nThread 1 "vCPU 0" stopped.*){2}`,
		`0xffffffff81000006 in \?\? \(\)\n\$1 = .* 0xffffffff81000006`,
		`detached`,
	})
	checkTarget(t, f)
}

// lldbRun is the same for lldb, which has no conditions in the target, and no
// read watchpoints apart from access.
var lldbRun = []string{
	"breakpoint set --address 0xffffffff81000024", "continue", "bt",
	"thread step-inst", "thread step-inst", "breakpoint delete --force",
	"breakpoint set --hardware --address 0xffffffff8100001b", "continue", "breakpoint delete --force",
	"watchpoint set expression -w write -- 0xffffffff81001008", "continue", "watchpoint delete --force",
	"watchpoint set expression -w read -- 0xffffffff81001000", "continue", "watchpoint delete --force",
	"breakpoint set --address 0xffffffff81000037", "continue", "breakpoint delete --force",
	"thread step-inst", "thread list", "detach",
}

func lldbRunArgs(addr string) []string { return lldbArgs(addr, lldbRun...) }

// A real lldb breaks, watches and steps.
func TestLLDBRun(t *testing.T) {
	for _, name := range []string{"lldb-14", "lldb-16", "lldb-19"} {
		t.Run(name, func(t *testing.T) {
			lldb := find(t, []string{name})
			f := runs()
			addr, served := serveTCP(t, f, nil)
			out := runClient(t, served, lldb, lldbRunArgs(addr)...)
			checkOutput(t, out, []string{
				`stop reason = breakpoint 1\.1`,
				`\(lldb\) bt\n\* thread #1`,
				`stop reason = instruction step into\n +frame #0: 0xffffffff81000028`,
				`stop reason = breakpoint 2\.1\n +frame #0: 0xffffffff8100001b`,
				`Watchpoint 1 hit:\nold value: 0\nnew value: 1\n`,
				`stop reason = watchpoint 1`,
				`stop reason = watchpoint 2`,
				`stop reason = breakpoint 3\.1`,
				`detached`,
			})
			checkTarget(t, f)
		})
	}
}

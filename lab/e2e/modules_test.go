// This file compares what the product says of modules, tasks and their stacks with
// what the guest says itself: in /proc/modules, /proc/PID/stat and /proc/PID/stack.

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// told is what a guest with work=modules tells of itself.
type told struct {
	modules []string // lines of /proc/modules
	tasks   map[int]*toldTask
}

type toldTask struct {
	comm        string
	state       string
	parent, cpu int
	stack       []string // places, as bt prints them
}

var (
	toldStat  = regexp.MustCompile(`^(\d+) \((.*)\) (\S) (\d+) (.*)$`)
	toldPlace = regexp.MustCompile(`^\[<0>\] (\S+\+0x[0-9a-f]+)/0x[0-9a-f]+( \[\w+\])?$`)
)

// parseTold reads what a guest has told on its console from an offset on, each time that
// it has told all.
func parseTold(console string, from int) []told {
	var all []told
	parts := regexp.MustCompile(`(?m)^told (\d+)( all)?\r?$`).FindAllStringSubmatchIndex(console, -1)
	for i := range parts {
		if i == 0 || parts[i][4] < 0 || parts[i-1][4] >= 0 || parts[i-1][0] < from {
			continue // not the end of one whose begin is there
		}
		one := told{tasks: map[int]*toldTask{}}
		var task *toldTask
		for line := range strings.Lines(console[parts[i-1][1]:parts[i][0]]) {
			word, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
			switch word {
			case "module":
				one.modules = append(one.modules, rest)
			case "stat":
				task = nil
				if m := toldStat.FindStringSubmatch(rest); m != nil {
					const cpu = 39 - 5 // of the fields behind the parent
					id, _ := strconv.Atoi(m[1])
					task = &toldTask{comm: m[2], state: m[3]}
					task.parent, _ = strconv.Atoi(m[4])
					if f := strings.Fields(m[5]); len(f) > cpu {
						task.cpu, _ = strconv.Atoi(f[cpu])
					}
					one.tasks[id] = task
				}
			case "stack":
				if m := toldPlace.FindStringSubmatch(rest); m != nil && task != nil {
					task.stack = append(task.stack, m[1]+m[2])
				}
			}
		}
		all = append(all, one)
	}
	return all
}

var (
	printedTaskLine = regexp.MustCompile(`^task (\d+) (.*), state (\S), CPU (\d+):$`)
	printedPlace    = regexp.MustCompile(`^#\d+ +0x([0-9a-f]{16}) (\S+\+0x[0-9a-f]+(?: \[\w+\])?)$`)
)

// parseTaskStacks reads what bt --tasks prints, but for what the guest's kernel leaves
// out of stacks: its scheduler, which is from first to before end, and user mode.
func parseTaskStacks(printed string, first, end uint64) map[int][]string {
	stacks := map[int][]string{}
	id := 0
	for line := range strings.Lines(printed) {
		line = strings.TrimRight(line, "\r\n")
		if m := printedTaskLine.FindStringSubmatch(line); m != nil {
			id, _ = strconv.Atoi(m[1])
			stacks[id] = nil
		}
		if m := printedPlace.FindStringSubmatch(line); m != nil {
			if addr, _ := strconv.ParseUint(m[1], 16, 64); addr < first || addr >= end {
				stacks[id] = append(stacks[id], m[2])
			}
		}
	}
	return stacks
}

var printedPS = regexp.MustCompile(`(?m)^ *(\d+) +(\d+) +(\d+) (\S) +(\d+) (.*)$`)

// sameTask tells whether a line of ps says of a task what the guest does. The guest
// has names of the kernel's own tasks that are longer than what stands with the task, and
// adds to a worker's what it works on.
func sameTask(line []string, task *toldTask) bool {
	const most = 15
	name, kernel := strings.CutPrefix(strings.TrimSuffix(line[6], "]"), "[")
	rest, same := strings.CutPrefix(task.comm, name)
	same = same && (rest == "" || kernel && (len(name) == most || strings.HasPrefix(name, "kworker/") && strings.ContainsAny(rest[:1], "-+")))
	return same && line[4] == task.state && line[3] == strconv.Itoa(task.parent) && line[5] == strconv.Itoa(task.cpu)
}

// busyTelling are tasks that do something else whenever the guest tells what they do,
// beside process 1, which tells: who prints it, and RCU, which both give work, and who
// wakes twice a second, on another CPU while this one is busy.
var busyTelling = regexp.MustCompile(`^\[(khvcd|rcu_preempt|rcu_sched|kcompactd\d+)\]$`)

// A guest's modules, and the tasks that stand still, and their stacks, are told as the
// guest tells them. Each is compared with what it has told three times, since a task
// may move and come back.
func TestToldByGuest(t *testing.T) {
	const times = 3
	eachLinux(t, withModules, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		said := func(command string) string { return labtest.Output(t, h, "gdbserver-xen "+command+" "+g.Name()) }
		first, end := symbolAddress(t, h, "__sched_text_start"), symbolAddress(t, h, "__sched_text_end")

		ps, stacks := said("ps"), parseTaskStacks(said("bt --tasks"), first, end)
		from := len(g.Console())
		var all []told
		for deadline := time.Now().Add(2 * time.Minute); len(all) < times; all = parseTold(g.Console(), from) {
			if time.Now().After(deadline) {
				t.Fatalf("the guest has told %d times, want %d", len(all), times)
			}
			ticks(t, g)
		}
		psAfter, stacksAfter := said("ps"), parseTaskStacks(said("bt --tasks"), first, end)

		checkModules(t, said("lsmod"), all[0].modules)
		still, same := 0, 0
		for _, line := range printedPS.FindAllStringSubmatch(ps, -1) {
			id, _ := strconv.Atoi(line[2])
			if id == 1 || busyTelling.MatchString(line[6]) {
				delete(stacks, id)
				continue
			}
			if !strings.Contains(psAfter, line[0]+"\n") {
				continue
			}
			still++
			if slices.ContainsFunc(all, func(one told) bool { return one.tasks[id] != nil && sameTask(line, one.tasks[id]) }) {
				same++
			} else {
				t.Errorf("ps prints %q, the guest has %+v", line[0], all[0].tasks[id])
			}
		}
		t.Logf("ps: %d tasks stand still, %d are as the guest says", still, same)
		if still < 40 {
			t.Errorf("only %d tasks stand still:\n%s", still, ps)
		}
		still, same = 0, 0
		inModule := false
		for id, stack := range stacks {
			if len(stack) == 0 || !slices.Equal(stack, stacksAfter[id]) {
				continue
			}
			still++
			inModule = inModule || strings.HasSuffix(stack[0], "[pktgen]")
			if slices.ContainsFunc(all, func(one told) bool { return one.tasks[id] != nil && slices.Equal(one.tasks[id].stack, stack) }) {
				same++
			} else {
				t.Errorf("the stack of task %d is %q, the guest has %+v", id, stack, all[0].tasks[id])
			}
		}
		t.Logf("bt --tasks: %d stacks stand still, %d (%.1f %%) are as the guest says, with all functions and offsets",
			still, same, 100*float64(same)/float64(max(still, 1)))
		if still < 40 || !inModule {
			t.Errorf("only %d stacks stand still; one is in a module: %v", still, inModule)
		}
		ticks(t, g)
		healthy(t, g)
	})
}

// checkModules compares what lsmod prints with lines of /proc/modules.
func checkModules(t *testing.T, printed string, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(printed), "\n")[1:]
	if len(want) != 3 || len(lines) != len(want) {
		t.Errorf("lsmod prints\n%s\nthe guest has\n%s", printed, strings.Join(want, "\n"))
		return
	}
	for i, line := range lines {
		f := strings.Fields(want[i]) // name, size, uses, who uses it, state, address
		by := strings.TrimSuffix(strings.TrimPrefix(f[3], "-"), ",")
		if f[4] != "Live" || strings.Join(strings.Fields(line), " ") != strings.TrimSpace(strings.Join(f[:3], " ")+" "+by) {
			t.Errorf("lsmod prints %q, the guest has %q", line, want[i])
		}
	}
}

// gdb has a guest's modules as libraries, with their names, how to unwind them and their
// types, without a file and with the kernel's own.
func TestGDBModules(t *testing.T) {
	eachLinux(t, withModules, func(t *testing.T, h *lab.Host, g *lab.Guest) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.WaitTick(ctx, 5); err != nil {
			t.Fatal(err)
		}
		all := parseTold(g.Console(), 0)
		if len(all) == 0 || len(all[0].modules) != 3 {
			t.Fatalf("the guest has told %+v", all)
		}
		types := []string{"-ex", "whatis pgctrl_show", "-ex", "whatis ((struct pktgen_dev *)0)->skb->len",
			"-ex", "p sizeof(((struct pktgen_dev *)0)->list)", "-ex", "p ((struct pktgen_net *)$sp)->pktgen_exiting"}
		wantTypes := []string{`(?m)^type = int \(struct seq_file \*, void \*\)$`, `(?m)^type = unsigned int$`,
			`(?m)^\$1 = 16$`, `(?m)^\$2 = (true|false|\d+)$`}
		if strings.HasPrefix(h.KernelRelease(), "5.10.") { // it has none of modules
			types, wantTypes = nil, nil
		}
		for name, args := range map[string][]string{"no file": nil, "symbol file": {symbols(t, h)}} {
			t.Run(name, func(t *testing.T) {
				s := attach(t, h, g)
				begin := time.Now()
				out := s.gdb(slices.Concat([]string{"-ex", "info sharedlibrary", "-ex", "break pgctrl_show", "-ex", "continue",
					"-ex", "bt", "-ex", "info symbol $pc", "-ex", "x/2i $pc", "-ex", "monitor bt"}, types, []string{"-ex", "detach"}, args)...)
				s.exit()
				for _, module := range all[0].modules {
					f := strings.Fields(module)
					expect(t, out, fmt.Sprintf(`(?m)^%s .* target:/gdbserver-xen/\S+/%s\.ko$`, f[5], f[0]))
				}
				expect(t, out, slices.Concat([]string{
					`hit Breakpoint 1, 0x[0-9a-f]+ in pgctrl_show \(\)`,
					`(?m)^#0 .* pgctrl_show \(\) from target:\S+/pktgen\.ko\n#1 .* seq_read_iter \(.*\n(#.*\n)+#\d+ .* entry_SYSCALL_64\w* \(\)`,
					`(?m)^pgctrl_show( \+ \d+)? in section \.text of target:\S+/pktgen\.ko$`,
					`(?m)^=> 0x[0-9a-f]+ <pgctrl_show(\+\d+)?>:`,
					`(?m)^#0 +0x[0-9a-f]+ pgctrl_show\+0x[0-9a-f]+ \[pktgen\]$`,
				}, wantTypes, []string{`detached`})...)
				t.Logf("gdb took %.1f s", time.Since(begin).Seconds())
			})
		}
		ticks(t, g)
		healthy(t, g)
	})
}

// This file lists a kernel's tasks (include/linux/sched.h in Linux).

package linux

import (
	"errors"
	"fmt"
	"math/bits"
)

// A Task is a thread of a process, or of the kernel's own.
type Task struct {
	ID      int  // of the thread, as the kernel's pid
	Process int  // of its process: the first thread's ID
	Parent  int  // process that it is a child of, or 0
	State   byte // a letter, as ps shows it
	CPU     int  // where it runs, or ran last
	Name    string
	Kernel  bool // a thread of the kernel's own
	Running bool // on CPU, now

	stack uint64 // where its stack is; 0: it has none any more
	sp    uint64 // its stack pointer, if it does not run
}

// Title gives the name as ps shows it: in brackets for what is the kernel's own.
func (t *Task) Title() string {
	if t.Kernel {
		return "[" + t.Name + "]"
	}
	return t.Name
}

// taskKeys are the structures of tasks. Of those with two names the first is the
// newer one.
var taskKeys = []string{
	"task_struct.tasks", "task_struct.pid", "task_struct.tgid", "task_struct.comm", "task_struct.flags",
	"task_struct.exit_state", "task_struct.real_parent", "task_struct.signal", "task_struct.thread_node",
	"signal_struct.thread_head",
	"task_struct.__state", "task_struct.state",
	"task_struct.thread_info.cpu", "task_struct.cpu",
	"task_struct.on_cpu", // CONFIG_SMP
	"task_struct.stack", "task_struct.thread.sp",
	"inactive_task_frame", "inactive_task_frame.bp", "inactive_task_frame.ret_addr",
}

// stackKeys are those that stacks of tasks take.
var stackKeys = taskKeys[len(taskKeys)-6:]

const (
	neededTaskKeys = 10
	mostTasks      = 1 << 18
	nameSize       = 16 // TASK_COMM_LEN

	kernelThread = 0x00200000 // PF_KTHREAD

	// Bits of a task's state, from Linux 4.14 on.
	stateReport = 0x7f   // those that ps tells apart (TASK_REPORT)
	stateIdle   = 0x402  // TASK_IDLE
	stateDisk   = 0x9000 // TASK_RTLOCK_WAIT, TASK_FROZEN: shown as D
)

// states are the letters of the bits of stateReport, after that of none; and of
// stateIdle.
const states = "RSDTtXZPI"

// Tasks gives all tasks but the idle ones, in the kernel's order. With an error,
// they are those before what cannot be read.
// Preconditions: the guest does not run.
func (k *Kernel) Tasks(mem Memory) ([]Task, error) {
	o, err := k.types(mem)
	if err == nil {
		err = o.need(taskKeys[:neededTaskKeys]...)
	}
	first, ok := k.Lookup("init_task")
	if err == nil && !ok {
		err = errors.New("the guest's kernel does not say where its first task is (CONFIG_KALLSYMS_ALL)")
	}
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	r := reader{mem: mem}
	var tasks []Task
	add := func(task uint64) {
		if t := r.task(o, task); r.err == nil {
			tasks = append(tasks, t)
		}
	}
	r.list(first+o["task_struct.tasks"], mostTasks, func(entry uint64) bool {
		leader := entry - o["task_struct.tasks"]
		add(leader)
		threads := r.word(leader+o["task_struct.signal"]) + o["signal_struct.thread_head"]
		r.list(threads, mostTasks-min(len(tasks), mostTasks), func(entry uint64) bool {
			if thread := entry - o["task_struct.thread_node"]; thread != leader {
				add(thread)
			}
			return r.err == nil
		})
		return r.err == nil
	})
	if r.err != nil {
		return tasks, fmt.Errorf("list tasks: %w", r.err)
	}
	return tasks, nil
}

// task reads a struct task_struct.
func (r *reader) task(o offsets, at uint64) Task {
	t := Task{
		ID:      int(int32(r.half(at + o["task_struct.pid"]))),
		Process: int(int32(r.half(at + o["task_struct.tgid"]))),
		Name:    r.name(at+o["task_struct.comm"], nameSize),
		Kernel:  r.half(at+o["task_struct.flags"])&kernelThread != 0,
		State:   '?',
	}
	if parent := r.word(at + o["task_struct.real_parent"]); parent != 0 {
		t.Parent = int(int32(r.half(parent + o["task_struct.tgid"])))
	}
	for _, key := range []string{"task_struct.__state", "task_struct.state"} {
		if offset, ok := o[key]; ok {
			t.State = stateLetter(r.half(at+offset), r.half(at+o["task_struct.exit_state"]))
			break
		}
	}
	for _, key := range []string{"task_struct.thread_info.cpu", "task_struct.cpu"} {
		if offset, ok := o[key]; ok {
			t.CPU = int(r.half(at + offset))
			break
		}
	}
	if o.need(stackKeys...) == nil {
		t.Running = r.half(at+o["task_struct.on_cpu"]) != 0
		t.stack, t.sp = r.word(at+o["task_struct.stack"]), r.word(at+o["task_struct.thread.sp"])
	}
	return t
}

// ErrNoStack says that a task has no stack that can be followed, and why.
var ErrNoStack = errors.New("no stack")

// Stack follows the stack of a task to its end, or to user mode, from where the kernel
// has taken the CPU from it. With ErrUnwind, the frames are those before. It is
// ErrNoStack if the task runs, when its stack is its vCPU's, or is dead.
// Preconditions: the task is one of Tasks, and the guest has not run since.
func (k *Kernel) Stack(mem Memory, t Task) ([]Frame, error) {
	o, err := k.types(mem)
	if err == nil {
		err = o.need(stackKeys...)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoStack, err)
	case t.Running:
		return nil, fmt.Errorf("%w: the task runs", ErrNoStack)
	case t.stack == 0:
		return nil, fmt.Errorf("%w: the task is dead", ErrNoStack)
	}
	r := reader{mem: mem}
	u := &unwinder{k: k, mem: mem, r: Registers{
		RIP: r.word(t.sp + o["inactive_task_frame.ret_addr"]), RBP: r.word(t.sp + o["inactive_task_frame.bp"]),
		RSP: t.sp + o["inactive_task_frame"],
	}}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoStack, r.err)
	}
	u.call = !k.threadBegins(u.r.RIP)
	return u.frames()
}

// stateLetter gives the letter of a state (task_state_index in fs/proc and sched.h
// of Linux).
func stateLetter(state, exit uint32) byte {
	switch {
	case state&stateIdle == stateIdle:
		return states[len(states)-1]
	case state&stateDisk != 0:
		return 'D'
	}
	return states[bits.Len32((state|exit)&stateReport)]
}

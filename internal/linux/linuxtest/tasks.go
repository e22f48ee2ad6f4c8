// This file makes a kernel's tasks.

package linuxtest

import "encoding/binary"

// A Task is a thread.
type Task struct {
	ID, Process int // one with the process of one before is its thread
	Parent      int // process, one before; 0: none
	State       byte
	CPU         int
	Name        string
	Kernel      bool
	Running     bool
}

// TaskStack is how far apart the stack pointers of tasks are.
const TaskStack = 0x200

// What a task says of itself (include/linux/sched.h in Linux).
const (
	taskNameSize = 16         // TASK_COMM_LEN
	kernelThread = 0x00200040 // PF_KTHREAD, and another
)

// taskStates and exitStates are those that a task has by its letter.
var (
	taskStates = map[byte]uint32{'R': 0, 'S': 0x1, 'D': 0x102, 'T': 4, 't': 8, 'I': 0x402}
	exitStates = map[byte]uint32{'Z': 0x20, 'X': 0x10}
)

// SetTasks makes a kernel's tasks, once, and the idle one that they hang on. The first
// has its stack pointer at stack.
func (d *Data) SetTasks(list []Task, stack uint64) {
	stateKey, cpuKey := "task_struct.__state", "task_struct.thread_info.cpu"
	if _, ok := d.Offset(stateKey); !ok {
		stateKey, cpuKey = "task_struct.state", "task_struct.cpu"
	}
	size, _ := d.Offset("task_struct")
	signalSize, _ := d.Offset("signal_struct")
	idle := d.New(int(size))
	d.symbol("init_task", idle)
	at := map[int]uint64{0: idle}
	threads := map[int][]uint64{}
	var leaders []uint64
	for i, t := range list {
		task := d.New(int(size))
		if t.Running {
			d.PutHalf(d.Field(task, "task_struct.on_cpu"), 1)
		}
		if t.State != 'X' {
			d.Put(d.Field(task, "task_struct.stack"), stack)
		}
		if t.Kernel {
			d.PutHalf(d.Field(task, "task_struct.flags"), kernelThread)
		}
		d.Put(d.Field(task, "task_struct.thread.sp"), stack+TaskStack*uint64(i))
		d.PutHalf(d.Field(task, "task_struct.pid"), uint32(t.ID))
		d.PutHalf(d.Field(task, "task_struct.tgid"), uint32(t.Process))
		copy(d.At(d.Field(task, "task_struct.comm"))[:taskNameSize], t.Name)
		d.PutHalf(d.Field(task, stateKey), taskStates[t.State])
		d.PutHalf(d.Field(task, "task_struct.exit_state"), exitStates[t.State])
		d.PutHalf(d.Field(task, cpuKey), uint32(t.CPU))
		d.Put(d.Field(task, "task_struct.real_parent"), at[t.Parent])
		threads[t.Process] = append(threads[t.Process], d.Field(task, "task_struct.thread_node"))
		if t.ID == t.Process {
			at[t.ID] = task
			leaders = append(leaders, d.Field(task, "task_struct.tasks"))
			d.Put(d.Field(task, "task_struct.signal"), d.New(int(signalSize)))
		}
	}
	d.Link(d.Field(idle, "task_struct.tasks"), leaders...)
	d.Put(d.Field(idle, "task_struct.real_parent"), idle)
	for process, entries := range threads {
		signal := binary.LittleEndian.Uint64(d.At(d.Field(at[process], "task_struct.signal")))
		d.Link(d.Field(signal, "signal_struct.thread_head"), entries...)
	}
}

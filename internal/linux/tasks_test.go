package linux

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gdbserver-xen/internal/linux/linuxtest"
)

// fakeTaskSP is the stack pointer of a task, by its place in the list.
func fakeTaskSP(i int) uint64 { return fakeStack + linuxtest.TaskStack*uint64(i) }

var fakeTasks = []linuxtest.Task{
	{ID: 1, Process: 1, State: 'S', Name: "init"},
	{ID: 2, Process: 2, State: 'S', Name: "kthreadd", Kernel: true},
	{ID: 17, Process: 17, Parent: 2, State: 'I', CPU: 1, Name: "kworker/1:0H-ev", Kernel: true},
	{ID: 300, Process: 300, Parent: 1, State: 'R', CPU: 3, Name: "server", Running: true},
	{ID: 301, Process: 300, Parent: 1, State: 'D', CPU: 2, Name: "server worker"},
	{ID: 302, Process: 300, Parent: 1, State: 't', Name: "traced"},
	{ID: 400, Process: 400, Parent: 300, State: 'Z', Name: "gone"},
	{ID: 401, Process: 401, Parent: 300, State: 'T', Name: "stopped"},
	{ID: 402, Process: 402, Parent: 300, State: 'X', Name: "escape \x1b"},
}

func TestTasks(t *testing.T) {
	var want []Task
	for _, t := range fakeTasks {
		want = append(want, Task{
			ID: t.ID, Process: t.Process, Parent: t.Parent, State: t.State, CPU: t.CPU,
			Name: t.Name, Kernel: t.Kernel, Running: t.Running,
		})
	}
	want[len(want)-1].Name = "escape ?"
	for version := range linuxtest.Structs {
		d := newFakeData(version)
		d.Kernel.offsets = nil
		d.SetTasks(fakeTasks, fakeStack)
		got, err := d.Tasks(d.Mem)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Task{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", version, err, diff)
		}
	}
	if got := want[1].Title() + want[3].Title(); got != "[kthreadd]server" {
		t.Errorf("got %s", got)
	}
}

// States as kernels have them at one time or another.
func TestStateLetter(t *testing.T) {
	for _, tt := range []struct {
		state, exit uint32
		want        byte
	}{
		{0, 0, 'R'}, {1, 0, 'S'}, {0x2001, 0, 'S'}, {2, 0, 'D'}, {0x102, 0, 'D'}, {0x402, 0, 'I'}, {0x2402, 0, 'I'},
		{0x104, 0, 'T'}, {8, 0, 't'}, {0x80, 0x10, 'X'}, {0x80, 0x20, 'Z'}, {0x40, 0, 'P'}, {0x1000, 0, 'D'}, {0x8000, 0, 'D'},
		{0x200, 0, 'R'}, {0xffffffff, 0xffffffff, 'I'},
	} {
		if got := stateLetter(tt.state, tt.exit); got != tt.want {
			t.Errorf("%#x, %#x: got %c, want %c", tt.state, tt.exit, got, tt.want)
		}
	}
}

// A list that does not lead back to its head ends all the same.
func TestTasksLoop(t *testing.T) {
	d := newFakeData("6.1")
	d.SetTasks(fakeTasks, fakeStack)
	idle, _ := d.Lookup("init_task")
	first := binary.LittleEndian.Uint64(d.At(d.Field(idle, "task_struct.tasks")))
	second := binary.LittleEndian.Uint64(d.At(first))
	d.Put(second, first)
	got, err := d.Tasks(d.Mem)
	if len(got) != 2 || err == nil || !strings.Contains(err.Error(), "not to its head") {
		t.Errorf("got %d tasks, %v", len(got), err)
	}
	d.Put(second, 8)
	if got, err = d.Tasks(d.Mem); len(got) != 2 || err == nil || !strings.Contains(err.Error(), "nothing is mapped") {
		t.Errorf("got %d tasks, %v", len(got), err)
	}
}

// The stack of a task that does not run is followed from where the CPU was taken from
// it; that of a new one begins where it will.
func TestTaskStacks(t *testing.T) {
	for _, version := range []string{"5.10", "6.1", "6.12"} {
		kernel, k := foundKernel(t, linuxtest.Layouts[2])
		d := newFakeData(version)
		k.symbols = append(k.symbols, d.symbols...)
		d.Kernel = k
		d.SetTasks(fakeTasks, fakeStack)
		stack := linuxtest.Space{Addr: fakeStack, Bytes: make([]byte, 2*pageSize)}
		put := func(addr, v uint64) { binary.LittleEndian.PutUint64(stack.Bytes[addr-fakeStack:], v) }
		for i := range fakeTasks {
			sp := fakeTaskSP(i)
			put(sp+40, sp+0x100)                            // RBP
			put(sp+48, linuxtest.Function("irq_stack")+0x9) // which is based on it, for who has called the scheduler
			put(sp+0x108, linuxtest.Function("startup_xen")+7)
		}
		put(fakeTaskSP(0)+48, linuxtest.Function("ret_from_fork"))
		mem := linuxtest.Spaces{kernel, d.Mem, stack}
		tasks, err := k.Tasks(mem)
		if err != nil || len(tasks) != len(fakeTasks) {
			t.Fatalf("%s: %d tasks, %v", version, len(tasks), err)
		}
		for i, task := range tasks {
			want := []Frame{{RIP: linuxtest.Function("irq_stack") + 9, Call: true}, {RIP: linuxtest.Function("startup_xen") + 7, Call: true}}
			reason := ""
			switch {
			case i == 0:
				want = []Frame{{RIP: linuxtest.Function("ret_from_fork")}}
			case task.Running:
				want, reason = nil, "the task runs"
			case task.State == 'X':
				want, reason = nil, "the task is dead"
			}
			got, err := k.Stack(mem, task)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", version, task.Name, diff)
			}
			if reason == "" && err != nil || reason != "" && (!errors.Is(err, ErrNoStack) || !strings.Contains(err.Error(), reason)) {
				t.Errorf("%s: %s: %v, want %q", version, task.Name, err, reason)
			}
		}
		tasks[1].sp = 8
		if got, err := k.Stack(mem, tasks[1]); len(got) > 0 || !errors.Is(err, ErrNoStack) {
			t.Errorf("%s: without memory: %v, %v", version, got, err)
		}
	}
	if _, err := (&Kernel{}).Stack(linuxtest.Spaces{}, Task{}); !errors.Is(err, ErrNoStack) || !errors.Is(err, ErrNoBTF) {
		t.Errorf("got %v", err)
	}
}

// FuzzTasks gives a kernel tasks that are changed at places.
func FuzzTasks(f *testing.F) {
	for i := range 4 {
		f.Add(uint64(i), []byte{1, 2, 3, 4, 5}[:i])
	}
	d := newFakeData("6.1")
	d.SetTasks(fakeTasks, fakeStack)
	f.Fuzz(func(t *testing.T, seed uint64, changes []byte) {
		d.damage(seed, changes, func(k *Kernel, mem Memory) {
			tasks, _ := k.Tasks(mem)
			for _, t := range tasks {
				k.Stack(mem, t)
			}
		})
	})
}

func TestTasksNoBTF(t *testing.T) {
	if _, err := (&Kernel{}).Tasks(linuxtest.Spaces{}); !errors.Is(err, ErrNoBTF) {
		t.Errorf("got %v", err)
	}
}

package lab

// The QEMU process of a host.

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// agentPort is where the agent listens in dom0.
const agentPort = 7070

// A machine is what QEMU is to run.
type machine struct {
	qemu   string // path
	image  image
	initrd string
	cfg    Config
	share  string // directory that dom0 mounts
}

// qemuArgs is the command line. A reproduction, for people, differs in its
// console and has no monitor socket.
func (m machine) qemuArgs(reproduce bool) []string {
	args := []string{
		"-accel", "tcg,thread=multi",
		"-M", "q35", "-cpu", m.cfg.CPU,
		"-m", fmt.Sprint(m.cfg.MemoryMB), "-smp", fmt.Sprint(m.cfg.CPUs),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-kernel", m.image.xen(),
		"-append", strings.TrimSpace(fmt.Sprintf("console=com1 com1=115200,8n1 dom0_mem=%dM,max:%[1]dM dom0_max_vcpus=1 dom0_vcpus_pin sched=credit noreboot %s",
			m.cfg.Dom0MemoryMB, m.cfg.XenArgs)),
		"-initrd", m.image.vmlinux() + " console=hvc0 rdinit=/init " + m.cfg.Dom0Args + "," + m.initrd,
		"-netdev", fmt.Sprintf("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:%d", agentPort),
		"-device", "virtio-net-pci,netdev=n0,romfile=",
		"-virtfs", "local,path=" + m.share + ",mount_tag=share,security_model=none",
		"-virtfs", "local,path=" + m.image.dir + ",mount_tag=image,security_model=none,readonly=on",
		"-serial", "stdio",
	}
	if reproduce {
		return append(args, "-monitor", "none")
	}
	return append(args, "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
}

// commandLine is for pasting into a shell.
func (m machine) commandLine() string {
	m.share = "/tmp"
	line := m.qemu
	for _, a := range m.qemuArgs(true) {
		if strings.ContainsAny(a, " *?()$'") {
			a = Quote(a)
		}
		line += " " + a
	}
	return line
}

// Quote quotes a word for a shell.
func Quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// A process that dies with us: QEMU.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
	err  error         // then, how
}

// startChild starts a command that the kernel kills when this process ends
// in any way. The kernel ties that to the thread that started it, so this
// thread is kept for as long as the child lives.
func startChild(cmd *exec.Cmd) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for us to handle
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// kill ends the child and waits for it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // fails only if it ended
	<-c.done
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// startQEMU starts the machine with its console on out and err.
func startQEMU(m machine, out *console) (*child, *qmp, error) {
	q, theirs, err := newQMP()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(m.qemu, m.qemuArgs(false)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{theirs}
	c, err := startChild(cmd)
	if err != nil {
		q.conn.Close()
		return nil, nil, fmt.Errorf("start qemu: %w", err)
	}
	return c, q, nil
}

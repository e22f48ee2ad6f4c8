package guardian

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The domain of all tests, and the size of its journal.
const (
	domain = 3
	size   = 10000
)

// These tests are about processes. The test binary is three: the test itself,
// the holder of a session, and its guardian.
func TestMain(m *testing.M) {
	// Programs with the race detector wait for a second at their end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	switch {
	case os.Args[0] == Name && os.Args[1] == Command:
		if err := Main(undo); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv("GUARDIAN_TEST_HOLD") != "":
		hold(os.Getenv("GUARDIAN_TEST_HOLD"))
	default:
		os.Exit(m.Run())
	}
}

// undo writes down with what it was called.
func undo(journal []byte) error {
	if len(journal) != size {
		return fmt.Errorf("journal of %d bytes", len(journal))
	}
	d, _ := time.ParseDuration(os.Getenv("GUARDIAN_TEST_DELAY"))
	time.Sleep(d)
	if os.Getenv("GUARDIAN_TEST_FAIL") != "" {
		return errors.New("undo was told to fail")
	}
	f, err := os.OpenFile(os.Getenv("GUARDIAN_TEST_UNDONE"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	fmt.Fprintln(f, load(journal))
	return f.Close()
}

// store puts a number into a journal, in the order that the package asks for.
func store(journal []byte, n uint64) {
	binary.LittleEndian.PutUint64(journal[size-8:], n)
	binary.LittleEndian.PutUint64(journal, 1)
}

func load(journal []byte) uint64 { return binary.LittleEndian.Uint64(journal[size-8:]) }

// hold takes the domain and stores one number after the other, saying each.
func hold(dir string) {
	s, err := Take(context.Background(), dir, domain, size)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if err := s.Guard(slog.New(slog.NewTextHandler(os.Stdout, nil))); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("guarded")
	for n := uint64(1); ; n++ {
		store(s.Journal(), n)
		fmt.Println(n)
		time.Sleep(50 * time.Microsecond)
	}
}

// A holder is a process that has a session.
type holder struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	undone string // file of what undo was called with
	lines  chan string
	last   uint64 // the last number it said
}

func start(t *testing.T, dir string, env ...string) *holder {
	t.Helper()
	o := &holder{
		t: t, dir: dir, cmd: exec.Command("/proc/self/exe"),
		undone: filepath.Join(t.TempDir(), "undone"), lines: make(chan string, 1<<20),
	}
	o.cmd.Env = append(os.Environ(), append(env, "GUARDIAN_TEST_HOLD="+dir, "GUARDIAN_TEST_UNDONE="+o.undone)...)
	o.cmd.Stderr = os.Stderr
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			o.lines <- in.Text()
		}
		close(o.lines)
	}()
	t.Cleanup(func() {
		o.kill()
		// Its guardian must be gone before its files are.
		if s, err := Take(context.Background(), dir, domain, size); err != nil {
			t.Error(err)
		} else {
			closeIt(t, s)
		}
	})
	return o
}

// read takes down what it says, until it says something with text in it, or has
// ended.
func (o *holder) read(text string) string {
	o.t.Helper()
	for timeout := time.After(20 * time.Second); ; {
		select {
		case line, ok := <-o.lines:
			if !ok {
				return ""
			}
			if n, err := strconv.ParseUint(line, 10, 64); err == nil {
				o.last = n
			}
			if text != "" && strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			o.t.Fatalf("holder does not say %q", text)
		}
	}
}

// kill kills it, and takes down what it has still said.
func (o *holder) kill() {
	o.t.Helper()
	o.cmd.Process.Kill()
	o.read("")
	o.cmd.Wait()
}

// undos gives what undo was called with.
func (o *holder) undos() []uint64 {
	o.t.Helper()
	text, err := os.ReadFile(o.undone)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.t.Fatal(err)
	}
	var list []uint64
	for word := range strings.FieldsSeq(string(text)) {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			o.t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// guardian gives the process that watches over it now.
func (o *holder) guardian() int {
	o.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		names, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			o.t.Fatal(err)
		}
		for _, name := range names {
			stat, _ := os.ReadFile(name)
			// proc(5): pid (comm) state ppid pgrp session.
			f := strings.Fields(string(stat))
			if len(f) > 5 && f[1] == "("+Name+")" && f[2] != "Z" && f[3] == strconv.Itoa(o.cmd.Process.Pid) {
				if f[4] != f[0] || f[5] != f[0] {
					o.t.Errorf("guardian %s is in group %s and session %s, not its own", f[0], f[4], f[5])
				}
				pid, _ := strconv.Atoi(f[0])
				return pid
			}
		}
	}
	o.t.Fatalf("holder %d has no guardian", o.cmd.Process.Pid)
	return 0
}

func take(t *testing.T, dir string) *Session {
	t.Helper()
	s, err := Take(t.Context(), dir, domain, size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeIt(t *testing.T, s *Session) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func journalThere(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "domain-3.journal"))
	return err == nil
}

// setPatience sets for how long a guardian that undoes is waited for.
func setPatience(t *testing.T, d time.Duration) {
	old := patience
	patience = d
	t.Cleanup(func() { patience = old })
}

// Whenever the holder is killed, what it had stored is undone, once.
func TestKilledAtRandom(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	start(t, dir).read("guarded")
	toStart := time.Since(begin)
	undone := 0
	for i := range 20 {
		o := start(t, t.TempDir())
		if i%2 == 0 {
			o.read("guarded")
			time.Sleep(rand.N(10 * time.Millisecond))
		} else {
			time.Sleep(rand.N(2 * toStart))
		}
		o.kill()
		s := take(t, o.dir)
		undos := o.undos()
		switch {
		case s.Stale():
			t.Errorf("killed after storing %d: left, and undone %v", o.last, undos)
		case len(undos) == 0 && o.last == 0:
		case len(undos) == 1 && (undos[0] == o.last || undos[0] == o.last+1): // it may not have come to say it
			undone++
		default:
			t.Errorf("killed after storing %d: undone %v", o.last, undos)
		}
		closeIt(t, s)
		if journalThere(o.dir) {
			t.Error("journal is still there")
		}
	}
	t.Logf("undone %d times", undone)
	if undone < 5 {
		t.Errorf("undone %d times only", undone)
	}
}

// Signals other than SIGKILL, and those to all programs of a name, leave the
// guardian alone.
func TestGuardianIgnoresSignals(t *testing.T) {
	o := start(t, t.TempDir())
	o.read("guarded")
	pid := o.guardian()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE} {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || string(cmdline) != "xen-guardian\x00guardian\x003\x00" {
		t.Errorf("its command line is %q, %v", cmdline, err)
	}
	if f, err := program(); err != nil {
		t.Logf("this system cannot hide a program's path: %v", err)
	} else {
		f.Close()
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(path) != "/" {
			t.Errorf("its program is %s, %v", path, err)
		}
	}
	o.read("10")
	if now := o.guardian(); now != pid {
		t.Errorf("guardian was %d and is %d", pid, now)
	}
	o.kill()
	closeIt(t, take(t, o.dir))
	if undos := o.undos(); len(undos) != 1 {
		t.Errorf("undone %v", undos)
	}
}

// A guardian that dies gets a successor, which does what it would have done.
func TestGuardianDies(t *testing.T) {
	dir := t.TempDir()
	o := start(t, dir)
	o.read("guarded")
	for range 2 {
		pid := o.guardian()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		line := o.read("level=WARN")
		if !strings.Contains(line, fmt.Sprintf(`msg="guardian has died, another takes its place" domain=3 pid=%d state="signal: killed"`, pid)) {
			t.Errorf("log says %q", line)
		}
		if now := o.guardian(); now == pid {
			t.Errorf("guardian is still %d", now)
		}
	}
	o.read("0") // it stores on
	o.kill()
	s := take(t, dir)
	if undos := o.undos(); len(undos) != 1 || s.Stale() {
		t.Errorf("undone %v, stale %v", undos, s.Stale())
	}
	closeIt(t, s)
}

// Both were killed: the next session has the journal, until it says that it is
// undone.
func TestStale(t *testing.T) {
	dir := t.TempDir()
	o := start(t, dir)
	o.read("100")
	pid := o.guardian()
	o.cmd.Process.Signal(syscall.SIGSTOP) // it must not start another
	syscall.Kill(pid, syscall.SIGKILL)
	o.kill()
	for range 2 {
		s := take(t, dir)
		if got := load(s.Journal()); !s.Stale() || got != o.last && got != o.last+1 {
			t.Fatalf("stale %v with %d, want %d", s.Stale(), got, o.last)
		}
		closeIt(t, s)
	}
	s := take(t, dir)
	s.Clear()
	if s.Stale() || slices.Max(s.Journal()) != 0 {
		t.Error("journal is not empty")
	}
	closeIt(t, s)
	s = take(t, dir)
	if s.Stale() {
		t.Error("journal is stale")
	}
	closeIt(t, s)
	if undos := o.undos(); len(undos) != 0 {
		t.Errorf("undone %v", undos)
	}
}

// A journal of another size, of another version, is there as a whole.
func TestStaleOfAnotherSize(t *testing.T) {
	for _, other := range []int{size / 2, size * 2} {
		dir := t.TempDir()
		s, err := Take(t.Context(), dir, domain, other)
		if err != nil {
			t.Fatal(err)
		}
		s.Journal()[0], s.Journal()[other-1] = 1, 42
		closeIt(t, s)
		s = take(t, dir)
		if len(s.Journal()) != max(size, other) || !s.Stale() || s.Journal()[other-1] != 42 {
			t.Errorf("journal of %d bytes, stale %v, %d", len(s.Journal()), s.Stale(), s.Journal()[other-1])
		}
		s.Clear()
		closeIt(t, s)
	}
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	o := start(t, dir)
	o.read("guarded")
	_, err := Take(t.Context(), dir, domain, size)
	want := fmt.Sprintf("domain 3 is being debugged by process %d: detach that debugger first, or end that process", o.cmd.Process.Pid)
	if !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	s, err := Take(t.Context(), dir, domain+1, size)
	if err != nil {
		t.Fatalf("another domain: %v", err)
	}
	if _, err := Take(t.Context(), dir, domain+1, size); !errors.Is(err, ErrInUse) {
		t.Errorf("own domain: %v", err)
	}
	closeIt(t, s)
	o.read("0") // it is none the worse
}

// While a guardian undoes, the domain is not free, and then it is.
func TestTakeWaitsForGuardian(t *testing.T) {
	dir := t.TempDir()
	o := start(t, dir, "GUARDIAN_TEST_DELAY=500ms")
	o.read("1")
	o.kill()
	setPatience(t, 50*time.Millisecond)
	if _, err := Take(t.Context(), dir, domain, size); !errors.Is(err, ErrUndoing) {
		t.Errorf("got %v", err)
	}
	setPatience(t, 20*time.Second)
	s := take(t, dir)
	if undos := o.undos(); len(undos) != 1 || s.Stale() {
		t.Errorf("undone %v, stale %v", undos, s.Stale())
	}
	closeIt(t, s)
}

// What could not be undone is left for the next session.
func TestUndoFails(t *testing.T) {
	dir := t.TempDir()
	o := start(t, dir, "GUARDIAN_TEST_FAIL=1")
	o.read("1")
	o.kill()
	s := take(t, dir)
	if got := load(s.Journal()); !s.Stale() || got != o.last && got != o.last+1 {
		t.Errorf("stale %v with %d, want %d", s.Stale(), got, o.last)
	}
	s.Clear()
	closeIt(t, s)
}

// An orderly end leaves nothing, and nothing to undo.
func TestClose(t *testing.T) {
	dir, undone := t.TempDir(), filepath.Join(t.TempDir(), "undone")
	t.Setenv("GUARDIAN_TEST_UNDONE", undone)
	for range 3 {
		s := take(t, dir)
		if err := s.Guard(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		store(s.Journal(), 1)
		s.Clear()
		closeIt(t, s)
		if journalThere(dir) {
			t.Error("journal is still there")
		}
	}
	if _, err := os.Stat(undone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("undo was called: %v", err)
	}
}

// A server that could not give the domain back itself leaves it to the guardian.
func TestCloseLeavesSomething(t *testing.T) {
	for _, n := range []uint64{0, 7} {
		dir, undone := t.TempDir(), filepath.Join(t.TempDir(), "undone")
		t.Setenv("GUARDIAN_TEST_UNDONE", undone)
		s := take(t, dir)
		if err := s.Guard(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		want := ""
		if n > 0 {
			store(s.Journal(), n)
			want = fmt.Sprintln(n)
		}
		closeIt(t, s)
		if got, _ := os.ReadFile(undone); string(got) != want || journalThere(dir) {
			t.Errorf("undone %q, want %q; journal is there: %v", got, want, journalThere(dir))
		}
	}
}

// Without root, the error says what to do.
func TestNoPermission(t *testing.T) {
	const dir = "/run/gdbserver-xen-test"
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GUARDIAN_TEST_HOLD="+dir)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.Output()
	if want := "error mkdir " + dir + ": permission denied: run this as root\n"; err == nil || string(out) != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

// Who runs the hidden command by hand is told that it is not for that.
func TestNotByServer(t *testing.T) {
	out, err := (&exec.Cmd{Path: "/proc/self/exe", Args: []string{Name, Command}}).CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrNotByServer.Error()) {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestStartTime(t *testing.T) {
	if _, err := startTime(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
	cmd := exec.Command("/bin/sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := startTime(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	cmd.Process.Kill()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := startTime(cmd.Process.Pid); errors.Is(err, errDead) {
			cmd.Wait()
			return
		}
	}
	t.Error("a process that was killed counts as living")
}

// This file tests engines on a running guest. It needs a dom0, and is skipped
// unless GDBSERVER_XEN_LIVE=1. GDBSERVER_XEN_LIVE_DOMAIN is the number of a guest
// with two vCPUs, GDBSERVER_XEN_LIVE_FUNCTIONS are the addresses of functions that
// its kernel calls often on both, in hexadecimal, and GDBSERVER_XEN_LIVE_ENGINE is
// the engine, if not the one that would be chosen.

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

const (
	envLive      = "GDBSERVER_XEN_LIVE"
	envDomain    = "GDBSERVER_XEN_LIVE_DOMAIN"
	envFunctions = "GDBSERVER_XEN_LIVE_FUNCTIONS"
	envEngine    = "GDBSERVER_XEN_LIVE_ENGINE"
	envLedger    = "GDBSERVER_XEN_LIVE_LEDGER" // set in the process that is killed
	envRounds    = "GDBSERVER_XEN_LIVE_ROUNDS"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envLedger); path != "" {
		victim(path)
		return
	}
	os.Exit(m.Run())
}

// liveTarget gives the host, the domain and the functions.
func liveTarget() (*xen.Host, xen.DomID, []uint64, error) {
	host, err := xen.Open()
	if err != nil {
		return nil, 0, nil, err
	}
	id, err := strconv.Atoi(os.Getenv(envDomain))
	var functions []uint64
	for _, f := range strings.Fields(os.Getenv(envFunctions)) {
		addr, e := strconv.ParseUint(f, 16, 64)
		functions, err = append(functions, addr), errors.Join(err, e)
	}
	return host, xen.DomID(id), functions, err
}

func live(t *testing.T) (*xen.Host, xen.DomID, []uint64) {
	t.Helper()
	if os.Getenv(envLive) != "1" {
		t.Skip("needs dom0 of a real Xen and a guest: see lab/e2e")
	}
	host, id, functions, err := liveTarget()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	return host, id, functions
}

// debuggee is a guest with an engine, and int3 at functions.
type debuggee struct {
	g      *guest.Guest
	e      Engine
	plants map[uint64]*guest.Plant
}

func take(host *xen.Host, id xen.DomID, ledger *guest.Ledger, functions []uint64) (*debuggee, error) {
	g, err := guest.Attach(host, id, ledger)
	if err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if os.Getenv("GDBSERVER_XEN_LIVE_DEBUG") != "" {
		level = slog.LevelDebug
	}
	e, err := Choose(g, os.Getenv(envEngine), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return nil, errors.Join(err, g.Detach())
	}
	d := &debuggee{g: g, e: e, plants: map[uint64]*guest.Plant{}}
	for _, f := range functions {
		p, err := g.Plant(0, f, []byte{guest.Int3})
		if err != nil {
			return nil, errors.Join(err, e.Close(), g.Detach())
		}
		d.plants[f] = p
	}
	return d, nil
}

// takeForTest takes the guest, which the end of the test gives back.
func takeForTest(t *testing.T) *debuggee {
	t.Helper()
	host, id, functions := live(t)
	d, err := take(host, id, nil, functions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.release(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// release gives the guest back, which then runs on.
func (d *debuggee) release() error {
	err := errors.Join(d.e.Close(), d.g.Detach())
	info, infoErr := d.g.Host().DomainInfo(d.g.ID())
	if infoErr == nil && (info.Paused || info.Debugged) {
		infoErr = fmt.Errorf("the domain is left as %+v", info)
	}
	return errors.Join(err, infoErr)
}

// motions gives one for all vCPUs.
func (d *debuggee) motions(m Motion) []Motion {
	all := make([]Motion, d.g.NumVCPUs())
	for n := range all {
		all[n] = m
	}
	return all
}

// run lets vCPUs move until some stop.
func (d *debuggee) run(motions []Motion, limit time.Duration) ([]Stop, error) {
	if err := d.e.Resume(motions); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	wait := d.e.Wait(ctx)
	stops, err := d.e.Pause()
	if len(stops) > 0 {
		wait = nil
	}
	return stops, errors.Join(wait, err)
}

// step steps one vCPU, over what is planted where it is, while the others stand.
// That leads behind the instruction, unless an interrupt came in between whose
// handler waits for another: then it is the handler that is stepped, and alone is
// false: others may have run on from where they had stopped.
func (d *debuggee) step(n int) (alone bool, err error) {
	before, err := d.g.Registers(n)
	if err != nil {
		return false, err
	}
	p := d.plants[before.RIP]
	if p != nil {
		if err := d.g.Lift(p); err != nil {
			return false, err
		}
	}
	motions := d.motions(Stay)
	motions[n] = Step
	stops, err := d.run(motions, 200*time.Millisecond)
	alone = err == nil
	// It may wait for a vCPU that is held: then all run for a while, and others may
	// come to a breakpoint.
	for try := 0; try < 50 && errors.Is(err, context.DeadlineExceeded); try++ {
		together := d.motions(Run)
		together[n] = Step
		stops, err = d.run(together, 20*time.Millisecond)
		stops = slices.DeleteFunc(stops, func(s Stop) bool { return s.VCPU != n && s.Trap == Breakpoint })
		if err == nil && len(stops) == 0 || errors.Is(err, context.DeadlineExceeded) {
			stops, err = d.run(motions, 200*time.Millisecond)
		}
	}
	if p != nil {
		err = errors.Join(err, d.g.Replant(p))
	}
	if err != nil {
		now, _ := d.g.Registers(n)
		var code [8]byte
		d.g.Read(n, before.RIP, code[:])
		return alone, fmt.Errorf("step from %#x (% x), now at %#x: %w", before.RIP, code, now.RIP, err)
	}
	if len(stops) != 1 || stops[0].VCPU != n || stops[0].Trap != Debug || stops[0].DR6&DR6BS == 0 {
		return alone, fmt.Errorf("a step of vCPU %d gives %+v", n, stops)
	}
	after, err := d.g.Registers(n)
	switch {
	case err != nil:
		return alone, err
	case after.RFLAGS&x86.RFLAGSTF != 0:
		return alone, errors.New("TF is set after a step")
	case p != nil && alone && (after.RIP <= before.RIP || after.RIP > before.RIP+15): // the longest instruction
		return alone, fmt.Errorf("a step leads to %#x from %#x", after.RIP, before.RIP)
	}
	return alone, nil
}

// Both vCPUs come to the functions again and again, and are stepped over them
// while the other stands.
func TestLiveBreakpoints(t *testing.T) {
	d := takeForTest(t)
	rounds := 50
	if v := os.Getenv(envRounds); v != "" {
		rounds, _ = strconv.Atoi(v)
	}
	hits := make([]int, d.g.NumVCPUs())
	steps := 0
	begin := time.Now()
	var stepping time.Duration
	for round := 0; round < rounds || slices.Min(hits) < 10; round++ {
		stops, err := d.run(d.motions(Run), 20*time.Second)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for i, s := range stops {
			r, err := d.g.Registers(s.VCPU)
			if err != nil {
				t.Fatal(err)
			}
			if s.Trap != Breakpoint || d.plants[r.RIP] == nil || i > 0 && stops[i-1].VCPU >= s.VCPU {
				t.Fatalf("round %d: stops %+v, rip %#x", round, stops, r.RIP)
			}
			hits[s.VCPU]++
			from := time.Now()
			alone, err := d.step(s.VCPU)
			if err != nil {
				t.Fatalf("round %d, stops %+v: %v", round, stops, err)
			}
			stepping += time.Since(from)
			steps++
			if !alone {
				break // where the others stopped is of the past
			}
		}
	}
	t.Logf("%v by %s: hits by vCPU %v, %v each, steps and all, %v a step", d.g.Kind(), d.e.Name(), hits,
		(time.Since(begin) / time.Duration(steps)).Round(time.Microsecond),
		(stepping / time.Duration(steps)).Round(time.Microsecond))
}

// A vCPU is stepped on and on through kernel code.
func TestLiveSteps(t *testing.T) {
	d := takeForTest(t)
	for range 3 {
		stops, err := d.run(d.motions(Run), 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		n := stops[0].VCPU
		begin := time.Now()
		const steps = 300
		for i := range steps {
			if _, err := d.step(n); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		t.Logf("%d steps of vCPU %d, %v each", steps, n, (time.Since(begin) / steps).Round(time.Microsecond))
	}
}

// mapLedger maps a ledger's file.
func mapLedger(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(guest.LedgerSize); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, guest.LedgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// victim runs a session until it is killed.
func victim(path string) {
	err := func() error {
		mem, err := mapLedger(path)
		if err != nil {
			return err
		}
		ledger, err := guest.NewLedger(mem)
		if err != nil {
			return err
		}
		host, id, functions, err := liveTarget()
		if err != nil {
			return err
		}
		d, err := take(host, id, ledger, functions)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		for {
			stops, err := d.run(d.motions(Run), 20*time.Second)
			if err != nil {
				return err
			}
			for _, s := range stops {
				for range 3 {
					if _, err := d.step(s.VCPU); err != nil {
						return err
					}
				}
			}
		}
	}()
	fmt.Println("victim:", err)
	os.Exit(3)
}

// A session that is killed at any moment is undone by another process.
func TestLiveKill(t *testing.T) {
	host, id, functions := live(t)
	text := func() []byte {
		g, err := guest.Attach(host, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Detach()
		var all []byte
		for _, f := range functions {
			mem := make([]byte, 64)
			if _, err := g.Read(0, f, mem); err != nil {
				t.Fatal(err)
			}
			all = append(all, mem...)
		}
		return all
	}
	before := text()
	path := filepath.Join(t.TempDir(), "ledger")
	rounds := 10
	if v := os.Getenv(envRounds); v != "" {
		rounds, _ = strconv.Atoi(v)
	}
	for round := range rounds {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envLedger+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var first [6]byte
		out.Read(first[:])
		delay := time.Duration(rand.Int64N(int64(300 * time.Millisecond)))
		time.Sleep(delay)
		cmd.Process.Kill()
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() == 3 {
			t.Fatalf("the process to be killed failed: %v", err)
		}

		mem, err := mapLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		ledger, err := guest.OpenLedger(mem)
		if errors.Is(err, guest.ErrLedger) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := Recover(host, ledger, slog.Default()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		took := time.Since(begin)
		unix.Munmap(mem)
		info, err := host.DomainInfo(id)
		if err != nil || info.Paused {
			t.Fatalf("round %d, killed after %v: domain is %+v, %v", round, delay, info, err)
		}
		if now := text(); string(now) != string(before) {
			t.Fatalf("round %d: text is % x, was % x", round, now, before)
		}
		// All vCPUs get time again.
		for n := range info.VCPUs {
			if !gotTime(t, host, id, n) {
				t.Errorf("round %d, killed after %v: vCPU %d stands", round, delay, n)
			}
		}
		t.Logf("round %d: killed after %v, undone in %v", round, delay, took.Round(time.Millisecond))
		if t.Failed() {
			return
		}
	}
}

// gotTime tells whether a vCPU gets processor time.
func gotTime(t *testing.T, host *xen.Host, id xen.DomID, n int) bool {
	t.Helper()
	first, err := host.VCPUInfo(id, n)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		time.Sleep(50 * time.Millisecond)
		now, err := host.VCPUInfo(id, n)
		if err != nil {
			t.Fatal(err)
		}
		if now.CPUTime > first.CPUTime {
			return true
		}
	}
	return false
}

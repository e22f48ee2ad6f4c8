package guest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// text is where Linux's kernel text begins.
const text = 0xffffffff81000000

// fixture is a fake hypervisor with one domain, 3, whose vCPUs use pt.
type fixture struct {
	*xentest.Hypervisor
	d  *xentest.Domain
	pt *xentest.PageTables
}

func newFixture(t *testing.T, kind xen.Kind, vcpus int) *fixture {
	t.Helper()
	return fixtureOn(t, xentest.Config{}, kind, vcpus)
}

func fixtureOn(t *testing.T, config xentest.Config, kind xen.Kind, vcpus int) *fixture {
	t.Helper()
	guest.PretendAMD(t, false)
	x := xentest.New(t, config)
	d := x.AddDomain(xentest.DomainConfig{ID: 3, Kind: kind, VCPUs: vcpus})
	pt := d.NewPageTables(x86.FourLevel)
	d.UsePageTables(pt)
	return &fixture{x, d, pt}
}

// attach attaches to domain 3, and detaches at the end of the test.
func (f *fixture) attach(t *testing.T) *guest.Guest {
	t.Helper()
	g, err := guest.Attach(f.Host(), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Detach(); err != nil {
			t.Errorf("detach: %v", err)
		}
		if n := f.Mapped(); n != 0 {
			t.Errorf("%d mappings are left after Detach", n)
		}
	})
	return g
}

// Whether others have paused the domain is asked now and then only, unless stops pause
// it, too.
func TestOthersAsked(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	g := f.attach(t)
	asked := func() int {
		before := f.Calls(xentest.OpGetDomainInfo)
		for range 10 {
			if err := errors.Join(g.Resume(), g.Pause()); err != nil {
				t.Fatal(err)
			}
		}
		return f.Calls(xentest.OpGetDomainInfo) - before
	}
	begin := time.Now()
	if n := asked(); n > int(time.Since(begin)/(100*time.Millisecond))+1 {
		t.Errorf("asked %d times in %v", n, time.Since(begin))
	}
	g.HoldByPauses()
	if n := asked(); n != 10 {
		t.Errorf("with stops that pause the domain asked %d times in 10", n)
	}
}

// eachKind runs a test for a PV and for a PVH domain.
func eachKind(t *testing.T, f func(t *testing.T, kind xen.Kind)) {
	for _, kind := range []xen.Kind{xen.PV, xen.PVH} {
		t.Run(kind.String(), func(t *testing.T) { f(t, kind) })
	}
}

func TestAttach(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 2)
		g, err := guest.Attach(f.Host(), 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		if g.ID() != 3 || g.Kind() != kind {
			t.Errorf("attached to %v %d", g.Kind(), g.ID())
		}
		if n := f.d.Pauses(); n != 1 {
			t.Errorf("pause count %d, want 1", n)
		}
		if info, err := g.Info(); err != nil || !info.Paused {
			t.Errorf("info %+v, %v", info, err)
		}
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if n := f.d.Pauses(); n != 0 {
			t.Errorf("pause count %d after detach, want 0", n)
		}
	})
}

func TestAttachErrors(t *testing.T) {
	tests := []struct {
		name string
		id   xen.DomID
		set  func(d *xentest.Domain)
		is   error
		text string
	}{
		{"domain 0", 0, nil, guest.ErrDom0,
			"attach to domain 0: domain 0 runs this program and cannot be stopped by it: use kgdb or a crash dump for its kernel"},
		{"DOMID_SELF", 0x7ff0, nil, guest.ErrReserved,
			"attach to domain 32752: this is one of the hypervisor's own domains, which have no vCPUs: `gdbserver-xen list` shows the ones to choose from"},
		{"DOMID_XEN", 0x7ff2, nil, guest.ErrReserved, ""},
		{"beyond the reserved ones", 0xffff, nil, guest.ErrReserved, ""},
		{"missing", 9, nil, xen.ErrNoDomain,
			"attach to domain 9: XEN_DOMCTL_getdomaininfo: domain 9: no such domain: no such process"},
		{"dying", 3, func(d *xentest.Domain) { d.Dying = true }, guest.ErrDying,
			"attach to domain 3: the domain is being destroyed: nothing is left to debug"},
		{"no vCPUs yet", 3, func(d *xentest.Domain) { d.NoVCPUs = true }, guest.ErrBuilding,
			"attach to domain 3: the domain is still being built: try again when `xl list` shows it running or paused"},
		{"no memory yet", 3, func(d *xentest.Domain) { d.NoPages = true }, guest.ErrBuilding, ""},
		{"vCPU not set up yet", 3, func(d *xentest.Domain) { d.VCPU(0).Uninitialised = true }, guest.ErrBuilding,
			"attach to domain 3: the domain is still being built: try again when `xl list` shows it running or paused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, xen.PV, 1)
			if tt.set != nil {
				tt.set(f.d)
			}
			_, err := guest.Attach(f.Host(), tt.id, nil)
			if !errors.Is(err, tt.is) {
				t.Fatalf("got %v, want %v", err, tt.is)
			}
			if tt.text != "" && err.Error() != tt.text {
				t.Errorf("text %q\nwant %q", err, tt.text)
			}
			if n := f.d.Pauses(); n != 0 {
				t.Errorf("pause count %d, want 0", n)
			}
		})
	}
}

// A guest may take its vCPU 0 off. In an HVM or PVH guest it then has no CPU
// record, which does not make the domain half-built.
func TestAttachWithoutVCPU0(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 2)
		f.d.VCPU(0).Online = false
		f.pt.MapPage(text, []byte("text"))
		g := f.attach(t)
		p := make([]byte, 4)
		if _, err := g.Read(1, text, p); err != nil || string(p) != "text" {
			t.Errorf("read %q, %v", p, err)
		}
		if up, err := g.VCPUs(); err != nil || fmt.Sprint(up) != "[1]" {
			t.Errorf("vCPUs %v, %v", up, err)
		}
	})
}

// Whatever call fails while attaching, the domain is as it was.
func TestAttachFailsAtEveryCall(t *testing.T) {
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		for _, pauses := range []int{0, 2} {
			f := newFixture(t, kind, 2)
			for range pauses {
				f.d.Pause()
			}
			host := f.Host()
			before := f.Calls(xentest.OpAny)
			g, err := guest.Attach(host, 3, nil)
			if err != nil {
				t.Fatal(err)
			}
			calls := f.Calls(xentest.OpAny) - before
			if err := g.Detach(); err != nil {
				t.Fatal(err)
			}
			if calls < 4 {
				t.Fatalf("attached with %d calls", calls)
			}
			failed := 0
			for n := 1; n <= calls; n++ {
				f.ClearFaults()
				host := f.Host() // a new one, which has asked for nothing yet
				f.Fail(xentest.OpAny, n, unix.EIO)
				g, err := guest.Attach(host, 3, nil)
				switch {
				case err == nil:
					if err := g.Detach(); err != nil {
						t.Error(err)
					}
				case errors.Is(err, unix.EIO):
					failed++
				default:
					t.Errorf("call %d fails: %v", n, err)
				}
				if got := f.d.Pauses(); got != pauses {
					t.Fatalf("call %d fails: pause count %d, want %d", n, got, pauses)
				}
				if leaks := f.Leaks(); leaks != nil {
					t.Fatalf("call %d fails: %q", n, leaks)
				}
			}
			if failed != calls {
				t.Errorf("%d of %d failing calls made the attach fail", failed, calls)
			}
		}
	})
}

// The user's pause is his: it outlives ours, and we outlive his unpause.
func TestUsersPauseSurvives(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		f := newFixture(t, xen.PV, 1)
		f.d.Pause()
		g := f.attach(t)
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if n := f.d.Pauses(); n != 1 {
			t.Errorf("pause count %d, want the user's 1", n)
		}
	})
	t.Run("during", func(t *testing.T) {
		f := newFixture(t, xen.PV, 1)
		g := f.attach(t)
		f.d.Pause()
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if n := f.d.Pauses(); n != 1 {
			t.Errorf("pause count %d, want the user's 1", n)
		}
	})
	t.Run("taken back by the user", func(t *testing.T) {
		f := newFixture(t, xen.PV, 1)
		g := f.attach(t)
		f.d.Unpause() // ours
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
		if n := f.d.Pauses(); n != 0 {
			t.Errorf("pause count %d, want 0", n)
		}
	})
}

func TestDetachOfDestroyedDomain(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	g := f.attach(t)
	if _, err := g.Read(0, text, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.d.Destroy()
	if err := g.Detach(); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestPauseAndResumeCountOnce(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	g := f.attach(t)
	for range 3 {
		if err := g.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.d.Pauses(); n != 1 {
		t.Errorf("pause count %d after more pauses, want 1", n)
	}
	for range 3 {
		if err := g.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.d.Pauses(); n != 0 {
		t.Errorf("pause count %d after more resumes, want 0", n)
	}
}

// A Resume that fails leaves the guest ours, so that the next can succeed.
func TestResumeFails(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	g := f.attach(t)
	f.Fail(xentest.OpUnpauseDomain, 1, unix.EIO)
	if err := g.Resume(); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	if err := g.Resume(); err != nil {
		t.Error(err)
	}
	if n := f.d.Pauses(); n != 0 {
		t.Errorf("pause count %d, want 0", n)
	}
}

func TestRunningGuest(t *testing.T) {
	f := newFixture(t, xen.PV, 1)
	f.pt.MapPage(text, nil)
	g := f.attach(t)
	if err := g.Resume(); err != nil {
		t.Fatal(err)
	}
	_, read := g.Read(0, text, make([]byte, 1))
	_, regs := g.Registers(0)
	_, state := g.State(0)
	for name, err := range map[string]error{
		"Read": read, "Registers": regs, "State": state,
		"Write":        g.Write(0, text, []byte{1}),
		"SetRegisters": g.SetRegisters(0, x86.Registers{}),
	} {
		if !errors.Is(err, guest.ErrNotPaused) {
			t.Errorf("%s of a running guest: %v, want ErrNotPaused", name, err)
		}
	}
	if f.d.Frame(f.pt.Entry(text, 3) >> 12 & 0xfffffff)[0] != 0 {
		t.Error("a running guest was written")
	}
}

func TestVCPUs(t *testing.T) {
	tests := []struct {
		name string
		set  func(d *xentest.Domain)
		want string
	}{
		{"all up", func(d *xentest.Domain) {}, "[0 1 2]"},
		{"one down", func(d *xentest.Domain) { d.VCPU(1).Online = false }, "[0 2]"},
		{"one never up", func(d *xentest.Domain) { d.VCPU(2).Online, d.VCPU(2).Uninitialised = false, true }, "[0 1]"},
		{"none up", func(d *xentest.Domain) {
			for n := range 3 {
				d.VCPU(n).Online = false
			}
			d.VCPU(1).Uninitialised = true
		}, "[0 2]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, xen.PV, 3)
			tt.set(f.d)
			g := f.attach(t)
			got, err := g.VCPUs()
			if err != nil || fmt.Sprint(got) != tt.want {
				t.Errorf("got %v, %v, want %s", got, err, tt.want)
			}
		})
	}
	t.Run("no such vCPU", func(t *testing.T) {
		g := newFixture(t, xen.PV, 3).attach(t)
		for _, n := range []int{-1, 3, 1 << 40} {
			if _, err := g.Registers(n); !errors.Is(err, xen.ErrNoVCPU) || !strings.HasPrefix(err.Error(), fmt.Sprintf("vCPU %d: ", n)) {
				t.Errorf("vCPU %d: %v", n, err)
			}
		}
	})
}

func TestState(t *testing.T) {
	t.Run("real and virtual-8086 mode", func(t *testing.T) {
		f := newFixture(t, xen.PVH, 2)
		for n := range 2 {
			f.d.VCPU(n).Context.CS = []uint16{0x803, 0x800}[n]
		}
		f.d.VCPU(0).Context.ControlRegs[0] &^= x86.CR0PE | x86.CR0PG
		f.d.VCPU(1).Context.RFLAGS |= x86.RFLAGSVM
		g := f.attach(t)
		for n, want := range []bool{false, true} {
			if got, err := g.State(n); err != nil || got.UserMode != want {
				t.Errorf("vCPU %d: user mode %v, %v, want %v", n, got.UserMode, err, want)
			}
		}
	})
	eachKind(t, func(t *testing.T, kind xen.Kind) {
		f := newFixture(t, kind, 2)
		v := f.d.VCPU(1)
		v.Blocked, v.CPU = true, 7
		v.Context.Flags &^= xen.VGCFInKernel
		if kind != xen.PV {
			v.Context.CS = 0x33
		}
		g := f.attach(t)
		for n, want := range []guest.State{
			{VCPUInfo: xen.VCPUInfo{Online: true}},
			{VCPUInfo: xen.VCPUInfo{Online: true, Blocked: true, CPU: 7}, UserMode: true},
		} {
			if got, err := g.State(n); err != nil || got != want {
				t.Errorf("vCPU %d: %+v, %v, want %+v", n, got, err, want)
			}
		}
	})
}

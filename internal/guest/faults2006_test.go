// This file pins the three faults for which the gdbserver-xen of 2006 could not
// debug a 64-bit paravirtual guest.

package guest_test

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Fault 1 and 2: paging was taken from CR0, which the hypervisor of 2006 did not
// export (it read 0x8), and the number of levels from CR4.PAE (it read 0).
func TestFault2006ControlRegistersDoNotDecidePVPaging(t *testing.T) {
	for _, cr := range [][2]uint64{{0x8, 0}, {0, 0}, {0x80050033, 0x660}, {0x80000000, 0}, {0x8, 1 << 5}, {0x80050033, 1 << 4}, {0x80050033, 1<<5 | 1<<12}} {
		f := newFixture(t, xen.PV, 1)
		f.pt.MapPage(text, []byte("kernel text"))
		f.pt.MapPage(0x400000, []byte("user text"))
		f.d.VCPU(0).Context.ControlRegs[0], f.d.VCPU(0).Context.ControlRegs[4] = cr[0], cr[1]
		g := f.attach(t)
		for addr, want := range map[uint64]string{text: "kernel text", 0x400000: "user text"} {
			p := make([]byte, len(want))
			if _, err := g.Read(0, addr, p); err != nil || string(p) != want {
				t.Errorf("cr0 %#x, cr4 %#x: %#x holds %q, %v, want %q", cr[0], cr[1], addr, p, err, want)
			}
		}
		r, err := g.Registers(0)
		if err != nil || r.CR0 != cr[0] || r.CR4 != cr[1] {
			t.Errorf("cr0 %#x, cr4 %#x, %v, want %#x", r.CR0, r.CR4, err, cr)
		}
	}
}

// The control registers of an HVM guest do decide.
func TestHVMControlRegistersDecidePaging(t *testing.T) {
	f := newFixture(t, xen.HVM, 1)
	f.pt.MapPage(0x400000, []byte("paged"))
	f.d.AllocAt(0x400)
	copy(f.d.Frame(0x400), "plain")
	g := f.attach(t)
	p := make([]byte, 5)
	if _, err := g.Read(0, 0x400000, p); err != nil || string(p) != "paged" {
		t.Errorf("with paging: %q, %v", p, err)
	}
	if err := g.Resume(); err != nil {
		t.Fatal(err)
	}
	f.d.VCPU(0).Context.ControlRegs[0] = 0x8
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Read(0, 0x400000, p); err != nil || string(p) != "plain" {
		t.Errorf("without paging: %q, %v", p, err)
	}
}

// Fault 3: entries of page tables went through a translation of frames always.
// In a PV guest they hold machine frames, to be mapped as they are; in an HVM
// guest they hold guest frames, which the mapping call translates.
func TestFault2006EntriesAreMappedAsTheyStand(t *testing.T) {
	const n = 0x2000 // machine frame n and guest frame n are different memory
	x := xentest.New(t, xentest.Config{})
	kinds := map[xen.DomID]xen.Kind{1: xen.PV, 2: xen.PVH, 3: xen.HVM}
	want := map[xen.DomID]string{1: "machine frame", 2: "guest frame of 2", 3: "guest frame of 3"}
	host := x.Host()
	for id := xen.DomID(1); id <= 3; id++ {
		d := x.AddDomain(xentest.DomainConfig{ID: id, Kind: kinds[id]})
		pt := d.NewPageTables(x86.FourLevel)
		d.UsePageTables(pt)
		d.AllocAt(n)
		copy(d.Frame(n), want[id])
		pt.Map(text, n, xen.PageSize)
	}
	for id := xen.DomID(1); id <= 3; id++ {
		g, err := guest.Attach(host, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := len(x.MapCalls())
		p := make([]byte, len(want[id]))
		if _, err := g.Read(0, text, p); err != nil || string(p) != want[id] {
			t.Errorf("%v domain %d reads %q, %v, want %q", kinds[id], id, p, err, want[id])
		}
		calls := x.MapCalls()[before:]
		last := calls[len(calls)-1]
		if last.Domain != id || len(last.Frames) != 1 || last.Frames[0] != n {
			t.Errorf("%v domain %d: the page was mapped by %+v, want frame %#x", kinds[id], id, last, n)
		}
		if err := g.Write(0, text, []byte("W")); err != nil {
			t.Error(err)
		}
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
	}
	for id, w := range want {
		g, err := guest.Attach(host, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, len(w))
		if _, err := g.Read(0, text, p); err != nil || string(p) != "W"+w[1:] {
			t.Errorf("domain %d holds %q after all were written, %v", id, p, err)
		}
		if err := g.Detach(); err != nil {
			t.Error(err)
		}
	}
}

// Fault 3, made impossible: code that feeds one kind of frame to what takes the
// other does not compile.
func TestFault2006MixingFramesDoesNotCompile(t *testing.T) {
	c := newChecker(t)
	tests := []struct {
		name, body string
		good       bool
	}{
		{"machine frames to the map call for them", `h.MapMachineFrames(1, []xen.MFN{mfn}, false)`, true},
		{"guest frames to the map call for them", `h.MapGuestFrames(1, []xen.GFN{gfn}, false)`, true},
		{"a walk of machine frames", `var tr x86.Translation[xen.MFN]; tr, _ = x86.Walk(x86.FourLevel, x86.RootOf[xen.MFN](x86.FourLevel, 0), 0, x86.Tables[xen.MFN](machine)); _ = tr`, true},
		{"a memory of guest frames", `machine = newFrames(func(fs []xen.MFN, write bool) (*xen.Mapping, error) { return h.MapMachineFrames(1, fs, write) }, nil)`, true},

		{"machine frames to the map call for guest frames", `h.MapGuestFrames(1, []xen.MFN{mfn}, false)`, false},
		{"guest frames to the map call for machine frames", `h.MapMachineFrames(1, []xen.GFN{gfn}, false)`, false},
		{"a machine frame in a list of guest frames", `_ = []xen.GFN{mfn}`, false},
		{"assignment", `gfn = mfn`, false},
		{"comparison", `_ = gfn == mfn`, false},
		{"arithmetic", `_ = gfn + mfn`, false},
		{"a walk of machine tables from a guest frame", `x86.Walk(x86.FourLevel, x86.RootOf[xen.GFN](x86.FourLevel, 0), 0, x86.Tables[xen.MFN](machine))`, false},
		{"tables of the other kind", `_ = x86.Tables[xen.GFN](machine)`, false},
		{"the result of a walk taken for the other kind", `var tr x86.Translation[xen.GFN]; tr, _ = x86.Walk(x86.FourLevel, x86.RootOf[xen.MFN](x86.FourLevel, 0), 0, x86.Tables[xen.MFN](machine)); _ = tr`, false},
		{"a memory of machine frames over the map call for guest frames", `_ = newFrames(func(fs []xen.MFN, write bool) (*xen.Mapping, error) { return h.MapGuestFrames(1, fs, write) }, nil)`, false},
		{"a memory of guest frames where machine frames belong", `machine = newFrames(func(fs []xen.GFN, write bool) (*xen.Mapping, error) { return h.MapGuestFrames(1, fs, write) }, nil)`, false},
		{"a guest frame looked up among machine frames", `machine.Table(gfn)`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := c.check(tt.body)
			switch {
			case tt.good && err != nil:
				t.Errorf("does not compile: %v", err)
			case tt.good:
			case err == nil:
				t.Errorf("compiles: %s", tt.body)
			case !strings.Contains(err.Error(), "xen.MFN") || !strings.Contains(err.Error(), "xen.GFN"):
				t.Errorf("does not compile, but not for its types: %v", err)
			}
		})
	}
}

// checker type-checks snippets as parts of package guest.
type checker struct {
	fset     *token.FileSet
	files    []*ast.File
	importer types.Importer
}

// newChecker parses the package and has its imports compiled.
func newChecker(t *testing.T) *checker {
	t.Helper()
	c := &checker{fset: token.NewFileSet()}
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(c.fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		c.files = append(c.files, f)
	}
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	export := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		export[path] = file
	}
	c.importer = importer.ForCompiler(c.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(export[path]) })
	return c
}

// check type-checks the body of a function of the package. The error is all that
// is wrong with it.
func (c *checker) check(body string) error {
	const head = `package guest

import (
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

var _ x86.Mode

func snippet(h *xen.Host, mfn xen.MFN, gfn xen.GFN, machine *frames[xen.MFN]) {
	`
	f, err := parser.ParseFile(c.fset, "snippet.go", head+body+"\n}\n", parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	config := types.Config{Importer: c.importer}
	_, err = config.Check("gdbserver-xen/internal/guest", c.fset, append([]*ast.File{f}, c.files...), nil)
	return err
}

// A vCPU of a 64-bit PV guest has two tables: in user mode, addresses of the
// kernel lead through the one in ctrlreg[3], those of the user through that in
// ctrlreg[1].
func TestPVUserMode(t *testing.T) {
	f := newFixture(t, xen.PV, 3)
	f.pt.MapPage(text, []byte("kernel's kernel"))
	f.pt.MapPage(0x400000, []byte("kernel's user"))
	user := f.d.NewPageTables(x86.FourLevel)
	user.MapPage(text, []byte("user's kernel"))
	user.MapPage(0x400000, []byte("user's user"))
	for n := range 3 {
		f.d.VCPU(n).Context.ControlRegs[1] = user.CR3()
	}
	f.d.VCPU(1).Context.Flags &^= xen.VGCFInKernel
	f.d.VCPU(2).Context.Flags &^= xen.VGCFInKernel
	f.d.VCPU(2).Context.ControlRegs[1] = 0 // none: a kernel without its own tables for users
	g := f.attach(t)
	for _, tt := range []struct {
		vcpu int
		addr uint64
		want string
	}{
		{0, text, "kernel's kernel"}, {0, 0x400000, "kernel's user"},
		{1, text, "kernel's kernel"}, {1, 0x400000, "user's user"},
		{2, text, "kernel's kernel"}, {2, 0x400000, "kernel's user"},
		{0, 0x400000, "kernel's user"}, // translations of one are not the other's
	} {
		p := make([]byte, len(tt.want))
		if _, err := g.Read(tt.vcpu, tt.addr, p); err != nil || string(p) != tt.want {
			t.Errorf("vCPU %d, %#x: %q, %v, want %q", tt.vcpu, tt.addr, p, err, tt.want)
		}
	}
	if err := g.Write(1, 0x400000, []byte("USER")); err != nil {
		t.Fatal(err)
	}
	if got := string(f.d.Frame(user.Entry(0x400000, 3) << 1 >> 13)[:11]); got != "USER's user" {
		t.Errorf("the user's page holds %q", got)
	}
}

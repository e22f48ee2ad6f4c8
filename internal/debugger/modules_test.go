package debugger

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux"
	"gdbserver-xen/internal/linux/linuxtest"
	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// filesOfGuest are the files of a guest with a kernel that has modules. It is no domain,
// in which nothing that a test changes in the kernel's data would show.
type filesOfGuest struct {
	kernelFiles
	*fakeKernel
	said  bytes.Buffer // the log
	reads int          // of the guest's memory
}

// Read reads the guest's memory.
func (g *filesOfGuest) Read(addr uint64, p []byte) (int, error) {
	g.reads++
	return g.spaces().Read(addr, p)
}

// newFilesOfGuest makes a guest with modules.
func newFilesOfGuest(t *testing.T, modules ...linuxtest.Module) *filesOfGuest {
	t.Helper()
	g := &filesOfGuest{fakeKernel: newFakeKernel(t, nil, modules...)}
	g.k.ReadTypes(g)
	g.kernelFiles = kernelFiles{
		log:  slog.New(slog.NewTextHandler(&g.said, nil)),
		find: func() (*linux.Kernel, linux.Memory, error) { return g.k, g, nil },
	}
	return g
}

// live is a module that runs.
func live(name string) linuxtest.Module { return linuxtest.Module{Name: name, State: "live"} }

// unset is a place for a module, of which there is nothing yet.
var unset = linuxtest.Module{Name: "unset", State: "unformed"}

// moduleAt is where the module of a place is.
func moduleAt(i int) uint64 { return linuxtest.Modules + uint64(i)*linuxtest.ModuleSize }

// moduleFile names the file of a module, but for the checksum behind its address.
func moduleFile(i int, name string) string {
	return fmt.Sprintf("/gdbserver-xen/%x/%x/%s.ko", linuxtest.BuildID, moduleAt(i), name)
}

var checksum = regexp.MustCompile(`-[0-9a-f]{8}/`)

// withoutChecksums gives names of files without the checksums.
func withoutChecksums(text string) string { return checksum.ReplaceAllString(text, "/") }

// names gives the names of libraries without checksums.
func names(list []rsp.Library) (names []string) {
	for _, l := range list {
		names = append(names, withoutChecksums(l.Name))
	}
	return names
}

// frames is the library of the kernel's call-frame information.
var frames = rsp.Library{Name: fmt.Sprintf("/gdbserver-xen/%x/frames-%s", linuxtest.BuildID, layout61.Version), Sections: []uint64{0}}

// libraries gives the libraries behind the first, which is to be that of the kernel's
// call-frame information.
func (g *filesOfGuest) libraries(t *testing.T) []rsp.Library {
	t.Helper()
	list, err := g.Libraries()
	if err != nil || len(list) == 0 {
		t.Fatalf("got %v, %v", list, err)
	}
	if diff := cmp.Diff(frames, list[0]); diff != "" {
		t.Errorf("the first library (-want +got):\n%s", diff)
	}
	return list[1:]
}

// allocated counts the sections of a file that are in memory.
func allocated(f *elf.File) (n int) {
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			n++
		}
	}
	return n
}

// addresses gives where the symbols of a module's file are in the guest.
func addresses(t *testing.T, f *elf.File, l rsp.Library) map[string]uint64 {
	t.Helper()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]uint64{}
	for _, s := range symbols {
		at[s.Name] = l.Sections[s.Section-1] + s.Value // those in memory are the first
	}
	return at
}

// A filesClient is a client of a target with the files of a guest.
type filesClient struct {
	*rsptest.Client
	t *testing.T
}

// target makes a target that has the files.
func (g *filesOfGuest) target() rsp.Target {
	return struct {
		*rsptest.Target
		*kernelFiles
	}{rsptest.NewTarget(1), &g.kernelFiles}
}

func (g *filesOfGuest) dial(t *testing.T) filesClient {
	t.Helper()
	c := rsptest.Dial(t, g.target(), rsp.Config{})
	if err := c.NoAck(); err != nil {
		t.Fatal(err)
	}
	return filesClient{c, t}
}

// ask sends a packet, and gives the reply.
func (c filesClient) ask(format string, args ...any) string {
	c.t.Helper()
	reply, err := c.Send(fmt.Sprintf(format, args...))
	if err != nil {
		c.t.Fatal(err)
	}
	return reply
}

// libraries reads the list of libraries.
func (c filesClient) libraries() (list []rsp.Library) {
	c.t.Helper()
	text, ok := strings.CutPrefix(c.ask("qXfer:libraries:read::0,4000"), "l")
	var parsed struct {
		XMLName xml.Name `xml:"library-list"`
		Library []struct {
			Name    string `xml:"name,attr"`
			Section []struct {
				Address string `xml:"address,attr"`
			} `xml:"section"`
		} `xml:"library"`
	}
	if err := xml.Unmarshal([]byte(text), &parsed); err != nil || !ok {
		c.t.Fatalf("%v in %q", err, text)
	}
	for _, l := range parsed.Library {
		one := rsp.Library{Name: l.Name}
		for _, s := range l.Section {
			addr, err := strconv.ParseUint(s.Address, 0, 64)
			if err != nil {
				c.t.Error(err)
			}
			one.Sections = append(one.Sections, addr)
		}
		list = append(list, one)
	}
	return list
}

// read reads a file, which is to be an ELF.
func (c filesClient) read(name string) *elf.File {
	c.t.Helper()
	fd, ok := strings.CutPrefix(c.ask("vFile:open:%x,0,0", name), "F")
	if !ok || strings.HasPrefix(fd, "-") {
		c.t.Fatalf("%s: opening it gives %q", name, fd)
	}
	var file []byte
	for {
		head, piece, _ := strings.Cut(c.ask("vFile:pread:%s,1000,%x", fd, len(file)), ";")
		if head != fmt.Sprintf("F%x", len(piece)) {
			c.t.Fatalf("%s: %q before %d bytes", name, head, len(piece))
		}
		if piece == "" {
			break
		}
		file = append(file, piece...)
	}
	if reply := c.ask("vFile:close:%s", fd); reply != "F0" {
		c.t.Errorf("%s: closing it gives %q", name, reply)
	}
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return f
}

// Each module is a library with an address for each section that is in memory, and its
// file has its symbols where they are.
func TestModuleLibraries(t *testing.T) {
	c := newFilesOfGuest(t, live("slhc"), unset, live("ppp_generic")).dial(t)
	got := c.libraries()
	if diff := cmp.Diff([]string{frames.Name, moduleFile(0, "slhc"), moduleFile(2, "ppp_generic")}, names(got)); diff != "" {
		t.Fatalf("libraries (-want +got):\n%s", diff)
	}
	for i, l := range got {
		f := c.read(l.Name)
		if n := allocated(f); n != len(l.Sections) {
			t.Errorf("%s: %d of its sections are in memory, %d have an address", l.Name, n, len(l.Sections))
		}
		if f.Section(".debug_frame") == nil {
			t.Errorf("%s does not tell how to unwind", l.Name)
		}
		if i == 0 {
			continue
		}
		if f.Section(".debug_info") == nil {
			t.Errorf("%s has no types", l.Name)
		}
		name, base := strings.TrimSuffix(path.Base(l.Name), ".ko"), moduleAt([]int{0, 2}[i-1])
		if diff := cmp.Diff([]uint64{base, base}, l.Sections); diff != "" {
			t.Errorf("%s: sections (-want +got):\n%s", l.Name, diff)
		}
		wantAt := map[string]uint64{
			name + "_init": base + linuxtest.FunctionSize, name + "_open": base + 2*linuxtest.FunctionSize,
			name + "_data": base + linuxtest.ModuleText,
		}
		if diff := cmp.Diff(wantAt, addresses(t, f, l)); diff != "" {
			t.Errorf("%s: symbols (-want +got):\n%s", l.Name, diff)
		}
	}
}

// The modules are read once at each stop, and are those that there are then. One that was
// unloaded and loaded again has another name, at another address or if it has changed, and
// its old file is no more; one that stays keeps its name.
func TestModulesReloaded(t *testing.T) {
	g := newFilesOfGuest(t, live("slhc"), live("slip"), live("ppp_generic"))
	check := func(name string, want ...string) []rsp.Library {
		t.Helper()
		list := g.libraries(t)
		if diff := cmp.Diff(want, names(list)); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", name, diff)
		}
		return list
	}
	slhc, slip, ppp := moduleFile(0, "slhc"), moduleFile(1, "slip"), moduleFile(2, "ppp_generic")
	first := check("first", slhc, slip, ppp)
	old, err := g.OpenFile(first[1].Name)
	if err != nil {
		t.Fatal(err)
	}

	reads := g.reads
	g.load(live("slhc"), unset, live("ppp_generic"), live("slip"))
	g.data.PutHalf(g.data.Field(g.data.Module(2), "module.core_layout.text_size"), 2*linuxtest.FunctionSize)
	if check("before it has run", slhc, slip, ppp); g.reads != reads {
		t.Errorf("modules were read again, %d times", g.reads-reads)
	}

	g.resumed()
	slip = moduleFile(3, "slip")
	second := check("when it has run", slhc, ppp, slip)
	if second[0].Name != first[0].Name || second[1].Name == first[2].Name {
		t.Errorf("slhc, which has not changed, is %s and %s; ppp_generic, which has, %s and %s",
			first[0].Name, second[0].Name, first[2].Name, second[1].Name)
	}
	for _, l := range first[1:] {
		if _, err := g.OpenFile(l.Name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s, which is gone: %v", l.Name, err)
		}
	}
	head := make([]byte, len(elf.ELFMAG))
	if _, err := old.ReadAt(head, 0); err != nil || string(head) != elf.ELFMAG {
		t.Errorf("a client that has an old file open reads %q, %v", head, err)
	}

	find := g.find
	g.find = func() (*linux.Kernel, linux.Memory, error) { return nil, nil, linux.ErrNotLinux }
	g.resumed()
	check("where no vCPU sees the kernel", slhc, ppp, slip)
	g.find = find
	g.resumed()
	last := check("at last", slhc, ppp, slip)[2]
	if at := addresses(t, g.dial(t).read(last.Name), last)["slip_init"]; at != moduleAt(3)+linuxtest.FunctionSize {
		t.Errorf("slip_init is at %#x", at)
	}
}

// Whatever names a guest gives its modules, clients can read the list and each file of it,
// and open nothing else.
func TestModuleNames(t *testing.T) {
	const most = 56 // MODULE_NAME_LEN
	names := []string{"../../etc/passwd", "..", "/", "", `x"/><library name="/etc/passwd">&amp;'`,
		"\x01\x1b[2J\n\x7f\xff\u00e4", strings.Repeat("long", 50), "twice/.."}
	var modules []linuxtest.Module
	for _, name := range names {
		modules = append(modules, live(name))
	}
	c := newFilesOfGuest(t, modules...).dial(t)
	var got []string
	for i, l := range c.libraries()[1:] {
		within := fmt.Sprintf("/gdbserver-xen/%x/%x/", linuxtest.BuildID, moduleAt(i))
		name, ok := strings.CutPrefix(withoutChecksums(l.Name), within)
		if !ok || strings.Contains(name, "/") {
			t.Errorf("%q is called %q, want it in %s", names[i], l.Name, within)
		}
		got = append(got, name)
		if f := c.read(l.Name); allocated(f) != len(l.Sections) {
			t.Errorf("%q is not the file of a module", l.Name)
		}
		for _, other := range []string{names[i], within + names[i], within + names[i] + ".ko", within + "../passwd.ko"} {
			if other == l.Name {
				continue
			}
			if reply := c.ask("vFile:open:%x,0,0", other); reply != "F-1,2" {
				t.Errorf("opening %q gives %q", other, reply)
			}
		}
	}
	want := []string{"passwd.ko", "...ko", ".ko", "..ko", "passwd\">&amp;'.ko", "??[2J????.ko", strings.Repeat("long", most/4) + ".ko", "...ko"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// Modules of one name in one place, as no sound guest has them, have each a file that fits
// what is said of it.
func TestModulesInOnePlace(t *testing.T) {
	g := newFilesOfGuest(t, live("slhc"), live("slhc"))
	second := g.data.Module(1)
	g.data.Put(g.data.Field(second, "module.core_layout.base"), moduleAt(0))
	g.data.PutHalf(g.data.Field(second, "module.core_layout.text_size"), linuxtest.ModuleSize)
	c := g.dial(t)
	list := c.libraries()
	if diff := cmp.Diff([]string{frames.Name, moduleFile(0, "slhc"), moduleFile(0, "slhc")}, names(list)); diff != "" {
		t.Errorf("libraries (-want +got):\n%s", diff)
	}
	for _, l := range list {
		if n := allocated(c.read(l.Name)); n != len(l.Sections) {
			t.Errorf("%s: %d of its sections are in memory, %d have an address", l.Name, n, len(l.Sections))
		}
	}
}

// Without all modules, or any, or memory that they are in, the kernel and its
// call-frame information are there all the same. That is said once at each stop.
func TestModulesMissing(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(g *filesOfGuest)
		want   []string // modules
		says   string
	}{
		"the list is cut off": {func(g *filesOfGuest) {
			g.data.Put(g.data.Field(g.data.Module(0), "module.list"), 8)
		}, []string{moduleFile(0, "slhc")}, "nothing is mapped at 0x0"},
		"the list goes around": {func(g *filesOfGuest) {
			g.data.Put(g.data.Field(g.data.Module(0), "module.list"), g.data.Field(g.data.Module(0), "module.list"))
		}, []string{moduleFile(0, "slhc")}, "leads back"},
		"no vCPU sees them": {func(g *filesOfGuest) {
			find := g.find
			g.find = func() (*linux.Kernel, linux.Memory, error) {
				k, _, err := find()
				return k, nil, err
			}
		}, nil, ""},
		"no symbols": {func(g *filesOfGuest) {
			g.data.Put(g.data.Field(g.data.Module(0), "module.kallsyms"), 8)
		}, []string{moduleFile(0, "slhc"), moduleFile(1, "slip")}, ""},
		"no code": {func(g *filesOfGuest) {
			g.data.PutHalf(g.data.Field(g.data.Module(0), "module.core_layout.text_size"), 0)
		}, []string{moduleFile(1, "slip")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newFilesOfGuest(t, live("slhc"), live("slip"))
			tt.change(g)
			c := g.dial(t)
			for range 2 {
				list := g.libraries(t)
				for _, l := range list {
					c.read(l.Name)
				}
				if diff := cmp.Diff(tt.want, names(list)); diff != "" {
					t.Errorf("modules (-want +got):\n%s", diff)
				}
				c.read(frames.Name)
				executable, err := g.Executable()
				if err != nil {
					t.Fatal(err)
				}
				c.read(executable)
			}
			if said := g.said.String(); strings.Count(said, "level=WARN") != min(len(tt.says), 1) || !strings.Contains(said, tt.says) {
				t.Errorf("said %q, want once %q", said, tt.says)
			}
		})
	}
}

// A real gdb, where it is installed, has the modules with their symbols and types, and
// finds nothing to complain of.
func TestGDBModules(t *testing.T) {
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		t.Skipf("needs gdb: %v", err)
	}
	g := newFilesOfGuest(t, live("slhc"), live("a&b"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	addr, served := serveTCP(ctx, t, g.target())
	out, err := exec.CommandContext(ctx, gdb, "-nx", "-batch", "-ex", "target remote "+addr, "-ex", "info sharedlibrary",
		"-ex", fmt.Sprintf("info symbol %#x", moduleAt(0)+linuxtest.FunctionSize+5), "-ex", "info address a&b_open",
		"-ex", "ptype struct slhc_dev", "-ex", "detach").CombinedOutput()
	if err != nil {
		t.Fatalf("gdb: %v\n%s", err, out)
	}
	for _, want := range []string{
		fmt.Sprintf(`(?m)^0x0{15}0 .* target:%s$`, frames.Name),
		fmt.Sprintf(`(?m)^%#x .* target:%s$`, moduleAt(0), moduleFile(0, "slhc")),
		fmt.Sprintf(`(?m)^%#x .* target:%s$`, moduleAt(1), moduleFile(1, "a&b")),
		fmt.Sprintf(`(?m)^slhc_init \+ 5 in section \.text of target:%s$`, moduleFile(0, "slhc")),
		fmt.Sprintf(`"a&b_open" is a function at address %#x\.`, moduleAt(1)+2*linuxtest.FunctionSize),
		`struct task_struct \*task;`, `detached`,
	} {
		if !regexp.MustCompile(want).MatchString(withoutChecksums(string(out))) {
			t.Errorf("gdb does not print %s:\n%s", want, out)
		}
	}
	if regexp.MustCompile(`(?i)error|can't|could not`).Match(out) {
		t.Errorf("gdb complains:\n%s", out)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

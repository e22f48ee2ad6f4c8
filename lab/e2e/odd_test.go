// This file attaches to domains that are not as they should be: unborn, dying,
// with holes in their memory, with vCPUs that are not there.

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/lab"
	"gdbserver-xen/lab/labtest"
)

// eventually tries until f says that it is so.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// xlConfig is the configuration of a guest that a test creates by itself.
const xlConfig = `name = "%[1]s"
type = "%[2]s"
kernel = "/image/vmlinux"
ramdisk = "/image/guest.cpio"
extra = "console=hvc0 rdinit=/init nokaslr"
memory = 128
vcpus = 2
`

// A domain that xl is building is refused with a word that says so, until it is
// built. Then it is paused, since nobody has started it, and stays so.
func TestBuilding(t *testing.T) {
	h := host(t, machine)
	for _, kind := range lab.Kinds()[:2] {
		t.Run(string(kind), func(t *testing.T) {
			name := "unborn-" + string(kind)
			known := labtest.Output(t, h, "gdbserver-xen list | awk '{ printf \" %s \", $1 }'")
			config := fmt.Sprintf(xlConfig, name, kind)
			create, err := h.Command(t.Context(), fmt.Sprintf("cat >/tmp/%[1]s.cfg <<'EOF'\n%[2]sEOF\nxl create -p -q /tmp/%[1]s.cfg", name, config))
			if err != nil {
				t.Fatal(err)
			}
			defer h.Run(t.Context(), "xl destroy "+name)
			script := fmt.Sprintf(`
tries=0
until [ -n "$id" ]; do
	id=$(gdbserver-xen list | awk 'index("%s", " " $1 " ") == 0 { print $1; exit }')
	tries=$((tries + 1)); [ $tries -lt 500 ] || exit 1
done
until said=$(gdbserver-xen attach --once --listen stdio $id </dev/null 2>&1); do
	echo "$said"
	tries=$((tries + 1)); [ $tries -lt 500 ] || exit 1
done
echo "attached: $said"
`, known)
			said := labtest.Output(t, h, script)
			if res, err := create.Wait(); err != nil || res.ExitCode != 0 {
				t.Fatalf("xl create: %v\n%s", err, res.Stderr)
			}
			building := strings.Count(said, "the domain is still being built: try again when `xl list` shows it running or paused")
			t.Logf("refused %d times while it was built", building)
			for line := range strings.Lines(said) {
				if !strings.Contains(line, "still being built") && !strings.Contains(line, "attached") && !strings.Contains(line, "the client on standard input") {
					t.Errorf("an attempt to attach says %s", line)
				}
			}
			if building == 0 || !strings.Contains(said, "attached to domain") {
				t.Errorf("attempts to attach say:\n%s", said)
			}

			id, err := strconv.Atoi(strings.TrimSpace(labtest.Output(t, h, "xl domid "+name)))
			if err != nil {
				t.Fatal(err)
			}
			s := attachTo(t, h, name)
			c := s.dial()
			c.want("qfThreadInfo", fmt.Sprintf("mp%x.1", id))
			regs := registers(c)
			if code := c.read(regs["rip"], 16); len(code) != 16 {
				t.Errorf("read %d bytes at the entry %#x", len(code), regs["rip"])
			}
			c.want("D", "OK")
			s.exit()
			if out := labtest.Output(t, h, "xl list "+name+" | tail -n 1"); strings.Fields(out)[4] != "--p---" {
				t.Errorf("xl list says %q, want it paused", out)
			}
		})
	}
}

// A domain that was destroyed while somebody has its memory mapped is dying for
// as long, and nobody can attach to it. Here xl dump-core has, whose core file
// nobody reads.
func TestDying(t *testing.T) {
	h := host(t, machine)
	g := labtest.Guest(t, h, lab.GuestConfig{Kind: lab.PV, MemoryMB: 128, VCPUs: 1})
	library, err := h.BatchLibrary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Its headers have less than 40 kB: what comes then is memory.
	dump, err := h.Command(context.WithoutCancel(t.Context()), fmt.Sprintf(`mkfifo /tmp/dying
{ dd bs=1000 count=40 of=/dev/null; echo memory comes; sleep 1000; } </tmp/dying &
export LD_PRELOAD=%s
exec xl dump-core %s /tmp/dying`, library, g.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer dump.Kill()
	if err := dump.WaitOutput(t.Context(), "memory comes"); err != nil {
		t.Fatal(err)
	}
	if err := g.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	listed := func(state string) bool {
		return strings.Contains(labtest.Output(t, h, fmt.Sprintf("gdbserver-xen list | awk '$1 == %d'", g.ID())), state)
	}
	if !listed("dying") {
		t.Error("gdbserver-xen list does not say that the domain is dying")
	}
	res, err := h.Run(t.Context(), fmt.Sprintf("gdbserver-xen attach --listen stdio %d </dev/null", g.ID()))
	if err != nil || res.ExitCode != 1 || !strings.Contains(string(res.Stderr), "the domain is being destroyed") {
		t.Errorf("got %v, exit code %d and %q, want 1 and that it is being destroyed", err, res.ExitCode, res.Stderr)
	}
	if err := dump.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the domain is gone", func() bool { return !listed(fmt.Sprint(g.ID())) })
}

// Frames that a guest has given back by its balloon are holes: reads end there
// and writes are refused. When it has them again they can be read.
func TestBalloon(t *testing.T) {
	h, g := working(t, lab.PVH)
	// unreadable gives those of every 16th page of the first 128 MB that cannot be
	// read. Each is mapped alone, which takes its time.
	const stride = 16
	unreadable := func() []uint64 {
		t.Helper()
		s := attach(t, h, g)
		c := s.dial()
		var holes []uint64
		for pfn := uint64(0); pfn < 128<<20>>12; pfn += stride * batch {
			var asked []read
			for i := range uint64(batch) {
				asked = append(asked, read{directMap + (pfn+stride*i)<<12, 1})
			}
			for i, got := range c.readAll(asked) {
				if len(got) == 0 {
					holes = append(holes, pfn+stride*uint64(i))
				}
			}
		}
		if len(holes) > 0 {
			addr := directMap + holes[len(holes)/2]<<12
			if reply := c.must(fmt.Sprintf("M%x,4:deadbeef", addr)); !strings.HasPrefix(reply, "E") {
				t.Errorf("write at %#x, where the guest has given back its memory: got reply %q, want an error", addr, reply)
			}
		}
		c.want("D", "OK")
		s.exit()
		return holes
	}
	reserved := func() int {
		mb, err := strconv.Atoi(strings.Fields(labtest.Output(t, h, "xl list "+g.Name()+" | tail -n 1"))[2])
		if err != nil {
			t.Fatal(err)
		}
		return mb
	}
	before := unreadable()
	size := reserved()
	labtest.Output(t, h, fmt.Sprintf("xl mem-set %s %dm", g.Name(), size-16))
	eventually(t, "the guest gives memory back", func() bool { return reserved() <= size-16 })
	during := unreadable()
	labtest.Output(t, h, fmt.Sprintf("xl mem-set %s %dm", g.Name(), size))
	eventually(t, "the guest takes it again", func() bool { return reserved() >= size-1 })
	after := unreadable()
	t.Logf("of every 16th page cannot be read: %d, %d without 16 MB, %d after", len(before), len(during), len(after))
	if more := len(during) - len(before); more < 200 || more > 320 {
		t.Errorf("got %d pages more that cannot be read, want about one in 16 of those of 16 MB", more)
	}
	if len(after) > len(before)+10 {
		t.Errorf("%d pages cannot be read after", len(after))
	}
	ticks(t, g)
	healthy(t, g)
}

// A guest may have many vCPUs, some that it has never started, and some that it
// has taken off: those that are up are threads.
func TestManyVCPUs(t *testing.T) {
	const up, most = 8, 128
	h := host(t, machine)
	g := labtest.Guest(t, h, lab.GuestConfig{
		VCPUs: up, Extra: fmt.Sprintf("maxvcpus = %d", most), Cmdline: fmt.Sprintf("maxcpus=%d", up),
	})
	begin := time.Now()
	s := attach(t, h, g)
	c := s.dial()
	attached := time.Since(begin)
	threads := func() int { return strings.Count(c.must("qXfer:threads:read::0,8000"), "<thread ") }
	begin = time.Now()
	if n := threads(); n != up {
		t.Errorf("got %d threads, want %d", n, up)
	}
	t.Logf("attached after %.1f s, threads after %.1f s, guest up after %.1f s",
		attached.Seconds(), time.Since(begin).Seconds(), g.BootTime().Seconds())
	rips := map[uint64]bool{}
	for n := range up {
		c.want(fmt.Sprintf("Hgp%x.%x", g.ID(), n+1), "OK")
		rips[registers(c)["gs_base"]] = true
	}
	if len(rips) != up {
		t.Errorf("%d vCPUs have %d areas of their own", up, len(rips))
	}
	for _, n := range []int{up, most - 1, most, 1000} {
		if reply := c.must(fmt.Sprintf("Hgp%x.%x", g.ID(), n+1)); !strings.HasPrefix(reply, "E") {
			t.Errorf("vCPU %d can be chosen: got reply %q", n, reply)
		}
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)

	// Linux takes vCPUs off when it is told to.
	labtest.Output(t, h, fmt.Sprintf("xl vcpu-set %s %d", g.Name(), up-2))
	eventually(t, "the guest takes two vCPUs off", func() bool {
		return strings.Count(labtest.Output(t, h, "xl vcpu-list "+g.Name()), "--p") >= most-up+2
	})
	s = attach(t, h, g)
	c = s.dial()
	if n := threads(); n != up-2 {
		t.Errorf("got %d threads, want %d", n, up-2)
	}
	c.want("D", "OK")
	s.exit()
	ticks(t, g)
	healthy(t, g)
}

// This file attaches to a domain and gives it back.

package guest

import (
	"errors"
	"fmt"

	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// Why a domain cannot be attached to. Each says what to do.
var (
	// ErrDom0 refuses the domain that this program runs in.
	ErrDom0 = errors.New("domain 0 runs this program and cannot be stopped by it: use kgdb or a crash dump for its kernel")
	// ErrReserved refuses the hypervisor's own domain numbers.
	ErrReserved = errors.New("this is one of the hypervisor's own domains, which have no vCPUs: `gdbserver-xen list` shows the ones to choose from")
	// ErrDying refuses a domain that is being destroyed.
	ErrDying = errors.New("the domain is being destroyed: nothing is left to debug")
	// ErrBuilding refuses a domain whose first vCPU has no state yet.
	ErrBuilding = errors.New("the domain is still being built: try again when `xl list` shows it running or paused")
)

// ErrNotPaused says that something was asked that needs a paused guest.
var ErrNotPaused = errors.New("guest is running")

// A Guest is a domain that is being debugged. Its methods must not be called
// from several goroutines at once.
type Guest struct {
	host     *xen.Host
	id       xen.DomID
	kind     xen.Kind
	pv32     bool // a PV guest of 32 bits
	mem      memory
	vcpus    []vcpu
	features x86.Feature
	layout   x86.XSaveLayout
	paused   bool // by us
}

// Attach pauses a domain and takes hold of it. The errors ErrDom0, ErrReserved,
// ErrDying, ErrBuilding and xen.ErrNoDomain say what is wrong with the domain.
func Attach(host *xen.Host, id xen.DomID) (*Guest, error) {
	g, err := attach(host, id)
	if err != nil {
		return nil, fmt.Errorf("attach to domain %d: %w", id, err)
	}
	return g, nil
}

func attach(host *xen.Host, id xen.DomID) (*Guest, error) {
	switch {
	case id == 0:
		return nil, ErrDom0
	case id >= xen.FirstReserved:
		return nil, ErrReserved
	}
	info, err := host.DomainInfo(id)
	switch {
	case err != nil:
		return nil, err
	case info.Dying:
		return nil, ErrDying
	case info.VCPUs == 0 || info.TotalPages == 0:
		return nil, ErrBuilding
	}

	g := &Guest{host: host, id: id, kind: info.Kind, vcpus: make([]vcpu, info.VCPUs), layout: x86.ThisXSaveLayout()}
	switch info.Kind {
	case xen.PV:
		width, err := host.AddressSize(id)
		if err != nil {
			return nil, err
		}
		g.pv32 = width == 32
		g.mem = newFrames(func(fs []xen.MFN, write bool) (*xen.Mapping, error) {
			return host.MapMachineFrames(id, fs, write)
		})
	default:
		g.mem = newFrames(func(fs []xen.GFN, write bool) (*xen.Mapping, error) {
			return host.MapGuestFrames(id, fs, write)
		})
	}

	if err := g.Pause(); err != nil {
		return nil, err
	}
	if err := g.probe(); err != nil {
		return nil, errors.Join(err, g.Detach())
	}
	return g, nil
}

// probe reads the state of the first vCPU that has some. Usually it is vCPU 0,
// but a guest may take that off.
func (g *Guest) probe() error {
	for n := range g.vcpus {
		c, err := g.context(n)
		if err == nil {
			g.features = x86.Feature(c.ext.Features)
		}
		if !errors.Is(err, xen.ErrVCPUOffline) {
			return err
		}
	}
	return ErrBuilding
}

// ID gives the domain's number.
func (g *Guest) ID() xen.DomID { return g.id }

// Kind gives the domain's kind.
func (g *Guest) Kind() xen.Kind { return g.kind }

// Features gives the state components that the processor has, and so all that a
// vCPU may have.
func (g *Guest) Features() x86.Feature { return g.features }

// Info gives the domain's state.
func (g *Guest) Info() (xen.DomainInfo, error) { return g.host.DomainInfo(g.id) }

// Stats counts what has been asked of the hypervisor since it was opened.
func (g *Guest) Stats() xen.Stats { return g.host.Stats() }

// Pause stops all vCPUs. A guest that is paused stays so.
func (g *Guest) Pause() error {
	if g.paused {
		return nil
	}
	if err := g.host.Pause(g.id); err != nil {
		return err
	}
	g.paused = true
	return nil
}

// Resume takes our pause back and forgets what was read. The guest runs unless
// somebody else has paused it too.
func (g *Guest) Resume() error {
	if !g.paused {
		return nil
	}
	err := g.forget()
	// The domain may have died, and somebody else may have taken our pause back.
	e := g.host.Unpause(g.id)
	if e != nil && !errors.Is(e, xen.ErrNoDomain) && !errors.Is(e, xen.ErrNotPaused) {
		return errors.Join(err, e)
	}
	g.paused = false
	return err
}

// Detach gives the domain back as it was found. The Guest must not be used
// after. A domain that has died meanwhile is no error.
func (g *Guest) Detach() error { return g.Resume() }

// forget drops all that holds only while the guest is paused.
func (g *Guest) forget() error {
	for i := range g.vcpus {
		g.vcpus[i].asked, g.vcpus[i].fetched = false, false
	}
	return g.mem.drop()
}

// Read reads memory as a vCPU sees it, up to the first byte that cannot be had.
// It gives an error, wrapping ErrUnmapped where nothing is mapped, only if that
// is the first one.
func (g *Guest) Read(vcpu int, addr uint64, p []byte) (int, error) {
	v, err := g.view(vcpu)
	if err != nil {
		return 0, err
	}
	return g.mem.read(v, addr, p)
}

// Write writes memory as a vCPU sees it, whether the guest itself may or not:
// all of p or, with an error that names the address, nothing.
func (g *Guest) Write(vcpu int, addr uint64, p []byte) error {
	v, err := g.view(vcpu)
	if err != nil {
		return err
	}
	return g.mem.write(v, addr, p)
}

// view works out how a vCPU sees memory, once while the guest is paused.
func (g *Guest) view(n int) (*view, error) {
	c, err := g.context(n)
	if err != nil {
		return nil, err
	}
	return &c.view, nil
}

// pvView is how a vCPU of a 64-bit PV guest sees memory. That it pages, and
// how, follows from what it is: its CR0 and CR4 are not asked, since they need
// not say so (in 2006 they read 0x8 and 0).
func pvView(ctx *xen.VCPUContext) view {
	kernel := x86.RootOf[uint64](x86.FourLevel, ctx.ControlRegs[3])
	v := view{mode: x86.FourLevel, kernel: kernel, user: kernel}
	if user := ctx.ControlRegs[1]; ctx.Flags&xen.VGCFInKernel == 0 && user != 0 {
		v.user = x86.RootOf[uint64](x86.FourLevel, user)
	}
	return v
}

// pv32View is how a vCPU of a 32-bit PV guest sees memory: by PAE tables of
// machine frames, one for kernel and users, in a whole frame of its own.
func pv32View(ctx *xen.VCPUContext32) view {
	r := root{Frame: uint64(xen.Frame32(ctx.ControlRegs[3]))}
	return view{mode: x86.PAE, kernel: r, user: r}
}

// hvmView is how a vCPU of an HVM or PVH guest sees memory: as its control
// registers say.
func hvmView(ctx *xen.VCPUContext, cpu xen.HVMCPU) view {
	mode := x86.ModeOf(ctx.ControlRegs[0], ctx.ControlRegs[4], cpu.EFER)
	r := x86.RootOf[uint64](mode, ctx.ControlRegs[3])
	return view{mode: mode, kernel: r, user: r}
}

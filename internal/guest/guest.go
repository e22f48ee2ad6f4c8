// This file attaches to a domain and gives it back.

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"time"

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
	ledger   *Ledger
	plants   []*Plant
	parking  parking

	ownPauses   bool      // Hold uses pauses of vCPUs
	othersAsked time.Time // when it was asked whether others have paused it
	wrote       bool      // anywhere in its memory, since it was paused
}

// Attach pauses a domain and takes hold of it. All that is changed in it is
// noted in the ledger; without one, it is lost with this process. The errors
// ErrDom0, ErrReserved, ErrDying, ErrBuilding and xen.ErrNoDomain say what is
// wrong with the domain.
func Attach(host *xen.Host, id xen.DomID, ledger *Ledger) (*Guest, error) {
	if ledger == nil {
		var err error
		if ledger, err = NewLedger(make([]byte, LedgerSize)); err != nil {
			return nil, err
		}
	}
	g, err := attach(host, id, ledger)
	if err != nil {
		return nil, fmt.Errorf("attach to domain %d: %w", id, err)
	}
	return g, nil
}

func attach(host *xen.Host, id xen.DomID, ledger *Ledger) (*Guest, error) {
	g, err := newGuest(host, id, ledger)
	if err != nil {
		return nil, err
	}
	info, err := g.Info()
	if err != nil {
		return nil, err
	}
	ledger.begin(info)
	if err := g.Pause(); err != nil {
		return nil, err
	}
	if err := g.probe(); err != nil {
		return nil, errors.Join(err, g.Detach())
	}
	return g, nil
}

// newGuest makes a Guest of a domain that nothing has been done to yet.
func newGuest(host *xen.Host, id xen.DomID, ledger *Ledger) (*Guest, error) {
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

	g := &Guest{
		host: host, id: id, kind: info.Kind, ledger: ledger,
		vcpus:  make([]vcpu, min(info.VCPUs, maxVCPUs)),
		layout: x86.ThisXSaveLayout(),
	}
	switch info.Kind {
	case xen.PV:
		width, err := host.AddressSize(id)
		if err != nil {
			return nil, err
		}
		g.pv32 = width == 32
		g.mem = newFrames(func(fs []xen.MFN, write bool) (*xen.Mapping, error) {
			return host.MapMachineFrames(id, fs, write)
		}, func(fs []xen.MFN, offsets []int) error { return host.MachineFramesModified(id, fs, offsets) })
	default:
		g.mem = newFrames(func(fs []xen.GFN, write bool) (*xen.Mapping, error) {
			return host.MapGuestFrames(id, fs, write)
		}, func(fs []xen.GFN, _ []int) error { return host.GuestFramesModified(id, fs) })
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

// Host gives the connection to the hypervisor.
func (g *Guest) Host() *xen.Host { return g.host }

// Ledger gives the record of what has been changed.
func (g *Guest) Ledger() *Ledger { return g.ledger }

// NumVCPUs gives the number of vCPUs that the domain may have, up or not.
func (g *Guest) NumVCPUs() int { return len(g.vcpus) }

// Paused tells whether the guest stands still because of us.
func (g *Guest) Paused() bool { return g.paused }

// Pause stops all vCPUs. A guest that is paused stays so.
func (g *Guest) Pause() error {
	if g.paused {
		return nil
	}
	if err := g.noteOthers(); err != nil {
		return err
	}
	g.ledger.setPause(pausing)
	if err := g.host.Pause(g.id); err != nil {
		g.ledger.setPause(notPaused)
		return err
	}
	g.ledger.setPause(pausedNow)
	g.paused = true
	return nil
}

// othersHold is for how long it holds whether others have paused the domain: in run
// control we pause it hundreds of times a second.
const othersHold = 100 * time.Millisecond

// noteOthers notes whether somebody else has paused the domain. A guardian needs that
// if we are killed right in the middle of a pause. With the engine gdbsx each stop is
// such a pause.
func (g *Guest) noteOthers() error {
	now := time.Now()
	if !g.ownPauses && now.Sub(g.othersAsked) < othersHold {
		return nil
	}
	info, err := g.Info()
	if err != nil {
		return err
	}
	g.othersAsked = now
	g.ledger.putU32(ledgerOthers, 0)
	if info.Paused {
		g.ledger.putU32(ledgerOthers, 1)
	}
	return nil
}

// Resume takes our pause back and forgets what was read. The guest runs unless
// somebody else has paused it too.
func (g *Guest) Resume() error { return errors.Join(g.ReleaseFrames(), g.ResumeBriefly()) }

// ResumeBriefly is Resume for the time of a step or so: frames stay mapped until
// ReleaseFrames. The guest cannot have them back meanwhile, so that must come soon.
func (g *Guest) ResumeBriefly() error { return g.resume(false) }

// ResumeStep is ResumeBriefly for a step of one vCPU, while all others are held. What
// has been written of its own for that, which is on its stack and where it stands, stays
// mapped for writing too: those are no frames that it can make page tables of.
func (g *Guest) ResumeStep() error { return g.resume(!g.wrote) }

func (g *Guest) resume(keepWriting bool) error {
	if !g.paused {
		return nil
	}
	err := g.forget(keepWriting)
	g.ledger.endExt() // if it was not to be had
	// The domain may have died, and somebody else may have taken our pause back.
	g.ledger.setPause(unpausing)
	e := g.host.Unpause(g.id)
	if e != nil && !errors.Is(e, xen.ErrNoDomain) && !errors.Is(e, xen.ErrNotPaused) {
		g.ledger.setPause(pausedNow)
		return errors.Join(err, e)
	}
	g.ledger.setPause(notPaused)
	g.paused = false
	return err
}

// Detach gives the domain back as it was found. The Guest must not be used
// after. A domain that has died meanwhile is no error.
func (g *Guest) Detach() error {
	told, err := g.giveBack()
	if err == nil {
		g.ledger.end()
	}
	return errors.Join(err, told)
}

// LeaveToOthers is Detach where something is left that Detach knows nothing of, of the
// engine's: the ledger stays, so that the guardian does the rest, or recover.
func (g *Guest) LeaveToOthers() error {
	told, err := g.giveBack()
	return errors.Join(err, told)
}

// giveBack gives the domain back. told is why a migration may not send what was written.
func (g *Guest) giveBack() (told, err error) {
	if err = g.undo(); errors.Is(err, xen.ErrNoDomain) {
		err = nil
	}
	if told = g.tellWritten(); errors.Is(told, xen.ErrNoDomain) {
		told = nil
	}
	return told, errors.Join(err, g.Resume())
}

// tellWritten has a live migration that is under way send what was written: it may
// have copied that before.
func (g *Guest) tellWritten() error {
	if !g.mem.untold() {
		return nil
	}
	if err := g.Pause(); err != nil {
		return err
	}
	return g.mem.tell()
}

// forget drops all that holds only while the guest is paused.
func (g *Guest) forget(keepWriting bool) error {
	g.wrote = false
	for i := range g.vcpus {
		g.vcpus[i].asked, g.vcpus[i].fetched = false, false
	}
	return g.mem.forget(keepWriting)
}

// ReleaseFrames unmaps all frames.
func (g *Guest) ReleaseFrames() error { return g.mem.drop() }

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

// A Reader reads memory as a vCPU has seen it, also while the guest runs: what does
// not change, as a kernel's code. ReleaseFrames gives up what it has mapped.
type Reader struct {
	g    *Guest
	v    view
	root []byte // the kernel's half of the root of its page tables, as it was
}

// Reader gives a Reader for what a vCPU sees now.
// Preconditions: the guest is paused.
func (g *Guest) Reader(vcpu int) (*Reader, error) {
	v, err := g.view(vcpu)
	if err != nil {
		return nil, err
	}
	r := &Reader{g: g, v: *v}
	r.root, err = r.kernelHalf()
	return r, err
}

// kernelHalf reads those entries of the page tables' root that are the same for all
// processes of a 64-bit guest.
func (r *Reader) kernelHalf() ([]byte, error) {
	b := make([]byte, xen.PageSize/2)
	return b, r.g.mem.peek(r.v.kernel.Frame, len(b), b)
}

// Outlived tells whether the page tables are others now: the process that they were
// of has ended, and their memory serves something else. What was read is worth
// nothing then.
func (r *Reader) Outlived() (bool, error) {
	now, err := r.kernelHalf()
	return !bytes.Equal(now, r.root), err
}

// Read reads up to the first byte that cannot be had, and gives an error only if
// that is the first one.
func (r *Reader) Read(addr uint64, p []byte) (int, error) { return r.g.mem.read(&r.v, addr, p) }

// Write writes memory as a vCPU sees it, whether the guest itself may or not:
// all of p or, with an error that names the address, nothing.
func (g *Guest) Write(vcpu int, addr uint64, p []byte) error {
	g.wrote = true
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

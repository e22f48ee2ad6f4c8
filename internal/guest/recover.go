// This file takes a domain over from a process that was killed.

package guest

import (
	"errors"
	"fmt"

	"gdbserver-xen/xen"
)

// ErrOtherDomain says that the domain of a ledger is gone: there is nothing left
// to undo.
var ErrOtherDomain = errors.New("the domain is gone")

// TakeOver attaches to the domain that a ledger is about, as the process that
// was killed left it, so that Detach undoes all that is noted there.
// ErrOtherDomain says that the domain does not exist any more, or that its number
// belongs to another one.
func TakeOver(host *xen.Host, ledger *Ledger) (*Guest, error) {
	g, err := takeOver(host, ledger)
	if err != nil {
		return nil, fmt.Errorf("take over domain %d: %w", ledger.Domain(), err)
	}
	return g, nil
}

func takeOver(host *xen.Host, ledger *Ledger) (*Guest, error) {
	info, err := host.DomainInfo(ledger.Domain())
	switch {
	case errors.Is(err, xen.ErrNoDomain), err == nil && (!ledger.isAbout(info) || info.Dying):
		return nil, ErrOtherDomain
	case err != nil:
		return nil, err
	}
	g, err := newGuest(host, info.ID, ledger)
	if err != nil {
		return nil, err
	}
	// A pause that may or may not be ours: if nobody else had paused the domain,
	// it is. Otherwise it is left, for a guest that stays paused does less harm
	// than one that runs against somebody's will.
	others := ledger.Others()
	switch ledger.pause() {
	case pausedNow:
		g.paused = info.Paused
	case pausing, unpausing:
		g.paused = info.Paused && !others
	}
	if !info.Paused {
		ledger.endExt() // the vCPU has run since
	}
	if err := g.Pause(); err != nil {
		return nil, err
	}
	if n, ext := ledger.ext(); n >= 0 && n < len(g.vcpus) {
		if err := g.setExt(n, ext); err != nil {
			return nil, err
		}
	}
	if err := g.releaseAll(); err != nil {
		return nil, err
	}
	g.parking.spot, g.parking.syscall = ledger.Parking()
	for _, p := range ledger.plants() {
		p.ledger = ledger
		g.mem.noteWrite(p.frame, p.offset)
		// It may not have been written yet, or be the guest's again.
		switch err := g.intact(p); {
		case errors.Is(err, ErrRewritten):
			ledger.removePlant(p)
			continue
		case err != nil:
			return nil, err
		}
		g.mem.hide(p)
		g.plants = append(g.plants, p)
	}
	return g, nil
}

// releaseAll ends the Hold of those vCPUs whose Hold is in the way of undoing the
// rest. All that is to be read of a vCPU of an HVM or PVH guest cannot be had while it
// lasts. A pause of a vCPU's own may not have been made yet, or be over: a vCPU that
// counted as held by it would run where the engine lets go of the domain for a moment.
// Preconditions: the guest is paused.
func (g *Guest) releaseAll() error {
	for n := range g.vcpus {
		var err error
		switch {
		case g.ledger.has(n, flagOwnPause):
			err = g.endOwnPause(n)
		case g.kind != xen.PV && g.Held(n):
			err = g.releaseHVM(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// releaseHVM ends the Hold of a vCPU of an HVM or PVH guest.
func (g *Guest) releaseHVM(n int) error {
	ext, err := g.host.VCPUExtState(g.id, n)
	if err != nil {
		return err
	}
	var ctx xen.VCPUContext
	if err := g.host.VCPUContext(g.id, n, &ctx); err != nil {
		return err
	}
	ctx.Flags |= xen.VGCFOnline
	g.ledger.setExt(n, ext)
	if err := g.host.SetVCPUContext(g.id, n, &ctx); err != nil {
		return err
	}
	if err := g.setExt(n, ext); err != nil {
		return err
	}
	g.ledger.set(n, flagHeld, false)
	return nil
}

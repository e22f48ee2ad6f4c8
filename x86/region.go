// This file finds how far a mapping, or a hole, reaches.

package x86

import "errors"

// A Region is addresses next to each other that are all mapped in one way, or all
// not.
type Region struct {
	Start uint64
	Last  uint64 // the last address, for no size is that of a whole address space
	// Mapped tells whether anything is; the others how, if so.
	Mapped, Writable, User, Execute bool
}

// regionSteps bounds the walks for one Region: each page of 4 KB is one.
const regionSteps = 4096

// RegionAt gives the region that an address is in, from there on or, if it is
// long, some of it. root gives the table that translates an address.
func RegionAt[F ~uint64](m Mode, root func(addr uint64) Root[F], addr uint64, tables Tables[F]) (Region, error) {
	r, err := stepAt(m, root(addr), addr, tables)
	if err != nil {
		return Region{}, err
	}
	for range regionSteps {
		next := r.Last + 1
		if next == 0 {
			break
		}
		n, err := stepAt(m, root(next), next, tables)
		if err != nil || n.Mapped != r.Mapped || n.Writable != r.Writable || n.User != r.User || n.Execute != r.Execute {
			break
		}
		r.Last = n.Last
	}
	return r, nil
}

// stepAt gives the page that an address is in or, where nothing is mapped, what
// the entry covers that says so.
func stepAt[F ~uint64](m Mode, root Root[F], addr uint64, tables Tables[F]) (Region, error) {
	tr, err := Walk(m, root, addr, tables)
	if err == nil {
		r := Region{Mapped: true, Writable: tr.Writable, User: tr.User, Execute: tr.Execute}
		r.Start, r.Last = addr&^(tr.PageSize-1), addr|(tr.PageSize-1)
		return r, nil
	}
	var walk *WalkError
	if !errors.As(err, &walk) {
		return Region{}, err
	}
	size := uint64(PageSize)
	for _, l := range geometries[m].levels {
		if l.name == walk.Level {
			size = 1 << l.shift
		}
	}
	r := Region{Start: addr &^ (size - 1), Last: addr | (size - 1)}
	if walk.Level == "" { // no tables have this address
		r.Start, r.Last = geometries[m].beyond()
	}
	return r, nil
}

// beyond gives the addresses that are not canonical.
func (g *geometry) beyond() (start, last uint64) {
	if g.signed {
		return 1 << (g.width - 1), ^uint64(0)<<(g.width-1) - 1
	}
	return 1 << g.width, ^uint64(0)
}

// This file finds domains by what people call them.

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xenstore"
)

// openDomain connects to the hypervisor and finds a domain.
func openDomain(ctx context.Context, word string) (*xen.Host, xen.DomID, error) {
	host, err := openHost()
	if err != nil {
		return nil, 0, err
	}
	id, err := findDomain(ctx, host, word)
	if err != nil {
		return nil, 0, errors.Join(err, host.Close())
	}
	return host, id, nil
}

// attachTo attaches to a domain whose number may be one that nobody has.
func attachTo(host *xen.Host, id xen.DomID, ledger *guest.Ledger) (*guest.Guest, error) {
	g, err := guest.Attach(host, id, ledger)
	if errors.Is(err, xen.ErrNoDomain) {
		return nil, fmt.Errorf("no such domain as %d: `gdbserver-xen list` shows those there are", id)
	}
	return g, err
}

// findDomain gives the id of a domain: a number as it stands, a name as
// xenstore has it.
func findDomain(ctx context.Context, host *xen.Host, word string) (xen.DomID, error) {
	if id, err := strconv.ParseUint(word, 10, 16); err == nil {
		return xen.DomID(id), nil
	}
	domains, err := host.Domains()
	if err != nil {
		return 0, err
	}
	names, err := domainNames(ctx, domains)
	if err != nil {
		return 0, fmt.Errorf("domain %q: names are in xenstore: %w (or give the domain's number)", word, err)
	}
	for _, d := range domains {
		if names[d.ID] == word {
			return d.ID, nil
		}
	}
	return 0, fmt.Errorf("no domain is called %q: `gdbserver-xen list` shows those there are", word)
}

// oneDomain checks the arguments of a command that takes a domain.
func oneDomain(cmd *cobra.Command, args []string) error {
	switch form := cmd.CommandPath() + " DOMAIN"; len(args) {
	case 0:
		return usagef("which domain? %s", form)
	case 1:
		return nil
	default:
		return tooMany(args, form)
	}
}

// tooMany says that a command takes one domain.
func tooMany(args []string, form string) error {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = strconv.Quote(a)
	}
	last := len(quoted) - 1
	return usagef("one domain at a time, not %s and %s: %s", strings.Join(quoted[:last], ", "), quoted[last], form)
}

// domainNames gives the names of domains. Those without one are left out.
func domainNames(ctx context.Context, domains []xen.DomainInfo) (map[xen.DomID]string, error) {
	store, err := xenstore.Open()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	names := map[xen.DomID]string{}
	for _, d := range domains {
		name, err := store.Read(ctx, fmt.Sprintf("/local/domain/%d/name", d.ID))
		switch {
		case errors.Is(err, xenstore.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			names[d.ID] = name
		}
	}
	return names, nil
}

// completeDomain offers the names of the domains that can be attached to.
func completeDomain(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	host, err := openHost()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer host.Close()
	domains, err := host.Domains()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := domainNames(cmd.Context(), domains)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, d := range domains {
		if d.ID != 0 && names[d.ID] != "" {
			words = append(words, names[d.ID])
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

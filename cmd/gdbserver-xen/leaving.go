// This file watches for the toolstack's asking a domain to suspend, as it does to save
// or migrate it.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xenstore"
)

// watchLeaving gives what has a token once a domain has been asked to suspend, until ctx
// ends. Without xenstore it never has.
func watchLeaving(ctx context.Context, id xen.DomID, log *slog.Logger) <-chan struct{} {
	leaving := make(chan struct{}, 1)
	store, err := xenstore.Open()
	if err != nil {
		log.Debug("no word of a domain that is saved or migrated", "err", err)
		return leaving
	}
	go func() {
		defer store.Close()
		err := followRequests(shutdownRequests(ctx, store, id), leaving)
		log.Debug("no more word of a domain that is saved or migrated", "err", err)
	}()
	return leaving
}

// shutdownRequests gives what reads the toolstack's request to a domain, at first as it
// is, then whenever it is another; empty if there is none (Xen,
// docs/misc/xenstore-paths.pandoc, ~/control/shutdown).
func shutdownRequests(ctx context.Context, store *xenstore.Client, id xen.DomID) func() (string, error) {
	path := fmt.Sprintf("/local/domain/%d/control/shutdown", id)
	var watch *xenstore.Watch
	return func() (request string, err error) {
		first := watch == nil
		if first {
			if watch, err = store.Watch(ctx, path); err != nil {
				return "", err
			}
		}
		if _, err := watch.Next(ctx); err != nil {
			return "", err
		}
		request, err = store.Read(ctx, path)
		if first && errors.Is(err, xenstore.ErrNotExist) {
			err = nil // later it is the domain that is gone
		}
		return request, err
	}
}

// followRequests puts a token into leaving if the domain is to suspend. If nobody has taken
// it when that request is gone, it is taken out: a domain that runs is served by somebody
// who waits for the token, and one that does not has not begun to suspend, so the toolstack
// has given up.
func followRequests(next func() (string, error), leaving chan struct{}) error {
	before := "not known"
	for {
		request, err := next()
		if err != nil {
			return err
		}
		// The guest takes a request away as it begins to do it. One that it took before it
		// could be read may have been to suspend, and then there is no time for more.
		unseen := request == "" && before == ""
		if request == "suspend" || unseen {
			select {
			case leaving <- struct{}{}:
			default:
			}
		} else {
			select {
			case <-leaving:
			default:
			}
		}
		before = request
	}
}

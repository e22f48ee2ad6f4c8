// This file is the engine for guests that can only be paused and continued.

package engine

import (
	"context"
	"fmt"

	"gdbserver-xen/internal/guest"
)

// plain is the Engine.
type plain struct {
	g   *guest.Guest
	why error
}

// Plain gives an engine that can let all vCPUs run and stop them, and nothing
// else for the reason why.
func Plain(g *guest.Guest, why error) Engine { return &plain{g, why} }

func (e *plain) Name() string { return "none" }

func (e *plain) Resume(motions []Motion) error {
	vcpus, err := e.g.VCPUs()
	if err != nil {
		return err
	}
	for _, n := range vcpus {
		switch {
		case n >= len(motions) || motions[n] == Stay:
			return fmt.Errorf("vCPU %d cannot stand still while others run: %w", n, e.why)
		case motions[n] == Step:
			return fmt.Errorf("vCPU %d cannot be stepped: %w", n, e.why)
		}
	}
	return e.g.Resume()
}

func (e *plain) Wait(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (e *plain) Pause() ([]Stop, error) { return nil, e.g.Pause() }

func (e *plain) Close() error { return nil }

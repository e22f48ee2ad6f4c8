// This file tests against the hypervisor that this runs on. It needs a dom0, and
// is skipped unless GDBSERVER_XEN_LIVE=1.

package xen_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xenstore"
)

func live(t *testing.T) {
	t.Helper()
	if os.Getenv("GDBSERVER_XEN_LIVE") != "1" {
		t.Skip("needs dom0 of a real Xen: set GDBSERVER_XEN_LIVE=1 there")
	}
}

func openLive(t *testing.T) *xen.Host {
	t.Helper()
	live(t)
	h, err := xen.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestLiveHost(t *testing.T) {
	h := openLive(t)
	v := h.Version()
	t.Logf("Xen %v, domctl %#x, sysctl %#x, %q", v, v.Domctl, v.Sysctl, v.Capabilities)
	if v.Major != 4 || v.Minor < 14 || len(v.Capabilities) == 0 {
		t.Errorf("version %+v", v)
	}
	infos, err := h.Domains()
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) == 0 || infos[0].ID != 0 {
		t.Fatalf("domains %+v, want domain 0 first", infos)
	}
	for _, listed := range infos {
		info, err := h.DomainInfo(listed.ID)
		if err != nil {
			t.Errorf("domain %d: %v", listed.ID, err)
			continue
		}
		t.Logf("%+v", info)
		if info.Kind != listed.Kind || info.UUID != listed.UUID || info.VCPUs != listed.VCPUs {
			t.Errorf("domain %d is %+v, in the list %+v", info.ID, info, listed)
		}
		if info.VCPUs < 1 || info.OnlineVCPUs < 1 || info.OnlineVCPUs > info.VCPUs || info.TotalPages == 0 {
			t.Errorf("domain %d makes no sense: %+v", info.ID, info)
		}
	}
	if dom0 := infos[0]; dom0.Paused || dom0.Dying || dom0.Shutdown || dom0.CPUTime <= 0 {
		t.Errorf("domain 0 is %+v", dom0)
	}
	vcpu, err := h.VCPUInfo(0, 0)
	if err != nil || !vcpu.Online {
		t.Errorf("vCPU 0 of domain 0 is %+v, %v", vcpu, err)
	}
	if max, err := h.MaxGPFN(0); err != nil || max < 0x1000 {
		t.Errorf("highest frame of domain 0 is %#x, %v", max, err)
	}
	if _, err := h.DomainInfo(xen.FirstReserved - 1); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("a domain that does not exist: %v", err)
	}
	if err := h.Pause(0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("pausing ourselves: %v, want EINVAL", err)
	}
}

// An event channel from this domain to itself, both ends of it.
func TestLiveEventChannels(t *testing.T) {
	live(t)
	e, err := xen.OpenEventChannels()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	server, err := e.BindUnbound(xen.DomIDSelf)
	if err != nil {
		t.Fatal(err)
	}
	client, err := e.BindInterdomain(xen.DomIDSelf, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ports %d and %d", server, client)

	wait := func(d time.Duration) (xen.Port, error) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		return e.Wait(ctx)
	}
	// Binding may leave an event on either end.
	for {
		p, err := wait(100 * time.Millisecond)
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Unmask(p); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		for _, ends := range [][2]xen.Port{{client, server}, {server, client}} {
			if err := e.Notify(ends[0]); err != nil {
				t.Fatal(err)
			}
			p, err := wait(5 * time.Second)
			if err != nil || p != ends[1] {
				t.Fatalf("notified by port %d: %d, %v, want port %d", ends[0], p, err, ends[1])
			}
			// Masked until it is unmasked, then it comes.
			if err := e.Notify(ends[0]); err != nil {
				t.Fatal(err)
			}
			if p, err := wait(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a masked port gives %d, %v", p, err)
			}
			if err := e.Unmask(p); err != nil {
				t.Fatal(err)
			}
			if p, err := wait(5 * time.Second); err != nil || p != ends[1] {
				t.Fatalf("unmasked: %d, %v, want port %d", p, err, ends[1])
			}
			if err := e.Unmask(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	done := make(chan error)
	go func() {
		_, err := e.Wait(context.Background())
		done <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close did not end Wait: the device is not polled")
	}
}

func TestLiveVIRQ(t *testing.T) {
	live(t)
	e, err := xen.OpenEventChannels()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.BindVIRQ(xen.VIRQDebugger); err != nil {
		t.Fatal(err)
	}
	if _, err := e.BindVIRQ(xen.VIRQDebugger); !errors.Is(err, unix.EEXIST) {
		t.Errorf("bound twice: %v, want EEXIST", err)
	}
}

func TestLiveXenstore(t *testing.T) {
	live(t)
	c, err := xenstore.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if name, err := c.Read(ctx, "/local/domain/0/name"); err != nil || name != "Domain-0" {
		t.Errorf("name of domain 0 is %q, %v", name, err)
	}
	names, err := c.List(ctx, "/local/domain")
	if err != nil || len(names) == 0 || names[0] != "0" {
		t.Errorf("domains %q, %v", names, err)
	}
	if _, err := c.Read(ctx, "/no/such/node"); !errors.Is(err, xenstore.ErrNotExist) {
		t.Errorf("a node that does not exist: %v, want ErrNotExist", err)
	}
	w, err := c.Watch(ctx, "/local/domain/0/name")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if e, err := w.Next(ctx); err != nil || e.Path != "/local/domain/0/name" {
		t.Errorf("a new watch gives %+v, %v, want an event at once", e, err)
	}
}

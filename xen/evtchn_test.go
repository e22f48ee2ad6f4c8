package xen

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairedChannels gives event channels over one end of a socket pair, which can
// be read, written and polled as the device can, and the other end.
func pairedChannels(t *testing.T) (*EventChannels, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	e := &EventChannels{os.NewFile(uintptr(fds[0]), "evtchn")}
	t.Cleanup(func() { e.Close(); unix.Close(fds[1]) })
	return e, fds[1]
}

func send(t *testing.T, fd int, port uint32) {
	t.Helper()
	if _, err := unix.Write(fd, binary.NativeEndian.AppendUint32(nil, port)); err != nil {
		t.Fatal(err)
	}
}

func TestWaitAndUnmask(t *testing.T) {
	e, kernel := pairedChannels(t)
	for _, port := range []uint32{7, 0x01020304} {
		send(t, kernel, port)
		if p, err := e.Wait(t.Context()); err != nil || uint32(p) != port {
			t.Errorf("Wait gives %d, %v, want %d", p, err, port)
		}
	}
	if err := e.Unmask(0x01020304); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	if n, err := unix.Read(kernel, b); n != 4 || binary.NativeEndian.Uint32(b) != 0x01020304 {
		t.Errorf("Unmask writes % x, %v", b[:max(n, 0)], err)
	}
}

// A Wait that its context ends leaves the channels usable.
func TestWaitHonoursContext(t *testing.T) {
	e, kernel := pairedChannels(t)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := e.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait gives %v, want the context's error", err)
		}
		cancel()
		send(t, kernel, 9)
		if p, err := e.Wait(t.Context()); err != nil || p != 9 {
			t.Errorf("Wait after that gives %d, %v", p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	send(t, kernel, 9)
	if _, err := e.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait of a cancelled context gives %v", err)
	}
	if p, err := e.Wait(t.Context()); err != nil || p != 9 {
		t.Errorf("the cancelled Wait took the event: %d, %v", p, err)
	}
}

// A context that ends just when an event comes leaves nothing behind that would
// end the next Wait.
func TestWaitRacesWithContext(t *testing.T) {
	e, kernel := pairedChannels(t)
	for range 3000 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		send(t, kernel, 9)
		p, err := e.Wait(ctx)
		if errors.Is(err, context.Canceled) {
			p, err = e.Wait(t.Context())
		}
		if err != nil || p != 9 {
			t.Fatalf("Wait gives %d, %v, want 9", p, err)
		}
	}
}

func TestCloseEndsWait(t *testing.T) {
	e, _ := pairedChannels(t)
	done := make(chan error)
	go func() {
		_, err := e.Wait(context.Background())
		done <- err
	}()
	time.Sleep(5 * time.Millisecond)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait gives %v, want that it is closed", err)
	}
	if _, err := e.BindVIRQ(VIRQDebugger); !errors.Is(err, os.ErrClosed) {
		t.Errorf("BindVIRQ gives %v, want that it is closed", err)
	}
}

// The errno of an ioctl comes out, with the operation and the domain. A socket
// knows none of these requests.
func TestEventChannelErrors(t *testing.T) {
	e, _ := pairedChannels(t)
	_, virq := e.BindVIRQ(VIRQDebugger)
	_, inter := e.BindInterdomain(3, 4)
	_, unbound := e.BindUnbound(DomIDSelf)
	for text, err := range map[string]error{
		"IOCTL_EVTCHN_BIND_VIRQ: inappropriate ioctl for device":                       virq,
		"IOCTL_EVTCHN_BIND_INTERDOMAIN: domain 3: inappropriate ioctl for device":      inter,
		"IOCTL_EVTCHN_BIND_UNBOUND_PORT: domain 32752: inappropriate ioctl for device": unbound,
		"IOCTL_EVTCHN_NOTIFY: inappropriate ioctl for device":                          e.Notify(1),
	} {
		if err == nil || err.Error() != text || !errors.Is(err, unix.ENOTTY) {
			t.Errorf("got %v, want %s", err, text)
		}
	}
}

func TestOpenEventChannelsErrors(t *testing.T) {
	if onXen() {
		t.Skip("this is Xen")
	}
	if _, err := openEventChannels(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNotXen) {
		t.Errorf("without a device and without Xen: %v, want ErrNotXen", err)
	}
}

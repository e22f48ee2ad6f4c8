package guest_test

import (
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Capabilities are tried, not looked up; trying leaves the guest as it was.
func TestCapabilities(t *testing.T) {
	const pvWrites = "all that are known but cr0, cr2, cr3 and cr4, which Xen does not take"
	tests := []struct {
		name   string
		config xentest.Config
		kind   xen.Kind
		change func(f *fixture)
		want   map[string]guest.Capability
	}{
		{name: "PV", kind: xen.PV, want: map[string]guest.Capability{
			"registers read":  {Can: true, Detail: "general, segment, control, debug, x87, SSE, r8 to r15, bases, cr2, AVX; not known: efer, cr8"},
			"registers write": {Can: true, Detail: pvWrites},
			"memory read":     {Can: true, Detail: "4-level page tables of machine frames"},
			"memory write":    {Can: true, Detail: "all but live page tables and descriptor tables, which Xen protects"},
		}},
		{name: "PVH without XSAVE", kind: xen.PVH, config: xentest.Config{NoXSAVE: true}, want: map[string]guest.Capability{
			"registers read": {Can: true, Detail: "general, segment, control, debug, x87, SSE, r8 to r15, bases, cr2, efer, cr8"},
			"memory read":    {Can: true, Detail: "4-level page tables of guest frames"},
		}},
		{name: "4.21.0", kind: xen.PV, config: xentest.Config{Release: "4.21", Extra: ".0"}, want: map[string]guest.Capability{
			"registers read":  {Can: true, Detail: "general, segment, control, debug, x87, SSE, bases, cr2, AVX; not known: r8 to r15, efer, cr8"},
			"registers write": {Detail: "this release of Xen would zero r8 to r15 (fixed in 4.21.2)"},
		}},
		{name: "no memory", kind: xen.PV, change: func(f *fixture) {
			f.d.VCPU(0).Context.RSP, f.d.VCPU(0).Context.RIP = 0x1234, 0x5678
		}, want: map[string]guest.Capability{
			"memory read": {Detail: "4-level page tables of machine frames; neither at rsp nor at rip: " +
				"memory is not mapped: walk 0x1234 (4-level): PML4E 0x0: not present"},
			"memory write": {Detail: "write 0x1234: memory is not mapped: walk 0x1234 (4-level): PML4E 0x0: not present"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := fixtureOn(t, tt.config, tt.kind, 1)
			fill(f.d.VCPU(0))
			f.pt.MapPage(text, nil)
			f.d.VCPU(0).Context.RSP = text
			if tt.change != nil {
				tt.change(f)
			}
			before := f.d.VCPU(0).Context
			g := f.attach(t)
			for _, got := range g.Capabilities() {
				want, ok := tt.want[got.Name]
				if want.Name = got.Name; ok && got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			}
			if f.d.VCPU(0).Context != before {
				t.Error("trying changed the vCPU")
			}
		})
	}
}

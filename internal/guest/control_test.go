// This file tests what is found out about how vCPUs run.

package guest_test

import (
	"testing"

	"gdbserver-xen/internal/guest"
	"gdbserver-xen/x86"
	"gdbserver-xen/xen"
)

// What minds vCPUs that are held is known, also under a breakpoint.
func TestSeesHeld(t *testing.T) {
	var (
		hlt     = []byte{0xf4}
		syscall = []byte{0x0f, 0x05}
		vmcall  = []byte{0x0f, 0x01, 0xc1}
		vmmcall = []byte{0x0f, 0x01, 0xd9}
	)
	tests := []struct {
		name     string
		kind     xen.Kind
		code     []byte
		rax, rdi uint64
		rflags   uint64
		user     bool
		want     bool
	}{
		{"VCPUOP_down", xen.PV, syscall, 24, 2, x86.RFLAGSIF, false, true},
		{"VCPUOP_is_up", xen.PV, syscall, 24, 3, x86.RFLAGSIF, false, true},
		{"VCPUOP_up", xen.PV, syscall, 24, 1, x86.RFLAGSIF, false, false},
		{"another hypercall", xen.PV, syscall, 29, 2, x86.RFLAGSIF, false, false},
		{"a system call", xen.PV, syscall, 24, 2, x86.RFLAGSIF, true, false},
		{"VCPUOP_down by VMCALL", xen.PVH, vmcall, 24, 2, x86.RFLAGSIF, false, true},
		{"VCPUOP_down by VMMCALL", xen.HVM, vmmcall, 24, 2, x86.RFLAGSIF, false, true},
		{"VCPUOP_up by VMMCALL", xen.HVM, vmmcall, 24, 1, x86.RFLAGSIF, false, false},
		{"HLT", xen.PVH, hlt, 24, 2, x86.RFLAGSIF, false, false},
		{"HLT without interrupts", xen.PVH, hlt, 0, 0, 0, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, tt.kind, 1)
			f.pt.MapPage(text, tt.code)
			c := &f.d.VCPU(0).Context
			c.RIP, c.RAX, c.RDI, c.RFLAGS = text, tt.rax, tt.rdi, tt.rflags|2
			if tt.user {
				c.Flags &^= xen.VGCFInKernel
			}
			g := f.attach(t)
			if _, err := g.Plant(0, text, []byte{guest.Int3}); err != nil {
				t.Fatal(err)
			}
			if got, err := g.SeesHeld(0); err != nil || got != tt.want {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// This file holds package xen against Xen's public headers (headers_test.go):
// structures by their offsets, and calls by what they put on the wire.

package xen

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// eachRelease runs a test for each release with headers.
func eachRelease(t *testing.T, f func(t *testing.T, release string)) {
	for _, release := range headerReleases {
		t.Run(release, func(t *testing.T) { f(t, release) })
	}
}

// The table of releases is that of the headers, and has no row more.
func TestReleases(t *testing.T) {
	var known []string
	for _, r := range releases {
		known = append(known, fmt.Sprintf("%d.%d", r.major, r.minor))
	}
	if diff := cmp.Diff(headerReleases, known); diff != "" {
		t.Fatalf("releases (-headers +table):\n%s", diff)
	}
	for i, release := range headerReleases {
		want := map[string]int{
			"domctl":          header(t, release, "XEN_DOMCTL_INTERFACE_VERSION"),
			"sysctl":          header(t, release, "XEN_SYSCTL_INTERFACE_VERSION"),
			"size of info":    header(t, release, "sizeof(struct xen_domctl_getdomaininfo)"),
			"emulation flags": header(t, release, "xen_domctl_getdomaininfo.arch_config.emulation_flags"),
			"vm_event":        header(t, release, "VM_EVENT_INTERFACE_VERSION"),
			"size of event":   header(t, release, "sizeof(struct vm_event_st)"),
		}
		r := releases[i]
		got := map[string]int{
			"domctl":          int(r.domctl),
			"sysctl":          int(r.sysctl),
			"size of info":    r.info.size,
			"emulation flags": r.info.emulationFlags,
			"vm_event":        int(r.event.version),
			"size of event":   r.event.size,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Xen %s (-headers +table):\n%s", release, diff)
		}
	}
}

// Constants that all releases share.
func TestConstants(t *testing.T) {
	ours := map[string]int{
		"__HYPERVISOR_memory_op":            hypercallMemoryOp,
		"__HYPERVISOR_xen_version":          hypercallVersion,
		"__HYPERVISOR_sysctl":               hypercallSysctl,
		"__HYPERVISOR_domctl":               hypercallDomctl,
		"XENVER_version":                    xenverVersion,
		"XENVER_extraversion":               xenverExtraversion,
		"XENVER_capabilities":               xenverCapabilities,
		"XENVER_changeset":                  xenverChangeset,
		"DOMID_FIRST_RESERVED":              int(FirstReserved),
		"VIRQ_DEBUGGER":                     int(VIRQDebugger),
		"DOMID_SELF":                        int(DomIDSelf),
		"XEN_SYSCTL_getdomaininfolist":      sysctlDomainInfoList,
		"SHUTDOWN_poweroff":                 int(ShutdownPoweroff),
		"SHUTDOWN_reboot":                   int(ShutdownReboot),
		"SHUTDOWN_suspend":                  int(ShutdownSuspend),
		"SHUTDOWN_crash":                    int(ShutdownCrash),
		"SHUTDOWN_watchdog":                 int(ShutdownWatchdog),
		"SHUTDOWN_soft_reset":               int(ShutdownSoftReset),
		"XEN_DOMINF_dying":                  dominfDying,
		"XEN_DOMINF_hvm_guest":              dominfHVM,
		"XEN_DOMINF_shutdown":               dominfShutdown,
		"XEN_DOMINF_paused":                 dominfPaused,
		"XEN_DOMINF_blocked":                dominfBlocked,
		"XEN_DOMINF_running":                dominfRunning,
		"XEN_DOMINF_debugged":               dominfDebugged,
		"sizeof(struct vcpu_guest_context)": contextSize,

		"__HYPERVISOR_hvm_op":                             hypercallHVMOp,
		"__HYPERVISOR_dm_op":                              hypercallDMOp,
		"__HYPERVISOR_mmu_update":                         hypercallMMUUpdate,
		"MMU_NORMAL_PT_UPDATE":                            mmuNormalUpdate,
		"sizeof(struct mmu_update)":                       modifiedSize,
		"sizeof(struct xen_dm_op_modified_memory_extent)": modifiedSize,
		"XENMEM_populate_physmap":                         memoryPopulatePhysmap,
		"XENMEM_decrease_reservation":                     memoryDecreaseReservation,
		"HVM_PARAM_MONITOR_RING_PFN":                      paramMonitorRing,
		"XEN_VM_EVENT_ENABLE":                             vmEventEnable,
		"XEN_VM_EVENT_DISABLE":                            vmEventDisable,
		"XEN_VM_EVENT_RESUME":                             vmEventResume,
		"XEN_VM_EVENT_GET_VERSION":                        vmEventGetVersion,
		"XEN_DOMCTL_VM_EVENT_OP_MONITOR":                  vmEventMonitor,
		"XEN_DOMCTL_MONITOR_OP_ENABLE":                    monitorOpEnable,
		"XEN_DOMCTL_MONITOR_OP_DISABLE":                   monitorOpDisable,
		"XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES":          monitorOpGetCapabilities,
		"XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP":             int(MonitorSingleStep),
		"XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT":    int(MonitorBreakpoint),
		"XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION":        int(MonitorDebug),
		"VM_EVENT_FLAG_VCPU_PAUSED":                       flagVCPUPaused,
		"VM_EVENT_REASON_SOFTWARE_BREAKPOINT":             int(ReasonBreakpoint),
		"VM_EVENT_REASON_SINGLESTEP":                      int(ReasonSingleStep),
		"VM_EVENT_REASON_DEBUG_EXCEPTION":                 int(ReasonDebug),
		"__CONST_RING_SIZE(vm_event, 4096)":               ringSlots,
		"vm_event_sring.req_prod":                         ringReqProd,
		"vm_event_sring.req_event":                        ringReqEvent,
		"vm_event_sring.rsp_prod":                         ringRspProd,
		"vm_event_sring.rsp_event":                        ringRspEvent,
		"vm_event_sring.ring":                             ringHeader,
		"vm_event_st.version":                             eventVersion,
		"vm_event_st.flags":                               eventFlags,
		"vm_event_st.reason":                              eventReason,
		"vm_event_st.vcpu_id":                             eventVCPU,
		"vm_event_st.u.software_breakpoint.insn_length":   eventLength,
		"vm_event_st.u.debug_exception.insn_length":       eventLength,
		"vm_event_st.u.software_breakpoint.type":          eventType,
		"vm_event_st.u.debug_exception.type":              eventType,
		"vm_event_st.data.regs.x86.rflags":                eventRFLAGS,
		"vm_event_st.data.regs.x86.rip":                   eventRIP,
	}
	for op, name := range domctlNames {
		ours["XEN_DOMCTL_"+name] = int(op)
	}
	for name, v := range ours {
		if want := header(t, "", name); v != want {
			t.Errorf("%s is %d, headers say %d", name, v, want)
		}
	}
	// The headers define these by their bits' masks.
	for name, v := range map[string]uint64{"VGCF_i387_valid": VGCFI387Valid, "VGCF_in_kernel": VGCFInKernel, "VGCF_syscall_disables_events": VGCFSyscallMasksEvents, "VGCF_online": VGCFOnline} {
		if want := uint64(header(t, "", name)); v != want {
			t.Errorf("%s is %#x, headers say %#x", name, v, want)
		}
	}
	emulated := 0
	for _, name := range []string{"HPET", "PM", "RTC", "IOAPIC", "PIC", "VGA", "PIT"} {
		emulated |= header(t, "", "XEN_X86_EMU_"+name)
	}
	if emulatedDevices != emulated {
		t.Errorf("emulated devices %#x, headers say %#x", emulatedDevices, emulated)
	}
}

// contextFields are the fields of a VCPUContext by those of the headers.
var contextFields = map[string]string{
	"fpu_ctxt": "FPU", "flags": "Flags",
	"user_regs.r15": "R15", "user_regs.r14": "R14", "user_regs.r13": "R13", "user_regs.r12": "R12",
	"user_regs.rbp": "RBP", "user_regs.rbx": "RBX",
	"user_regs.r11": "R11", "user_regs.r10": "R10", "user_regs.r9": "R9", "user_regs.r8": "R8",
	"user_regs.rax": "RAX", "user_regs.rcx": "RCX", "user_regs.rdx": "RDX",
	"user_regs.rsi": "RSI", "user_regs.rdi": "RDI",
	"user_regs.error_code": "ErrorCode", "user_regs.entry_vector": "EntryVector",
	"user_regs.rip": "RIP", "user_regs.cs": "CS", "user_regs.saved_upcall_mask": "SavedUpcallMask",
	"user_regs.rflags": "RFLAGS", "user_regs.rsp": "RSP", "user_regs.ss": "SS",
	"user_regs.es": "ES", "user_regs.ds": "DS", "user_regs.fs": "FS", "user_regs.gs": "GS",
	"trap_ctxt": "Traps", "ldt_base": "LDTBase", "ldt_ents": "LDTEntries",
	"gdt_frames": "GDTFrames", "gdt_ents": "GDTEntries", "kernel_ss": "KernelSS", "kernel_sp": "KernelSP",
	"ctrlreg": "ControlRegs", "debugreg": "DebugRegs",
	"event_callback_eip": "EventCallback", "failsafe_callback_eip": "FailsafeCallback",
	"syscall_callback_eip": "SyscallCallback", "vm_assist": "VMAssist",
	"fs_base": "FSBase", "gs_base_kernel": "GSBaseKernel", "gs_base_user": "GSBaseUser",
}

// savedFields are the fields of a SavedCPU by those of the headers, or by the
// first of several.
var savedFields = map[string]string{
	"fpu_regs": "FPU", "rax": "RAX", "rbx": "RBX", "rcx": "RCX", "rdx": "RDX",
	"rbp": "RBP", "rsi": "RSI", "rdi": "RDI", "rsp": "RSP", "r8": "R8toR15", "rip": "RIP", "rflags": "RFLAGS",
	"cr0": "CR0", "cr2": "CR2", "cr3": "CR3", "cr4": "CR4", "dr0": "DR", "dr6": "DR6", "dr7": "DR7",
	"cs_sel": "Selectors", "cs_limit": "Limits", "cs_base": "Bases", "cs_arbytes": "Attributes",
	"shadow_gs": "ShadowGS", "msr_efer": "EFER", "flags": "Flags",
}

// Arrays in a SavedCPU stand for fields that follow each other.
func TestSavedCPU(t *testing.T) {
	of := reflect.TypeFor[SavedCPU]()
	if got, want := int(of.Size()), header(t, "", "sizeof(struct hvm_hw_cpu)"); got != want || savedCPUSize != want {
		t.Errorf("SavedCPU has %d bytes, struct hvm_hw_cpu %d", got, want)
	}
	at := func(theirs, ours string, element int) {
		f, ok := of.FieldByName(ours)
		if !ok {
			t.Fatalf("no field %s", ours)
		}
		offset := int(f.Offset)
		if element > 0 {
			offset += element * int(f.Type.Elem().Size())
		}
		if want := header(t, "", "hvm_hw_cpu."+theirs); offset != want {
			t.Errorf("%s[%d] is at %d, %s at %d", ours, element, offset, theirs, want)
		}
	}
	for theirs, ours := range savedFields {
		at(theirs, ours, 0)
	}
	at("r15", "R8toR15", 7)
	at("dr3", "DR", 3)
	for name, i := range map[string]int{"cs": SegCS, "ds": SegDS, "es": SegES, "fs": SegFS, "gs": SegGS, "ss": SegSS, "tr": SegTR, "ldtr": SegLDTR} {
		at(name+"_sel", "Selectors", i)
	}
	for name, i := range map[string]int{"ds": SegDS, "ss": SegSS, "ldtr": SegLDTR, "idtr": SegIDTR, "gdtr": SegGDTR} {
		at(name+"_limit", "Limits", i)
	}
	for name, i := range map[string]int{"ss": SegSS, "ldtr": SegLDTR, "idtr": SegIDTR, "gdtr": SegGDTR} {
		at(name+"_base", "Bases", i)
	}
	at("ss_arbytes", "Attributes", SegSS)
	at("ldtr_arbytes", "Attributes", SegLDTR)
	for name, ours := range map[string]int{"CPU": saveCPUType, "LAPIC_REGS": saveLAPICType, "MTRR": saveMTRRType, "CPU_XSAVE": saveXSAVEType, "HEADER": saveHeader, "END": saveEnd} {
		if want := header(t, "", "HVM_SAVE_CODE("+name+")"); ours != want {
			t.Errorf("type of %s is %d, headers say %d", name, ours, want)
		}
	}
	if want := header(t, "", "sizeof(struct hvm_save_descriptor)"); saveDescriptor != want {
		t.Errorf("descriptor has %d bytes, headers say %d", saveDescriptor, want)
	}
	if want := header(t, "", "XEN_X86_FPU_INITIALISED"); SavedFPUValid != want {
		t.Errorf("flag of the FPU is %d, headers say %d", SavedFPUValid, want)
	}
}

func TestStructLayouts(t *testing.T) {
	tests := []struct {
		of     reflect.Type
		name   string
		fields map[string]string
	}{
		{reflect.TypeFor[VCPUContext](), "vcpu_guest_context", contextFields},
		{reflect.TypeFor[TrapInfo](), "trap_info", map[string]string{
			"vector": "Vector", "flags": "Flags", "cs": "CS", "address": "Address",
		}},
	}
	for _, tt := range tests {
		if got, want := int(tt.of.Size()), header(t, "", "sizeof(struct "+tt.name+")"); got != want {
			t.Errorf("%v has %d bytes, struct %s %d", tt.of, got, tt.name, want)
		}
		var checked []string
		for theirs, ours := range tt.fields {
			f, ok := tt.of.FieldByName(ours)
			if !ok {
				t.Errorf("%v has no field %s", tt.of, ours)
				continue
			}
			checked = append(checked, ours)
			if want := header(t, "", tt.name+"."+theirs); int(f.Offset) != want {
				t.Errorf("%v.%s is at %d, %s.%s at %d", tt.of, ours, f.Offset, tt.name, theirs, want)
			}
		}
		for _, f := range reflect.VisibleFields(tt.of) {
			if f.Name != "_" && !slices.Contains(checked, f.Name) {
				t.Errorf("%v.%s is not checked", tt.of, f.Name)
			}
		}
		// No header field is left out either.
		for name := range headerNumbers {
			if field, ok := strings.CutPrefix(name, tt.name+"."); ok && tt.fields[field] == "" {
				t.Errorf("%s has no field in %v", name, tt.of)
			}
		}
	}
}

// An ioctl's number carries the size of its argument (_IOC: bits 16 to 29).
func TestIoctlSizes(t *testing.T) {
	for request, size := range map[uint]uintptr{
		ioctlHypercall:       reflect.TypeFor[privcmdHypercall]().Size(),
		ioctlMmapBatchV2:     reflect.TypeFor[privcmdMmapBatchV2]().Size(),
		ioctlBindVIRQ:        reflect.TypeFor[evtchnBindVIRQ]().Size(),
		ioctlBindInterdomain: reflect.TypeFor[evtchnBindInterdomain]().Size(),
		ioctlBindUnbound:     reflect.TypeFor[evtchnBindUnbound]().Size(),
		ioctlNotify:          reflect.TypeFor[evtchnNotify]().Size(),
	} {
		if request>>16&0x3fff != uint(size) || request>>30 != 0 {
			t.Errorf("ioctl %#x carries a size of %d, the argument has %d", request, request>>16&0x3fff, size)
		}
	}
	var h privcmdHypercall
	var b privcmdMmapBatchV2
	offset := func(v any, name string) uintptr {
		f, ok := reflect.TypeOf(v).FieldByName(name)
		if !ok {
			t.Fatalf("%T has no field %s", v, name)
		}
		return f.Offset
	}
	for _, tt := range []struct {
		got, want uintptr
		name      string
	}{
		{offset(h, "op"), 0, "op"}, {offset(h, "arg"), 8, "arg"},
		{offset(b, "num"), 0, "num"}, {offset(b, "dom"), 4, "dom"}, {offset(b, "addr"), 8, "addr"},
		{offset(b, "arr"), 16, "arr"}, {offset(b, "err"), 24, "err"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is at %d, want %d", tt.name, tt.got, tt.want)
		}
	}
}

// wire is a Transport that shows what is asked at the offsets of the headers,
// and lets a test answer there.
type wire struct {
	t       *testing.T
	release string
	mem     []byte
	// domctl and sysctl see whole structures, which the calls give back.
	domctl, sysctl func(cmd int, b []byte) unix.Errno
	// other sees all other hypercalls.
	other func(op uint64, args [5]uint64) (int64, error)
	// mapping gives what is mapped.
	mapping func(frames []uint64, errs []int32, write bool) []byte
}

func newWire(t *testing.T, release string) (*wire, *Host) {
	w := &wire{t: t, release: release, mem: make([]byte, bufferSize)}
	ok := func(int, []byte) unix.Errno { return 0 }
	w.domctl, w.sysctl = ok, ok
	h, err := NewHost(w)
	if err != nil {
		t.Fatal(err)
	}
	return w, h
}

func (w *wire) off(name string) int { return header(w.t, w.release, name) }

// at gives n bytes at an address that was passed.
func (w *wire) at(addr uint64, n int) []byte {
	w.t.Helper()
	base := address(w.mem, 0)
	if addr < base || addr-base+uint64(n) > uint64(len(w.mem)) {
		w.t.Fatalf("%d bytes at %#x are not in the buffer at %#x", n, addr, base)
	}
	return w.mem[addr-base:][:n]
}

func (w *wire) Buffer() []byte     { return w.mem }
func (w *wire) Close() error       { return nil }
func (w *wire) Unmap([]byte) error { return nil }

func (w *wire) Map(_ uint16, frames []uint64, errs []int32, write bool) ([]byte, error) {
	if w.mapping == nil {
		return nil, unix.ENOSYS
	}
	return w.mapping(frames, errs, write), nil
}

func (w *wire) Hypercall(op uint64, args [5]uint64) (int64, error) {
	le := binary.LittleEndian
	var errno unix.Errno
	check := func(name string, b []byte, version string) int {
		if got, want := int(le.Uint32(b[w.off(name+".interface_version"):])), w.off(version); got != want {
			errno = unix.EACCES
		}
		return int(le.Uint32(b[w.off(name+".cmd"):]))
	}
	switch int(op) {
	case w.off("__HYPERVISOR_xen_version"):
		if args[0] == 0 {
			var major, minor int
			fmt.Sscanf(w.release, "%d.%d", &major, &minor)
			return int64(major<<16 | minor), nil
		}
		size := map[int]string{
			w.off("XENVER_extraversion"): "sizeof(xen_extraversion_t)",
			w.off("XENVER_capabilities"): "sizeof(xen_capabilities_info_t)",
			w.off("XENVER_changeset"):    "sizeof(xen_changeset_info_t)",
		}[int(args[0])]
		for i, b := 0, w.at(args[1], w.off(size)); i < len(b); i++ {
			if b[i] != 0 {
				w.t.Errorf("buffer of %s is not clear", size)
			}
			b[i] = 'x' // no NUL at its end, all of it used
		}
		return 0, nil
	case w.off("__HYPERVISOR_domctl"):
		b := w.at(args[0], w.off("sizeof(struct xen_domctl)"))
		if cmd := check("xen_domctl", b, "XEN_DOMCTL_INTERFACE_VERSION"); errno == 0 {
			errno = w.domctl(cmd, b)
		}
	case w.off("__HYPERVISOR_sysctl"):
		b := w.at(args[0], w.off("sizeof(struct xen_sysctl)"))
		if cmd := check("xen_sysctl", b, "XEN_SYSCTL_INTERFACE_VERSION"); errno == 0 {
			errno = w.sysctl(cmd, b)
		}
	default:
		if w.other != nil {
			return w.other(op, args)
		}
		errno = unix.ENOSYS
	}
	if errno != 0 {
		return 0, errno
	}
	return 0, nil
}

// expect makes the next domctls be one operation, on domain 5, which answer
// handles.
func (w *wire) expect(op string, answer func(b []byte)) {
	w.domctl = func(cmd int, b []byte) unix.Errno {
		w.t.Helper()
		if want := w.off("XEN_DOMCTL_" + op); cmd != want {
			w.t.Errorf("operation %d, want %d", cmd, want)
		}
		domain := w.off("xen_domctl.domain")
		if got := binary.LittleEndian.Uint16(b[domain:]); got != 5 {
			w.t.Errorf("domain %d, want 5", got)
		}
		for i := domain + 2; i < w.off("xen_domctl.u"); i++ {
			if b[i] != 0 {
				w.t.Errorf("padding at %d is not zero", i)
			}
		}
		if answer != nil {
			answer(b)
		}
		return 0
	}
}

// u32 checks a field that was passed, and u64 one of 8 bytes.
func (w *wire) u32(b []byte, name string, want uint32) {
	w.t.Helper()
	if got := binary.LittleEndian.Uint32(b[w.off(name):]); got != want {
		w.t.Errorf("%s is %#x, want %#x", name, got, want)
	}
}

func (w *wire) u64(b []byte, name string) uint64 {
	return binary.LittleEndian.Uint64(b[w.off(name):])
}

// info writes a struct xen_domctl_getdomaininfo that describes wireInfo.
func (w *wire) info(b []byte) {
	const s = "xen_domctl_getdomaininfo."
	le := binary.LittleEndian
	clear(b[:w.off("sizeof(struct xen_domctl_getdomaininfo)")])
	le.PutUint16(b[w.off(s+"domain"):], 5)
	le.PutUint32(b[w.off(s+"flags"):], uint32(w.off("XEN_DOMINF_hvm_guest")|w.off("XEN_DOMINF_shutdown")|
		w.off("SHUTDOWN_crash")<<w.off("XEN_DOMINF_shutdownshift")))
	le.PutUint64(b[w.off(s+"tot_pages"):], 0x1111111111)
	le.PutUint64(b[w.off(s+"max_pages"):], 0x2222222222)
	le.PutUint64(b[w.off(s+"shared_info_frame"):], 0x3333333333)
	le.PutUint64(b[w.off(s+"cpu_time"):], 0x4444444444)
	le.PutUint32(b[w.off(s+"nr_online_vcpus"):], 6)
	le.PutUint32(b[w.off(s+"max_vcpu_id"):], 7)
	copy(b[w.off(s+"handle"):], "sixteen bytes ID")
	le.PutUint32(b[w.off(s+"arch_config.emulation_flags"):], uint32(w.off("XEN_X86_EMU_LAPIC")|w.off("XEN_X86_EMU_RTC")))
}

var wireInfo = DomainInfo{
	ID: 5, Kind: HVM, Shutdown: true, ShutdownReason: ShutdownCrash,
	TotalPages: 0x1111111111, MaxPages: 0x2222222222, SharedInfoFrame: 0x3333333333,
	CPUTime: 0x4444444444, OnlineVCPUs: 6, VCPUs: 8,
	UUID: [16]byte([]byte("sixteen bytes ID")),
}

// Every call puts its arguments where the headers of each release have them, and
// takes its results from there.
func TestCallLayouts(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		w, h := newWire(t, release)
		le := binary.LittleEndian
		if got := w.off("sizeof(xen_domctl.u)"); got != len(union{}) {
			t.Errorf("union of %d bytes, want %d", len(union{}), got)
		}
		if got := w.off("sizeof(xen_sysctl.u)"); got != len(union{}) {
			t.Errorf("union of %d bytes, want %d", len(union{}), got)
		}
		if v := h.Version(); v.Extra != strings.Repeat("x", 16) || v.Changeset != strings.Repeat("x", 64) ||
			len(v.Capabilities) != 1 || v.Capabilities[0] != strings.Repeat("x", 1024) {
			t.Errorf("version %+v", v)
		}

		for op, call := range map[string]func(DomID) error{"pausedomain": h.Pause, "unpausedomain": h.Unpause} {
			w.expect(op, nil)
			if err := call(5); err != nil {
				t.Error(err)
			}
		}

		w.expect("getdomaininfo", func(b []byte) { w.info(b[w.off("xen_domctl.u.getdomaininfo"):]) })
		info, err := h.DomainInfo(5)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(wireInfo, info); diff != "" {
			t.Errorf("getdomaininfo (-want +got):\n%s", diff)
		}

		const list = "xen_sysctl.u.getdomaininfolist."
		calls := 0
		w.sysctl = func(cmd int, b []byte) unix.Errno {
			calls++
			size := w.off("sizeof(struct xen_domctl_getdomaininfo)")
			first, most := le.Uint16(b[w.off(list+"first_domain"):]), int(le.Uint32(b[w.off(list+"max_domains"):]))
			if cmd != w.off("XEN_SYSCTL_getdomaininfolist") || most*size > maxPayload || most < 100 {
				t.Errorf("operation %d for %d domains", cmd, most)
			}
			out := w.at(w.u64(b, list+"buffer"), most*size)
			n := 0
			if first == 0 { // twice the same: an id would do no more
				w.info(out)
				w.info(out[size:])
				n = 2
			}
			le.PutUint32(b[w.off(list+"num_domains"):], uint32(n))
			return 0
		}
		infos, err := h.Domains()
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]DomainInfo{wireInfo, wireInfo}, infos); diff != "" || calls != 2 {
			t.Errorf("getdomaininfolist, %d calls (-want +got):\n%s", calls, diff)
		}

		w.expect("get_address_size", func(b []byte) { le.PutUint32(b[w.off("xen_domctl.u.address_size.size"):], 64) })
		if width, err := h.AddressSize(5); err != nil || width != 64 {
			t.Errorf("AddressSize gives %d, %v", width, err)
		}

		const vi = "xen_domctl.u.getvcpuinfo."
		w.expect("getvcpuinfo", func(b []byte) {
			w.u32(b, vi+"vcpu", 3)
			b[w.off(vi+"online")], b[w.off(vi+"running")] = 1, 1
			le.PutUint64(b[w.off(vi+"cpu_time"):], 0x5555555555)
			le.PutUint32(b[w.off(vi+"cpu"):], 9)
		})
		vcpu, err := h.VCPUInfo(5, 3)
		if want := (VCPUInfo{Online: true, Running: true, CPUTime: 0x5555555555 * time.Nanosecond, CPU: 9}); err != nil || vcpu != want {
			t.Errorf("VCPUInfo gives %+v, %v", vcpu, err)
		}
		w.expect("getvcpuinfo", func(b []byte) { b[w.off(vi+"blocked")] = 1 })
		if vcpu, err := h.VCPUInfo(5, 3); err != nil || vcpu != (VCPUInfo{Blocked: true}) {
			t.Errorf("VCPUInfo gives %+v, %v", vcpu, err)
		}

		const vc = "xen_domctl.u.vcpucontext."
		image := make([]byte, w.off("sizeof(struct vcpu_guest_context)"))
		for i := range image {
			image[i] = byte(i * 7)
		}
		w.expect("getvcpucontext", func(b []byte) {
			w.u32(b, vc+"vcpu", 3)
			copy(w.at(w.u64(b, vc+"ctxt"), len(image)), image)
		})
		var ctx VCPUContext
		if err := h.VCPUContext(5, 3, &ctx); err != nil {
			t.Error(err)
		}
		if want := le.Uint64(image[w.off("vcpu_guest_context.user_regs.rip"):]); ctx.RIP != want {
			t.Errorf("rip %#x, want %#x", ctx.RIP, want)
		}
		w.expect("setvcpucontext", func(b []byte) {
			w.u32(b, vc+"vcpu", 3)
			if diff := cmp.Diff(image, slices.Clone(w.at(w.u64(b, vc+"ctxt"), len(image)))); diff != "" {
				t.Errorf("context did not go back as it came (-want +got):\n%s", diff)
			}
		})
		if err := h.SetVCPUContext(5, 3, &ctx); err != nil {
			t.Error(err)
		}

		const ext = "xen_domctl.u.vcpuextstate."
		asked := 0
		w.expect("getvcpuextstate", func(b []byte) {
			w.u32(b, ext+"vcpu", 3)
			if asked++; asked == 1 {
				if w.u64(b, ext+"xfeature_mask") != 0 || w.u64(b, ext+"size") != 0 {
					t.Error("the question for the size has arguments")
				}
				le.PutUint64(b[w.off(ext+"xfeature_mask"):], 0xe7)
				le.PutUint64(b[w.off(ext+"size"):], 2700)
				return
			}
			if mask, size := w.u64(b, ext+"xfeature_mask"), w.u64(b, ext+"size"); mask != 0xe7 || size != 2700 {
				t.Errorf("mask %#x, size %d", mask, size)
			}
			copy(w.at(w.u64(b, ext+"buffer"), 2700), image)
			le.PutUint64(b[w.off(ext+"size"):], 848)
		})
		state, err := h.VCPUExtState(5, 3)
		if err != nil || asked != 2 || state.Features != 0xe7 || string(state.Data) != string(image[:848]) {
			t.Errorf("VCPUExtState gives %d bytes of %#x by %d calls, %v", len(state.Data), state.Features, asked, err)
		}
		w.expect("setvcpuextstate", func(b []byte) {
			w.u32(b, ext+"vcpu", 3)
			if mask, size := w.u64(b, ext+"xfeature_mask"), w.u64(b, ext+"size"); mask != 0xe7 || size != 848 {
				t.Errorf("mask %#x, size %d", mask, size)
			}
			if string(w.at(w.u64(b, ext+"buffer"), 848)) != string(image[:848]) {
				t.Error("state did not go back as it came")
			}
		})
		if err := h.SetVCPUExtState(5, 3, state); err != nil {
			t.Error(err)
		}

		const hp = "xen_domctl.u.hvmcontext_partial."
		w.expect("gethvmcontext_partial", func(b []byte) {
			w.u32(b, hp+"instance", 3)
			record := func(of string) []byte {
				size := w.off("sizeof(struct " + of + ")")
				if got := w.u64(b, hp+"bufsz"); got != uint64(size) {
					t.Errorf("%s: buffer of %d bytes, want %d", of, got, size)
				}
				return w.at(w.u64(b, hp+"buffer"), size)
			}
			switch typecode := int(le.Uint32(b[w.off(hp+"type"):])); typecode {
			case w.off("HVM_SAVE_CODE(CPU)"):
				r := record("hvm_hw_cpu")
				le.PutUint64(r[w.off("hvm_hw_cpu.msr_efer"):], 0xd01)
				le.PutUint64(r[w.off("hvm_hw_cpu.idtr_base"):], 0xfffffe0000000000)
				le.PutUint64(r[w.off("hvm_hw_cpu.msr_lstar"):], 0xffffffff81c00000)
			case w.off("HVM_SAVE_CODE(LAPIC_REGS)"):
				// The header gives only the size of the registers' page: the task
				// priority is where every local APIC has it (SDM vol. 3A, table
				// 10-1).
				record("hvm_hw_lapic_regs")[0x80] = 0x70
			default:
				t.Errorf("record of type %d", typecode)
			}
		})
		cpu, err := h.HVMCPU(5, 3)
		if want := (HVMCPU{EFER: 0xd01, IDTBase: 0xfffffe0000000000, LSTAR: 0xffffffff81c00000, TPR: 0x70}); err != nil || cpu != want {
			t.Errorf("HVMCPU gives %+v, %v", cpu, err)
		}

		const hc = "xen_domctl.u.hvmcontext."
		var stream []byte
		for _, r := range []struct{ name, of string }{{"HEADER", ""}, {"CPU", "hvm_hw_cpu"}, {"END", ""}} {
			size := 0
			if r.of != "" {
				size = w.off("sizeof(struct " + r.of + ")")
			}
			stream = le.AppendUint16(stream, uint16(w.off("HVM_SAVE_CODE("+r.name+")")))
			stream = le.AppendUint16(stream, 3)
			stream = le.AppendUint32(stream, uint32(size))
			stream = append(stream, image[:size]...)
		}
		w.expect("gethvmcontext", func(b []byte) {
			if w.u64(b, hc+"buffer") == 0 {
				le.PutUint32(b[w.off(hc+"size"):], 2000)
				return
			}
			w.u32(b, hc+"size", 2000)
			copy(w.at(w.u64(b, hc+"buffer"), 2000), stream)
			le.PutUint32(b[w.off(hc+"size"):], uint32(len(stream)))
		})
		saved, err := h.VCPUState(5, true)
		if err != nil {
			t.Fatal(err)
		}
		w.expect("sethvmcontext", func(b []byte) {
			w.u32(b, hc+"size", uint32(len(stream)))
			got := slices.Clone(w.at(w.u64(b, hc+"buffer"), len(stream)))
			le.PutUint16(got[len(got)-8+2:], 3) // no instance at the end
			if diff := cmp.Diff(stream, got); diff != "" {
				t.Errorf("state did not go back as it came (-want +got):\n%s", diff)
			}
		})
		if err := h.SetVCPUState(5, saved); err != nil {
			t.Error(err)
		}

		w.expect("gdbsx_unpausevcpu", func(b []byte) { w.u32(b, "xen_domctl.u.gdbsx_pauseunp_vcpu.vcpu", ^uint32(0)) })
		h.HasGDBSX(5)
		for name, call := range map[string]func(DomID, int) error{
			"gdbsx_pausevcpu": h.PauseVCPU, "gdbsx_unpausevcpu": h.UnpauseVCPU,
		} {
			w.expect(name, func(b []byte) { w.u32(b, "xen_domctl.u.gdbsx_pauseunp_vcpu.vcpu", 3) })
			if err := call(5, 3); err != nil {
				t.Error(err)
			}
		}
		for _, on := range []byte{1, 0} {
			w.expect("setdebugging", func(b []byte) {
				if got := b[w.off("xen_domctl.u.setdebugging.enable")]; got != on {
					t.Errorf("setdebugging with %d, want %d", got, on)
				}
			})
			if err := h.SetDebugging(5, on == 1); err != nil {
				t.Error(err)
			}
		}
		const ds = "xen_domctl.u.gdbsx_domstatus."
		for _, want := range []int{3, -1} {
			w.expect("gdbsx_domstatus", func(b []byte) {
				b[w.off(ds+"paused")] = 1
				le.PutUint32(b[w.off(ds+"vcpu_id"):], uint32(want))
				le.PutUint32(b[w.off(ds+"vcpu_ev"):], 3)
			})
			if got, err := h.NextDebugEvent(5); err != nil || got != want {
				t.Errorf("NextDebugEvent gives %d, %v, want %d", got, err, want)
			}
		}
	})
}

// This file holds what Xen's public headers say: numbers, sizes and offsets that
// this package must agree with.
//
// They were obtained by compiling the headers under xen/include/public of the
// heads of the branches stable-4.14 to stable-4.22 of Xen's repository (as of
// 2026-07-29) with gcc for x86-64 and -D__XEN_TOOLS__, in a program that prints
// sizeof, offsetof and the constants. Nothing here is derived from this package.

package xen

import (
	"slices"
	"testing"
)

// headerReleases are the branches, without "stable-".
var headerReleases = []string{"4.14", "4.15", "4.16", "4.17", "4.18", "4.19", "4.20", "4.21", "4.22"}

// headerNumbers are the numbers by name: one that all branches share, or one for
// each. Offsets are in bytes.
var headerNumbers = map[string][]int{
	"XEN_DOMCTL_INTERFACE_VERSION":                         {0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x17, 0x17, 0x18},
	"XEN_SYSCTL_INTERFACE_VERSION":                         {0x13, 0x13, 0x14, 0x15, 0x15, 0x15, 0x15, 0x16, 0x16},
	"__HYPERVISOR_memory_op":                               {12},
	"__HYPERVISOR_xen_version":                             {17},
	"__HYPERVISOR_sysctl":                                  {35},
	"__HYPERVISOR_domctl":                                  {36},
	"XENMEM_maximum_gpfn":                                  {14},
	"XENVER_version":                                       {0},
	"XENVER_extraversion":                                  {1},
	"XENVER_capabilities":                                  {3},
	"XENVER_changeset":                                     {4},
	"sizeof(xen_extraversion_t)":                           {16},
	"sizeof(xen_capabilities_info_t)":                      {1024},
	"sizeof(xen_changeset_info_t)":                         {64},
	"DOMID_FIRST_RESERVED":                                 {0x7ff0},
	"VIRQ_DEBUGGER":                                        {6},
	"VIRQ_DOM_EXC":                                         {3},
	"DOMID_SELF":                                           {0x7ff0},
	"XEN_DOMCTL_pausedomain":                               {3},
	"XEN_DOMCTL_unpausedomain":                             {4},
	"XEN_DOMCTL_getdomaininfo":                             {5},
	"XEN_DOMCTL_setvcpucontext":                            {12},
	"XEN_DOMCTL_getvcpucontext":                            {13},
	"XEN_DOMCTL_getvcpuinfo":                               {14},
	"XEN_DOMCTL_get_address_size":                          {36},
	"XEN_DOMCTL_gethvmcontext_partial":                     {55},
	"XEN_DOMCTL_setvcpuextstate":                           {62},
	"XEN_DOMCTL_getvcpuextstate":                           {63},
	"XEN_DOMCTL_gdbsx_unpausevcpu":                         {1002},
	"XEN_SYSCTL_getdomaininfolist":                         {6},
	"SHUTDOWN_poweroff":                                    {0},
	"SHUTDOWN_reboot":                                      {1},
	"SHUTDOWN_suspend":                                     {2},
	"SHUTDOWN_crash":                                       {3},
	"SHUTDOWN_watchdog":                                    {4},
	"SHUTDOWN_soft_reset":                                  {5},
	"XEN_DOMINF_dying":                                     {0x1},
	"XEN_DOMINF_hvm_guest":                                 {0x2},
	"XEN_DOMINF_shutdown":                                  {0x4},
	"XEN_DOMINF_paused":                                    {0x8},
	"XEN_DOMINF_blocked":                                   {0x10},
	"XEN_DOMINF_running":                                   {0x20},
	"XEN_DOMINF_debugged":                                  {0x40},
	"XEN_DOMINF_shutdownmask":                              {0xff},
	"XEN_DOMINF_shutdownshift":                             {16},
	"XEN_X86_EMU_LAPIC":                                    {1},
	"XEN_X86_EMU_HPET":                                     {2},
	"XEN_X86_EMU_PM":                                       {4},
	"XEN_X86_EMU_RTC":                                      {8},
	"XEN_X86_EMU_IOAPIC":                                   {16},
	"XEN_X86_EMU_PIC":                                      {32},
	"XEN_X86_EMU_VGA":                                      {64},
	"XEN_X86_EMU_IOMMU":                                    {128},
	"XEN_X86_EMU_PIT":                                      {256},
	"XEN_X86_EMU_USE_PIRQ":                                 {512},
	"VGCF_i387_valid":                                      {1},
	"VGCF_in_kernel":                                       {4},
	"VGCF_online":                                          {32},
	"sizeof(struct xen_domctl)":                            {144},
	"xen_domctl.cmd":                                       {0},
	"xen_domctl.interface_version":                         {4},
	"xen_domctl.domain":                                    {8},
	"xen_domctl.u":                                         {16},
	"sizeof(xen_domctl.u)":                                 {128},
	"xen_domctl.u.vcpucontext.vcpu":                        {16},
	"xen_domctl.u.vcpucontext.ctxt":                        {24},
	"xen_domctl.u.getvcpuinfo.vcpu":                        {16},
	"xen_domctl.u.getvcpuinfo.online":                      {20},
	"xen_domctl.u.getvcpuinfo.blocked":                     {21},
	"xen_domctl.u.getvcpuinfo.running":                     {22},
	"xen_domctl.u.getvcpuinfo.cpu_time":                    {24},
	"xen_domctl.u.getvcpuinfo.cpu":                         {32},
	"xen_domctl.u.address_size.size":                       {16},
	"xen_domctl.u.hvmcontext_partial.type":                 {16},
	"xen_domctl.u.hvmcontext_partial.instance":             {20},
	"xen_domctl.u.hvmcontext_partial.bufsz":                {24},
	"xen_domctl.u.hvmcontext_partial.buffer":               {32},
	"xen_domctl.u.vcpuextstate.vcpu":                       {16},
	"xen_domctl.u.vcpuextstate.xfeature_mask":              {24},
	"xen_domctl.u.vcpuextstate.size":                       {32},
	"xen_domctl.u.vcpuextstate.buffer":                     {40},
	"xen_domctl.u.gdbsx_pauseunp_vcpu.vcpu":                {16},
	"xen_domctl.u.getdomaininfo":                           {16},
	"sizeof(struct xen_sysctl)":                            {136},
	"xen_sysctl.cmd":                                       {0},
	"xen_sysctl.interface_version":                         {4},
	"xen_sysctl.u":                                         {8},
	"sizeof(xen_sysctl.u)":                                 {128},
	"xen_sysctl.u.getdomaininfolist.first_domain":          {8},
	"xen_sysctl.u.getdomaininfolist.max_domains":           {12},
	"xen_sysctl.u.getdomaininfolist.buffer":                {16},
	"xen_sysctl.u.getdomaininfolist.num_domains":           {24},
	"sizeof(xen_sysctl.u.getdomaininfolist.first_domain)":  {2},
	"sizeof(struct xen_domctl_getdomaininfo)":              {104, 104, 112, 112, 112, 112, 112, 112, 112},
	"xen_domctl_getdomaininfo.domain":                      {0},
	"xen_domctl_getdomaininfo.flags":                       {4},
	"xen_domctl_getdomaininfo.tot_pages":                   {8},
	"xen_domctl_getdomaininfo.max_pages":                   {16},
	"xen_domctl_getdomaininfo.shared_info_frame":           {48},
	"xen_domctl_getdomaininfo.cpu_time":                    {56},
	"xen_domctl_getdomaininfo.nr_online_vcpus":             {64},
	"xen_domctl_getdomaininfo.max_vcpu_id":                 {68},
	"xen_domctl_getdomaininfo.handle":                      {76},
	"xen_domctl_getdomaininfo.arch_config.emulation_flags": {96, 96, 104, 104, 104, 104, 104, 104, 104},
	"sizeof(struct vcpu_guest_context)":                    {5168},
	"vcpu_guest_context.fpu_ctxt":                          {0},
	"vcpu_guest_context.flags":                             {512},
	"vcpu_guest_context.user_regs.r15":                     {520},
	"vcpu_guest_context.user_regs.r14":                     {528},
	"vcpu_guest_context.user_regs.r13":                     {536},
	"vcpu_guest_context.user_regs.r12":                     {544},
	"vcpu_guest_context.user_regs.rbp":                     {552},
	"vcpu_guest_context.user_regs.rbx":                     {560},
	"vcpu_guest_context.user_regs.r11":                     {568},
	"vcpu_guest_context.user_regs.r10":                     {576},
	"vcpu_guest_context.user_regs.r9":                      {584},
	"vcpu_guest_context.user_regs.r8":                      {592},
	"vcpu_guest_context.user_regs.rax":                     {600},
	"vcpu_guest_context.user_regs.rcx":                     {608},
	"vcpu_guest_context.user_regs.rdx":                     {616},
	"vcpu_guest_context.user_regs.rsi":                     {624},
	"vcpu_guest_context.user_regs.rdi":                     {632},
	"vcpu_guest_context.user_regs.error_code":              {640},
	"vcpu_guest_context.user_regs.entry_vector":            {644},
	"vcpu_guest_context.user_regs.rip":                     {648},
	"vcpu_guest_context.user_regs.cs":                      {656},
	"vcpu_guest_context.user_regs.saved_upcall_mask":       {660},
	"vcpu_guest_context.user_regs.rflags":                  {664},
	"vcpu_guest_context.user_regs.rsp":                     {672},
	"vcpu_guest_context.user_regs.ss":                      {680},
	"vcpu_guest_context.user_regs.es":                      {688},
	"vcpu_guest_context.user_regs.ds":                      {696},
	"vcpu_guest_context.user_regs.fs":                      {704},
	"vcpu_guest_context.user_regs.gs":                      {712},
	"vcpu_guest_context.trap_ctxt":                         {720},
	"vcpu_guest_context.ldt_base":                          {4816},
	"vcpu_guest_context.ldt_ents":                          {4824},
	"vcpu_guest_context.gdt_frames":                        {4832},
	"vcpu_guest_context.gdt_ents":                          {4960},
	"vcpu_guest_context.kernel_ss":                         {4968},
	"vcpu_guest_context.kernel_sp":                         {4976},
	"vcpu_guest_context.ctrlreg":                           {4984},
	"vcpu_guest_context.debugreg":                          {5048},
	"vcpu_guest_context.event_callback_eip":                {5112},
	"vcpu_guest_context.failsafe_callback_eip":             {5120},
	"vcpu_guest_context.syscall_callback_eip":              {5128},
	"vcpu_guest_context.vm_assist":                         {5136},
	"vcpu_guest_context.fs_base":                           {5144},
	"vcpu_guest_context.gs_base_kernel":                    {5152},
	"vcpu_guest_context.gs_base_user":                      {5160},
	"sizeof(struct trap_info)":                             {16},
	"trap_info.vector":                                     {0},
	"trap_info.flags":                                      {1},
	"trap_info.cs":                                         {2},
	"trap_info.address":                                    {8},
	"sizeof(struct hvm_hw_cpu)":                            {1032},
	"hvm_hw_cpu.msr_efer":                                  {992},
	"sizeof(struct hvm_hw_lapic_regs)":                     {1024},
	"HVM_SAVE_CODE(LAPIC_REGS)":                            {6},
	"HVM_SAVE_CODE(CPU)":                                   {2},
}

// header gives a number of a release's headers.
func header(t *testing.T, release, name string) int {
	t.Helper()
	values, ok := headerNumbers[name]
	if !ok {
		t.Fatalf("no number %s", name)
	}
	if len(values) == 1 {
		return values[0]
	}
	i := slices.Index(headerReleases, release)
	if i < 0 {
		t.Fatalf("no headers of Xen %s", release)
	}
	return values[i]
}

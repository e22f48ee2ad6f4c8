package main

import (
	"strings"
	"testing"
)

const session = `0xffffffff81c0130a in xen_hypercall_sched_op () at arch/x86/xen/xen-head.S:75
  Id   Target Id         Frame 
* 1    Thread 1.1 (vCPU 0) 0xffffffff81c0130a in xen_hypercall_sched_op () at arch/x86/xen/xen-head.S:75
  2    Thread 1.2 (vCPU 1) clear_user_rep_good () at arch/x86/lib/clear_page_64.S:147

Thread 2 (Thread 1.2 (vCPU 1)):
#0  clear_user_rep_good () at arch/x86/lib/clear_page_64.S:147
#1  0xffffffff81a6d3b1 in read_iter_zero (iocb=0xffffc90040b8be20, iter=<optimized out>) at drivers/char/mem.c:520
#2  0xffffffff81e00126 in entry_SYSCALL_64_after_hwframe () at arch/x86/entry/entry_64.S:120
#3  0x00007f42c9f0e9ce in ?? ()

Thread 1 (Thread 1.1 (vCPU 0)):
#0  0xffffffff81c0130a in xen_hypercall_sched_op () at arch/x86/xen/xen-head.S:75
#1  0x0000000000000000 in ?? ()
[Inferior 1 (process 1) detached]
`

func TestCheckSession(t *testing.T) {
	if err := checkSession(session, 2); err != nil {
		t.Error(err)
	}
	for what, text := range map[string]string{
		"a vCPU is missing": strings.Replace(session, "  2    Thread", "  2    xxx", 1),
		"no entry":          strings.Replace(session, "in entry_SYSCALL_64_after_hwframe", "in something_else", 1),
		"no line":           strings.Replace(session, " at arch/x86/entry/entry_64.S:120", "", 1),
		"no detach":         strings.Replace(session, "detached]", "", 1),
		"nothing":           "",
	} {
		if err := checkSession(text, 2); err == nil {
			t.Errorf("passes although %s", what)
		}
	}
}

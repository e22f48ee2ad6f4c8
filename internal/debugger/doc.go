// Package debugger makes a guest into an rsp.Target: its vCPUs into threads,
// its registers into those of a target description, and its pauses into stop
// replies.
//
// A domain is a process whose number is the domain's; vCPU n is thread n+1.
package debugger

// Package linux finds out what a Linux guest says of itself: which kernel it is,
// the names of its functions, its types, and how to unwind its stacks. It needs no
// symbol file: all that stands in the guest's own memory.
//
// That memory is not to be trusted. What does not hold together is an error, and
// no table makes a search long.
package linux

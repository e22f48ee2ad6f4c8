// Package bench measures servers of the GDB remote serial protocol beside each
// other: a client that speaks to any of them and knows none from inside, what it
// measures, and the table that comes of it. Command client is the program that runs
// beside the server, in the lab's dom0, and xenlab bench is what drives it.
package bench

// Package guardian is about what outlives a server: a lock and a journal for
// each domain, and a process that undoes what is in the journal when the server
// is gone, whatever ended it.
//
// A server takes a domain (Take), which locks it against others, and notes in
// the session's journal what it is about to change there. The journal is a file
// that is mapped, so what was stored in it survives kill -9. The server starts a
// guardian (Guard), which waits until the server is gone. If the journal says
// then that there is something to undo, the guardian undoes it. Should both have
// been killed, the journal is found by the next Take.
//
// What the journal means is not known here, except that it begins with a word
// of 8 bytes which is zero as long as there is nothing to undo. Who writes it
// stores that word last, and clears it first.
package guardian

// Package house holds the tests that keep the house rules of
// docs/architecture.md: which room may import which, what the product may
// depend on, where unsafe may stand. It has no code of its own.
package house

package main

import (
	"io"
	"testing"
)

func TestFollowRequests(t *testing.T) {
	for _, tt := range []struct {
		name     string
		requests []string
		leaves   bool
	}{
		{"none", []string{""}, false},
		{"was asked before", []string{"suspend"}, true},
		{"to suspend", []string{"", "suspend"}, true},
		{"to suspend, but not any more", []string{"", "suspend", ""}, false},
		{"one that was not seen", []string{"", ""}, true},
		{"to power off", []string{"", "poweroff"}, false},
		{"to power off, and begins to", []string{"", "poweroff", ""}, false},
		{"to suspend, then to reboot", []string{"", "suspend", "reboot", ""}, false},
		{"to suspend twice", []string{"", "suspend", "", "suspend"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaving := make(chan struct{}, 1)
			err := followRequests(func() (string, error) {
				if len(tt.requests) == 0 {
					return "", io.EOF
				}
				request := tt.requests[0]
				tt.requests = tt.requests[1:]
				return request, nil
			}, leaving)
			if err != io.EOF || len(leaving) == 1 != tt.leaves {
				t.Errorf("got %d tokens, %v; want one: %v", len(leaving), err, tt.leaves)
			}
		})
	}
}

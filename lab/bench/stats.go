package bench

// Samples, and what is said of them.

import (
	"math"
	"slices"
	"time"
)

// A Result is what was measured of one work.
type Result struct {
	Work    string
	Bytes   int             `json:",omitempty"` // that each sample moves
	Samples []time.Duration `json:",omitempty"`
	Count   int             `json:",omitempty"` // of events in the one sample
	// Calls counts, by name, what the server did for all samples, by its own account.
	Calls map[string]int `json:",omitempty"`
	// Unsupported says why there are none.
	Unsupported string `json:",omitempty"`
}

// A Report is all that a client prints.
type Report struct {
	Results []Result
	Failed  string `json:",omitempty"` // what went wrong; Results then are of before
	// Of the server's process, if the client started it.
	PeakKB int           `json:",omitempty"`
	CPU    time.Duration `json:",omitempty"`
}

// Percentile gives the least sample that p of 100 samples do not exceed.
// Preconditions: 0 < p <= 100. Without samples it is 0.
func Percentile(samples []time.Duration, p float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median gives the 50th percentile.
func Median(samples []time.Duration) time.Duration { return Percentile(samples, 50) }

// Merge adds the samples of a second run to those of the first.
func Merge(into map[string]Result, results []Result) {
	for _, r := range results {
		have, ok := into[r.Work]
		if !ok {
			into[r.Work] = r
			continue
		}
		have.Samples = append(have.Samples, r.Samples...)
		have.Count += r.Count
		if r.Unsupported != "" {
			have.Unsupported = r.Unsupported
		}
		for name, n := range r.Calls {
			if have.Calls == nil {
				have.Calls = map[string]int{}
			}
			have.Calls[name] += n
		}
		into[r.Work] = have
	}
}

// Speed gives bytes per second, of a sample that took d.
func (r Result) Speed(d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(r.Bytes) / d.Seconds()
}

// Rate gives events per second.
func (r Result) Rate() float64 {
	var all time.Duration
	for _, d := range r.Samples {
		all += d
	}
	if all <= 0 {
		return 0
	}
	return float64(r.Count) / all.Seconds()
}

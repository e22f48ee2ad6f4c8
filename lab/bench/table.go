package bench

// The table of what was measured.

import (
	"fmt"
	"strings"
	"time"
)

// A Row is a work, as a peer and this project's server do it.
type Row struct {
	Name       string
	Peer, Ours Result
	// Goal is the least ratio to reach; 0 for none.
	Goal float64
}

// cost gives the time for one unit of a result: an operation, a byte or an event. It
// is 0 if there is none.
func cost(r Result) float64 {
	switch {
	case r.Unsupported != "" || len(r.Samples) == 0:
		return 0
	case r.Count > 0:
		return 1 / r.Rate()
	case r.Bytes > 0:
		return Median(r.Samples).Seconds() / float64(r.Bytes)
	}
	return Median(r.Samples).Seconds()
}

// Ratio tells how many times the peer's time ours takes less. ok is false if one of
// them has none.
func (r Row) Ratio() (ratio float64, ok bool) {
	peer, ours := cost(r.Peer), cost(r.Ours)
	if peer == 0 || ours == 0 {
		return 0, false
	}
	return peer / ours, true
}

// Met tells whether a goal is reached; that the peer has nothing to compare to counts
// as reached.
func (r Row) Met() bool {
	ratio, ok := r.Ratio()
	return ratio >= r.Goal || !ok && r.Peer.Unsupported != "" && cost(r.Ours) > 0
}

// columns are a result's median and its 99th percentile, in words.
func columns(r Result) (median, p99 string) {
	switch {
	case r.Unsupported != "":
		return "cannot: " + r.Unsupported, ""
	case len(r.Samples) == 0:
		return "not measured", ""
	case r.Count > 0:
		return fmt.Sprintf("%s/s", number(r.Rate())), ""
	case r.Bytes > 0:
		return speed(r.Speed(Median(r.Samples))), speed(r.Speed(Percentile(r.Samples, 99)))
	}
	return duration(Median(r.Samples)), duration(Percentile(r.Samples, 99))
}

// number has three digits that count.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func speed(bytesPerSecond float64) string { return number(bytesPerSecond/1e6) + " MB/s" }

func duration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return number(float64(d)/1e3) + " µs"
	case d < time.Second:
		return number(float64(d)/1e6) + " ms"
	}
	return number(d.Seconds()) + " s"
}

// Table is in Markdown.
func Table(peer, ours string, rows []Row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| work | %s, median | 99 %% | %s, median | 99 %% | ratio | goal |\n|---|---|---|---|---|---|---|\n", peer, ours)
	for _, r := range rows {
		theirs, theirs99 := columns(r.Peer)
		own, own99 := columns(r.Ours)
		ratio := ""
		if v, ok := r.Ratio(); ok {
			ratio = number(v) + "×"
		}
		goal := ""
		if r.Goal > 0 {
			goal = number(r.Goal)
			if strings.Contains(goal, ".") {
				goal = strings.TrimRight(strings.TrimRight(goal, "0"), ".")
			}
			switch {
			case r.Met():
				goal += "×: met"
			case len(r.Ours.Samples) == 0:
				goal += "×"
			default:
				goal += "×: missed"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.Name, theirs, theirs99, own, own99, ratio, goal)
	}
	return b.String()
}

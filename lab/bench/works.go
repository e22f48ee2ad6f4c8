package bench

// What is measured.

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// A Range is of memory.
type Range struct {
	Addr uint64
	Size int
}

// Params are where and how much to measure.
type Params struct {
	Read   Range  // where small reads go, and what is written to itself
	Bulk   Range  // what is read in bulk
	Code   Range  // memory without zeros to read in bulk
	Break  uint64 // code that the last thread runs all the time
	Times  int    // how many times, for what takes little
	Steps  int
	Rounds int           // stops at the breakpoint
	Most   time.Duration // of bulk and of run control each; less is done of what is slow
	Count  string        // monitor command that counts
}

// The works, by the names in a Report.
const (
	ReadCold        = "read 8 bytes, cold"
	ReadWarm        = "read 8 bytes, warm"
	Registers       = "registers (g)"
	StopWorth       = "stop reply to a backtrace's reads"
	BulkHex         = "bulk read, hex (m)"
	BulkBinary      = "bulk read, binary (x)"
	CodeBinary      = "bulk read of code, binary (x)"
	WriteBack       = "write"
	StepBusy        = "step"
	BreakHit        = "breakpoint: resume to stop reply"
	BreakCycle      = "breakpoint: whole cycle, as gdb does it"
	ConditionClient = "false condition, in the client"
	ConditionServer = "false condition, in the server"
	Attach          = "attach"
	Echo            = "echo over the same loopback"
	Copy            = "plain copying through a socket"
	Ready           = "bulk read, binary (x), of replies that are ready"
)

// groups are works that are measured together.
var groups = map[string]func(*Conn, Params) ([]Result, error){
	"reads":      measureReads,
	"registers":  measureRegisters,
	"bulk":       measureBulk,
	"write":      measureWrite,
	"step":       measureSteps,
	"breakpoint": measureBreakpoint,
	"condition":  measureCondition,
	"warm":       measureWarm,
	"none":       func(*Conn, Params) ([]Result, error) { return nil, nil },
}

// Groups lists what Run knows.
func Groups() []string { return slices.Sorted(maps.Keys(groups)) }

// Run measures a group of works. With an error it gives what was measured before.
func Run(c *Conn, group string, p Params) ([]Result, error) {
	measure, ok := groups[group]
	if !ok {
		return nil, fmt.Errorf("no group of works %q: there are %v", group, Groups())
	}
	if err := c.selectLast(); err != nil {
		return nil, fmt.Errorf("%s: %w", group, err)
	}
	results, err := measure(c, p)
	if err != nil {
		err = fmt.Errorf("%s: %w", group, err)
	}
	return results, err
}

// timed does something up to n times, for as long as p.Most allows, each time after
// what is to be done before it.
func timed(c *Conn, p Params, r *Result, n int, do func(i int) error, first ...func(i int) error) error {
	before, err := c.counters(p.Count)
	if err != nil {
		return err
	}
	for begin, i := time.Now(), 0; i < n && (p.Most == 0 || i == 0 || time.Since(begin) < p.Most); i++ {
		for _, f := range first {
			if err := f(i); err != nil {
				return err
			}
		}
		start := time.Now()
		if err := do(i); err != nil {
			return err
		}
		r.Samples = append(r.Samples, time.Since(start))
	}
	after, err := c.counters(p.Count)
	if err != nil {
		return err
	}
	for name, n := range after {
		if r.Calls == nil {
			r.Calls = map[string]int{}
		}
		r.Calls[name] += n - before[name]
	}
	return nil
}

// places are addresses of words, the same in each run.
func places(in Range, n int, seed uint64) []uint64 {
	random := rand.New(rand.NewPCG(seed, 0))
	addrs := make([]uint64, n)
	for i := range addrs {
		addrs[i] = in.Addr + uint64(random.IntN(in.Size-8))&^7
	}
	return addrs
}

// readsPerStop is how many reads follow each resumption.
const readsPerStop = 20

// measureReads reads words after resuming, and again.
func measureReads(c *Conn, p Params) ([]Result, error) {
	results := []Result{{Work: ReadCold}, {Work: ReadWarm}}
	if err := c.plant(p.Break, ""); err != nil {
		return nil, err
	}
	for stop := range max(p.Times/readsPerStop, 1) {
		if err := cycle(c, p.Break, stop == 0, nil); err != nil {
			return results, err
		}
		addrs := places(p.Read, readsPerStop, uint64(stop))
		for i := range results {
			if err := timed(c, p, &results[i], len(addrs), func(i int) error { return c.readHex(addrs[i], 8) }); err != nil {
				return results, err
			}
		}
	}
	return results, c.pull(p.Break)
}

// measureWarm reads words of a target that stands still all the while.
func measureWarm(c *Conn, p Params) ([]Result, error) {
	warm := Result{Work: ReadWarm}
	addrs := places(p.Read, readsPerStop, 0)
	for _, addr := range addrs {
		if err := c.readHex(addr, 8); err != nil {
			return nil, err
		}
	}
	err := timed(c, p, &warm, p.Times, func(i int) error { return c.readHex(addrs[i%len(addrs)], 8) })
	return []Result{warm}, err
}

// cycle goes from the breakpoint to its next hit, as gdb does: off it by a step
// without it.
func cycle(c *Conn, at uint64, first bool, hit *Result) error {
	if !first {
		if err := c.pull(at); err != nil {
			return err
		}
		if err := c.step(); err != nil {
			return err
		}
		if err := c.plant(at, ""); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := c.goOn(); err != nil {
		return err
	}
	if hit != nil {
		hit.Samples = append(hit.Samples, time.Since(start))
	}
	return c.atPlant(at)
}

// measureRegisters reads all registers of a target that stands still.
func measureRegisters(c *Conn, p Params) ([]Result, error) {
	r := Result{Work: Registers}
	err := timed(c, p, &r, p.Times, func(int) error {
		reply, err := c.Send("g")
		if err == nil && len(reply) < 2*(ripOffset+8) {
			err = fmt.Errorf("g: got reply %.20q", reply)
		}
		return err
	})
	return []Result{r}, err
}

// packetsPerSample is what a sample of bulk work consists of.
const packetsPerSample = 16

// measureBulk reads much memory, piece by piece.
func measureBulk(c *Conn, p Params) ([]Result, error) {
	var all []Result
	for _, w := range []struct {
		work    string
		in      Range
		binary  bool
		payload int
		read    func(uint64, int) error
	}{
		{BulkHex, p.Bulk, false, c.packetSize / 2, c.readHex},
		{BulkBinary, p.Bulk, true, c.packetSize - 1, c.readBinary},
		{CodeBinary, p.Code, true, c.packetSize - 1, c.readBinary},
	} {
		r := Result{Work: w.work}
		if w.binary && !c.binary {
			r.Unsupported = "no x"
			all = append(all, r)
			continue
		}
		// No page is read in two packets, if a packet holds one.
		piece := w.payload
		if piece > pageSize {
			piece -= piece % pageSize
		}
		piece = min(piece, w.in.Size)
		r.Bytes = min(packetsPerSample*piece, w.in.Size/piece*piece)
		err := timed(c, p, &r, max(w.in.Size/r.Bytes, 1), func(i int) error {
			for done := 0; done < r.Bytes; done += piece {
				if err := w.read(w.in.Addr+uint64(i*r.Bytes+done), piece); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
	return all, nil
}

const pageSize = 4096

// writeSize is what is written.
const writeSize = 1 << 20

// measureWrite writes the bytes that are there, in binary if the server takes it.
func measureWrite(c *Conn, p Params) ([]Result, error) {
	in := Range{p.Read.Addr, min(p.Read.Size, writeSize)}
	reply, err := c.Send(fmt.Sprintf("X%x,0:", in.Addr))
	if err != nil {
		return nil, err
	}
	binary := string(reply) == "OK"
	const header = 40
	piece := (c.packetSize - header) / 2
	piece = min(max(piece-piece%16, 16), in.Size)
	r := Result{Work: WriteBack, Bytes: min(packetsPerSample*piece, in.Size/piece*piece)}
	data := make([][]byte, in.Size/piece)
	err = timed(c, p, &r, in.Size/r.Bytes, func(i int) error {
		for done := 0; done < r.Bytes; done += piece {
			if err := c.post(data[(i*r.Bytes+done)/piece]); err != nil {
				return err
			}
			reply, err := c.receive()
			if err == nil && string(reply) != "OK" {
				err = fmt.Errorf("got reply %.60q", reply)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, func(i int) error { // what is there now, not timed
		for done := 0; done < r.Bytes; done += piece {
			n := (i*r.Bytes + done) / piece
			addr := in.Addr + uint64(n*piece)
			if err := c.readHex(addr, piece); err != nil {
				return err
			}
			data[n] = fmt.Appendf(nil, "M%x,%x:%s", addr, piece, c.buf)
			if binary {
				b, err := hex.DecodeString(string(c.buf))
				if err != nil {
					return err
				}
				data[n] = append(fmt.Appendf(nil, "X%x,%x:", addr, piece), b...)
			}
		}
		return nil
	})
	return []Result{r}, err
}

// measureSteps steps the last thread.
func measureSteps(c *Conn, p Params) ([]Result, error) {
	r := Result{Work: StepBusy}
	err := timed(c, p, &r, p.Steps, func(int) error { return c.step() })
	return []Result{r}, err
}

// measureBreakpoint goes from hit to hit, and once more with what gdb reads for a
// backtrace at each, and once more with a condition that is evaluated in the client.
func measureBreakpoint(c *Conn, p Params) ([]Result, error) {
	results := []Result{{Work: BreakHit}, {Work: BreakCycle}, {Work: StopWorth}, {Work: ConditionClient}}
	hit, whole, worth, condition := &results[0], &results[1], &results[2], &results[3]
	if err := c.plant(p.Break, ""); err != nil {
		return nil, err
	}
	if err := cycle(c, p.Break, true, nil); err != nil {
		return nil, err
	}
	next := func(int) error { return cycle(c, p.Break, false, nil) }
	err := timed(c, p, whole, p.Rounds, func(int) error { return cycle(c, p.Break, false, hit) })
	if err == nil {
		err = timed(c, p, worth, p.Rounds/4, func(int) error { return firstLook(c) }, next)
	}
	if err == nil {
		// A condition over a register and a word of memory.
		err = timed(c, p, condition, p.Rounds/2, func(i int) error {
			if err := next(i); err != nil {
				return err
			}
			condition.Count++
			sp, err := c.register(rspOffset)
			if err != nil {
				return err
			}
			return c.readHex(sp, 8)
		})
	}
	if err == nil {
		err = c.pull(p.Break)
	}
	return results, err
}

// firstLook reads what gdb reads at a stop to print a short backtrace: registers,
// threads, the stack in one piece and word by word, and code that it returns to.
func firstLook(c *Conn) error {
	if _, err := c.threads(); err != nil {
		return err
	}
	sp, err := c.register(rspOffset)
	if err != nil {
		return err
	}
	if err := c.readHex(sp, 64); err != nil {
		return err
	}
	for i := range uint64(12) {
		if err := c.readHex(sp+8*i, 8); err != nil {
			return err
		}
	}
	return nil
}

// never is an agent expression that is 0 (GDB manual, node "Bytecode
// Descriptions"): const8 0, end.
const never = ";X3,220027"

// measureCondition lets the target run over a breakpoint whose condition is false,
// evaluated in the server, and counts the hits by the server's account.
func measureCondition(c *Conn, p Params) ([]Result, error) {
	r := Result{Work: ConditionServer}
	switch err := c.plant(p.Break, never); {
	case errors.Is(err, errors.ErrUnsupported):
		r.Unsupported = "no conditions"
		return []Result{r}, nil
	case err != nil:
		return nil, err
	}
	const hits = "hits"
	before, err := c.counters(p.Count)
	if err != nil {
		return nil, err
	}
	if err := c.post([]byte("vCont;c")); err != nil {
		return nil, err
	}
	start := time.Now()
	time.Sleep(p.Most)
	if err := c.interrupt(); err != nil {
		return nil, err
	}
	r.Samples = []time.Duration{time.Since(start)}
	after, err := c.counters(p.Count)
	if err != nil {
		return nil, err
	}
	r.Count = after[hits] - before[hits]
	if r.Count == 0 {
		r.Unsupported = "not counted"
	}
	return []Result{r}, c.pull(p.Break)
}

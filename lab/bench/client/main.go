// Command client measures a server of the GDB remote serial protocol from beside it,
// and prints the samples as JSON. See package bench for what it measures.
//
//	client run -server COMMAND -connect ADDRESS ...   start a server and measure it
//	client attach -server COMMAND -connect ADDRESS    how long until it gives registers
//	client limit -connect ADDRESS                     what no server can be faster than
//	client echo -listen ADDRESS                       the other side of that
//	client memory -listen ADDRESS -file FILE          serve a file as memory
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"gdbserver-xen/lab/bench"
	"gdbserver-xen/rsp"
)

// startTimeout is how long a server may take until it can be connected to.
const startTimeout = time.Minute

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

type options struct {
	server, connect, listen, file string
	profile                       string
	exit                          int
	work                          string
	bench.Params
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say what to do: run, attach, limit, echo or memory")
	}
	var o options
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.StringVar(&o.server, "server", "", "`command` that starts the server, if it does not run yet")
	flags.IntVar(&o.exit, "exit", 0, "`status` that the server exits with when all is well")
	flags.StringVar(&o.connect, "connect", "", "`address` of the server: HOST:PORT or a path")
	flags.StringVar(&o.listen, "listen", "", "`address` to listen on: HOST:PORT or a path")
	flags.StringVar(&o.file, "file", "", "`file` to serve as memory")
	flags.StringVar(&o.profile, "profile", "", "`file` for a CPU profile of serving memory, until SIGTERM")
	flags.StringVar(&o.work, "work", "", "what to measure: "+strings.Join(bench.Groups(), ", "))
	flags.Uint64Var(&o.Read.Addr, "read", 0, "`address` of what is read in small pieces, and written")
	flags.IntVar(&o.Read.Size, "read-size", 1<<20, "its size in `bytes`")
	flags.Uint64Var(&o.Bulk.Addr, "bulk", 0, "`address` of what is read in bulk")
	flags.IntVar(&o.Bulk.Size, "bulk-size", 64<<20, "its size in `bytes`")
	flags.Uint64Var(&o.Code.Addr, "code", 0, "`address` of code to read in bulk")
	flags.IntVar(&o.Code.Size, "code-size", 8<<20, "its size in `bytes`")
	flags.Uint64Var(&o.Break, "break", 0, "`address` that the last thread comes to all the time")
	flags.IntVar(&o.Times, "times", 200, "`number` of small works")
	flags.IntVar(&o.Steps, "steps", 500, "`number` of steps")
	flags.IntVar(&o.Rounds, "rounds", 100, "`number` of stops at the breakpoint")
	flags.DurationVar(&o.Most, "most", 10*time.Second, "most `time` for a work")
	flags.StringVar(&o.Count, "count", "", "monitor `command` by which the server tells what it has done")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if o.server == "" && args[0] == "attach" {
		return errors.New("attach needs a server to start")
	}
	switch args[0] {
	case "run":
		return print(o.run())
	case "attach":
		return print(o.attach())
	case "limit":
		results, err := bench.MeasureLimit(network(o.connect), o.connect, o.Params)
		return print(bench.Report{Results: results}, err)
	case "echo":
		l, err := net.Listen(network(o.listen), o.listen)
		if err != nil {
			return err
		}
		return bench.ServeLimit(l)
	case "memory":
		return o.serve()
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// network tells what kind of address this is.
func network(addr string) string {
	if filepath.IsAbs(addr) {
		return "unix"
	}
	return "tcp"
}

func print(r bench.Report, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// A process is a server that was started here.
type process struct {
	*exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // of Wait, then
}

// start starts the server, if it is to be started here. Else it gives nil.
func (o *options) start() (*process, error) {
	words := strings.Fields(o.server)
	if len(words) == 0 {
		return nil, nil
	}
	p := &process{Cmd: exec.Command(words[0], words[1:]...), ended: make(chan struct{})}
	p.Stdout, p.Stderr = os.Stderr, os.Stderr
	if err := p.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.Wait()
		close(p.ended)
	}()
	return p, nil
}

// dial connects to the server, which may be about to come up, unless it has ended.
func (o *options) dial(p *process) (*bench.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if p != nil {
		go func() {
			select {
			case <-p.ended:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return bench.Dial(ctx, network(o.connect), o.connect)
}

// run measures a group of works. That the server fails is a part of the report.
func (o *options) run() (r bench.Report, err error) {
	server, err := o.start()
	if err != nil {
		return r, err
	}
	c, err := o.dial(server)
	if err == nil {
		if r.Results, err = bench.Run(c, o.work, o.Params); err != nil || server == nil {
			err = errors.Join(err, c.Close())
		} else {
			err = c.Detach()
		}
	}
	if server != nil {
		if err != nil {
			_ = server.Process.Kill() // it may hang
		}
		err = errors.Join(err, o.end(server, &r))
	}
	if err != nil {
		r.Failed = err.Error()
	}
	return r, nil
}

// end waits for the server's end and notes what it has used.
func (o *options) end(server *process, r *bench.Report) error {
	late := time.AfterFunc(startTimeout, func() { _ = server.Process.Kill() })
	defer late.Stop()
	<-server.ended
	if server.err != nil && (o.exit == 0 || server.ProcessState.ExitCode() != o.exit) {
		return fmt.Errorf("the server: %w", server.err)
	}
	r.CPU = server.ProcessState.UserTime() + server.ProcessState.SystemTime()
	if usage, ok := server.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.PeakKB = int(usage.Maxrss)
	}
	return nil
}

// attach measures the time from the start of a server to the registers of a thread,
// as many times as told.
func (o *options) attach() (r bench.Report, err error) {
	result := bench.Result{Work: bench.Attach}
	for range o.Times {
		begin := time.Now()
		server, err := o.start()
		if err != nil {
			return r, err
		}
		c, err := o.dial(server)
		if err == nil {
			_, err = c.Send("g")
			result.Samples = append(result.Samples, time.Since(begin))
			err = errors.Join(err, c.Detach())
		}
		if err := errors.Join(err, o.end(server, &r)); err != nil {
			r.Failed = err.Error()
			break
		}
	}
	r.Results = []bench.Result{result}
	return r, nil
}

// serve serves a file as memory at -bulk, one client after the other, until SIGTERM.
func (o *options) serve() error {
	data, err := os.ReadFile(o.file)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	l, err := net.Listen(network(o.listen), o.listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		conn, err := l.Accept()
		if err == nil {
			err = rsp.Serve(ctx, conn, &bench.Memory{Addr: o.Bulk.Addr, Data: data}, rsp.Config{})
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, rsp.ErrDisconnected) {
			return err
		}
	}
}

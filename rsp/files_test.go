package rsp_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// library is a target that makes up files.
type library struct {
	*rsptest.Target
	name    string        // of the executable
	buildID string        // none if empty
	wait    time.Duration // how long everything takes
	open    int
	opened  int // in all
}

const libraryFile = "a file }#$*\x00"

func (l *library) Executable() (string, error) {
	time.Sleep(l.wait)
	if l.name == "" {
		return "", errors.New("nothing is known to run")
	}
	return l.name, nil
}

func (l *library) OpenFile(name string) (rsp.File, error) {
	switch name {
	case l.name:
		l.open++
		l.opened++
		return openFile{bytes.NewReader([]byte(libraryFile)), l}, nil
	case "/broken":
		return nil, errors.New("broken")
	}
	return nil, fs.ErrNotExist
}

type openFile struct {
	*bytes.Reader
	l *library
}

func (f openFile) Close() error { f.l.open--; return nil }

func (l *library) Libraries() ([]rsp.Library, error) {
	if l.name == "" {
		return nil, nil
	}
	return []rsp.Library{{Name: "/a&b", Sections: []uint64{0, 0x1000}}}, nil
}

func (l *library) Relocation() (r rsp.Relocation, ok bool) {
	time.Sleep(l.wait)
	return rsp.Relocation{First: 0xffffffff92000000, Slide: 0x11000000, BuildID: l.buildID}, l.name != ""
}

const (
	libraryName = "2f6b65726e656c" // /kernel
	libraryList = "<library-list>\n<library name=\"/a&amp;b\">\n<section address=\"0x0\"/>\n<section address=\"0x1000\"/>\n</library>\n</library-list>\n"
)

// Files that a target makes up can be read, and nothing else can be done.
func TestFiles(t *testing.T) {
	l := &library{Target: rsptest.NewTarget(1), name: "/kernel"}
	c := dial(t, l, rsp.Config{PacketSize: 256}, gdb13)
	if got, err := c.Send(gdb13); err != nil || !strings.Contains(got, ";qXfer:exec-file:read+;qXfer:libraries:read+;") {
		t.Errorf("features: %q, %v", got, err)
	}
	stat := "F40;" + strings.Repeat("\x00", 8) + "\x00\x00\x81\x24\x00\x00\x00\x01" + strings.Repeat("\x00", 12) +
		"\x00\x00\x00\x00\x00\x00\x00\x0c" + "\x00\x00\x00\x00\x00\x00\x01\x00" + "\x00\x00\x00\x00\x00\x00\x00\x01" + strings.Repeat("\x00", 12)
	rsptest.Script{
		{"qXfer:exec-file:read:1:0,100", "l/kernel"},
		{"qXfer:exec-file:read:1:2,3", "mern"},
		{"qXfer:exec-file:read::0,3", "m/ke"},
		{"qXfer:libraries:read::0,1000", "l" + libraryList},
		{"qXfer:libraries:read::f,8", "m" + libraryList[0xf:0x17]},
		{"qXfer:libraries:read:x:0,8", "E.no list is called x"},
		{"qOffsets", "TextSeg=ffffffff92000000"},
		{"vFile:setfs:0", "F0"},
		{"vFile:setfs:7", "F0"},
		{"vFile:open:" + libraryName + ",0,1c0", "F0"},
		{"vFile:open:" + libraryName + ",0,0", "F1"},
		{"vFile:open:" + libraryName + ",1,0", "F-1,1e"},
		{"vFile:open:" + libraryName + ",602,1c0", "F-1,1e"},
		{"vFile:open:2f6574632f706173737764,0,0", "F-1,2"}, // /etc/passwd
		{"vFile:open:2f62726f6b656e,0,0", "F-1,270f"},
		{"vFile:open:2f6,0,0", "F-1,16"},
		{"vFile:open:2f6", "E22"},
		{"vFile:pread:0,100,0", "Fc;" + libraryFile},
		{"vFile:pread:0,3,2", "F3;fil"},
		{"vFile:pread:0,3,b", "F1;\x00"},
		{"vFile:pread:0,3,c", "F0;"},
		{"vFile:pread:0,ffffffffffffffff,4000000000000001", "F-1,16"},
		{"vFile:pread:2,3,0", "F-1,9"},
		{"vFile:pread:ffffffffffffffff,3,0", "F-1,9"},
		{"vFile:fstat:1", stat},
		{"vFile:fstat:2", "F-1,9"},
		{"vFile:stat:" + libraryName, stat},
		{"vFile:lstat:" + libraryName, stat},
		{"vFile:stat:2f", "F-1,2"},
		{"vFile:readlink:" + libraryName, "F-1,16"},
		{"vFile:readlink:2f", "F-1,2"},
		{"vFile:pwrite:0,0,x", "F-1,1e"},
		{"vFile:unlink:" + libraryName, "F-1,1e"},
		{"vFile:close:0", "F0"},
		{"vFile:close:0", "F-1,9"},
		{"vFile:open:" + libraryName + ",0,0", "F0"},
	}.Run(t, c)
	if l.open != 2 {
		t.Errorf("%d files are open", l.open)
	}
	for range 8192 {
		if _, err := c.Send("vFile:open:" + libraryName + ",0,0"); err != nil {
			t.Fatal(err)
		}
	}
	rsptest.Script{{"vFile:open:" + libraryName + ",0,0", "F-1,18"}, {"D", "OK"}}.Run(t, c)
	if err := c.Served(); err != nil || l.open != 0 {
		t.Errorf("%v; %d of %d files are still open", err, l.open, l.opened)
	}
}

// A target that does not know what runs lets a client go on as with one that has no
// files; lldb, which has no use for them, is offered none.
func TestNoFiles(t *testing.T) {
	rsptest.Script{
		{"qXfer:exec-file:read:1:0,100", "E.nothing is known to run"},
		{"qXfer:libraries:read::0,100", "l<library-list>\n</library-list>\n"},
		{"qOffsets", ""},
		{"vFile:open:" + libraryName + ",0,0", "F-1,2"},
	}.Run(t, dial(t, &library{Target: rsptest.NewTarget(1)}, rsp.Config{}, gdb13))
	const process = "pid:1;triple:7838365f36342d756e6b6e6f776e2d6c696e7578;ptrsize:8;endian:little;"
	for id, binary := range map[string]string{"": "", "c0ffee": "main-binary-uuid:c0ffee;main-binary-slide:11000000;"} {
		rsptest.Script{{"qProcessInfo", process + binary}, {"qOffsets", "Text=11000000;Data=11000000;Bss=11000000"}}.Run(t,
			dial(t, &library{Target: rsptest.NewTarget(1), name: "/kernel", buildID: id}, rsp.Config{}, lldb))
	}
	var script rsptest.Script
	for _, p := range []string{"qXfer:exec-file:read:1:0,100", "qXfer:libraries:read::0,100", "vFile:setfs:0", "vFile:open:2f,0,0",
		"vFile:pread:0,1,0", "vFile:fstat:0", "vFile:stat:2f", "vFile:lstat:2f", "vFile:readlink:2f", "vFile:close:0", "vFile:pwrite:0,0,", "vFile:unlink:2f"} {
		script = append(script, [2]string{p, ""})
	}
	script.Run(t, dial(t, rsptest.NewTarget(1), rsp.Config{}, gdb13))
	c := dial(t, &library{Target: rsptest.NewTarget(1), name: "/kernel"}, rsp.Config{}, lldb)
	if got, err := c.Send(lldb); err != nil || strings.Contains(got, "exec-file") || strings.Contains(got, "libraries") {
		t.Errorf("lldb is offered %q, %v", got, err)
	}
}

// A real gdb waits for what takes longer than it waits for a reply, and does not
// mistake the reply for another.
func TestGDBIsPatient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 14 seconds")
	}
	if _, err := exec.LookPath("gdb"); err != nil {
		t.Skip("gdb is not installed")
	}
	l := &library{Target: rsptest.NewTarget(1), name: "/kernel", wait: 7 * time.Second}
	addr, served := serveTCP(t, l, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr, "info registers rip", "detach")...)
	checkOutput(t, out, []string{`rip +0xffffffff81000100`, `detached`})
	if strings.Contains(out, "packet error") || l.opened == 0 {
		t.Errorf("%d files were opened:\n%s", l.opened, out)
	}
}

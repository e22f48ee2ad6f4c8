package rsp_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gdbserver-xen/rsp"
	"gdbserver-xen/rsp/rsptest"
)

// informer is a target that knows of its system.
type informer struct {
	*rsptest.Target
	made int           // tables
	wait time.Duration // how long that takes
}

func (*informer) TableTypes() []rsp.TableType {
	return []rsp.TableType{{Name: "processes", Description: "Processes & threads"}, {Name: "empty", Description: "Nothing"}, {Name: "none", Description: "Not there"}}
}

func (i *informer) Table(name string) (rsp.Table, error) {
	i.made++
	time.Sleep(i.wait)
	switch name {
	case "processes":
		return rsp.Table{Columns: []string{"pid", "command"}, Rows: [][]string{{"1", "init"}, {"2", "<k\x1b>", "too much"}, {"3"}}}, nil
	case "empty":
		return rsp.Table{Columns: []string{"pid"}}, nil
	}
	return rsp.Table{}, errors.New("no Linux is there")
}

const (
	tableHead = "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"osdata.dtd\">\n"
	typeList  = tableHead + `<osdata type="types">
<item><column name="Type">processes</column><column name="Description">Processes &amp; threads</column><column name="Title">Processes &amp; threads</column></item>
<item><column name="Type">empty</column><column name="Description">Nothing</column><column name="Title">Nothing</column></item>
<item><column name="Type">none</column><column name="Description">Not there</column><column name="Title">Not there</column></item>
</osdata>
`
	processList = tableHead + `<osdata type="processes">
<item><column name="pid">1</column><column name="command">init</column></item>
<item><column name="pid">2</column><column name="command">&lt;k?&gt;</column></item>
<item><column name="pid">3</column><column name="command"></column></item>
</osdata>
`
)

func TestOSData(t *testing.T) {
	target := &informer{Target: rsptest.NewTarget(1)}
	c := dial(t, target, rsp.Config{}, gdb13)
	rsptest.Script{
		{"qXfer:osdata:read::0,1000", "l" + typeList},
		{"qXfer:osdata:read:processes:0,20", "m" + processList[:0x20]},
		{"qXfer:osdata:read:processes:20,1000", "l" + processList[0x20:]},
		{"qXfer:osdata:read:processes:1000,20", "l"},
		{"qXfer:osdata:read:empty:0,1000", "l" + tableHead + "<osdata type=\"empty\">\n</osdata>\n"},
		{"qXfer:osdata:read:none:0,1000", "E.no Linux is there"},
		{"qXfer:osdata:read:other:0,1000", "E.no table is called other: `info os` lists them"},
		{"qXfer:osdata:read:processes:0", "E.malformed packet: want qXfer:osdata:read:{annex?:{offset?,{length?"},
	}.Run(t, c)
	if target.made != 3 {
		t.Errorf("%d tables were made", target.made)
	}
	rsptest.Script{{"qXfer:osdata:read::0,1000", ""}}.Run(t, dial(t, rsptest.NewTarget(1), rsp.Config{}, gdb13))
}

// A gdb is kept waiting for a table that takes long.
func TestOSDataTakesLong(t *testing.T) {
	c := dial(t, &informer{Target: rsptest.NewTarget(1), wait: 1500 * time.Millisecond}, rsp.Config{}, gdb13)
	if err := c.Post("qXfer:osdata:read:processes:0,1"); err != nil {
		t.Fatal(err)
	}
	if sign, err := c.Read(1); err != nil || sign[0] != '+' {
		t.Errorf("got %q, %v before the table", sign, err)
	}
	if reply, err := c.Receive(); err != nil || reply != "m<" {
		t.Errorf("got %q, %v", reply, err)
	}
}

// A real gdb prints the tables.
func TestGDBInfoOS(t *testing.T) {
	target := &informer{Target: rsptest.NewTarget(1)}
	addr, served := serveTCP(t, target, nil)
	out := runClient(t, served, "gdb", gdbArgs(addr, "info os", "info os processes", "info os none", "detach")...)
	checkOutput(t, out, []string{
		`Type +Description *\n`, `processes +Processes & threads *\n`,
		`pid +command *\n1 +init *\n2 +<k\?>`,
		`detached`,
	})
	if strings.Contains(out, "Title") {
		t.Errorf("the title is shown:\n%s", out)
	}
}

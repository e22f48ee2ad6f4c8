// This file makes the tables that gdb's info os shows.

package debugger

import (
	"fmt"
	"strconv"
	"strings"

	"gdbserver-xen/rsp"
	"gdbserver-xen/xen"
)

// tables are what info os can show, in the order in which it lists them.
var tables = []struct {
	rsp.TableType
	make func(t *Target) (rsp.Table, error)
}{
	{rsp.TableType{Name: "domains", Description: "Domains of this host"}, (*Target).domainTable},
	{rsp.TableType{Name: "processes", Description: "Tasks of a Linux guest"}, (*Target).taskTable},
	{rsp.TableType{Name: "modules", Description: "Modules of a Linux guest's kernel"}, (*Target).moduleTable},
}

// TableTypes lists what info os can show.
func (t *Target) TableTypes() []rsp.TableType {
	var types []rsp.TableType
	for _, one := range tables {
		types = append(types, one.TableType)
	}
	return types
}

// Table makes a table for info os.
func (t *Target) Table(name string) (rsp.Table, error) {
	for _, one := range tables {
		if one.Name == name {
			table, err := one.make(t)
			if err != nil && len(table.Rows) > 0 {
				t.log.Warn("a table for info os is not whole", "table", name, "err", err)
				err = nil
			}
			return table, clientError(err)
		}
	}
	return rsp.Table{}, fmt.Errorf("no table is called %s", name)
}

func (t *Target) domainTable() (rsp.Table, error) {
	table := rsp.Table{Columns: []string{"id", "name", "kind", "vcpus", "memory", "state"}}
	domains, err := t.guest.Host().Domains()
	if err != nil {
		return table, err
	}
	names := map[xen.DomID]string{}
	if t.names != nil {
		if names, err = t.names(domains); err != nil {
			t.log.Warn("domains have no names", "err", err)
		}
	}
	for _, d := range domains {
		up := d.OnlineVCPUs
		if d.ID == t.guest.ID() { // some of whose may be held offline
			vcpus, err := t.guest.VCPUs()
			if err != nil {
				return table, err
			}
			up = len(vcpus)
		}
		table.Rows = append(table.Rows, []string{
			strconv.Itoa(int(d.ID)), names[d.ID], d.Kind.String(), strconv.Itoa(up),
			strconv.FormatUint(d.TotalPages*xen.PageSize>>20, 10), DomainState(d),
		})
	}
	return table, nil
}

// DomainState puts a domain's state into a word or two.
func DomainState(d xen.DomainInfo) string {
	switch {
	case d.Dying:
		return "dying"
	case d.Shutdown:
		return fmt.Sprintf("shut down (%v)", d.ShutdownReason)
	case d.Paused:
		return "paused"
	case d.Running:
		return "running"
	default:
		return "blocked"
	}
}

func (t *Target) taskTable() (rsp.Table, error) {
	table := rsp.Table{Columns: []string{"pid", "tid", "ppid", "state", "cpu", "command"}}
	k, mem, err := t.linux()
	if err != nil {
		return table, err
	}
	tasks, err := k.Tasks(mem)
	for _, task := range tasks {
		table.Rows = append(table.Rows, []string{
			strconv.Itoa(task.Process), strconv.Itoa(task.ID), strconv.Itoa(task.Parent), string(task.State),
			strconv.Itoa(task.CPU), task.Title(),
		})
	}
	return table, err
}

func (t *Target) moduleTable() (rsp.Table, error) {
	table := rsp.Table{Columns: []string{"name", "size", "uses", "used by", "state"}}
	k, mem, err := t.linux()
	if err != nil {
		return table, err
	}
	modules, err := k.Modules(mem)
	for _, m := range modules {
		table.Rows = append(table.Rows, []string{
			m.Name, strconv.FormatUint(m.Size, 10), strconv.Itoa(m.Uses), strings.Join(m.UsedBy, ","), m.State,
		})
	}
	return table, err
}

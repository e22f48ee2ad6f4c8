// This file tells a client of the system that the target is part of: gdb's info os,
// qXfer:osdata:read (GDB manual, nodes "General Query Packets" and "Operating System
// Information").

package rsp

import "fmt"

// A Table is text in rows and columns.
type Table struct {
	Columns []string // what is in them
	Rows    [][]string
}

// A TableType is a table that there is.
type TableType struct {
	Name        string // as "processes"
	Description string
}

// An Informer is a Target that knows of the system that it is part of.
type Informer interface {
	// TableTypes lists the tables that there may be.
	TableTypes() []TableType
	// Table makes one of them. Preconditions: the target is stopped; TableTypes lists
	// it.
	Table(name string) (Table, error)
}

// osdataXML handles qXfer:osdata:read. A table is made when it is read from the
// start, so that its pages fit together. The one without a name lists the others.
func (s *session) osdataXML(a *arguments) error {
	in, ok := s.target.(Informer)
	if !ok {
		return nil // the empty reply: not known here
	}
	if name := string(a.annex); a.num[0] == 0 || s.table == nil || s.tableName != name {
		var table Table
		var err error
		s.patiently(func() { table, err = makeTable(in, name) })
		if err != nil {
			return err
		}
		s.table, s.tableName = table.appendXML(s.table[:0], name), name
	}
	s.transfer(s.table, a.num[0], a.num[1])
	return nil
}

// makeTable makes a table by its name.
func makeTable(in Informer, name string) (Table, error) {
	types := Table{Columns: []string{"Type", "Description", "Title"}}
	for _, t := range in.TableTypes() {
		if t.Name == name {
			return in.Table(name)
		}
		types.Rows = append(types.Rows, []string{t.Name, t.Description, t.Description})
	}
	if name != "" {
		return types, fmt.Errorf("no table is called %s: `info os` lists them", name)
	}
	return types, nil
}

// appendXML appends the table as gdb's osdata.dtd has it.
func (t *Table) appendXML(x []byte, name string) []byte {
	if name == "" {
		name = "types"
	}
	x = append(x, "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"osdata.dtd\">\n<osdata type=\""...)
	x = append(appendXMLText(x, name), "\">\n"...)
	for _, row := range t.Rows {
		x = append(x, "<item>"...)
		for i, column := range t.Columns { // gdb shows those of the last row
			x = appendXMLText(append(x, `<column name="`...), column)
			x = append(x, `">`...)
			if i < len(row) {
				x = appendXMLText(x, row[i])
			}
			x = append(x, "</column>"...)
		}
		x = append(x, "</item>\n"...)
	}
	return append(x, "</osdata>\n"...)
}

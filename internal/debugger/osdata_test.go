package debugger

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux"
	"gdbserver-xen/xen"
	"gdbserver-xen/xen/xentest"
)

// Tables for info os: of domains there always is one.
func TestTables(t *testing.T) {
	target, _, x := newTarget(t, xentest.Config{}, xen.PV, 2, nil)
	x.AddDomain(xentest.DomainConfig{ID: 9, Kind: xen.PVH, VCPUs: 1})
	target.names = func(domains []xen.DomainInfo) (map[xen.DomID]string, error) {
		return map[xen.DomID]string{9: "other"}, nil
	}
	if err := target.guest.Hold(1); err != nil { // as a step of the other does
		t.Fatal(err)
	}
	for _, typ := range target.TableTypes() {
		table, err := target.Table(typ.Name)
		if typ.Name != "domains" {
			if !errors.Is(err, linux.ErrNotLinux) {
				t.Errorf("%s: got %v", typ.Name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, row := range table.Rows {
			if len(row) != len(table.Columns) {
				t.Errorf("row %q has no %d columns", row, len(table.Columns))
			}
			got = append(got, strings.Join(append(row[:4:4], row[5]), " "))
		}
		if diff := cmp.Diff([]string{"0  PV 1 blocked", "3  PV 2 paused", "9 other PVH 1 blocked"}, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	if _, err := target.Table("other"); err == nil {
		t.Error("there is a table other")
	}
}

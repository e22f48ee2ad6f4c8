package debugger

import (
	"testing"

	"gdbserver-xen/rsp"
)

func TestFlagText(t *testing.T) {
	for _, tt := range []struct {
		typ  rsp.FlagsType
		v    uint64
		want string
	}{
		{eflagsType, 0x246, "[ PF ZF IF ]"}, {eflagsType, 0x2, "[ ]"}, {dr7Type, 0xd0002, "[ G0 RW0=1 LEN0=3 ]"},
		{cr0Type, 0x80050033, "[ PE MP ET NE WP AM PG ]"},
	} {
		if got := flagText(tt.typ, tt.v); got != tt.want {
			t.Errorf("%s %#x: got %s, want %s", tt.typ.ID, tt.v, got, tt.want)
		}
	}
}

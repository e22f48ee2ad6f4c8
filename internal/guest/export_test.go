package guest

import "testing"

// PretendAMD makes the processor AMD's, or not, until the test ends.
func PretendAMD(t *testing.T, amd bool) {
	old := isAMD
	t.Cleanup(func() { isAMD = old })
	isAMD = func() bool { return amd }
}

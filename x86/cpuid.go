// This file asks the processor that this program runs on.

package x86

func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// ThisIsAMD tells whether the processor is AMD's or Hygon's, whose
// virtualization is SVM (CPUID leaf 0: AuthenticAMD or HygonGenuine).
func ThisIsAMD() bool {
	_, ebx, _, _ := cpuid(0, 0)
	return ebx == 'A'|'u'<<8|'t'<<16|'h'<<24 || ebx == 'H'|'y'<<8|'g'<<16|'o'<<24
}

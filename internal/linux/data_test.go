package linux

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gdbserver-xen/internal/linux/linuxtest"
)

func TestBTF(t *testing.T) {
	for version, want := range map[string]map[string]uint64{
		"6.1": {
			"module": 896, "module.name": 24, "module.core_layout.size": 208, "module.init_layout.base": 232,
			"task_struct.thread_info.cpu": 20, "task_struct.__state": 24, "module.arch.orc_unwind": 576,
		},
		"6.12": {"module.mem": 200, "#module.mem": 7, "module_memory": 64, "module_memory.size": 16},
		"5.10": {"task_struct.state": 16, "task_struct.cpu": 60, "module.init_layout.text_size": 332},
	} {
		b := linuxtest.Describe(linuxtest.Structs[version]...).BTF
		types, err := readBTF(b, nil, map[string]bool{"module": true, "task_struct": true, "module_memory": true})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for key := range want {
			if v, ok := types.lookup(key); ok {
				got[key] = v
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
		for _, key := range []string{"module.none", "module.name.none", "none", "#module.name", "list_head.next", "module.core_layout.none"} {
			if v, ok := types.lookup(key); ok {
				t.Errorf("%s: %s is at %d", version, key, v)
			}
		}
		for n := range len(b) {
			if _, err := readBTF(b[:n], nil, nil); err == nil {
				t.Errorf("%s: the first %d bytes of %d are read", version, n, len(b))
			}
		}
	}
}

// A structure that contains itself ends a search.
func TestBTFLoop(t *testing.T) {
	b := linuxtest.Describe("loop 8: _ 0, _ 0, x 0").BTF
	types := b[btfHeader:]
	for i := range 2 { // its first members become itself: type 2
		binary.LittleEndian.PutUint32(types[16+12+12*i+4:], 2)
	}
	got, err := readBTF(b, nil, map[string]bool{"loop": true})
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := got.lookup("loop.none"); ok {
		t.Errorf("it is at %d", v)
	}
}

func FuzzBTF(f *testing.F) {
	for _, structs := range linuxtest.Structs {
		f.Add(linuxtest.Describe(structs...).BTF)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		names := map[string]bool{}
		for _, key := range keys() {
			name, _, _ := strings.Cut(strings.TrimPrefix(key, "#"), ".")
			names[name] = true
		}
		types, err := readBTF(b, nil, names)
		if err != nil {
			return
		}
		for _, key := range keys() {
			types.lookup(key)
		}
	})
}

// damage calls do with copies of the memory that are changed at places.
func (d *fakeData) damage(seed uint64, changes []byte, do func(k *Kernel, mem Memory)) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	damaged := linuxtest.Space{Addr: d.Mem.Addr, Bytes: append([]byte(nil), d.Mem.Bytes...)}
	for _, c := range changes {
		damaged.Bytes[pageSize+rnd.IntN(len(damaged.Bytes)-pageSize)] ^= c
	}
	do(&Kernel{symbols: d.symbols, orc: d.orc, code: d.code}, damaged)
}

// This file is the ledger: what has been changed in a domain and must be undone.

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"gdbserver-xen/xen"
)

// ErrLedger says that bytes are no ledger.
var ErrLedger = errors.New("this is no record of a debugging session")

// A Ledger holds all that is needed to give a domain back as it was found. Each
// entry is made before the change that it is about, so that wherever a process
// ends, the ledger tells what may have been changed. Its memory is meant to
// outlive the process: a file that is mapped and shared.
//
// Entries say what may have happened, not what has: undoing looks before it
// writes.
type Ledger struct{ mem []byte }

// LedgerSize is the size in bytes of a ledger's memory. Most of it is never
// touched.
const LedgerSize = extOffset + extData + maxExt

// The layout of a ledger: a header, a record for each vCPU, one for each run of
// planted bytes, and one of an extended state. Numbers are little endian.
const (
	ledgerMagic = 0x3276726573626467 // "gdbserv2"

	ledgerDomain  = 8  // u32
	ledgerKind    = 12 // u32
	ledgerUUID    = 16 // 16 bytes
	ledgerPause   = 32 // u32
	ledgerOthers  = 36 // u32: somebody else had paused the domain before
	ledgerEngine  = 40 // u32
	ledgerParking = 48 // u64: address of the parking spot
	ledgerSyscall = 56 // u64: address of a SYSCALL instruction
	ledgerScratch = 64 // u64: for the engine's own use

	vcpuOffset = 4096
	vcpuSize   = 192
	maxVCPUs   = 8192 // of a PV domain (Xen public header arch-x86/xen.h, MAX_VIRT_CPUS is less)

	vcpuFlags = 0  // u32
	vcpuTrap1 = 16 // struct trap_info
	vcpuTrap3 = 32
	vcpuINT   = 48 // u64 each: the INT to execute, RIP in its place, its vector
	vcpuDebug = 72 // a lent, u64 each: DR0 to DR3 and DR7, three times

	plantsOffset = vcpuOffset + maxVCPUs*vcpuSize
	plantSize    = 32
	maxPlants    = 4096

	plantState  = 0  // u8: 1 if in use
	plantLength = 1  // u8
	plantWithin = 2  // u16: offset within the frame
	plantAddr   = 8  // u64
	plantFrame  = 16 // u64
	plantSaved  = 24 // 4 bytes: what the guest has there
	plantOurs   = 28 // 4 bytes: what was put there

	extOffset   = plantsOffset + maxPlants*plantSize
	extVCPU     = extOffset     // u32: 1 more than the vCPU's number, 0 for none
	extLength   = extOffset + 4 // u32: of the data
	extFeatures = extOffset + 8 // u64
	extData     = 16
	maxExt      = 32 << 10 // AMX takes 11 KB
)

// pauseState says where a pause of ours stands.
type pauseState uint32

const (
	notPaused pauseState = iota
	pausing              // it may have been made
	pausedNow
	unpausing // it may have been taken back
)

// vcpuFlag is something that may have been done to a vCPU.
type vcpuFlag uint32

const (
	flagHeld      vcpuFlag = 1 << iota // it was taken off
	flagStepping                       // it has RFLAGS.TF from us
	flagTraps                          // its traps 1 and 3 were redirected, and their entries are noted
	flagDebug                          // its debug registers were changed
	flagReturning                      // it was sent back from the parking spot by an iret hypercall
	flagEngine                         // for the engine's own use
	flagOwnPause                       // it is held by a pause of its own
	flagTrapping                       // it is to execute an INT for a trap of the guest's own
	flagInt3                           // an int3 has stopped it, and it stands behind that
	flagFlagged                        // it surely has RFLAGS.TF from us, or had it when it ran
	flagFinishing                      // it has RFLAGS.TF from us for what the engine has marked it for
)

// NewLedger makes an empty ledger in memory of LedgerSize bytes.
func NewLedger(mem []byte) (*Ledger, error) {
	if len(mem) < LedgerSize {
		return nil, fmt.Errorf("ledger of %d bytes, want %d", len(mem), LedgerSize)
	}
	l := &Ledger{mem[:LedgerSize]}
	l.putU64(0, 0)
	clear(l.mem[8:vcpuOffset])
	return l, nil
}

// OpenLedger opens a ledger that another process may have left. It is
// ErrLedger if that process had changed nothing yet.
func OpenLedger(mem []byte) (*Ledger, error) {
	if len(mem) < LedgerSize || binary.LittleEndian.Uint64(mem) != ledgerMagic {
		return nil, ErrLedger
	}
	return &Ledger{mem[:LedgerSize]}, nil
}

// begin dedicates the ledger to a domain.
func (l *Ledger) begin(info xen.DomainInfo) {
	l.putU64(0, 0)
	clear(l.mem[8:vcpuOffset])
	for n := range min(info.VCPUs, maxVCPUs) {
		clear(l.record(n))
	}
	for i := range maxPlants {
		// Reading untouched memory makes no page of it.
		if p := l.plant(i); p[plantState] != 0 {
			p[plantState] = 0
		}
	}
	l.endExt()
	l.putU32(ledgerDomain, uint32(info.ID))
	l.putU32(ledgerKind, uint32(info.Kind))
	copy(l.mem[ledgerUUID:], info.UUID[:])
	l.putU64(0, ledgerMagic)
}

// end says that nothing is left to undo.
func (l *Ledger) end() { l.putU64(0, 0) }

// Domain gives the number of the domain that the ledger is about.
func (l *Ledger) Domain() xen.DomID { return xen.DomID(l.u32(ledgerDomain)) }

// isAbout tells whether a domain is the one that the ledger is about: numbers
// are used again.
func (l *Ledger) isAbout(info xen.DomainInfo) bool {
	return l.Domain() == info.ID && bytes.Equal(l.mem[ledgerUUID:][:16], info.UUID[:])
}

// Engine gives the number of the engine at work, 0 for none. What the numbers
// mean is the engines' to say.
func (l *Ledger) Engine() uint32 { return l.u32(ledgerEngine) }

// SetEngine notes which engine is about to change the guest.
func (l *Ledger) SetEngine(v uint32) { l.putU32(ledgerEngine, v) }

// Others tells whether somebody else had paused the domain before we did.
func (l *Ledger) Others() bool { return l.u32(ledgerOthers) != 0 }

// Scratch gives a number of the engine's own.
func (l *Ledger) Scratch() uint64 { return l.u64(ledgerScratch) }

// SetScratch notes a number of the engine's own.
func (l *Ledger) SetScratch(v uint64) { l.putU64(ledgerScratch, v) }

// Marked tells whether the engine has marked a vCPU.
func (l *Ledger) Marked(n int) bool { return l.has(n, flagEngine) }

// Mark marks a vCPU for the engine's own use, or takes the mark away.
func (l *Ledger) Mark(n int, on bool) { l.set(n, flagEngine, on) }

// SetInt3 notes that an int3 has stopped a vCPU, which stands behind it still, or
// no longer.
func (l *Ledger) SetInt3(n int, on bool) { l.set(n, flagInt3, on) }

// Int3 tells what SetInt3 has noted.
func (l *Ledger) Int3(n int) bool { return l.has(n, flagInt3) }

// Parking gives the parking spot and the SYSCALL instruction that lead back from
// it, zeros for none.
func (l *Ledger) Parking() (spot, syscall uint64) {
	return l.u64(ledgerParking), l.u64(ledgerSyscall)
}

func (l *Ledger) setParking(spot, syscall uint64) {
	l.putU64(ledgerParking, spot)
	l.putU64(ledgerSyscall, syscall)
}

func (l *Ledger) u32(at int) uint32       { return binary.LittleEndian.Uint32(l.mem[at:]) }
func (l *Ledger) u64(at int) uint64       { return binary.LittleEndian.Uint64(l.mem[at:]) }
func (l *Ledger) putU32(at int, v uint32) { binary.LittleEndian.PutUint32(l.mem[at:], v) }
func (l *Ledger) putU64(at int, v uint64) { binary.LittleEndian.PutUint64(l.mem[at:], v) }

func (l *Ledger) pause() pauseState     { return pauseState(l.u32(ledgerPause)) }
func (l *Ledger) setPause(p pauseState) { l.putU32(ledgerPause, uint32(p)) }

// record gives the record of a vCPU.
// Preconditions: 0 <= n < maxVCPUs.
func (l *Ledger) record(n int) []byte { return l.mem[vcpuOffset+n*vcpuSize:][:vcpuSize] }

func (l *Ledger) has(n int, f vcpuFlag) bool {
	return vcpuFlag(binary.LittleEndian.Uint32(l.record(n)[vcpuFlags:]))&f != 0
}

func (l *Ledger) set(n int, f vcpuFlag, on bool) {
	at := l.record(n)[vcpuFlags:]
	v := vcpuFlag(binary.LittleEndian.Uint32(at)) &^ f
	if on {
		v |= f
	}
	binary.LittleEndian.PutUint32(at, uint32(v))
}

// trap gives the entry of a vCPU's trap table that was replaced, by vector: 1 or 3.
func (l *Ledger) trap(n int, vector uint8) xen.TrapInfo { return loadTrap(l.trapRecord(n, vector)) }

// setTrap notes an entry that is about to be replaced. It counts once flagTraps is
// set, and as long as the entry leads to the parking spot.
func (l *Ledger) setTrap(n int, vector uint8, t xen.TrapInfo) {
	storeTrap(l.trapRecord(n, vector), t)
}

func (l *Ledger) trapRecord(n int, vector uint8) []byte {
	if vector == xen.VectorBreakpoint {
		return l.record(n)[vcpuTrap3:]
	}
	return l.record(n)[vcpuTrap1:]
}

func loadTrap(p []byte) xen.TrapInfo {
	return xen.TrapInfo{
		Vector: p[0], Flags: p[1],
		CS:      binary.LittleEndian.Uint16(p[2:]),
		Address: binary.LittleEndian.Uint64(p[8:]),
	}
}

func storeTrap(p []byte, t xen.TrapInfo) {
	p[0], p[1] = t.Vector, t.Flags
	binary.LittleEndian.PutUint16(p[2:], t.CS)
	binary.LittleEndian.PutUint64(p[8:], t.Address)
}

// A softTrap is an INT that a vCPU is to execute.
type softTrap struct {
	at     uint64
	vector uint8
	rip    uint64 // where the vCPU was instead
}

func (l *Ledger) softTrap(n int) softTrap {
	r := l.record(n)[vcpuINT:]
	return softTrap{
		at:     binary.LittleEndian.Uint64(r),
		rip:    binary.LittleEndian.Uint64(r[8:]),
		vector: r[16],
	}
}

func (l *Ledger) setSoftTrap(n int, s softTrap) {
	r := l.record(n)[vcpuINT:]
	binary.LittleEndian.PutUint64(r, s.at)
	binary.LittleEndian.PutUint64(r[8:], s.rip)
	r[16] = s.vector
	l.set(n, flagTrapping, true)
}

// lent gives the account of a vCPU's debug registers.
func (l *Ledger) lent(n int) (a lent) {
	r := l.record(n)[vcpuDebug:]
	for _, d := range []*debugRegs{&a.own, &a.set, &a.next} {
		for i := range d.addr {
			d.addr[i], r = binary.LittleEndian.Uint64(r), r[8:]
		}
		d.dr7, r = binary.LittleEndian.Uint64(r), r[8:]
	}
	return a
}

func (l *Ledger) setLent(n int, a lent) {
	r := l.record(n)[vcpuDebug:]
	for _, d := range []*debugRegs{&a.own, &a.set, &a.next} {
		for _, v := range append(d.addr[:], d.dr7) {
			binary.LittleEndian.PutUint64(r, v)
			r = r[8:]
		}
	}
	l.set(n, flagDebug, true)
}

// setExt notes the extended state that a vCPU is to have, right before its context
// is written, which resets it.
func (l *Ledger) setExt(n int, s xen.ExtState) {
	l.endExt()
	if len(s.Data) > maxExt {
		return
	}
	l.putU32(extLength, uint32(len(s.Data)))
	l.putU64(extFeatures, s.Features)
	copy(l.mem[extOffset+extData:], s.Data)
	l.putU32(extVCPU, uint32(n)+1)
}

// endExt notes that the vCPU has it.
func (l *Ledger) endExt() { l.putU32(extVCPU, 0) }

// ext gives the extended state that a vCPU may have lost, and the vCPU, or -1.
func (l *Ledger) ext() (n int, s xen.ExtState) {
	data := l.mem[extOffset+extData:]
	return int(l.u32(extVCPU)) - 1, xen.ExtState{
		Features: l.u64(extFeatures),
		Data:     data[:min(l.u32(extLength), maxExt)],
	}
}

// plant gives a record of planted bytes.
// Preconditions: 0 <= i < maxPlants.
func (l *Ledger) plant(i int) []byte { return l.mem[plantsOffset+i*plantSize:][:plantSize] }

// addPlant records planted bytes, if there is room.
func (l *Ledger) addPlant(p *Plant) bool {
	for i := range maxPlants {
		r := l.plant(i)
		if r[plantState] != 0 {
			continue
		}
		r[plantLength] = uint8(p.length)
		binary.LittleEndian.PutUint16(r[plantWithin:], uint16(p.offset))
		binary.LittleEndian.PutUint64(r[plantAddr:], p.addr)
		binary.LittleEndian.PutUint64(r[plantFrame:], p.frame)
		copy(r[plantSaved:], p.saved[:])
		copy(r[plantOurs:], p.ours[:])
		r[plantState] = 1
		p.record = i
		return true
	}
	return false
}

func (l *Ledger) removePlant(p *Plant) { l.plant(p.record)[plantState] = 0 }

// setSaved notes what the guest has where bytes are planted.
func (l *Ledger) setSaved(p *Plant) { copy(l.plant(p.record)[plantSaved:], p.saved[:]) }

// plants gives all records of planted bytes that make sense.
func (l *Ledger) plants() []*Plant {
	var ps []*Plant
	for i := range maxPlants {
		r := l.plant(i)
		p := &Plant{
			addr:   binary.LittleEndian.Uint64(r[plantAddr:]),
			frame:  binary.LittleEndian.Uint64(r[plantFrame:]),
			offset: int(binary.LittleEndian.Uint16(r[plantWithin:])),
			length: int(r[plantLength]),
			saved:  [maxPlant]byte(r[plantSaved:]),
			ours:   [maxPlant]byte(r[plantOurs:]),
			record: i,
		}
		if r[plantState] == 1 && p.length <= maxPlant && p.offset+p.length <= xen.PageSize {
			ps = append(ps, p)
		}
	}
	return ps
}

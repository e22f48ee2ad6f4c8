// This file reads the kernel's log: since Linux 5.10 a ring of descriptors, with
// the texts in a ring of their own (kernel/printk/printk_ringbuffer.c), before that
// records one after the other in a buffer (kernel/printk/printk.c in Linux 5.9).

package linux

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// A LogRecord is a message of the kernel's.
type LogRecord struct {
	Time     time.Duration // since the guest's start
	Level    int           // 0 emergency to 7 debug
	Facility int           // 0 for the kernel
	Text     string        // as it is, without an end of line
}

// ringKeys are the structures of the log, in VMCOREINFO and in BTF.
var ringKeys = []string{
	"printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring",
	"prb_desc_ring.count_bits", "prb_desc_ring.descs", "prb_desc_ring.infos", "prb_desc_ring.head_id", "prb_desc_ring.tail_id",
	"prb_desc", "prb_desc.state_var", "prb_desc.text_blk_lpos",
	"prb_data_blk_lpos.begin", "prb_data_blk_lpos.next",
	"printk_info", "printk_info.ts_nsec", "printk_info.text_len",
	"prb_data_ring.size_bits", "prb_data_ring.data",
}

// bufferKeys are those of the log before Linux 5.10.
var bufferKeys = []string{"printk_log", "printk_log.ts_nsec", "printk_log.len", "printk_log.text_len"}

const (
	// mostRingBits and mostTextBits bound a log that is believed.
	mostRingBits = 20
	mostTextBits = 26
	// What the upper two bits of a descriptor's state say (enum desc_state).
	ringCommitted, ringFinalized = 1, 2
	ringID                       = 1<<62 - 1
)

// Log gives the kernel's log, oldest first. With an error, the records are those
// before what cannot be read.
// Preconditions: the guest does not run.
func (k *Kernel) Log(mem Memory) ([]LogRecord, error) {
	info, err := k.VMCoreInfo(mem)
	if err != nil && !errors.Is(err, ErrNoVMCoreInfo) {
		return nil, err
	}
	at := func(name string) (uint64, bool) {
		if addr, ok := k.Lookup(name); ok {
			return addr, true
		}
		return info.Symbol(name)
	}
	if prb, ok := at("prb"); ok {
		o := info.offsets(ringKeys)
		if o.need(ringKeys...) != nil {
			if o, err = k.types(mem); err != nil {
				return nil, fmt.Errorf("where the kernel's log is: %w", err)
			}
		}
		if err := o.need(ringKeys...); err != nil {
			return nil, err
		}
		return readRing(mem, o, prb)
	}
	buffer, ok1 := at("log_buf")
	size, ok2 := at("log_buf_len")
	first, ok3 := at("log_first_idx")
	next, ok4 := at("log_next_idx")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return nil, errors.New("the guest's kernel does not say where its log is (CONFIG_PRINTK, CONFIG_KALLSYMS_ALL)")
	}
	o := info.offsets(bufferKeys)
	if o.need(bufferKeys...) != nil {
		return nil, fmt.Errorf("where the kernel's log is: %w", cmp.Or(err, ErrNoVMCoreInfo))
	}
	return readBuffer(mem, o, buffer, size, first, next)
}

// readRing reads the log whose struct printk_ringbuffer a pointer points to.
func readRing(mem Memory, o offsets, pointer uint64) (records []LogRecord, err error) {
	r := reader{mem: mem}
	ring := r.word(pointer)
	descs, data := ring+o["printk_ringbuffer.desc_ring"], ring+o["printk_ringbuffer.text_data_ring"]
	countBits, sizeBits := r.half(descs+o["prb_desc_ring.count_bits"]), r.half(data+o["prb_data_ring.size_bits"])
	table, infos := r.word(descs+o["prb_desc_ring.descs"]), r.word(descs+o["prb_desc_ring.infos"])
	head, tail := r.word(descs+o["prb_desc_ring.head_id"])&ringID, r.word(descs+o["prb_desc_ring.tail_id"])&ringID
	text := r.word(data + o["prb_data_ring.data"])
	if r.err == nil && (countBits > mostRingBits || sizeBits > mostTextBits) {
		r.err = fmt.Errorf("it has %d and %d bits", countBits, sizeBits)
	}
	if r.err != nil {
		return nil, fmt.Errorf("read the kernel's log: %w", r.err)
	}
	room := 1 << sizeBits // what all texts together can have
	for id, n := tail, 0; n < 1<<countBits && r.err == nil; id, n = (id+1)&ringID, n+1 {
		slot := id & (1<<countBits - 1)
		desc := table + slot*o["prb_desc"]
		state := r.word(desc + o["prb_desc.state_var"])
		if kind := state >> 62; state&ringID == id && (kind == ringCommitted || kind == ringFinalized) {
			info := infos + slot*o["printk_info"]
			record := r.record(info+o["printk_info.ts_nsec"], info+o["printk_info.text_len"])
			lpos := desc + o["prb_desc.text_blk_lpos"]
			begin, next := r.word(lpos+o["prb_data_blk_lpos.begin"]), r.word(lpos+o["prb_data_blk_lpos.next"])
			want := int(r.short(info + o["printk_info.text_len"]))
			if b := r.block(text, sizeBits, id, begin, next); r.err == nil {
				b = b[:min(want, len(b), room)]
				room -= len(b)
				record.Text = string(b)
				records = append(records, record)
			}
		}
		if id == head {
			break
		}
	}
	if r.err != nil {
		return records, fmt.Errorf("read the kernel's log: %w", r.err)
	}
	return records, nil
}

// block reads the text of a descriptor between two positions in the ring of texts,
// with what the block has room for behind it. Before the text stands the number of
// the descriptor. A block does not go over the ring's end: it stands at the start.
func (r *reader) block(text uint64, bits uint32, id, begin, next uint64) []byte {
	const number = 8
	size := uint64(1) << bits
	if begin&1 != 0 {
		return nil // a message without a text
	}
	from, to := begin&(size-1), next&(size-1)
	switch {
	case begin>>bits == next>>bits:
	case to == 0 && r.word(text+from)&ringID == id:
		to = size
	default:
		from = 0
	}
	if to < from+number || r.word(text+from)&ringID != id {
		return nil // it has been overwritten
	}
	b := make([]byte, min(to-from-number, 0xffff))
	r.read(text+from+number, b)
	return b
}

// record reads when a message was written, and its level. The length of its text
// comes before both in a struct printk_info.
func (r *reader) record(timeAt, lengthAt uint64) LogRecord {
	return r.leveled(timeAt, lengthAt+2)
}

// leveled reads a record whose facility, and then flags and level in a byte, stand
// at an address.
func (r *reader) leveled(timeAt, facilityAt uint64) LogRecord {
	var b [2]byte
	ts := r.word(timeAt)
	r.read(facilityAt, b[:])
	return LogRecord{Time: time.Duration(min(ts, 1<<63-1)), Facility: int(b[0]), Level: int(b[1] >> 5)}
}

// readBuffer reads the log of a kernel before 5.10. Of it, addresses of variables
// are given: a pointer, and three of 32 bits.
func readBuffer(mem Memory, o offsets, buffer, size, first, next uint64) (records []LogRecord, err error) {
	r := reader{mem: mem}
	text, length := r.word(buffer), r.half(size)
	at, end := r.half(first), r.half(next)
	header := uint32(min(o["printk_log"], 256))
	if r.err == nil && (length > 1<<mostTextBits || at >= length || end > length || header < 16) {
		r.err = fmt.Errorf("it has %d bytes, and messages from %d to %d", length, at, end)
	}
	for wrapped := false; r.err == nil && at != end; {
		entry := text + uint64(at)
		n := uint32(r.short(entry + o["printk_log.len"]))
		if n == 0 && !wrapped { // the rest of the buffer is not used
			at, wrapped = 0, true
			continue
		}
		b := make([]byte, r.short(entry+o["printk_log.text_len"]))
		// Behind the length of the text stands one of other things.
		record := r.leveled(entry+o["printk_log.ts_nsec"], entry+o["printk_log.text_len"]+4)
		if r.err == nil && (n < header+uint32(len(b)) || at+n > length) {
			r.err = fmt.Errorf("the message at %#x has %d bytes", entry, n)
			break
		}
		r.read(entry+uint64(header), b)
		record.Text = string(b)
		records = append(records, record)
		at += n
	}
	if r.err != nil {
		return records, fmt.Errorf("read the kernel's log: %w", r.err)
	}
	return records, nil
}

// WriteLog prints a log as dmesg does: with the time before each message, and its
// further lines below the first.
func WriteLog(w io.Writer, records []LogRecord) error {
	var b strings.Builder
	for _, r := range records {
		b.Reset()
		ts := r.Time.Microseconds()
		prefix := fmt.Sprintf("[%5d.%06d] ", ts/1e6, ts%1e6)
		for line := range strings.SplitSeq(r.Text, "\n") {
			b.WriteString(prefix)
			writeEscaped(&b, line)
			b.WriteByte('\n')
			prefix = strings.Repeat(" ", len(prefix))
		}
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// writeEscaped writes text of a guest's in a form that is fit for a terminal.
func writeEscaped(b *strings.Builder, s string) {
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' || c == '\t' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(b, `\x%02x`, c)
		}
	}
}

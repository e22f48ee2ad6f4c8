package lab

// What is inside Debian's compressed kernel and hypervisor images.

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// extractKernel writes the ELF image that a bzImage holds. Booting that
// instead saves the decompression, which is slow on an emulated CPU; the
// code is the same. Layout: Linux, Documentation/arch/x86/boot.rst.
func extractKernel(ctx context.Context, bzImage, elf string) error {
	b, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	const setupSects, magic, payloadOffset, payloadLength = 0x1f1, 0x202, 0x248, 0x24c
	if len(b) < 0x250 || string(b[magic:magic+4]) != "HdrS" {
		return fmt.Errorf("%s is not a bzImage", bzImage)
	}
	start := uint64(b[setupSects])*512 + 512 + uint64(binary.LittleEndian.Uint32(b[payloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(b[payloadLength:]))
	if end > uint64(len(b)) || end-start < 8 {
		return fmt.Errorf("%s: payload ends at %#x, file at %#x", bzImage, end, len(b))
	}
	payload := b[start : end-4] // the last four bytes are the unpacked size
	var cmd *exec.Cmd
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ")):
		cmd = exec.CommandContext(ctx, "xz", "--decompress", "--stdout")
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		cmd = exec.CommandContext(ctx, "zstd", "--decompress", "--stdout")
	default:
		return fmt.Errorf("%s: unknown compression % x", bzImage, payload[:4])
	}
	f, err := os.Create(elf)
	if err != nil {
		return err
	}
	defer f.Close()
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(payload), f, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("decompress %s: %w: %s", bzImage, err, lastLines(stderr.Bytes(), 2))
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if want := int64(binary.LittleEndian.Uint32(b[end-4:])); st.Size() != want {
		return fmt.Errorf("decompress %s: got %d bytes, want %d", bzImage, st.Size(), want)
	}
	return f.Close()
}

// gunzip unpacks a file.
func gunzip(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("read %s: %w", from, err)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, z)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("unpack %s: %w", from, err)
	}
	return nil
}

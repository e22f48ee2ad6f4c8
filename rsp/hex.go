// This file reads and writes hexadecimal numbers and data.

package rsp

import "encoding/hex"

const hexDigits = "0123456789abcdef"

func hexDigit(c byte) (int, bool) {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0'), true
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10, true
	}
	return 0, false
}

func appendHexByte(dst []byte, b byte) []byte {
	return append(dst, hexDigits[b>>4], hexDigits[b&15])
}

func appendHex(dst, data []byte) []byte { return hex.AppendEncode(dst, data) }

func appendHexString(dst []byte, s string) []byte {
	for i := range len(s) {
		dst = append(dst, hexDigits[s[i]>>4], hexDigits[s[i]&15])
	}
	return dst
}

// appendDecoded appends the bytes that a text of hex digits stands for.
func appendDecoded(dst, text []byte) ([]byte, bool) {
	if len(text)%2 != 0 {
		return dst, false
	}
	for i := 0; i < len(text); i += 2 {
		hi, ok1 := hexDigit(text[i])
		lo, ok2 := hexDigit(text[i+1])
		if !ok1 || !ok2 {
			return dst, false
		}
		dst = append(dst, byte(hi<<4|lo))
	}
	return dst, true
}

// parseNumber reads a hex number of at most 64 bits from the start of p.
func parseNumber(p []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for i < len(p) {
		d, isDigit := hexDigit(p[i])
		if !isDigit {
			break
		}
		if n>>60 != 0 {
			return 0, p, false
		}
		n = n<<4 | uint64(d)
		i++
	}
	return n, p[i:], i > 0
}

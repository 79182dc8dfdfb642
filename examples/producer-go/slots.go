package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
)

// SlotDigits gives the slot of a key: the ordering key of a write, and its attribute slot. slotBits is slot_bits in shards.yaml.
func SlotDigits(key string, slotBits int) string {
	sum := sha256.Sum256([]byte(key))
	return fmt.Sprintf("%0*b", slotBits, binary.BigEndian.Uint16(sum[:2])>>(16-slotBits))
}

// ModuloSlotDigits is the same for a fleet with routing: {modulo: N}, whose keys are whole numbers in plain decimal digits.
func ModuloSlotDigits(key uint64, modulo uint64, slotBits int) string {
	grains := uint64(4) << bits.Len64(modulo-1)
	start := func(remainder uint64) uint64 { return remainder * grains / modulo * ((1 << slotBits) / grains) }
	first, end := start(key%modulo), start(key%modulo+1)
	sum := sha256.Sum256([]byte(strconv.FormatUint(key, 10)))
	h := uint64(binary.BigEndian.Uint32(sum[:4]))
	return fmt.Sprintf("%0*b", slotBits, first+h*(end-first)>>32)
}

package main

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
)

func TestSlotsAreThePublishedOnes(t *testing.T) {
	text, err := os.ReadFile("../../docs/slot-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	type vector struct {
		Key      string
		Modulo   uint64
		SlotBits int `json:"slot_bits"`
		Digits   string
	}
	var vectors struct {
		Keys       []vector
		ModuloKeys []vector `json:"modulo_keys"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Keys) == 0 || len(vectors.ModuloKeys) == 0 {
		t.Fatal("there are no vectors")
	}
	for _, v := range vectors.Keys {
		if digits := SlotDigits(v.Key, v.SlotBits); digits != v.Digits {
			t.Errorf("%q: %s instead of %s", v.Key, digits, v.Digits)
		}
	}
	for _, v := range vectors.ModuloKeys {
		key, err := strconv.ParseUint(v.Key, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if digits := ModuloSlotDigits(key, v.Modulo, v.SlotBits); digits != v.Digits {
			t.Errorf("%s %% %d: %s instead of %s", v.Key, v.Modulo, digits, v.Digits)
		}
	}
}

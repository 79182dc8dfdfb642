// The published test vectors.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { moduloSlotDigits, slotDigits } from "./slots.js";

const vectors = JSON.parse(readFileSync(new URL("../../docs/slot-vectors.json", import.meta.url), "utf8"));

test("keys", () => {
  assert.ok(vectors.keys.length);
  for (const { key, slot_bits, digits } of vectors.keys) assert.equal(slotDigits(key, slot_bits), digits, key);
});

test("keys of a fleet with a modulo", () => {
  assert.ok(vectors.modulo_keys.length);
  for (const { key, modulo, slot_bits, digits } of vectors.modulo_keys) {
    assert.equal(moduloSlotDigits(key, modulo, slot_bits), digits, `${key} % ${modulo}`);
  }
});

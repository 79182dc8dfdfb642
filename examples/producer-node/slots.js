// The slot of a key: the one thing that a producer needs from shardctl.
import { createHash } from "node:crypto";

/** The ordering key of a write, and its attribute `slot`. `slotBits` is `slot_bits` in shards.yaml. */
export function slotDigits(key, slotBits = 10) {
  const sum = createHash("sha256").update(key, "utf8").digest();
  return (sum.readUInt16BE(0) >> (16 - slotBits)).toString(2).padStart(slotBits, "0");
}

/** The same for a fleet with `routing: {modulo: N}`. The key is a whole number in plain decimal digits. */
export function moduloSlotDigits(key, modulo, slotBits = 10) {
  const grains = 4 * 2 ** Math.ceil(Math.log2(modulo));
  const start = (remainder) => Math.floor((remainder * grains) / modulo) * (2 ** slotBits / grains);
  const remainder = Number(BigInt(key) % BigInt(modulo));
  const first = start(remainder);
  const end = start(remainder + 1);
  const h = createHash("sha256").update(key, "utf8").digest().readUInt32BE(0);
  return (first + Math.floor((h * (end - first)) / 2 ** 32)).toString(2).padStart(slotBits, "0");
}

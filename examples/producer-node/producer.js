// Publishes writes in the order of each slot, and holds a slot whose publish failed.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

// gRPC's codes of failures that may pass: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE.
const TRANSIENT = new Set([1, 2, 4, 8, 10, 13, 14]);
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5_000;

/** Options of `pubsub.topic`: messages of a slot stay in order, and a request is retried for `giveUpSeconds`. */
export function topicOptions(giveUpSeconds) {
  const totalTimeoutMillis = giveUpSeconds * 1_000;
  const backoffSettings = {
    initialRetryDelayMillis: FIRST_PAUSE_MS,
    retryDelayMultiplier: 2,
    maxRetryDelayMillis: MAX_PAUSE_MS,
    initialRpcTimeoutMillis: totalTimeoutMillis,
    rpcTimeoutMultiplier: 1,
    maxRpcTimeoutMillis: totalTimeoutMillis,
    totalTimeoutMillis,
  };
  return { enableMessageOrdering: true, gaxOpts: { retry: { retryCodes: [...TRANSIENT], backoffSettings } } };
}

/** One write, made once and sent as often as it takes: its key, its time and the text of its body stay the same. */
export function newWrite(type, operation, key, body, idempotencyKey = uuidv7()) {
  return { type, operation, key, body, idempotencyKey, timestamp: new Date().toISOString() };
}

export class SlotHeldError extends Error {
  constructor(slot, cause) {
    super(`slot ${slot}: not sent: an earlier write of the slot failed. Resume the slot, then retry in order.`, { cause });
  }
}

/**
 * Writes of a slot reach the topic in the order of the calls. When one fails, so does every write of its slot that waits,
 * and each later one, until `resume`: no write overtakes an earlier one. `slotOf` gives the digits of a key.
 */
export class Producer {
  #topic;
  #slots = new Map();

  constructor(topic, slotOf) {
    this.#topic = topic;
    this.slotOf = slotOf;
  }

  /** The message id. Rejects with the client's error, or a SlotHeldError. */
  async publish(write) {
    const digits = this.slotOf(write.key);
    const slot = this.#slot(digits);
    if (slot.error) throw new SlotHeldError(digits, slot.error);
    slot.pending += 1;
    try {
      return await this.#topic.publishMessage(message(write, digits));
    } catch (error) {
      // The client forgets that the key failed once it has rejected what waited for it. So the slot is held here.
      slot.error ??= error;
      throw error;
    } finally {
      slot.pending -= 1;
    }
  }

  /** Let a held slot publish again, once each of its writes has failed. The caller then retries them in order. */
  resume(digits) {
    const slot = this.#slot(digits);
    if (slot.pending) throw new Error(`slot ${digits}: ${slot.pending} writes are in flight. Wait until they have failed.`);
    slot.error = undefined;
    this.#topic.resumePublishing(digits);
  }

  #slot(digits) {
    if (!this.#slots.has(digits)) this.#slots.set(digits, { pending: 0, error: undefined });
    return this.#slots.get(digits);
  }
}

/**
 * The message ids of the writes, in their order. Failed slots are resumed and their writes sent again, in order, up to
 * `attempts` times. Rejects with the error that stays, or at once with one that another try doesn't change.
 */
export async function publishAll(producer, writes, { attempts = 20, report = () => {} } = {}) {
  const ids = new Map();
  let left = writes;
  for (let attempt = 1; ; attempt += 1) {
    const outcomes = await Promise.allSettled(left.map((write) => producer.publish(write)));
    outcomes.forEach(({ status, value }, index) => status === "fulfilled" && ids.set(left[index], value));
    const errors = outcomes.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
    if (!errors.length) return writes.map((write) => ids.get(write));
    const lasting = errors.find((error) => !(error instanceof SlotHeldError) && !TRANSIENT.has(error.code));
    if (lasting || attempt === attempts) throw lasting ?? errors[0];
    left = left.filter((write) => !ids.has(write));
    const held = new Set(left.map((write) => producer.slotOf(write.key)));
    report(`${held.size} slots are held with ${left.length} writes, and will be resumed: ${reasonOf(errors[0])}`);
    await sleep(Math.min(FIRST_PAUSE_MS * 2 ** attempt, MAX_PAUSE_MS) * (0.5 + Math.random() / 2));
    held.forEach((digits) => producer.resume(digits));
  }
}

/** Without the list of all tries, which the client puts behind it. */
function reasonOf(error) {
  return error.message.split(" : Previous errors", 1)[0];
}

function message({ type, operation, key, body, idempotencyKey, timestamp }, digits) {
  const attributes = {
    slot: digits,
    partition_key: key,
    message_type: type,
    operation,
    timestamp,
    idempotency_key: idempotencyKey,
  };
  return { data: Buffer.from(body, "utf8"), orderingKey: digits, attributes };
}

/** Time first (RFC 9562), so that the rows of new writes lie together in the inbox's index. */
export function uuidv7() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

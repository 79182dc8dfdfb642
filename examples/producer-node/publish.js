// Publishes the writes on stdin. Each line holds, between tabs, message type, operation, key and body, and may hold an idempotency
// key. Prints each write's message id and idempotency key, in the order of the lines.
import { readFileSync } from "node:fs";

import { PubSub } from "@google-cloud/pubsub";

import { Producer, newWrite, publishAll, topicOptions } from "./producer.js";
import { slotDigits } from "./slots.js";

const [name, slotBits = "10", giveUpSeconds = "60"] = process.argv.slice(2);
const [, project] = /^projects\/([^/]+)\/topics\/[^/]+$/.exec(name ?? "") ?? [];
if (!project || !(slotBits >= 1 && slotBits <= 16) || !(giveUpSeconds > 0)) {
  usage("node publish.js projects/PROJECT/topics/TOPIC [SLOT_BITS [GIVE_UP_SECONDS]] < WRITES");
}

const writes = readFileSync(0, "utf8").split("\n").flatMap((line, index) => {
  if (!line) return [];
  const fields = line.split("\t");
  if (fields.length !== 4 && fields.length !== 5) {
    usage(`line ${index + 1}: type, operation, key and body are needed, with tabs between them`);
  }
  return newWrite(...fields);
});

// Message ordering needs all producers of a slot to publish to one region: name its endpoint, for example
// apiEndpoint: "europe-west1-pubsub.googleapis.com:443".
const pubsub = new PubSub({ projectId: project });
const producer = new Producer(pubsub.topic(name, topicOptions(Number(giveUpSeconds))), (key) => slotDigits(key, Number(slotBits)));
try {
  const ids = await publishAll(producer, writes, { report: console.error });
  writes.forEach((write, index) => console.log(`${ids[index]}\t${write.idempotencyKey}`));
} catch (error) {
  console.error(`not every write was published: ${error.message}`);
  process.exitCode = 1;
}
await pubsub.close();

function usage(text) {
  console.error(text);
  process.exit(2);
}

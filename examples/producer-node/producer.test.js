// A failed write holds its slot until it is resumed. What the client itself does meanwhile is the test's.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Producer, SlotHeldError, newWrite } from "./producer.js";

/** Requests stay open until `answer`. */
class Topic {
  requests = [];
  resumed = [];

  publishMessage({ data }) {
    return new Promise((resolve, reject) => this.requests.push({ data: data.toString(), resolve, reject }));
  }

  resumePublishing(key) {
    this.resumed.push(key);
  }

  get sent() {
    return this.requests.map(({ data }) => data);
  }
}

const write = (body, key = "a") => newWrite("customer", "upsert", key, body);

test("nothing overtakes a failed write", async () => {
  const topic = new Topic();
  const producer = new Producer(topic, (key) => key);
  const first = producer.publish(write("1"));
  const second = producer.publish(write("2"));
  topic.requests[0].reject(new Error("lost"));
  await assert.rejects(first, /lost/);
  assert.throws(() => producer.resume("a"), /1 writes are in flight/);
  await assert.rejects(producer.publish(write("3")), SlotHeldError);
  topic.requests[1].reject(new Error("lost, too"));
  await assert.rejects(second, /lost, too/);
  await assert.rejects(producer.publish(write("3")), SlotHeldError);
  assert.deepEqual(topic.sent, ["1", "2"]);

  const other = producer.publish(write("4", "b"));
  topic.requests[2].resolve("id of 4");
  assert.equal(await other, "id of 4");

  producer.resume("a");
  producer.publish(write("1"));
  producer.publish(write("2"));
  assert.deepEqual(topic.sent.slice(3), ["1", "2"]);
  assert.deepEqual(topic.resumed, ["a"]);
});

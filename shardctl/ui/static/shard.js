// The page of one shard, opened from the table and named in the address, so that back and reload work.

import { get } from "./api.js";
import { row, table } from "./aside.js";
import { $, count, duration, el, figure, say, showFigures, since, size } from "./dom.js";
import { showLetters } from "./letters.js";
import { nameShards, showHistory } from "./timeline.js";

const DETAILS_MS = 5000; // they take a query of the database
let latest = null; // the last status
let asked = 0; // questions for details
let due = 0; // when to ask for them again

export const openedShard = () => new URLSearchParams(location.search).get("shard");

export function openShard(name) {
  history.pushState(null, "", `?${new URLSearchParams({ shard: name })}`);
  turn();
  $("shard-title").focus();
}

export function closeShard() {
  if (openedShard() === null) return;
  history.pushState(null, "", location.pathname);
  turn();
  $("shards").focus();
}

// Shows the overview or the shard that the address names, now and whenever the address changes.
export function chooseView() {
  addEventListener("popstate", turn);
  $("shard-close").addEventListener("click", closeShard);
  $("shard-letters-look").addEventListener("click", () => showLetters($("shard-letters-look"), $("shard-letters-text"), $("shard-letters"), { shard: openedShard() }));
  turn();
}

function turn() {
  const name = openedShard();
  $("overview").hidden = name !== null;
  $("shard").hidden = name === null;
  for (const id of ["shard-letters", "shard-replicas", "shard-subscriptions", "shard-lanes", "shard-errors", "shard-figures", "shard-troubles"]) $(id).replaceChildren();
  for (const id of ["shard-letters-text", "shard-text"]) say($(id), "");
  say($("shard-title"), name === null ? "" : `Shard ${name}`);
  due = 0;
  if (latest) followShard(latest);
  showHistory();
}

export function followShard(status) {
  latest = status;
  nameShards(status.shards);
  const name = openedShard();
  if (name === null) return;
  const shard = status.shards.find((candidate) => candidate.name === name);
  if (!shard) return say($("shard-text"), "The file has no such shard.");
  showFigures($("shard-figures"), figuresOf(shard));
  if (performance.now() >= due) lookAtDetails(shard);
}

const figuresOf = (shard) => ({
  "Ready": shard.replicas === null ? "?" : `${count(shard.ready)} of ${shard.replicas}`,
  "Backlog": count(shard.backlog),
  "Oldest message": duration(shard.oldest_seconds),
  "Writes/s": figure(shard.writes_per_second),
  "Dead-lettered": count(shard.dead_lettered),
  "Parked keys": count(shard.parked_keys),
  "Rows a batch": figure(shard.rows_a_batch),
  "Lock waits/s": figure(shard.locks_contended_per_second),
  "Duplicates/s": figure(shard.duplicates_per_second),
  "Inbox rows": count(shard.inbox_rows),
  "Inbox size": size(shard.inbox_bytes),
  "Inbox overdue": duration(shard.inbox_overdue_seconds),
});

async function lookAtDetails(shard) {
  const question = ++asked;
  due = performance.now() + DETAILS_MS;
  try {
    const details = await get("shard", { name: shard.name });
    if (question === asked && openedShard() === shard.name) showDetails(shard, details);
  } catch (error) {
    if (openedShard() === shard.name) say($("shard-text"), error.message);
  }
}

function showDetails(shard, details) {
  say($("shard-text"), `Generation ${details.generation} with slots ${details.slots}, for ${details.types.length ? `types ${details.types.join(", ")}` : "no type"}.`);
  const unknown = Object.entries(details.unknown).map(([what, why]) => el("li", { class: "missing" }, `not known: ${what}: ${why}`));
  replace("shard-troubles", [...shard.troubles.map((trouble) => el("li", { class: "bad" }, trouble)), ...unknown]);
  replace("shard-replicas", listing(details.replicas, "No replica has sent a heartbeat in the last 5 minutes.", ["Replica", "Last heartbeat", "Reads generations", "State"], (replica) => [
    replica.name, `${duration(replica.silent_seconds)} ago`, replica.generations.join(", ") || "none",
    el("span", { class: replica.silent ? "bad" : undefined }, replica.silent ? "silent: has it ended, or hung?" : "alive"),
  ]));
  replace("shard-subscriptions", listing(details.subscriptions, "It has none.", ["Subscription", "Generation", "Backlog", "Oldest"], (sub) => [
    sub.id, count(sub.generation), count(sub.messages), duration(sub.oldest_seconds),
  ]));
  replace("shard-lanes", listing(details.lanes, "Its database holds no slot.", ["State", "Generation", "Slots", "Which"], (lane) => [
    lane.state, count(lane.generation), count(lane.count), lane.slots,
  ]));
  replace("shard-errors", listing(details.errors, "No key is parked. What was dead-lettered can be listed below.", ["Key", "Type", "Reason", "Messages", "Parked"], (key) => [
    key.key, key.type, `${key.reason}: ${key.detail}`, count(key.messages), `${since(key.parked_time)} ago`,
  ]));
}

// A table, or a line where there is nothing or nothing is known.
function listing(entries, none, columns, valuesOf) {
  if (entries === null) return [el("p", { class: "missing" }, "Unknown: see above.")];
  if (!entries.length) return [el("p", { class: "quiet" }, none)];
  return [table(columns, entries.map((entry) => row(columns, valuesOf(entry))))];
}

// Leaves the page alone where nothing has changed, so that a selection and the place of a reader stay.
function replace(id, children) {
  const into = $(id), made = el("div", {}, ...children);
  if (into.innerHTML !== made.innerHTML) into.replaceChildren(...made.childNodes);
}

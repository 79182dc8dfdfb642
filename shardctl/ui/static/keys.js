// The look-up of a routing key: its slot, shard, subscription and database, and what the databases hold of the slot.

import { get } from "./api.js";
import { $, count, el, say, since } from "./dom.js";
import { openShard } from "./shard.js";
import { chooseSlot } from "./slots.js";

const MEANING = {
  active: "its writes are applied here",
  arriving: "an older lane still has all that is published",
  due: "it is being handed over: its barrier may be out",
  left: "it was handed over to another generation or shard",
};
let types = [];

export function showTypes(known) {
  if (JSON.stringify(types) === JSON.stringify(known)) return;
  types = known;
  const select = $("find-type"), chosen = select.value;
  select.replaceChildren(el("option", { value: "" }, "any"), ...known.map(({ name }) => el("option", { value: name }, name)));
  if (known.some(({ name }) => name === chosen)) select.value = chosen;
  askForMoment();
}

export function listenForLookUps() {
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    lookUp();
  });
  $("find-type").addEventListener("change", askForMoment);
  $("key-close").addEventListener("click", closeKey);
}

export function closeKey() {
  if ($("key").hidden) return false;
  $("key").hidden = true;
  $("find-key").focus();
  return true;
}

function askForMoment() {
  $("find-moment").hidden = !types.find(({ name }) => name === $("find-type").value)?.by_time;
}

async function lookUp() {
  const key = $("find-key").value, answer = $("key-answer");
  $("key").hidden = false;
  say($("key-title"), `Key ${key}`);
  answer.setAttribute("aria-busy", "true");
  try {
    const time = $("find-moment").hidden ? "" : $("find-time").value.trim();
    const place = await get("key", { key, type: $("find-type").value, time });
    if ($("find-key").value === key) answer.replaceChildren(...shown(place));
  } catch (error) {
    answer.replaceChildren(el("p", { class: "bad" }, error.message));
  } finally {
    answer.removeAttribute("aria-busy");
  }
}

function shown(place) {
  const facts = [["Slot", `${place.slot} (${place.digits})`, mapButton(place.slot)], ["Topic", place.topic]];
  for (const shard of place.shards) {
    facts.push(["Shard, by the file", shard.name, shardButton(shard.name), `for ${shard.types.join(", ")}`]);
    facts.push(["Subscription", shard.subscription], ["Database", shard.database]);
  }
  if (!place.shards.length) facts.push(["Shard, by the file", el("span", { class: "bad" }, "none: such a message is a stray")]);
  for (const { shard, lanes, unknown } of place.lanes) facts.push([`Lane in ${shard}`, ...laneTexts(lanes, unknown)]);
  facts.push(["Parked", ...parkedTexts(place)]);
  const entries = facts.flatMap(([name, ...values]) => [el("dt", {}, name), el("dd", {}, ...values.flatMap((value) => [value, " "]))]);
  return [el("dl", { class: "facts" }, ...entries)];
}

function laneTexts(lanes, unknown) {
  if (lanes === null) return [el("span", { class: "missing" }, `unknown: ${unknown}`)];
  if (!lanes.length) return ["none: its database holds nothing of this slot"];
  return lanes.map(({ generation, state }) => el("span", { class: "lane" }, el("strong", {}, state), ` in generation ${generation}: ${MEANING[state] ?? ""}`));
}

function parkedTexts({ parked, parked_unknown }) {
  const known = parked.map((key) => el("span", { class: "bad lane" }, `${count(key.messages)} ${key.messages === 1 ? "message" : "messages"} of type ${key.type} have waited in ${key.shard} for ${since(key.parked_time)}: ${key.reason}: ${key.detail}`));
  const unknown = Object.entries(parked_unknown).map(([shard, why]) => el("span", { class: "missing lane" }, `unknown in ${shard}: ${why}`));
  return known.length || unknown.length ? [...known, ...unknown] : ["no: no write of this key waits behind a failed one"];
}

const shardButton = (name) => el("button", { type: "button", onclick: () => openShard(name), "aria-label": `Open shard ${name}` }, "Open");

function mapButton(slot) {
  const choose = () => {
    if (!$("shard").hidden) $("shard-close").click();
    $("slot").value = slot;
    chooseSlot();
    $("slot").focus();
  };
  return el("button", { type: "button", onclick: choose, "aria-label": `Show slot ${slot} in the map` }, "Show in the map");
}

// An open rebalance: how far it is, and when it is likely to end.

import { $, clock, count, duration, el, say } from "./dom.js";

export function showRebalance(moving, at) {
  $("rebalance").hidden = !moving;
  if (!moving) return;
  const known = moving.stages !== null;
  $("rebalance-bar").hidden = !known;
  say($("rebalance-end"), known ? end(moving, at) : "Its progress and its end are unknown.");
  if (!known) {
    say($("rebalance-text"), `Rebalance ${moving.id ?? "not opened"}: its databases don't all answer.`);
    return $("rebalance-moves").replaceChildren();
  }
  const others = Object.entries(moving.stages).filter(([stage, slots]) => slots && stage !== "arrived").map(([stage, slots]) => `${count(slots)} ${stage}`);
  say($("rebalance-text"), `${count(moving.stages.arrived)} of ${count(moving.slots)} slots handed over${others.length ? ` (${others.join(", ")})` : ""}.`);
  $("rebalance-bar").max = Math.max(1, moving.slots);
  $("rebalance-bar").value = moving.stages.arrived;
  const moves = moving.moves.map((move) => `still to move from ${move.from} to ${move.to}: ${count(move.slot_count)} slots`);
  const states = Object.entries(moving.states).map(([shard, state]) => `${shard} ${state}`).join(", ");
  $("rebalance-moves").replaceChildren(...[`${moving.id ?? "not opened"}: ${states}`, ...moves, ...moving.broken].map((line) => el("li", {}, line)));
}

function end({ stages, slots, seconds_left }, at) {
  if (stages.arrived === slots) return "Every slot is handed over: `shardctl rebalance finish` ends the rebalance.";
  if (seconds_left === null) return "No slot was handed over in the last minute, so its end is unknown.";
  const moment = new Date(Date.parse(at) + seconds_left * 1000);
  const day = seconds_left > 43200 ? `${moment.toLocaleDateString()}, ` : "";
  return `About ${duration(seconds_left)} left at the speed of the last minute: the last slot is handed over at about ${day}${clock(moment)}.`;
}

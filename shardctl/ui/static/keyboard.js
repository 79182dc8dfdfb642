// Single keys, and the list of them. They can be switched off: speech input and screen readers may need the keys themselves.

import { $, el } from "./dom.js";
import { closeKey } from "./keys.js";
import { closeShard, openShard } from "./shard.js";

const OFF = "shardctl-keys-off";
const HELP = [
  ["?", "this list"],
  ["/", "look up a routing key"],
  ["1 … 9", "open the first shard, the second, …"],
  ["s", "choose a slot; then ↑ and ↓"],
  ["t", "the last hour; then ← and → read a chart, Home and End go to its ends"],
  ["Esc", "close what is open: a dialog, a look-up, a shard"],
  ["Tab", "the next control"],
];

export function listenForKeys() {
  $("help-keys").append(...HELP.map(([key, text]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, text))));
  $("help-on").checked = localStorage.getItem(OFF) === null;
  $("help-on").addEventListener("change", () => ($("help-on").checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1")));
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-close").addEventListener("click", () => $("help").close());
  document.addEventListener("keydown", press);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return closeKey() || closeShard();
  if (localStorage.getItem(OFF) !== null || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  const act = actionOf(event.key);
  if (!act) return;
  event.preventDefault();
  act();
}

function actionOf(key) {
  if (key === "?") return () => $("help").showModal();
  if (key === "/") return () => $("find-key").focus();
  if (key === "s") return () => inOverview($("slot"));
  if (key === "t") return () => (($("shard").hidden ? $("charts") : $("shard-charts")).querySelector("[role=slider]")?.focus());
  if (/^[1-9]$/.test(key)) {
    const shard = $("shards").querySelectorAll("tbody tr")[Number(key) - 1]?.dataset.shard;
    return shard === undefined ? null : () => openShard(shard);
  }
  return null;
}

function inOverview(element) {
  closeShard();
  element.focus();
  element.select();
}

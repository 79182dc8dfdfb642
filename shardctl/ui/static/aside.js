// Dead letters and parked keys: shown, and replayed after a question. The server receives what the page showed, and refuses if it has changed.

import { get, post } from "./api.js";
import { $, count, el, say, since } from "./dom.js";

const PARKED = ["Key", "Type", "Shard", "Slot", "Reason", "Messages", "Since", ""];

export async function showParked() {
  await look($("parked"), $("parked-look"), async () => {
    const listing = await get("parked");
    const rows = listing.keys.map((key) => row(PARKED, [
      key.key, key.type, key.shard, count(key.slot), `${key.reason}: ${key.detail}`, count(key.messages), `${since(key.parked_time)} ago`,
      el("span", { class: "buttons" }, detailsOf(key), key.released ? "released, waits for its consumer" : replayButton(key)),
    ]));
    say($("parked-text"), listing.keys.length ? `${count(listing.keys.length + listing.more)} parked.` : "No key is parked.");
    return [
      rows.length ? table(PARKED, rows) : null,
      listing.more ? el("p", {}, `${count(listing.more)} more aren't shown; shardctl parked list lists all.`) : null,
      ...unknown(listing.unknown),
    ];
  });
}

function replayButton(key) {
  const ask = () => confirmed({
    title: `Release key ${key.key} of type ${key.type}?`,
    yes: "Release this key",
    text: `The consumer of shard ${key.shard} will apply its ${count(key.messages)} waiting messages, in order, the one that failed first. What fails again is parked again.`,
    work: () => post("parked/replay", { shard: key.shard, slot: key.slot, type: key.type, key: key.key, messages: key.messages, parked_time: key.parked_time }),
    after: showParked,
  });
  return el("button", { type: "button", onclick: ask, "aria-label": `Release key ${key.key} of type ${key.type}` }, "Release …");
}

function detailsOf(key) {
  const body = el("div", {}, "…");
  const opened = async (event) => {
    if (!event.target.open) return;
    try {
      const details = await get("parked/messages", { shard: key.shard, slot: key.slot, type: key.type, key: key.key });
      body.replaceChildren(...details.messages.map((entry) => message(`${entry.type} ${entry.operation}, id ${entry.message_id}`, entry.body ?? entry.body_hex)));
    } catch (error) {
      say(body, error.message);
    }
  };
  return el("details", { ontoggle: opened }, el("summary", { "aria-label": `Messages of key ${key.key} of type ${key.type}` }, "Messages"), body);
}

export const message = (title, body) => el("div", { class: "message" }, el("p", {}, title), el("pre", { tabindex: "0" }, body));

export async function look(into, button, work, text) {
  button.disabled = true;
  into.setAttribute("aria-busy", "true");
  try {
    into.replaceChildren(...(await work()).filter((child) => child));
  } catch (error) {
    if (text) say(text, "");
    into.replaceChildren(el("p", { class: "bad" }, error.message));
  } finally {
    button.disabled = false;
    into.removeAttribute("aria-busy");
  }
}

export function table(columns, rows) {
  const cells = columns.map((name) => el("th", { scope: "col", role: "columnheader" }, name || el("span", { class: "unseen" }, "What to do")));
  return el("table", { class: "cards", role: "table" }, el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells)), el("tbody", { role: "rowgroup" }, ...rows));
}

export function row(columns, values) {
  const cells = values.map((value, at) => at ? el("td", { role: "cell", "data-label": columns[at] }, value) : el("th", { scope: "row", role: "rowheader" }, value));
  return el("tr", { role: "row" }, ...cells);
}

export const unknown = (shards) => Object.entries(shards).map(([shard, why]) => el("p", { class: "quiet" }, `not known of ${shard}: ${why}`));

// Asks, and acts only on the button that names the act. The dialog shows a fault and stays open; then the list is loaded again.
export function confirmed({ title, text, yes: act, work, after }) {
  const dialog = $("confirm"), yes = $("confirm-yes");
  say($("confirm-title"), title);
  say($("confirm-text"), text);
  say($("confirm-fault"), "");
  say(yes, act);
  yes.disabled = false;
  yes.onclick = async () => {
    yes.disabled = true;
    try {
      await work();
      dialog.close();
    } catch (error) {
      say($("confirm-fault"), error.message);
    }
    after();
  };
  $("confirm-no").onclick = () => dialog.close();
  dialog.showModal();
}

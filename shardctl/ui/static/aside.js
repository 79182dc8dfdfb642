// Dead letters and parked keys: looked at, and replayed after a question. The server gets what the person was shown, and refuses if it changed.

import { get, post } from "./api.js";
import { $, count, el, say, since } from "./dom.js";

const PARKED = ["Key", "Type", "Shard", "Slot", "Reason", "Messages", "Since", ""];

export async function showParked() {
  await look($("parked"), $("parked-look"), async () => {
    const found = await get("parked");
    const rows = found.keys.map((key) => row(PARKED, [
      key.key, key.type, key.shard, count(key.slot), `${key.reason}: ${key.detail}`, count(key.messages), `${since(key.parked_time)} ago`,
      el("span", { class: "buttons" }, detailsOf(key), key.released ? "released, waits for its consumer" : replayButton(key)),
    ]));
    say($("parked-told"), found.keys.length ? `${count(found.keys.length + found.more)} parked.` : "No key is parked.");
    return [
      rows.length ? table(PARKED, rows) : null,
      found.more ? el("p", {}, `${count(found.more)} more aren't shown; shardctl parked list lists all.`) : null,
      ...unknown(found.unknown),
    ];
  });
}

function replayButton(key) {
  const ask = () => confirmed({
    title: `Release key ${key.key} of type ${key.type}?`,
    told: `The consumer of shard ${key.shard} will apply its ${count(key.messages)} waiting messages, in order, the one that failed first. What fails again is parked again.`,
    work: () => post("parked/replay", { shard: key.shard, slot: key.slot, type: key.type, key: key.key, messages: key.messages, parked_time: key.parked_time }),
    after: showParked,
  });
  return el("button", { type: "button", onclick: ask, "aria-label": `Replay key ${key.key} of type ${key.type}` }, "Replay …");
}

function detailsOf(key) {
  const body = el("div", {}, "…");
  const opened = async (event) => {
    if (!event.target.open) return;
    try {
      const found = await get("parked/messages", { shard: key.shard, slot: key.slot, type: key.type, key: key.key });
      body.replaceChildren(...found.messages.map((each) => message(`${each.type} ${each.operation}, id ${each.message_id}`, each.body ?? each.body_hex)));
    } catch (error) {
      say(body, error.message);
    }
  };
  return el("details", { ontoggle: opened }, el("summary", { "aria-label": `Messages of key ${key.key} of type ${key.type}` }, "Messages"), body);
}

export const message = (title, body) => el("div", { class: "message" }, el("p", {}, title), el("pre", { tabindex: "0" }, body));

export async function look(into, button, work) {
  button.disabled = true;
  into.setAttribute("aria-busy", "true");
  try {
    into.replaceChildren(...(await work()).filter((each) => each));
  } catch (error) {
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

// Asks, and does it on "Replay" alone. A fault is told in the dialog, which stays open; then what was shown is looked at anew.
export function confirmed({ title, told, work, after }) {
  const dialog = $("confirm"), yes = $("confirm-yes");
  say($("confirm-title"), title);
  say($("confirm-told"), told);
  say($("confirm-fault"), "");
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

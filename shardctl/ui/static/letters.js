// Dead letters and strays, leased from Pub/Sub to show them.

import { get, post } from "./api.js";
import { confirmed, look, message, row, table } from "./aside.js";
import { count, el, say, since } from "./dom.js";

const LETTERS = ["Key", "Type", "Shard", "Reason", "Dead-lettered", ""];

// `chosen` has what is listed: strays, or the dead letters of one shard or of all.
export async function showLetters(button, text, into, chosen) {
  const strays = chosen.strays ?? false;
  say(text, "Asking Pub/Sub …");
  await look(into, button, async () => {
    const listing = await get("letters", chosen);
    const what = strays ? "strays" : "dead letters";
    const rows = listing.letters.map((letter) => row(LETTERS, [
      letter.key || "?", letter.type || "?", letter.shard || "?", `${letter.reason}: ${letter.detail}`, `${since(letter.dead_lettered)} ago`,
      el("span", { class: "buttons" }, bodyOf(letter), letter.unfit ? letter.unfit : replayButton(letter, strays, () => showLetters(button, text, into, chosen))),
    ]));
    say(text, listing.letters.length ? `${count(listing.letters.length + listing.more)}${listing.whole ? "" : " or more"} found.` : `No ${what}.`);
    return [
      rows.length ? table(LETTERS, rows) : null,
      listing.more || !listing.whole ? el("p", {}, "More aren't shown; shardctl deadletter list lists all.") : null,
    ];
  }, text);
}

const bodyOf = (letter) => el("details", {}, el("summary", { "aria-label": `Message ${letter.id}` }, "Message"), message(`${letter.operation} ${letter.size.toLocaleString("en")} bytes, id ${letter.id}`, letter.body));

function replayButton(letter, strays, after) {
  const ask = () => confirmed({
    title: `Replay the write of ${letter.key}?`,
    text: `It is published again with its own idempotency key (${letter.type}, dead-lettered ${since(letter.dead_lettered)} ago: ${letter.reason}). Had it taken effect, nothing happens twice.`,
    yes: "Replay this write",
    work: () => post("letters/replay", { strays, id: letter.id, key: letter.key, dead_lettered_us: letter.dead_lettered_us }),
    after,
  });
  return el("button", { type: "button", onclick: ask, "aria-label": `Replay the write of ${letter.key}` }, "Replay …");
}

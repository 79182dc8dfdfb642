// Dead letters and strays, leased from Pub/Sub to show them.

import { get, post } from "./api.js";
import { confirmed, look, message, row, table } from "./aside.js";
import { $, count, el, say, since } from "./dom.js";

const LETTERS = ["Key", "Type", "Shard", "Reason", "Dead-lettered", ""];

export async function showLetters(strays) {
  await look($("letters"), $(strays ? "strays-look" : "letters-look"), async () => {
    const listing = await get("letters", { strays });
    const what = strays ? "strays" : "dead letters";
    const rows = listing.letters.map((letter) => row(LETTERS, [
      letter.key || "?", letter.type || "?", letter.shard || "?", `${letter.reason}: ${letter.detail}`, `${since(letter.dead_lettered)} ago`,
      el("span", { class: "buttons" }, bodyOf(letter), letter.unfit ? letter.unfit : replayButton(letter, strays)),
    ]));
    say($("letters-text"), listing.letters.length ? `${count(listing.letters.length + listing.more)}${listing.whole ? "" : " or more"} found.` : `No ${what}.`);
    return [
      rows.length ? table(LETTERS, rows) : null,
      listing.more || !listing.whole ? el("p", {}, "More aren't shown; shardctl deadletter list lists all.") : null,
    ];
  });
}

const bodyOf = (letter) => el("details", {}, el("summary", { "aria-label": `Message ${letter.id}` }, "Message"), message(`${letter.operation} ${letter.size.toLocaleString("en")} bytes, id ${letter.id}`, letter.body));

function replayButton(letter, strays) {
  const ask = () => confirmed({
    title: `Replay the write of ${letter.key}?`,
    text: `It is published again with its own idempotency key (${letter.type}, dead-lettered ${since(letter.dead_lettered)} ago: ${letter.reason}). Had it taken effect, nothing happens twice.`,
    work: () => post("letters/replay", { strays, id: letter.id, key: letter.key, dead_lettered_us: letter.dead_lettered_us }),
    after: () => showLetters(strays),
  });
  return el("button", { type: "button", onclick: ask, "aria-label": `Replay the write of ${letter.key}` }, "Replay …");
}

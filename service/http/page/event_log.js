// What was heard, when, as a table that grows at its top, and as CSV.

import { $, element } from "./dom.js";
import { save } from "./downloads.js";
import { clockTime, human, percent } from "./words.js";

const MOST_ROWS = 200; // to see; the file has all

export class EventLog {
  #root;
  #events = []; // {label, start_s, end_s, score, at: Date}

  constructor(root) {
    this.#root = root;
    $(".save", root).addEventListener("click", () => save("heard.csv", "text/csv", [this.csv()]));
    $(".clear", root).addEventListener("click", () => { this.#events = []; $("tbody", root).replaceChildren(); this.#show(); });
    this.#show();
  }

  /** event: as the server tells it; beganAt: the Date of second 0. */
  add({ label, start_s, end_s, score }, beganAt) {
    const at = new Date(beganAt.getTime() + 1000 * start_s);
    this.#events.push({ label, start_s, end_s, score, at });
    const line = element("tr");
    const label_ = element("th", "", human(label));
    label_.scope = "row";
    line.append(
      element("td", "number", at.toLocaleTimeString()), label_,
      element("td", "number", `${clockTime(start_s)} – ${clockTime(end_s)}`), element("td", "number", percent(score)),
    );
    const body = $("tbody", this.#root);
    body.prepend(line);
    if (body.rows.length > MOST_ROWS) body.lastElementChild.remove();
    this.#show();
  }

  csv() {
    const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
    const rows = this.#events.map(({ at, label, start_s, end_s, score }) =>
      [at.toISOString(), quoted(label), start_s.toFixed(2), end_s.toFixed(2), score].join(","));
    return ["time,label,start_s,end_s,score", ...rows].join("\r\n") + "\r\n";
  }

  #show() {
    const empty = this.#events.length === 0;
    $(".nothing", this.#root).hidden = !empty;
    $("table", this.#root).hidden = empty;
    for (const button of this.#root.querySelectorAll("button")) button.disabled = empty;
  }
}

// Several sounds in one table: what each is, and how alike every two of them are.

import { $, element } from "./dom.js";

const MOST_COLUMNS = 12; // of similarities; the other sounds are in the rows

export class Overview {
  #root;
  #choose;

  /** choose: called with the sound whose row is pressed. */
  constructor(root, choose) {
    this.#root = root;
    this.#choose = choose;
  }

  /** sounds: with {name, best, heard}; there is nothing to compare with fewer than two. */
  show(sounds, chosen) {
    this.#root.hidden = sounds.length < 2;
    if (this.#root.hidden) return;
    const compared = sounds.slice(0, MOST_COLUMNS);
    const scale = Scale.of(sounds);
    $("thead tr", this.#root).replaceChildren(
      column("Sound"), column("Heard"), ...compared.map((sound, i) => column(String(i + 1), `Alike to ${sound.name}`)),
    );
    const focused = this.#root.querySelector("tbody button:focus")?.dataset.row;
    $("tbody", this.#root).replaceChildren(...sounds.map((sound, i) => this.#row(sound, i, { chosen, compared, scale })));
    if (focused !== undefined) this.#root.querySelector(`[data-row="${focused}"]`)?.focus();
    $(".legend", this.#root).textContent = scale.words;
  }

  #row(sound, i, { chosen, compared, scale }) {
    const line = element("tr", sound === chosen ? "chosen" : "");
    const name = element("th");
    name.scope = "row";
    const button = name.appendChild(element("button", "name"));
    button.type = "button";
    button.dataset.row = i;
    button.append(element("span", "index", String(i + 1)), element("span", "", sound.name));
    button.title = sound.name;
    if (sound === chosen) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.#choose(sound));
    line.append(name, element("td", "best", sound.trouble ? "Could not be heard" : sound.best || (sound.heard ? "—" : "…")));
    for (const other of compared) line.append(scale.cell(sound, other));
    return line;
  }
}

function column(text, title = "") {
  const made = element("th", title && "similarity", text);
  made.scope = "col";
  if (title) Object.assign(made, { title, ariaLabel: title });
  return made;
}

/** How a cosine is shown: those of centred vectors begin at 0, others all lie high, and are told apart from the
 * lowest of them on. */
class Scale {
  #least;

  static of(sounds) {
    return new Scale(sounds.filter(isComparable));
  }

  constructor(heard) {
    const centred = heard.length > 0 && heard.every((sound) => sound.heard.centred);
    const all = heard.flatMap((a) => heard.map((b) => cosine(a.heard.embedding, b.heard.embedding)));
    this.#least = centred || all.length === 0 ? 0 : Math.min(...all, 0.99);
    if (heard.length < 2) this.words = "";
    else if (centred) this.words = "The numbers tell how alike two sounds are: 1.00 is the same, 0.00 and less has nothing in common.";
    else {
      this.words = "The numbers tell how alike two sounds are, as the cosine of their vectors: 1.00 is the same. With " +
        "this model all sounds are high: what counts is which is higher.";
    }
  }

  cell(a, b) {
    const made = element("td", "similarity");
    if (a === b || !isComparable(a) || !isComparable(b)) return made;
    const value = cosine(a.heard.embedding, b.heard.embedding);
    const share = Math.max(0, (value - this.#least) / (1 - this.#least));
    made.textContent = value.toFixed(2).replace("-0.00", "0.00").replace("-", "−");
    made.style.setProperty("--share", `${(100 * share).toFixed(0)}%`);
    made.classList.toggle("near", share > 0.72);
    return made;
  }
}

/** Silence is like nothing, whatever its vector says. */
const isComparable = ({ heard, isSilent }) => heard !== null && !isSilent;

function cosine(a, b) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb || 1);
}

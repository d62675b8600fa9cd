// The last half minute of a sound that goes on: log-mel and tags over time above one another, now on the right.

import { BandAxis } from "./axes.js";
import { $, element } from "./dom.js";
import { clearLogmel, onSchemeChange, rollLogmel } from "./pictures.js";
import { human } from "./words.js";

export const SPAN_S = 30;
const BANDS = 64;
const PIECES_PER_S = 20;
const USUAL = { f_min_hz: 60, f_max_hz: 7800, mel_scale: "slaney", n_mels: BANDS };
const QUIETEST_DB = -110, LOUDEST_DB = -22; // of a bin: below is the ground's colour, above is the strongest
const MOST_ROWS = 5;
const LEAST = 0.1; // a label that never scores more, and is not heard, has no row
const FAINTEST = 0.35; // of what is heard, however low its score

export class Rolling {
  #root;
  #isHeard;
  #canvas;
  #axis;
  #windows = []; // [{start_s, end_s, tags}], the newest last
  #strips = [];
  #drawnS = 0;
  #columns = []; // that are not drawn yet
  #drawn = []; // columns, as many as there is room for

  /** isHeard: ({label, score}) => whether that counts as heard. */
  constructor(root, { isHeard }) {
    this.#root = root;
    this.#isHeard = isHeard;
    this.#canvas = $(".logmel canvas", root);
    onSchemeChange(() => this.#redraw());
  }

  /** frontend: of the model's card. */
  begin(frontend) {
    this.#windows = [];
    this.#columns = [];
    this.#drawn = [];
    const own = BandAxis.of(frontend); // a model that takes samples has none
    this.#axis = own ?? BandAxis.of(USUAL);
    $(".no-logmel", this.#root).hidden = own !== null;
    this.#canvas.width = SPAN_S * PIECES_PER_S;
    this.#canvas.height = BANDS;
    clearLogmel(this.#canvas);
    const gutter = $(".logmel .gutter", this.#root);
    for (const old of gutter.querySelectorAll(".mark")) old.remove();
    gutter.append(...this.#axis.marks().map(({ place, text }) => mark("bottom", 100 * place, text)));
    const ago = [30, 20, 10].map((seconds) => mark("left", 100 * (1 - seconds / SPAN_S), `−${seconds}`));
    $(".time .plot", this.#root).replaceChildren(...ago, mark("left", 100, "now"));
    this.#showRows(0);
  }

  /** A piece of sound came. spectrum: (bins,) in dB, up to half of `rate` Hz. */
  take(spectrum, rate) {
    this.#columns.push(bandsOf(spectrum, rate / 2 / spectrum.length, this.#axis));
    if (this.#columns.length > this.#canvas.width) this.#columns.shift(); // nothing is drawn while nobody looks
  }

  /** Draws what came since it was drawn last. nowS: at its end. */
  draw(nowS) {
    const columns = this.#columns.splice(0);
    rollLogmel(this.#canvas, columns);
    this.#drawn = [...this.#drawn, ...columns].slice(-this.#canvas.width);
    for (const strip of this.#strips) strip.style.transform = `translateX(${(-100 * (nowS - this.#drawnS)) / SPAN_S}%)`;
  }

  /** Tags of a window came. hopS: from one window to the next. */
  add(window, hopS, nowS) {
    const middle = (window.start_s + window.end_s) / 2;
    this.#windows.push({ ...window, from: middle - hopS / 2, to: middle + hopS / 2 });
    while (this.#windows[0]?.to < nowS - SPAN_S) this.#windows.shift();
    this.#showRows(nowS);
  }

  /** In the colours of now. */
  #redraw() {
    if (!this.#axis) return; // nothing was drawn yet
    clearLogmel(this.#canvas);
    rollLogmel(this.#canvas, this.#drawn);
  }

  #showRows(nowS) {
    this.#drawnS = nowS;
    const labels = strongest(this.#windows, this.#isHeard);
    const rows = labels.map((label) => row(label, this.#windows, nowS, this.#isHeard));
    this.#strips = rows.map((each) => $(".strip", each));
    while (rows.length < MOST_ROWS) rows.push(row("", [], nowS, this.#isHeard));
    $(".timeline", this.#root).replaceChildren(...rows);
  }
}

/** 64 values of 0 to 255, the lowest band first. */
function bandsOf(spectrum, hzPerBin, axis) {
  return Array.from({ length: BANDS }, (_, band) => {
    const first = Math.round(axis.hzOf(band / BANDS) / hzPerBin);
    const last = Math.max(first + 1, Math.round(axis.hzOf((band + 1) / BANDS) / hzPerBin));
    const loudest = Math.max(...spectrum.subarray(first, last), -200);
    return Math.round(255 * Math.max(0, Math.min((loudest - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB), 1)));
  });
}

/** Those that scored most of late, in the order in which they came: rows that stay where they are can be read. */
function strongest(windows, isHeard) {
  const peaks = new Map();
  for (const { label, score } of windows.flatMap(({ tags }) => tags)) {
    peaks.set(label, Math.max(score, peaks.get(label) ?? 0));
  }
  const kept = [...peaks].filter(([label, peak]) => peak >= LEAST || isHeard({ label, score: peak })).sort(([, a], [, b]) => b - a).slice(0, MOST_ROWS);
  return [...peaks.keys()].filter((label) => kept.some(([each]) => each === label));
}

function row(label, windows, nowS, isHeard) {
  const line = element("li", "lane");
  const name = element("span", "gutter", human(label));
  name.title = human(label);
  const plot = element("div", "plot");
  const strip = plot.appendChild(element("div", "strip"));
  for (const { from, to, tags } of windows) {
    const score = tags.find((tag) => tag.label === label)?.score ?? 0;
    if (score < 0.02) continue;
    const made = strip.appendChild(element("i"));
    made.style.left = `${100 * (1 - (nowS - from) / SPAN_S)}%`;
    made.style.width = `${(100 * (to - from)) / SPAN_S}%`;
    made.style.opacity = isHeard({ label, score }) ? Math.max(score, FAINTEST) : score;
  }
  line.append(name, plot);
  return line;
}

function mark(side, percent, text) {
  const made = element("span", "mark", text);
  made.style[side] = `${percent}%`;
  return made;
}

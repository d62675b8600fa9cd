// Tags over time: a row for each of the leading labels, a mark where it is heard, as strong as its score.

import { element } from "./dom.js";
import { human, percent } from "./words.js";

const MOST_ROWS = 6;
const LEAST = 0.05; // a label that never scores more has no row, but the first one
const FAINT = 0.02; // a mark of this opacity is not seen

/** windows: [{start_s, end_s, tags, silent}] */
export function showTimeline(list, windows, durationS) {
  const heard = windows.filter(({ silent }) => !silent);
  const labels = labelsOf(heard);
  list.hidden = labels.length === 0;
  list.replaceChildren(...labels.map((label) => lane(label, heard, durationS)));
}

/** The window at some second: windows follow one another. */
export const windowAt = (windows, seconds) => windows.find(({ end_s }) => seconds < end_s) ?? windows.at(-1);

export const scoreOf = ({ tags }, label) => tags.find((tag) => tag.label === label)?.score ?? 0;

/** "0.0 to 1.0 s: dog 95 %" */
export function describe(window, label = window.tags[0]?.label) {
  const what = window.silent || !label ? "silence" : `${human(label)} ${percent(scoreOf(window, label))}`;
  return `${window.start_s.toFixed(1)} to ${window.end_s.toFixed(1)} s: ${what}`;
}

/** The labels that are highest in some window, at most MOST_ROWS. */
function labelsOf(windows) {
  const peaks = new Map();
  for (const { label, score } of windows.flatMap(({ tags }) => tags)) {
    peaks.set(label, Math.max(score, peaks.get(label) ?? 0));
  }
  const best = [...peaks].sort(([, a], [, b]) => b - a).slice(0, MOST_ROWS);
  return best.filter(([, peak], i) => i === 0 || peak >= LEAST).map(([label]) => label);
}

function lane(label, windows, durationS) {
  const line = element("li", "lane");
  line.dataset.label = label;
  const plot = element("div", "plot");
  plot.setAttribute("role", "img");
  const best = windows.reduce((a, b) => (scoreOf(b, label) > scoreOf(a, label) ? b : a));
  plot.setAttribute("aria-label", `most from ${describe(best, label)}`);
  for (const window of windows) {
    const score = scoreOf(window, label);
    if (score < FAINT) continue;
    const mark = plot.appendChild(element("i"));
    mark.style.left = `${(100 * window.start_s) / durationS}%`;
    mark.style.width = `${(100 * (window.end_s - window.start_s)) / durationS}%`;
    mark.style.opacity = score;
  }
  const name = element("span", "gutter", human(label));
  name.title = human(label); // it may be cut off
  line.append(name, plot);
  return line;
}

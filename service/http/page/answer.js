// What was heard, as words: the leading tags large, the others with bars, and when each was heard.

import { $, element } from "./dom.js";
import { clockTime, familiarity, human, isSilence, percent, verdict } from "./words.js";

const MOST_LEADING = 3;
const MOST_SPANS = 3; // to see at once
const LONG = 18; // characters of a label, from which on it is set smaller
const FAINT = 0.1; // labels that are seldom heard have thresholds below: too little to tell people of

/** heard: as api.hear gives it; scorer: as choice.scorer gives it. */
export function showAnswer(card, heard, { scorer, silent }) {
  const answer = $(".answer", card);
  const leading = heard.tags.filter(({ score }) => score >= heard.tags[0].score / 2).slice(0, MOST_LEADING);
  const rows = heard.tags.map(({ label, score }) => row(human(label), score, percent(score)));
  for (const each of rows) each.classList.toggle("long", $(".label", each).textContent.length > LONG);
  $(".leading", answer).replaceChildren(...rows.slice(0, leading.length));
  $(".others", answer).replaceChildren(...rows.slice(leading.length));
  $(".others", answer).start = leading.length + 1;
  const { words, sure } = verdict(heard, { scorer, silent });
  $(".verdict", answer).textContent = words;
  const known = $(".known", answer);
  known.textContent = silent ? "" : familiarity(heard.known, scorer?.labels.length);
  known.hidden = known.textContent === "";
  answer.classList.toggle("silent", silent);
  answer.classList.toggle("wordless", heard.tags.length === 0);
  answer.classList.toggle("unsure", !sure);
}

/** A name, a bar of `share` (0 to 1) and a number. */
export function row(name, share, number) {
  const item = element("li");
  const bar = element("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  bar.append(element("i"));
  bar.firstChild.style.width = `${100 * share}%`;
  item.append(element("span", "label", name), bar, element("span", "number", number));
  return item;
}

/** A button for each span of time in which something is heard, at first for the surest of them. play: (startS, endS). */
export function showSegments(card, segments, { play }) {
  const spans = spansOf(segments);
  const surest = spans.toSorted((a, b) => b.score - a.score).slice(0, MOST_SPANS);
  const more = $(".more", card);
  more.hidden = spans.length <= MOST_SPANS;
  more.textContent = `Show all ${spans.length}`;
  more.onclick = () => {
    more.hidden = true;
    showSpans(card, spans, play);
    $(".segments button", card).focus(); // the button is gone now
  };
  showSpans(card, spans.filter((span) => surest.includes(span)), play);
}

function showSpans(card, spans, play) {
  $(".when", card).hidden = spans.length === 0;
  $(".segments", card).replaceChildren(...spans.map((span) => {
    const item = element("li");
    const button = item.appendChild(element("button", "segment"));
    button.type = "button";
    button.append(
      element("span", "span", between(span.startS, span.endS)),
      element("span", "label", span.labels.map(human).join(", ")),
      element("span", "number", percent(span.score)),
    );
    button.addEventListener("click", () => play(span.startS, span.endS));
    Object.assign(button.dataset, { startS: span.startS, endS: span.endS });
    return item;
  }));
}

/** Marks those that lie around some second. */
export function markSegments(card, seconds) {
  for (const button of card.querySelectorAll(".segment")) {
    const inside = seconds >= button.dataset.startS && seconds < button.dataset.endS;
    if (inside) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

/** "2.0 – 3.0 s"; from a minute on as a clock shows it. */
const between = (startS, endS) =>
  endS < 60 ? `${startS.toFixed(1)} – ${endS.toFixed(1)} s` : `${clockTime(startS)} – ${clockTime(endS)}`;

/** Labels of one span together, the surest first; in the order of time. */
function spansOf(segments) {
  const spans = new Map();
  for (const { label, start_s: startS, end_s: endS, score } of segments.toSorted((a, b) => b.score - a.score)) {
    if (score < FAINT || isSilence(label)) continue;
    const name = `${startS} ${endS}`;
    if (!spans.has(name)) spans.set(name, { startS, endS, score, labels: [] });
    spans.get(name).labels.push(label);
  }
  return [...spans.values()].sort((a, b) => a.startS - b.startS || a.endS - b.endS);
}

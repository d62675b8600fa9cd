// The models that the server has, and which of them, with which labels, is asked.

import * as api from "./api.js";
import { $, all, element } from "./dom.js";
import { human } from "./words.js";

const OWN = " own"; // in place of a head's name, which begins with no blank

const listeners = [];
let served = []; // as GET /models lists them
let ownLabels = []; // that were asked for in place of a head

/** Asks the server; what was chosen stays chosen where it is still there. */
export async function load() {
  const answer = await api.models();
  const before = { model: $("#model").value, head: $("#head").value };
  served = answer.models;
  fill($("#model"), served.map(({ card }) => [card.name, card.name]), before.model || answer.default);
  showHeads(before.head);
}

/** {card, heads, text, precision, device}; undefined before load. */
export const model = () => served.find(({ card }) => card.name === $("#model").value);

/** {name, task, labels, thresholds}; undefined where the model has none, or is asked for labels in words. */
export const head = () => model()?.heads.find(({ name }) => name === $("#head").value);

/** What a sound is asked for: a head, or {own: true, task, labels} for labels in words; undefined for neither. */
export const scorer = () => (hasOwn() ? { own: true, task: "multiclass", labels: ownLabels } : head());

/** Whether labels in words stand in place of a head. */
export const hasOwn = () => $("#head").value === OWN;

/** Asks for these from now on; the model has a text tower. */
export function askFor(labels) {
  ownLabels = labels;
  showHeads(OWN);
  tell();
}

export function onChange(listener) {
  listeners.push(listener);
}

export function watch() {
  $("#model").addEventListener("change", () => { showHeads($("#head").value); tell(); });
  $("#head").addEventListener("change", () => { showKnown(); tell(); });
}

const tell = () => { for (const listener of listeners) listener(); };

/** chosen: the first head where there is none of this name. */
function showHeads(chosen) {
  const { card, heads, text, precision, device } = model();
  const options = heads.map(({ name, labels }) => [name, `${name} (${labels.length})`]);
  if (text && ownLabels.length) options.push([OWN, `your own (${ownLabels.length})`]);
  $("#head").disabled = options.length === 0;
  fill($("#head"), options.length ? options : [["", "none"]], chosen);
  for (const part of all(".with-text")) part.hidden = !text;
  const how = precision ? `, ${precision} on ${device}` : "";
  $("#about").textContent = `${card.name} ${card.version}: ${card.description.replace(/\.$/, "")}. ${card.licence}${how}`;
  showKnown();
}

/** Every label that the head can tell, for whoever wonders. */
function showKnown() {
  const labels = head()?.labels ?? [];
  $("#known").hidden = labels.length === 0;
  $("#known summary").textContent = `The ${labels.length} sounds it can tell`;
  $("#known ul").replaceChildren(...labels.map(human).sort().map((label) => element("li", "", label)));
}

/** options: [[value, text]]; the first is chosen where `chosen` is none of them. */
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

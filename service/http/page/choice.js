// The models that the server has, and which of them, with which labels, is asked.

import * as api from "./api.js";
import { $ } from "./dom.js";

const listeners = [];
let served = []; // as GET /models lists them

/** Asks the server; what was chosen stays chosen where it is still there. */
export async function load() {
  const answer = await api.models();
  const before = { model: $("#model").value, head: $("#head").value };
  served = answer.models;
  fill($("#model"), served.map(({ card }) => [card.name, card.name]), before.model || answer.default);
  showHeads(before.head);
}

/** {card, heads, precision, device}; undefined before load. */
export const model = () => served.find(({ card }) => card.name === $("#model").value);

/** {name, task, labels, thresholds}; undefined where the model has none. */
export const head = () => model()?.heads.find(({ name }) => name === $("#head").value);

export function onChange(listener) {
  listeners.push(listener);
}

export function watch() {
  $("#model").addEventListener("change", () => { showHeads(""); tell(); });
  $("#head").addEventListener("change", tell);
}

const tell = () => { for (const listener of listeners) listener(); };

function showHeads(chosen) {
  const { card, heads, precision, device } = model();
  fill($("#head"), heads.map(({ name, labels }) => [name, `${name} (${labels.length})`]), chosen);
  $("#head").disabled = heads.length === 0;
  const how = precision ? `, ${precision} on ${device}` : "";
  $("#about").textContent = `${card.name} ${card.version}: ${card.description.replace(/\.$/, "")}. ${card.licence}${how}`;
}

/** options: [[value, text]]; the first is chosen where `chosen` is none of them. */
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

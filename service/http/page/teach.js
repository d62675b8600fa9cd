// Teach: labels of one's own in, from a few recordings of each, a head that is served at once out.

import * as api from "./api.js";
import * as choice from "./choice.js";
import { copy } from "./copy.js";
import { $, all, element } from "./dom.js";
import { save } from "./downloads.js";
import { LabelCard } from "./label_card.js";
import { askForKey } from "./notices.js";
import { Trial } from "./trial.js";
import { sentence } from "./words.js";

const NONE = null; // in place of a label: what is none of them
const MOST_WORDS = 4; // sentences of a report
const NOTHING_YET = "As soon as a label has an example, you can try it here.";

const place = $("#teach");
const trial = new Trial($(".trial", place), complain);
let cards = new Map(); // label -> LabelCard
let loadedModel = ""; // whose examples they show
let turn = Promise.resolve(); // what changes the head happens one after the other

export function start() {
  $("#head-name").addEventListener("change", load);
  choice.onChange(() => { if (!place.hidden && modelName() !== loadedModel) load(); });
  $("#add-label").addEventListener("submit", addLabel);
  $("#head-file").addEventListener("click", () => inTurn(async () => {
    save(`${headName()}.safetensors`, "application/octet-stream", [await api.headFile(modelName(), headName())]);
  }));
  $("#forget-head").addEventListener("click", () => {
    if (confirm(`Forget ${headName()} with all its examples?`)) inTurn(forgetHead);
  });
  $(".off .copy", place).addEventListener("click", async () => {
    $(".off .copied", place).textContent = await copy($(".off code", place));
  });
}

/** What the server has been taught already under this name. */
export const load = () => inTurn(async () => {
  stop();
  if (!choice.model()) return; // for want of a key: this comes again with it
  loadedModel = modelName();
  const { heads, damaged } = await taught();
  $(".off", place).hidden = heads !== null;
  for (const part of all(".on", place)) part.hidden = heads === null;
  if (heads === null) return;
  complain(damaged.map(({ detail }) => sentence({ message: detail })).join(" "));
  $("#head-names").replaceChildren(...heads.map(({ head }) => new Option(head, head)));
  cards = new Map();
  const known = heads.some(({ head }) => head === headName());
  const { examples } = known ? await api.examples(modelName(), headName()) : { examples: [] };
  for (const example of examples) card(example.labels[0] ?? NONE).add(example);
  card(NONE);
  showReport(known ? (await api.taughtHead(modelName(), headName())).report : null, "");
  show();
});

/** Lets the microphone go. */
export function stop() {
  trial.stop();
  for (const each of cards.values()) each.cancel();
}

/** heads: null where the server does not keep any. */
async function taught() {
  try {
    return await api.taughtHeads(modelName());
  } catch (error) {
    if (error.code === "teaching_off" || error.status === 404) return { heads: null, damaged: [] };
    throw error;
  }
}

function addLabel(event) {
  event.preventDefault();
  const field = $("#label-name");
  const label = field.value.trim();
  if (!label) return;
  const made = card(label);
  field.value = "";
  show();
  made.focus();
}

/** The card of a label; a new one where there is none. */
function card(label) {
  if (!cards.has(label)) {
    cards.set(label, new LabelCard(label, {
      onSounds: (files) => inTurn(() => teach(label, files)),
      onForget: (example) => inTurn(() => forget(label, example)),
      onRemove: () => inTurn(() => forgetLabel(label)),
      complain,
    }));
  }
  return cards.get(label);
}

/** files: Files; they are sent together, once. */
async function teach(label, files) {
  const { results, ...answer } = await api.addExamples(modelName(), headName(), label, files);
  results.forEach(({ examples }, i) => examples?.forEach((example) => card(label).add(example, files[i])));
  const refused = results.filter(({ detail }) => detail);
  complain(refused.map(({ file, detail }) => `${file}: ${detail}.`).join(" "));
  await fitted(answer);
}

async function forget(label, example) {
  const answer = await api.forgetExample(modelName(), headName(), example.id);
  card(label).remove(example);
  await fitted(answer);
}

async function forgetLabel(label) {
  if (card(label).count) await fitted(await api.forgetLabel(modelName(), headName(), label));
  cards.delete(label);
  card(NONE);
  show();
  $("#label-name").focus(); // the card is gone now
}

async function forgetHead() {
  trial.stop();
  await api.forgetHead(modelName(), headName());
  cards = new Map();
  card(NONE);
  showReport(null, "");
  await choice.load();
  show();
}

/** answer: with `fit`, the report, or with the reason why there is none. */
async function fitted({ fit, not_fitted_because: reason }) {
  showReport(fit, reason ?? "");
  show();
  if (!fit) return;
  await choice.load(); // it can be chosen from now on
  trial.renew();
}

function show() {
  const hasBegun = cards.size > 1 || cards.get(NONE).count > 0; // before, there is nothing that it could be none of
  const ordered = [...cards].sort(([a], [b]) => (a === NONE) - (b === NONE)); // none of these comes last
  arrange($(".labels", place), (hasBegun ? ordered : []).map(([, each]) => each.element));
  const isServed = choice.model().heads.some(({ name }) => name === headName());
  for (const button of [$("#head-file"), $("#forget-head"), $(".trial button", place)]) button.disabled = !isServed;
  trial.use({ model: modelName(), head: headName() });
  place.classList.toggle("begun", hasBegun);
}

/** Nothing is moved that is in its place: what is moved loses the focus. */
function arrange(root, elements) {
  const isThere = elements.length === root.children.length && elements.every((each, i) => each === root.children[i]);
  if (!isThere) root.replaceChildren(...elements);
}

function showReport(report, reason) {
  const words = report ? wordsOf(report) : [reason ? sentence({ message: reason }) : NOTHING_YET];
  $(".report", place).replaceChildren(...words.map((each) => element("li", "", each)));
}

/** Where each label has one clip, nothing can be left out to be judged by, and only the advice is worth its room. */
function wordsOf({ labels, examples, accuracy, words }) {
  const learnt = `It has learnt ${listed(labels.map(({ label }) => label))} from ${examples} example${examples === 1 ? "" : "s"}.`;
  return [learnt, ...words.slice(0, accuracy === null ? 1 : MOST_WORDS)];
}

const listed = (names) => new Intl.ListFormat("en").format(names);

/** Runs `work` when what was asked for before is done; an error becomes words. */
function inTurn(work) {
  turn = turn.then(async () => {
    place.setAttribute("aria-busy", "true");
    complain("");
    try {
      await work();
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      if (error.status === 401 || error.status === 403) askForKey();
      if (error.status !== 401) complain(sentence(error));
    } finally {
      place.removeAttribute("aria-busy");
    }
  }).catch((error) => reportError(error));
  return turn;
}

const modelName = () => choice.model().card.name;
const headName = () => $("#head-name").value.trim() || $("#head-name").placeholder;

function complain(words) {
  $(".complaint", place).textContent = words;
  $(".complaint", place).hidden = words === "";
}

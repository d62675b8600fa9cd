// Listen: the microphone goes to the server, and what it hears is shown while it hears it.

import { row } from "./answer.js";
import * as choice from "./choice.js";
import { $ } from "./dom.js";
import { EventLog } from "./event_log.js";
import { Microphone, levelOf, showLevel } from "./microphone.js";
import { askForKey } from "./notices.js";
import { microphone } from "./recorder.js";
import { Rolling } from "./rolling.js";
import { Stream } from "./stream.js";
import { clockTime, human, isSilence, percent, sentence } from "./words.js";

const TOP_K = 10;
const MOST_OTHERS = 4;
const DEAF_DB = -100, DEAF_S = 3;
const USUAL = { multiclass: 0.5, multilabel: 0.3 }; // thresholds to begin with, of a head that has none of its own

const place = $("#listen");
const rolling = new Rolling($(".evidence", place), { isHeard });
const log = new EventLog($(".log", place));
let own = null; // the head's thresholds by label, as long as nobody has moved the slider
let open = null; // {microphone, stream, hopS, level, frame, heardAtS, isDeaf} while it listens
let isOpening = false;

export function start() {
  $("#listen-toggle").addEventListener("click", () => (open ? stop("Stopped.") : begin()));
  $("#threshold").addEventListener("input", () => { own = null; showThreshold(); });
  $("#threshold").addEventListener("change", () => open?.stream.change(parameters()));
  $("#own-thresholds").addEventListener("click", () => {
    $("#threshold").focus(); // the button is gone now
    proposeThreshold();
    open?.stream.change(parameters());
  });
  choice.onChange(() => { proposeThreshold(); if (open) { stop(); begin(); } });
}

/** What the threshold is depends on the labels that were chosen: each label's own where the head tells them, and
 * one for all of them else, or once the slider is moved. */
export function proposeThreshold() {
  const head = choice.head();
  own = thresholdsOf(head);
  $("#threshold").value = 100 * (own ? usualOf([...own.values()]) : USUAL[head?.task] ?? 0.5);
  showThreshold();
}

/** A Map by label; null where the head has none. */
const thresholdsOf = (head) =>
  head?.thresholds ? new Map(head.labels.map((label, i) => [label, head.thresholds[i]])) : null;

/** What most are near to: their median. */
const usualOf = (thresholds) => thresholds.toSorted((a, b) => a - b)[Math.floor(thresholds.length / 2)];

export function stop(sentence_ = "") {
  if (open) {
    open.microphone.close();
    open.stream.end();
    open = null;
  }
  showOpen(false);
  showTags([]);
  $(".state", place).textContent = sentence_;
}

async function begin() {
  complain("");
  if (choice.hasOwn()) return complain("Your own labels are for Ask: choose others above to listen for.");
  if (!choice.head()) return complain("This model has no labels to listen for: choose another one.");
  if (isOpening) return;
  isOpening = true; // until the browser has asked; a button that is disabled would lose the focus
  try {
    const source = await microphone();
    const opened = await Microphone.open(source, {
      onPiece: (piece) => take(piece),
      onEnd: () => open?.microphone === opened && stop("The microphone was taken away."),
    });
    if (place.hidden) opened.close(); // something else is looked at by now
    else listen(opened);
  } catch (error) {
    complain(sentence(error));
  } finally {
    isOpening = false;
  }
}

function listen(opened) {
  rolling.begin(choice.model().card.frontend);
  showTags([]);
  showOpen(true);
  const beganAt = new Date();
  const stream = new Stream(opened.rate, parameters(), {
    onMessage: (message) => hear(message, beganAt),
    onWait: (words) => { $(".state", place).textContent = `${sentence({ message: words })} Trying again…`; },
    onTrouble: (words, code) => {
      if (!words || open?.stream !== stream) return;
      stop();
      if (code === "unauthorized") askForKey();
      else complain(sentence({ message: words }));
    },
  });
  open = { microphone: opened, stream, hopS: 0.5, level: -Infinity, frame: 0, heardAtS: 0, isDeaf: false };
}

const parameters = () => ({
  model: choice.model().card.name, head: choice.head().name, top_k: TOP_K, ...(own ? {} : { begin: threshold().toFixed(2) }),
});

/** piece: Int16Array. They come twenty a second, or, where the browser has not got on, many at once. */
function take(piece) {
  if (!open) return;
  open.stream.send(piece);
  rolling.take(open.microphone.spectrum(), open.microphone.rate);
  open.level = levelOf(piece);
  listenForDeafness();
  if (!open.frame) open.frame = requestAnimationFrame(draw);
}

/** A microphone that is switched off gives zeros, which no room does. */
function listenForDeafness() {
  if (open.level > DEAF_DB) open.heardAtS = open.stream.takenS;
  const isDeaf = open.stream.takenS - open.heardAtS > DEAF_S;
  if (isDeaf === open.isDeaf) return;
  open.isDeaf = isDeaf;
  $(".state", place).textContent = isDeaf ? "No sound comes from the microphone. Is it muted, or another one chosen?" : "";
}

function draw() {
  if (!open) return;
  open.frame = 0;
  rolling.draw(open.stream.takenS);
  showLevel($(".meter", place), open.level);
  $(".clock", place).textContent = clockTime(open.stream.takenS).replace(/\.\d$/, "");
}

function hear(message, beganAt) {
  if (message.type === "event" && !isSilence(message.label)) log.add(message, beganAt);
  if (!open) return; // what is left, after the end
  if (message.type === "ready") {
    open.hopS = message.hop_s;
    $(".state", place).textContent = "";
  }
  if (message.type === "lag") $(".state", place).textContent = `The server is ${message.seconds.toFixed(0)} s behind.`;
  if (message.type === "tags") {
    const tags = message.tags.filter(({ label }) => !isSilence(label));
    rolling.add({ ...message, tags }, open.hopS, open.stream.takenS);
    showTags(tags);
  }
}

/** tags: best first. What is below its threshold is not said aloud. */
function showTags(tags) {
  const loudest = tags.find(isHeard);
  $(".loudest .label", place).textContent = loudest ? human(loudest.label) : "…";
  $(".loudest .number", place).textContent = loudest ? percent(loudest.score) : "";
  $(".loudest", place).classList.toggle("faint", !loudest);
  const others = tags.filter((tag) => tag !== loudest).slice(0, MOST_OTHERS);
  $(".others", place).replaceChildren(...others.map(({ label, score }) => row(human(label), score, percent(score))));
}

/** By its label's own threshold, or the one of all. */
function isHeard({ label, score }) {
  return score >= (own?.get(label) ?? threshold());
}

/** Of all labels, where they have none of their own. */
const threshold = () => Number($("#threshold").value) / 100;

function showThreshold() {
  const words = own ? `automatic: for most labels near ${percent(threshold())}` : percent(threshold());
  $("#threshold-value").textContent = words;
  $("#threshold").setAttribute("aria-valuetext", words);
  $("#own-thresholds").hidden = own !== null || !thresholdsOf(choice.head());
}

function showOpen(is) {
  place.classList.toggle("open", is);
  if (is) $("#live").hidden = false;
  $("#listen-toggle").textContent = is ? "Stop" : "Start listening";
  $("#listen-toggle").setAttribute("aria-pressed", is);
  if (!is) showLevel($(".meter", place), -Infinity);
}

function complain(words) {
  $(".complaint", place).textContent = words;
  $(".complaint", place).hidden = words === "";
}

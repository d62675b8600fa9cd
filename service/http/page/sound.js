// The card of one sound: its answer first, below it the evidence, its downloads and the same request in code.

import * as api from "./api.js";
import { markSegments, showAnswer, showSegments } from "./answer.js";
import { copy } from "./copy.js";
import { $, all, press } from "./dom.js";
import { csvOf, jsonOf, npyOf, save } from "./downloads.js";
import { Evidence } from "./evidence.js";
import { Player } from "./player.js";
import { RATE_HZ, isSilent, samplesOf } from "./samples.js";
import { snippets } from "./snippets.js";
import { scoreOf } from "./timeline.js";
import { human, length, sentence } from "./words.js";

const TOP_K = 6;
const COLUMNS = 1000;
const LONG_S = 4; // from here on there are tags over time
const SHORTEST_WINDOW_S = 1;
const MOST_WINDOWS = 60;
// Of a file whose length the browser cannot tell, to have neither few windows nor thousands: AMR has 600 bytes a
// second, AIFF 176,000.
const BYTES_PER_WINDOW_S = 1_200_000;

export class Sound {
  heard = null; // as api.hear gives it
  trouble = null; // the error, where there was one
  #blob;
  #evidence;
  #player;
  #decoded = null;
  #silent = false;
  #snippets = {};
  #request = null; // the last one: an answer to an earlier one comes too late

  constructor(name, blob) {
    this.name = name;
    this.#blob = blob;
    this.card = $("#sound").content.cloneNode(true).firstElementChild;
    $("h2", this.card).textContent = name;
    this.card.setAttribute("aria-label", name);
    $(".remove", this.card).setAttribute("aria-label", `Remove ${name}`);
    if (blob.size > 0) $("audio", this.card).src = URL.createObjectURL(blob);
    this.#evidence = new Evidence($(".evidence", this.card), name);
    const parts = Object.fromEntries(["play", "clock", "seek", "playhead"].map((each) => [each, $(`.${each}`, this.card)]));
    this.#player = new Player($("audio", this.card), parts, (seconds) => markSegments(this.card, seconds));
    this.#takeButtons();
  }

  /** Whether there is nothing in it to be heard, or to be compared. */
  get isSilent() {
    return this.#silent;
  }

  /** The leading tag, in words. */
  get best() {
    if (this.#silent) return "Silence";
    return this.heard?.tags.length ? human(this.heard.tags[0].label) : "";
  }

  /** Everything that the server says of it. model: as GET /models lists it; scorer: as choice.scorer
   * gives it. Raises ApiError, whose sentence then stands on the card. */
  async analyse(model, scorer) {
    const request = (this.#request = {});
    this.#keep(null);
    this.card.setAttribute("aria-busy", "true");
    $(".verdict", this.card).textContent = "Listening…";
    this.#makeSnippets(model.card.name, scorer);
    try {
      if (this.#blob.size === 0) throw new api.ApiError(0, "audio_missing", "The file is empty.");
      await this.#showWaveform();
      const heard = await api.hear(this.#blob, {
        model: model.card.name, scorer, topK: TOP_K, windowS: await this.#windowS(),
        columns: model.card.frontend.kind === "waveform" ? 0 : COLUMNS, centred: Boolean(model.card.projection),
      });
      if (request === this.#request) await this.#show(heard, model.card, scorer);
    } catch (error) {
      if (request === this.#request) this.#fail(error);
      throw error;
    } finally {
      this.#makeSnippets(model.card.name, scorer); // the server may have said that it wants a key
      if (request === this.#request) this.card.removeAttribute("aria-busy");
    }
  }

  setVisible(visible) {
    this.card.hidden = !visible;
    if (!visible) this.#player.pause();
  }

  redraw() {
    this.#evidence.redraw();
  }

  remove() {
    this.#request = null;
    this.#player.pause();
    URL.revokeObjectURL($("audio", this.card).src);
    this.card.remove();
  }

  async #show(heard, card, scorer) {
    const samples = await this.#samples();
    const silentFrom = (startS, endS) => samples !== null && isSilent(samples, startS, endS);
    this.#fail(null);
    if (heard.durationS < LONG_S) heard.timeline = []; // of a file whose length was not known
    heard.segments = heard.segments.filter((segment) => isHeard(segment, heard.timeline, silentFrom));
    this.#keep(heard);
    this.#silent = silentFrom();
    $(".facts", this.card).textContent = length(heard.durationS);
    showAnswer(this.card, heard, { scorer, silent: this.#silent });
    showSegments(this.card, heard.segments, { play: (startS, endS) => this.#player.playSpan(startS, endS) });
    this.#evidence.show(heard, card);
    this.#player.load(heard.durationS, (seconds) => this.#evidence.words(seconds));
  }

  /** heard: what there is to download, or null. */
  #keep(heard) {
    this.heard = heard;
    for (const button of all(".downloads button", this.card)) button.disabled = heard === null;
  }

  #fail(error) {
    this.trouble = error;
    const place = $(".failure", this.card);
    place.textContent = error ? sentence(error) : "";
    place.hidden = error === null;
    this.card.classList.toggle("failed", error !== null);
  }

  /** Decoded once, and not before its turn. */
  #samples() {
    this.#decoded ??= samplesOf(this.#blob);
    return this.#decoded;
  }

  async #showWaveform() {
    const samples = await this.#samples();
    this.#evidence.showWaveform(samples);
    this.card.classList.toggle("mute", samples === null);
    $(".seek", this.card).tabIndex = samples ? 0 : -1;
    if (samples) this.#player.load(this.#evidence.durationS);
  }

  /** Seconds of the windows of a timeline; null where the sound is too short for one. */
  async #windowS() {
    const durationS = (await lengthOf($("audio", this.card))) ?? (await this.#samples())?.length / RATE_HZ;
    if (durationS < LONG_S) return null;
    const windowS = durationS ? durationS / MOST_WINDOWS : this.#blob.size / BYTES_PER_WINDOW_S;
    return Math.max(SHORTEST_WINDOW_S, windowS);
  }

  #takeButtons() {
    for (const button of all(".language", this.card)) {
      button.addEventListener("click", () => this.#showCode(button.dataset.language));
    }
    $(".copy", this.card).addEventListener("click", async () => {
      $(".copied", this.card).textContent = await copy($("code", this.card));
    });
    const files = {
      json: () => ["application/json", [jsonOf(this.name, this.heard)]],
      csv: () => ["text/csv", [csvOf([[this.name, this.heard]])]],
      npy: () => ["application/octet-stream", npyOf(this.heard.embedding)],
    };
    for (const button of all(".downloads button", this.card)) {
      const { format } = button.dataset;
      button.addEventListener("click", () => save(`${this.name}.${format}`, ...files[format]()));
    }
  }

  #makeSnippets(model, scorer) {
    const query = new URLSearchParams({ model, ...api.queryOf(scorer) });
    const target = new URL(`${scorer ? "classify" : "embed"}?${query}`, document.baseURI);
    const file = this.#blob instanceof File ? this.name : "recording.webm";
    this.#snippets = snippets(String(target), file);
    this.#showCode($(".language[aria-pressed=true]", this.card).dataset.language);
  }

  #showCode(language) {
    press(all(".language", this.card), $(`[data-language=${language}]`, this.card));
    $("code", this.card).textContent = this.#snippets[language];
    $(".copied", this.card).textContent = "";
  }
}

/** Whether there is sound in it that sounds like its label: a head gives silence a label, too. */
function isHeard({ label, start_s, end_s, score }, timeline, silentFrom) {
  const windows = timeline.filter((window) => window.start_s < end_s && window.end_s > start_s);
  const loud = windows.filter((window) => !silentFrom(window.start_s, window.end_s));
  if (loud.length === windows.length) return !silentFrom(start_s, end_s);
  return loud.some((window) => scoreOf(window, label) >= score / 2);
}

/** Seconds by the file's own head; null where that does not tell them, as in what browsers record. */
function lengthOf(audio) {
  const known = () => (Number.isFinite(audio.duration) ? audio.duration : null);
  if (audio.readyState > 0 || audio.error) return Promise.resolve(known());
  return new Promise((resolve) => {
    for (const end of ["loadedmetadata", "error"]) audio.addEventListener(end, () => resolve(known()), { once: true });
  });
}

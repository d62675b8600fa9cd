// One label: its sounds, recorded, chosen or dropped, in; small pictures of its examples out.

import { $, element } from "./dom.js";
import { drawWaveform } from "./pictures.js";
import { Recorder } from "./recorder.js";
import { RATE_HZ, play, samplesOf } from "./samples.js";
import { sentence } from "./words.js";

export class LabelCard {
  #label;
  #listeners;
  #recorder = new Recorder();
  #examples = new Map(); // id -> its element

  /** label: null for what is none of the labels; listeners: onSounds(files), onForget(example), onRemove(),
   * complain(sentence). */
  constructor(label, listeners) {
    this.#label = label;
    this.#listeners = listeners;
    this.element = $("#label").content.cloneNode(true).firstElementChild;
    $("h3", this.element).textContent = label ?? "None of these";
    this.element.classList.toggle("none", label === null);
    this.element.setAttribute("aria-label", label ?? "None of these");
    $(".hint", this.element).textContent = label === null ? "The room, and what must not be taken for one of them." : "";
    $(".remove", this.element).hidden = label === null;
    $(".remove", this.element).ariaLabel = `Remove ${label}`;
    $(".remove", this.element).addEventListener("click", () => listeners.onRemove());
    $(".record", this.element).addEventListener("click", () => this.#record());
    $(".choose", this.element).addEventListener("click", () => $("input", this.element).click());
    $("input", this.element).addEventListener("change", ({ target }) => {
      this.#give([...target.files]);
      target.value = "";
    });
    this.#takeDrops();
    this.#showCount();
  }

  get count() {
    return this.#examples.size;
  }

  /** Throws away what is being recorded. */
  async cancel() {
    if (!this.#recorder.isRecording) return;
    await this.#recorder.stop();
    this.#showRecording();
  }

  focus() {
    $(".record", this.element).focus();
  }

  /** example: as the server tells it; file: its sound, where it is at hand. */
  add(example, file = null) {
    this.#examples.get(example.id)?.remove();
    const item = element("li");
    const name = `${example.file || "recording"}, ${example.start_s.toFixed(1)} to ${example.end_s.toFixed(1)} s`;
    if (file) this.#showSound(item, name, example, file);
    else Object.assign(item.appendChild(element("span", "", example.file || "recording")), { title: name });
    const forget = item.appendChild(named(element("button", "forget", "×"), `Forget ${name}`));
    forget.addEventListener("click", () => this.#listeners.onForget(example));
    this.#examples.set(example.id, item);
    $(".examples-of", this.element).append(item);
    this.#showCount();
  }

  remove({ id }) {
    const item = this.#examples.get(id);
    const hadFocus = item?.contains(document.activeElement);
    const next = item?.nextElementSibling ?? item?.previousElementSibling;
    item?.remove();
    this.#examples.delete(id);
    this.#showCount();
    if (hadFocus) (next ? $(".forget", next) : $(".record", this.element)).focus();
  }

  /** A button with its picture, that plays it where the browser can. */
  async #showSound(item, name, { start_s, end_s }, file) {
    const button = item.appendChild(named(element("button", "hear"), `Play ${name}`));
    const canvas = button.appendChild(element("canvas"));
    Object.assign(canvas, { width: 160, height: 72, ariaHidden: "true" });
    button.disabled = true; // until it is decoded
    const samples = await samplesOf(file);
    if (!samples) return;
    const own = samples.subarray(Math.floor(start_s * RATE_HZ), Math.ceil(end_s * RATE_HZ));
    drawWaveform(canvas, own);
    button.disabled = false;
    button.addEventListener("click", () => play(own));
  }

  #showCount() {
    $(".count", this.element).textContent = this.count === 1 ? "1 example" : `${this.count} examples`;
  }

  #give(files) {
    if (files.length) this.#listeners.onSounds(files);
  }

  async #record() {
    try {
      if (this.#recorder.isRecording) {
        const blob = await this.#recorder.stop();
        this.#showRecording();
        this.#give([new File([blob], `${this.#label ?? "none"} ${1 + this.count}.webm`, { type: blob.type })]);
      } else {
        await this.#recorder.start((seconds) => this.#showRecording(seconds));
        this.#showRecording(0);
      }
    } catch (error) {
      this.#listeners.complain(sentence(error));
    }
  }

  /** seconds: so far; undefined when it is over. */
  #showRecording(seconds) {
    const on = seconds !== undefined;
    const button = $(".record", this.element);
    button.setAttribute("aria-pressed", on);
    button.textContent = on ? `Stop (${seconds.toFixed(0)} s)` : "Record";
  }

  #takeDrops() {
    const { classList } = this.element;
    this.element.addEventListener("dragover", (event) => { event.preventDefault(); classList.add("over"); });
    this.element.addEventListener("dragleave", () => classList.remove("over"));
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation(); // else it would be asked what is in it
      classList.remove("over");
      this.#give([...event.dataTransfer.files]);
    });
  }
}

/** A button of a picture or a sign, with what it does in words. */
function named(button, words) {
  return Object.assign(button, { type: "button", title: words, ariaLabel: words });
}

// What was just taught, tried at the microphone: the label that is heard large, and a bar for each.

import { row } from "./answer.js";
import { $ } from "./dom.js";
import { Microphone, levelOf, showLevel } from "./microphone.js";
import { microphone } from "./recorder.js";
import { Stream } from "./stream.js";
import { human, percent, sentence } from "./words.js";

const MOST_LABELS = 8;
const HEARD = 0.5;

export class Trial {
  #root;
  #complain;
  #asked = null; // {model, head}
  #open = null; // {microphone, stream}
  #isOpening = false;

  constructor(root, complain) {
    this.#root = root;
    this.#complain = complain;
    $("button", root).addEventListener("click", () => (this.#open ? this.stop() : this.#begin()));
  }

  /** asked: {model, head} */
  use(asked) {
    this.#asked = asked;
  }

  /** The head has changed: hears with the new one. */
  renew() {
    this.#open?.stream.change(this.#parameters());
  }

  stop() {
    this.#open?.microphone.close();
    this.#open?.stream.end();
    this.#open = null;
    this.#show(false);
  }

  async #begin() {
    if (this.#isOpening) return;
    this.#isOpening = true; // until the browser has asked; a button that is disabled would lose the focus
    try {
      const opened = await Microphone.open(await microphone(), {
        onPiece: (piece) => this.#take(piece),
        onEnd: () => this.#open?.microphone === opened && this.stop(),
      });
      if (this.#root.closest(".view").hidden) return opened.close(); // something else is looked at by now
      const stream = new Stream(opened.rate, this.#parameters(), {
        onMessage: (message) => this.#open?.stream === stream && this.#hear(message),
        onWait: (words) => this.#complain(`${sentence({ message: words })} Trying again…`),
        onTrouble: (words) => {
          if (!words || this.#open?.stream !== stream) return;
          this.stop();
          this.#complain(sentence({ message: words }));
        },
      });
      this.#open = { microphone: opened, stream };
      this.#show(true);
    } catch (error) {
      this.#complain(sentence(error));
    } finally {
      this.#isOpening = false;
    }
  }

  #parameters() {
    return { ...this.#asked, top_k: MOST_LABELS };
  }

  #take(piece) {
    if (!this.#open) return;
    this.#open.stream.send(piece);
    showLevel($(".meter", this.#root), levelOf(piece));
  }

  #hear({ type, tags }) {
    if (type === "ready") this.#complain("");
    if (type !== "tags") return;
    const heard = tags.length > 0 && tags[0].score >= HEARD;
    $(".loudest .label", this.#root).textContent = heard ? human(tags[0].label) : "None of these";
    $(".loudest .number", this.#root).textContent = heard ? percent(tags[0].score) : "";
    $(".loudest", this.#root).classList.toggle("faint", !heard);
    $(".others", this.#root).replaceChildren(...tags.map(({ label, score }) => row(human(label), score, percent(score))));
  }

  #show(isOpen) {
    const button = $("button", this.#root);
    button.textContent = isOpen ? "Stop" : "Try it at the microphone";
    button.setAttribute("aria-pressed", isOpen);
    this.#root.classList.toggle("open", isOpen);
    $(".loudest .label", this.#root).textContent = "…";
    $(".loudest .number", this.#root).textContent = "";
    $(".others", this.#root).replaceChildren();
  }
}

// One sound's player: a button and a clock, and a playhead that runs through all that lies below it.

import { clockTime } from "./words.js";

const STEPS = 50; // of the arrow keys, from the sound's begin to its end

export class Player {
  #audio;
  #parts;
  #durationS = 0;
  #untilS = Infinity; // where it stops by itself
  #describe = () => "";
  #onMove;

  /** parts: {play, clock, seek (the slider above the pictures), playhead}; onMove: (seconds) */
  constructor(audio, parts, onMove) {
    this.#audio = audio;
    this.#parts = parts;
    this.#onMove = onMove;
    parts.play.addEventListener("click", () => this.toggle());
    parts.seek.addEventListener("keydown", (event) => this.#onKey(event));
    parts.seek.addEventListener("pointerdown", (event) => this.#onPointer(event));
    parts.seek.addEventListener("pointermove", (event) => event.buttons && this.#onPointer(event));
    for (const change of ["play", "pause", "ended", "seeked"]) audio.addEventListener(change, () => this.#show());
    audio.addEventListener("play", () => { pauseOthers(audio); this.#run(); });
  }

  /** describe: (seconds) -> words on what is there, for those who cannot see it. */
  load(durationS, describe = this.#describe) {
    this.#durationS = durationS;
    this.#describe = describe;
    this.#parts.seek.setAttribute("aria-valuemax", durationS.toFixed(2));
    this.#show();
  }

  get positionS() {
    return Math.min(this.#audio.currentTime, this.#durationS);
  }

  toggle() {
    if (this.#audio.paused) this.#audio.play().catch(() => {}); // paused again before it began
    else this.#audio.pause();
  }

  pause() {
    this.#audio.pause();
  }

  /** From one second to another. */
  playSpan(startS, endS) {
    this.seekTo(startS);
    this.#untilS = endS;
    this.#audio.play().catch(() => {});
  }

  seekTo(positionS) {
    this.#untilS = Infinity;
    this.#audio.currentTime = Math.max(0, Math.min(positionS, this.#durationS));
    this.#show();
  }

  #onPointer(event) {
    const { left, width } = this.#parts.seek.getBoundingClientRect();
    this.#parts.seek.setPointerCapture(event.pointerId); // a drag may leave it
    this.seekTo(((event.clientX - left) / width) * this.#durationS);
  }

  #onKey(event) {
    const step = this.#durationS / STEPS;
    const to = {
      ArrowLeft: this.positionS - step, ArrowDown: this.positionS - step,
      ArrowRight: this.positionS + step, ArrowUp: this.positionS + step,
      PageDown: this.positionS - 10 * step, PageUp: this.positionS + 10 * step,
      Home: 0, End: this.#durationS,
    }[event.key];
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (to !== undefined) this.seekTo(to);
    else return;
    event.preventDefault(); // the page would scroll
  }

  /** Frame after frame while it plays: `timeupdate` comes four times a second. */
  #run() {
    this.#show();
    if (this.positionS >= this.#untilS) {
      this.#untilS = Infinity;
      this.#audio.pause();
    }
    if (!this.#audio.paused) requestAnimationFrame(() => this.#run());
  }

  #show() {
    const { play, clock, seek, playhead } = this.#parts;
    const { positionS } = this;
    play.setAttribute("aria-label", this.#audio.paused ? "Play" : "Pause");
    clock.textContent = `${clockTime(positionS)} / ${clockTime(this.#durationS)}`;
    playhead.style.left = `${(100 * positionS) / (this.#durationS || 1)}%`;
    seek.setAttribute("aria-valuenow", positionS.toFixed(2));
    seek.setAttribute("aria-valuetext", `${positionS.toFixed(1)} of ${this.#durationS.toFixed(1)} seconds${this.#describe(positionS)}`);
    this.#onMove(positionS);
  }
}

function pauseOthers(playing) {
  for (const audio of document.querySelectorAll("audio")) if (audio !== playing) audio.pause();
}

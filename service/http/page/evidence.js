// What a sound's tags come from: waveform, log-mel and tags over time above one another, on one axis of seconds.

import { BandAxis, timeMarks } from "./axes.js";
import { $, element } from "./dom.js";
import { drawLogmel, drawWaveform } from "./pictures.js";
import { RATE_HZ, isSilent, peak } from "./samples.js";
import { describe, scoreOf, showTimeline, windowAt } from "./timeline.js";
import { human, percent } from "./words.js";

const PIXELS_PER_MARK = 60;

export class Evidence {
  #root;
  #name;
  #durationS = 0;
  #samples = null;
  #windows = [];
  #logmel = null; // with msPerColumn and axis

  constructor(root, name) {
    this.#root = root;
    this.#name = name;
    const seek = $(".seek", root);
    seek.addEventListener("pointermove", (event) => this.#readOut(event));
    seek.addEventListener("pointerleave", () => this.#readOut(null));
    new ResizeObserver(() => this.#showTime()).observe($(".time .plot", root));
  }

  /** samples: Float32Array, or null where the browser cannot decode the sound. */
  showWaveform(samples) {
    this.#samples = samples;
    const lane = $(".waveform", this.#root);
    lane.hidden = samples === null;
    if (!samples) return;
    $("canvas", lane).setAttribute("aria-label", `Waveform of ${this.#name}`);
    this.redraw();
    if (!this.#durationS) this.#setDuration(samples.length / RATE_HZ);
  }

  /** heard: as api.hear gives it; card: the model's. */
  show({ durationS, timeline, logmel }, { frontend, sample_rate }) {
    this.#setDuration(durationS);
    this.#logmel = logmel && {
      ...logmel,
      axis: BandAxis.of(frontend),
      secondsPerColumn: (logmel.framesPerColumn * frontend.hop_length) / sample_rate,
    };
    $(".logmel", this.#root).hidden = !logmel; // a network that takes samples has none
    $(".no-logmel", this.#root).hidden = Boolean(logmel);
    if (logmel) this.#showLogmel();
    const samples = this.#samples;
    this.#windows = timeline.map((window) => ({
      ...window, silent: samples !== null && isSilent(samples, window.start_s, window.end_s),
    }));
    showTimeline($(".timeline", this.#root), this.#windows, durationS);
  }

  /** In the colours of now. */
  redraw() {
    if (this.#samples) drawWaveform($(".waveform canvas", this.#root), this.#samples);
    if (this.#logmel) drawLogmel($(".logmel canvas", this.#root), this.#logmel);
  }

  get durationS() {
    return this.#durationS;
  }

  /** What is heard at some second, in words, for the slider. */
  words(seconds) {
    const window = windowAt(this.#windows, seconds);
    return window ? `; ${describe(window)}` : "";
  }

  #setDuration(durationS) {
    this.#durationS = durationS;
    this.#showTime();
  }

  #showTime() {
    const plot = $(".time .plot", this.#root);
    const marks = timeMarks(this.#durationS, Math.max(2, Math.floor(plot.clientWidth / PIXELS_PER_MARK)));
    plot.replaceChildren(...(this.#durationS ? marks : []).map(({ place, text }) => mark("left", place, text)));
  }

  #showLogmel() {
    const { bands, columns, secondsPerColumn, axis } = this.#logmel;
    const lane = $(".logmel", this.#root);
    const canvas = $("canvas", lane);
    this.redraw();
    // The last frame may reach beyond the sound's end: a column lies where it is in time.
    canvas.style.width = `${(100 * columns * secondsPerColumn) / this.#durationS}%`;
    canvas.setAttribute("aria-label", `Log-mel spectrogram of ${this.#name}, as the model sees it: ${bands} bands, low ones at the bottom`);
    const gutter = $(".gutter", lane);
    for (const old of gutter.querySelectorAll(".mark")) old.remove();
    for (const { place, text } of axis?.marks() ?? []) gutter.append(mark("bottom", place, text));
  }

  /** Time, frequency and value below the pointer. */
  #readOut(event) {
    const line = $(".crosshair", this.#root), words = $(".readout", this.#root);
    line.hidden = event === null || !this.#durationS;
    words.textContent = "";
    if (line.hidden) return;
    const { left, width } = $(".seek", this.#root).getBoundingClientRect();
    const place = Math.max(0, Math.min((event.clientX - left) / width, 1));
    line.style.left = `${100 * place}%`;
    const seconds = place * this.#durationS;
    words.textContent = [`${seconds.toFixed(2)} s`, ...this.#valueAt(seconds, event.clientY, 1 / width)].join(" · ");
  }

  #valueAt(seconds, y, sharePerPixel) {
    const lane = [...this.#root.querySelectorAll(".lane")].find((each) => {
      const { top, bottom } = each.getBoundingClientRect();
      return y >= top && y < bottom;
    });
    if (!lane) return [];
    if (lane.matches(".waveform")) {
      const level = peak(this.#samples, seconds, seconds + sharePerPixel * this.#durationS);
      return [`amplitude ${level.toFixed(3)}`];
    }
    if (lane.matches(".logmel") && this.#logmel) return this.#logmelAt(seconds, lane, y);
    const window = lane.dataset.label && windowAt(this.#windows, seconds);
    if (!window) return [];
    return [window.silent ? "silence" : `${human(lane.dataset.label)} ${percent(scoreOf(window, lane.dataset.label))}`];
  }

  #logmelAt(seconds, lane, y) {
    const { bands, columns, pixels, low, high, axis, secondsPerColumn } = this.#logmel;
    const { bottom, height } = $("canvas", lane).getBoundingClientRect();
    const place = Math.max(0, Math.min((bottom - y) / height, 1));
    const band = Math.min(bands - 1, Math.floor(place * bands));
    const column = Math.min(columns - 1, Math.floor(seconds / secondsPerColumn));
    const value = low + (pixels[band * columns + column] / 255) * (high - low);
    const where = axis ? frequency(axis.hzOf((band + 0.5) / bands)) : `band ${band + 1} of ${bands}`;
    return [where, `log-mel ${value.toFixed(1).replace("-", "−")}`];
  }
}

function mark(side, place, text) {
  const made = element("span", "mark", text);
  made.style[side] = `${100 * place}%`;
  return made;
}

const frequency = (hz) => (hz < 1000 ? `${hz.toFixed(0)} Hz` : `${(hz / 1000).toFixed(1)} kHz`);

// The microphone in, pieces of samples and their spectrum out, for as long as it is open.

const WORKLET = "page/pcm_worklet.js";

export class Microphone {
  #context;
  #stream;
  #analyser;

  /** stream: as recorder.microphone gives it; onPiece: (Int16Array), twenty a second; onEnd: it was taken away. */
  static async open(stream, { onPiece, onEnd }) {
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule(new URL(WORKLET, document.baseURI));
      await context.resume();
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      await context.close();
      throw error;
    }
    return new Microphone(context, stream, { onPiece, onEnd });
  }

  constructor(context, stream, { onPiece, onEnd }) {
    this.#context = context;
    this.#stream = stream;
    this.#analyser = new AnalyserNode(context, { fftSize: 2048, smoothingTimeConstant: 0 });
    const source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    const pcm = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 0 });
    pcm.port.onmessage = ({ data }) => onPiece(data);
    source.connect(this.#analyser);
    source.connect(pcm);
    for (const track of stream.getTracks()) track.addEventListener("ended", onEnd);
  }

  get rate() {
    return this.#context.sampleRate;
  }

  /** (bins,) in dB of full scale, of what was heard last; bin i is at i * rate / (2 * bins). */
  spectrum() {
    const decibels = new Float32Array(this.#analyser.frequencyBinCount);
    this.#analyser.getFloatFrequencyData(decibels);
    return decibels;
  }

  close() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#context.close();
  }
}

/** Of 16-bit samples, in dB of full scale. */
export function levelOf(piece) {
  let sum = 0;
  for (const sample of piece) sum += sample * sample;
  return 10 * Math.log10(sum / piece.length / 32768 ** 2 + 1e-12);
}

const QUIETEST_DB = -60; // of the meter

/** meter: the element with role meter. */
export function showLevel(meter, decibels) {
  const shown = Math.max(QUIETEST_DB, Math.min(decibels, 0));
  meter.firstElementChild.style.width = `${100 * (1 - shown / QUIETEST_DB)}%`;
  meter.setAttribute("aria-valuenow", shown.toFixed(0));
}

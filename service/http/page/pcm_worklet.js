// In the browser's audio thread: what the microphone gives in, pieces of 16-bit samples out.

const PIECE_S = 0.05;

class Pcm extends AudioWorkletProcessor {
  #piece = new Int16Array(Math.round(PIECE_S * sampleRate));
  #filled = 0;

  /** inputs: [[channel: Float32Array in [-1, 1]]] */
  process([channels]) {
    const count = channels[0]?.length ?? 0;
    for (let i = 0; i < count; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.#piece[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round((32768 * sum) / channels.length)));
      if (this.#filled === this.#piece.length) this.#give();
    }
    return true;
  }

  #give() {
    const full = this.#piece;
    this.#piece = new Int16Array(full.length);
    this.#filled = 0;
    this.port.postMessage(full, [full.buffer]);
  }
}

registerProcessor("pcm", Pcm);

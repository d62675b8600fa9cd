// Pieces of sound in, the server's messages out, over as many connections as it takes. All times count from the
// first piece on, whatever was lost between.

import * as key from "./key.js";

const MOST_WAITING_S = 30; // of pieces that no connection takes; older ones are lost
const MOST_BUFFERED_S = 30; // in the browser: beyond them the line is too slow, and a new connection begins at now
const TRY_AGAIN_S = [1, 2, 5, 10];
const HOPELESS = new Set(["bad_request", "unknown_model", "unknown_head", "unauthorized", "audio_unreadable"]);

export class Stream {
  #rate;
  #parameters;
  #listeners;
  #socket = null;
  #waiting = []; // pieces
  #takenS = 0;
  #failures = 0;
  #timer = 0;
  #isOver = false;

  /** rate: in Hz; parameters: of the query; listeners: onMessage(message), onTrouble(sentence, error code) where it
   * is over, onWait(sentence) where it is tried again. */
  constructor(rate, parameters, listeners) {
    this.#rate = rate;
    this.#parameters = parameters;
    this.#listeners = listeners;
    this.#connect();
  }

  /** Seconds so far. */
  get takenS() {
    return this.#takenS;
  }

  /** piece: Int16Array. */
  send(piece) {
    this.#takenS += piece.length / this.#rate;
    if (this.#isOpen && this.#socket.bufferedAmount < 2 * this.#rate * MOST_BUFFERED_S) {
      this.#socket.send(piece);
      return;
    }
    if (this.#isOpen) this.#socket.close(); // and again, from what waits now on
    this.#waiting.push(piece);
    while (this.#waitingS > MOST_WAITING_S) this.#waiting.shift();
  }

  /** Goes on with other parameters, in a connection of its own. */
  change(parameters) {
    this.#parameters = parameters;
    this.#part();
    this.#connect();
  }

  /** Asks for what is left. */
  end() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    if (this.#isOpen) this.#socket.send(JSON.stringify({ type: "end" }));
    else this.#socket?.close();
  }

  get #isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  get #waitingS() {
    return this.#waiting.reduce((sum, piece) => sum + piece.length, 0) / this.#rate;
  }

  #connect() {
    clearTimeout(this.#timer);
    const query = new URLSearchParams({ ...this.#parameters, format: "s16le", rate: this.#rate });
    const address = new URL(`stream?${query}`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, key.subprotocols());
    let error = null;
    let offsetS = 0;
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      offsetS = this.#takenS - this.#waitingS;
      for (const piece of this.#waiting.splice(0)) socket.send(piece);
    };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "error") error = message;
      else if (message.type === "ready") this.#failures = 0;
      this.#listeners.onMessage(shifted(message, offsetS));
    };
    socket.onclose = () => { if (socket === this.#socket) this.#onClose(error); };
    this.#socket = socket;
  }

  #onClose(error) {
    this.#socket = null;
    if (error?.error === "unauthorized") key.markAsNeeded();
    if (error && HOPELESS.has(error.error)) this.#isOver = true;
    if (this.#isOver) {
      this.#listeners.onTrouble(error?.detail ?? "", error?.error ?? "");
      return;
    }
    const inS = error?.retry_after_s ?? TRY_AGAIN_S[Math.min(this.#failures++, TRY_AGAIN_S.length - 1)];
    this.#listeners.onWait(error?.detail ?? "the line is lost");
    this.#timer = setTimeout(() => this.#connect(), 1000 * inS);
  }

  /** The old connection tells what is left to it, and nobody waits for its end. */
  #part() {
    if (this.#isOpen) this.#socket.send(JSON.stringify({ type: "end" }));
    else this.#socket?.close();
    this.#socket = null;
  }
}

function shifted(message, offsetS) {
  if (message.start_s === undefined) return message;
  return { ...message, start_s: message.start_s + offsetS, end_s: message.end_s + offsetS };
}

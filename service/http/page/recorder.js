// The microphone: start() asks for it, stop() gives what was recorded as a Blob.

export class Recorder {
  #recorder = null;
  #clock = null;

  get isRecording() {
    return this.#recorder !== null;
  }

  /** onSecond: called with the seconds so far. Throws an Error whose sentence says what is needed. */
  async start(onSecond) {
    const stream = await microphone();
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.start();
    const began = performance.now();
    this.#clock = setInterval(() => onSecond((performance.now() - began) / 1000), 1000);
  }

  stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    clearInterval(this.#clock);
    return new Promise((resolve) => {
      recorder.ondataavailable = ({ data }) => resolve(data);
      recorder.stop();
      for (const track of recorder.stream.getTracks()) track.stop();
    });
  }
}

/** Its MediaStream. Throws an Error whose sentence says what is needed. */
export async function microphone() {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error(insecure());
  // Without what telephones do to voices: the model was trained on sounds as they are.
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  return navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
    throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
  });
}

const REASONS = {
  NotAllowedError: "The microphone was not allowed. Allow it in the browser's settings of this site, or choose a file.",
  NotFoundError: "There is no microphone. Connect one, or choose a file.",
  NotReadableError: "The microphone is in use by another program. Close that, or choose a file.",
};

/** Browsers take the microphone away from pages over plain HTTP, but for those of the same machine. */
const insecure = () =>
  `Browsers give the microphone only to pages over HTTPS or at localhost, and this one is at ${location.origin}. ` +
  "Open it in one of these ways, or choose a file.";

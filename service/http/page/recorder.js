// The microphone: start() asks for it, stop() gives what was recorded as a Blob.

export class Recorder {
  #recorder = null;

  get isRecording() {
    return this.#recorder !== null;
  }

  async start() {
    // Without what telephones do to voices: the model was trained on sounds as they are.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.start();
  }

  stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    return new Promise((resolve) => {
      recorder.ondataavailable = ({ data }) => resolve(data);
      recorder.stop();
      for (const track of recorder.stream.getTracks()) track.stop();
    });
  }
}

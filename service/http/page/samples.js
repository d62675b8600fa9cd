// A sound's file in, the samples that are drawn out, and what can be told from them.

export const RATE_HZ = 16000;
const SILENCE = 0.001; // no sample is above it

/** Float32Array in [-1, 1] at RATE_HZ, the mean of the channels; null where the browser cannot decode it, which
 * the server may. */
export async function samplesOf(blob) {
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ);
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    const mono = decoded.getChannelData(0);
    for (let channel = 1; channel < decoded.numberOfChannels; channel++) {
      const other = decoded.getChannelData(channel);
      for (let i = 0; i < mono.length; i++) mono[i] += other[i];
    }
    return mono.map((sum) => sum / decoded.numberOfChannels);
  } catch {
    return null;
  }
}

/** Whether there is nothing to be tagged from one second to another: a head has only its own labels, and gives
 * silence one of them. */
export function isSilent(samples, startS = 0, endS = Infinity) {
  const part = samples.subarray(Math.floor(startS * RATE_HZ), Math.min(samples.length, Math.ceil(endS * RATE_HZ)));
  return part.length > 0 && part.every((sample) => Math.abs(sample) <= SILENCE);
}

/** The greatest |sample| between two seconds. */
export function peak(samples, startS, endS) {
  let most = 0;
  const last = Math.min(samples.length, Math.ceil(endS * RATE_HZ));
  for (let i = Math.max(0, Math.floor(startS * RATE_HZ)); i < last; i++) most = Math.max(most, Math.abs(samples[i]));
  return most;
}

/** samples: Float32Array at RATE_HZ */
export function play(samples) {
  const context = new AudioContext();
  const buffer = new AudioBuffer({ length: samples.length, sampleRate: RATE_HZ });
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.addEventListener("ended", () => context.close());
  source.start();
}

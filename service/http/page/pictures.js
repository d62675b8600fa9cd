// Drawings of a sound on canvases.

/** samples: Float32Array in [-1, 1]. One column a pixel, from the least to the greatest sample in it. */
export function drawWaveform(canvas, samples) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--bar");
  for (let x = 0; x < width; x++) {
    const begin = Math.floor((x * samples.length) / width);
    const end = Math.max(begin + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 1, high = -1;
    for (let i = begin; i < end; i++) {
      if (samples[i] < low) low = samples[i];
      if (samples[i] > high) high = samples[i];
    }
    const top = ((1 - high) * height) / 2;
    context.fillRect(x, top, 1, Math.max(1, ((high - low) * height) / 2));
  }
}

/** pixels: as api.logmel gives them. */
export function drawLogmel(canvas, { bands, columns, pixels }) {
  canvas.width = columns;
  canvas.height = bands;
  const image = new ImageData(columns, bands);
  for (let band = 0; band < bands; band++) {
    for (let column = 0; column < columns; column++) {
      const at = 4 * ((bands - 1 - band) * columns + column);
      image.data.set(COLOURS[pixels[band * columns + column]], at);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// From black over violet and orange to pale yellow, lighter with every step, for eyes of all kinds.
const STOPS = [[0, 0, 4], [40, 15, 84], [101, 26, 128], [170, 51, 125], [229, 89, 100], [251, 153, 98], [252, 253, 191]];
const COLOURS = Array.from({ length: 256 }, (_, value) => {
  const place = (value / 255) * (STOPS.length - 1);
  const stop = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[stop].map((from, channel) => from + (place - stop) * (STOPS[stop + 1][channel] - from));
  return [...mixed, 255];
});

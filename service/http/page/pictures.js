// Drawings of a sound on canvases.

const MOST_GAIN = 20; // 26 dB: what is quieter stays small

/** samples: Float32Array in [-1, 1]. One column a pixel, from the least to the greatest sample in it and the last one
 * before it. As high as there is room for: what is quiet is seen, too. */
export function drawWaveform(canvas, samples) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--bar");
  const gain = gainOf(samples);
  for (let x = 0; x < width; x++) {
    const begin = Math.floor((x * samples.length) / width);
    const end = Math.max(begin + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 1, high = -1;
    for (let i = Math.max(0, begin - 1); i < end; i++) {
      if (samples[i] < low) low = samples[i];
      if (samples[i] > high) high = samples[i];
    }
    const top = ((1 - gain * high) * height) / 2;
    context.fillRect(x, top, 1, Math.max(1, (gain * (high - low) * height) / 2));
  }
}

function gainOf(samples) {
  let most = 0;
  for (const sample of samples) most = Math.max(most, Math.abs(sample));
  return Math.min(1 / most, MOST_GAIN);
}

/** The picture that api.hear gives. */
export function drawLogmel(canvas, { bands, columns, pixels }) {
  canvas.width = columns;
  canvas.height = bands;
  const image = new ImageData(columns, bands);
  const colours = dark.matches ? DARK : LIGHT;
  for (let band = 0; band < bands; band++) {
    for (let column = 0; column < columns; column++) {
      const at = 4 * ((bands - 1 - band) * columns + column);
      image.data.set(colours[pixels[band * columns + column]], at);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The newest columns on the right, the others pushed to the left. columns: (n, bands) of 0 to 255, lowest band first. */
export function rollLogmel(canvas, columns) {
  if (columns.length === 0) return;
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.globalCompositeOperation = "copy";
  context.drawImage(canvas, -columns.length, 0);
  const image = new ImageData(columns.length, height);
  const colours = dark.matches ? DARK : LIGHT;
  columns.forEach((column, x) => column.forEach((value, band) => {
    image.data.set(colours[value], 4 * ((height - 1 - band) * columns.length + x));
  }));
  context.putImageData(image, width - columns.length, 0);
}

/** Nothing heard yet. */
export function clearLogmel(canvas) {
  const [red, green, blue] = (dark.matches ? DARK : LIGHT)[0];
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "copy";
  context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
export const onSchemeChange = (listener) => dark.addEventListener("change", listener);

// Of one hue, further from the ground with every step, for eyes of all kinds.
const LIGHT = scale([[244, 241, 250], [214, 198, 241], [167, 127, 224], [106, 47, 181], [30, 8, 66]]);
const DARK = scale([[24, 21, 31], [58, 34, 99], [122, 72, 201], [195, 161, 242], [253, 250, 255]]);

/** 256 colours [r, g, b, 255] through `stops`. */
function scale(stops) {
  return Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (stops.length - 1);
    const stop = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[stop].map((from, channel) => from + (place - stop) * (stops[stop + 1][channel] - from));
    return [...mixed, 255];
  });
}

// Where the marks of an axis lie, as shares of its length from 0 to 1.

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

/** [{place, text}] for the seconds of a sound, at most so many. */
export function timeMarks(durationS, most) {
  const step = STEPS_S.find((each) => durationS / each <= most) ?? 7200;
  const marks = [];
  for (let i = 0; i * step <= durationS; i++) marks.push({ place: (i * step) / durationS, text: seconds(i * step, step) });
  return marks;
}

/** As many digits as the step has; minutes and seconds from a minute on. */
function seconds(value, step) {
  if (step < 1) return value.toFixed(Math.ceil(-Math.log10(step)));
  return value < 60 ? String(value) : `${Math.floor(value / 60)}:${String(value % 60).padStart(2, "0")}`;
}

/** Between Hz and the place of a band. frontend: as in the model's card; null where its scale is not known. */
export class BandAxis {
  #scale;
  #first;
  #last;
  #bands;

  static of({ f_min_hz, f_max_hz, mel_scale, n_mels }) {
    return SCALES[mel_scale] ? new BandAxis(SCALES[mel_scale], f_min_hz, f_max_hz, n_mels) : null;
  }

  constructor(scale, minHz, maxHz, bands) {
    this.#scale = scale;
    this.#first = scale.from(minHz);
    this.#last = scale.from(maxHz);
    this.#bands = bands;
  }

  // The centres of n bands are evenly spread between the ends, which are no centres: n + 1 equal steps.
  /** 0 at the bottom edge of the lowest band's row, 1 at the top edge of the highest one's. */
  placeOf(hz) {
    const step = ((this.#scale.from(hz) - this.#first) / (this.#last - this.#first)) * (this.#bands + 1);
    return (step - 0.5) / this.#bands;
  }

  hzOf(place) {
    const step = place * this.#bands + 0.5;
    return this.#scale.to(this.#first + (step / (this.#bands + 1)) * (this.#last - this.#first));
  }

  /** The highest one has the unit. */
  marks() {
    return [250, 500, 1000, 2000, 4000, 8000, 16000]
      .map((hz) => ({ place: this.placeOf(hz), text: String(hz / 1000) }))
      .filter(({ place }) => place >= 0.03 && place <= 0.97)
      .map(({ place, text }, i, all) => ({ place, text: i === all.length - 1 ? `${text} kHz` : text }));
  }
}

const BREAK_HZ = 1000, BREAK = 15, HZ_PER_MEL = 200 / 3, LOG_STEP = Math.log(6.4) / 27;
const SCALES = {
  // Linear below 1 kHz, logarithmic above it (Slaney's Auditory Toolbox).
  slaney: {
    from: (hz) => (hz < BREAK_HZ ? hz / HZ_PER_MEL : BREAK + Math.log(hz / BREAK_HZ) / LOG_STEP),
    to: (mel) => (mel < BREAK ? mel * HZ_PER_MEL : BREAK_HZ * Math.exp((mel - BREAK) * LOG_STEP)),
  },
  htk: { from: (hz) => Math.log1p(hz / 700), to: (mel) => 700 * Math.expm1(mel) },
  linear: { from: (hz) => hz, to: (hz) => hz },
};

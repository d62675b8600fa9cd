// Labels, scores, times and troubles in, words for people out.

const SURE = 0.5; // of a head of one label a sound
const STRANGE = 0.01; // one in a hundred sounds of its own labels is as strange to a head
const UNUSUAL = 0.05;
const FAINT = 0.1; // a score that says hardly more than that it is another sound

/** The label of a head: "Chirping birds" of chirping_birds. */
export function human(label) {
  const words = label.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** When nothing is heard, nothing is said: a head may have a label for it. */
export const isSilence = (label) => /^silence$/i.test(label);

/** "95 %"; what is rounded is never said to be all or nothing. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %";
  if (share < 1 && share >= 0.995) return "> 99 %";
  return `${(100 * share).toFixed(0)} %`;
}

/** "2.50 s" of a sound, "12:05" from a minute on. */
export const length = (seconds) => (seconds < 60 ? `${seconds.toFixed(2)} s` : clockTime(seconds).replace(/\.\d$/, ""));

/** "0:02.5" */
export function clockTime(seconds) {
  const tenths = Math.round(10 * seconds);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** What leads the answer, and whether it is sure of it. heard: as api.hear gives it; scorer: as choice.scorer gives it. */
export function verdict({ tags, segments }, { scorer, silent }) {
  if (silent) return { words: "Silence: there is nothing to tell.", sure: true };
  if (!scorer) return { words: "This model has no labels: it tells which sounds are alike. Add another sound to compare.", sure: true };
  if (tags.length === 0) return { words: "None of the sounds it knows.", sure: true };
  if (scorer.own) return { words: "Of your labels, the one that fits best", sure: true };
  const [{ label, score }] = tags;
  const sure = scorer.task === "multilabel" ? segments.some((each) => each.label === label) : score >= SURE;
  if (sure) return { words: "It hears", sure };
  return { words: score < FAINT ? "It knows nothing quite like this; the nearest is" : "It is not sure; it may be", sure };
}

/** known: the share of a head's own sounds that are at least as strange to it; undefined where it cannot tell. */
export function familiarity(known, labels) {
  if (known === undefined || known >= UNUSUAL) return "";
  if (known < STRANGE) return `This is like none of the ${labels} sounds it knows: take its tags for a guess.`;
  return `This is unusual among the ${labels} sounds it knows: take its tags with care.`;
}

/** An error's words, as a sentence. */
export const sentence = ({ message }) => message.charAt(0).toUpperCase() + message.slice(1) + (/[.?!]$/.test(message) ? "" : ".");

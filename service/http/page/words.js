// Labels, scores, times and troubles in, words for people out.

const SURE = 0.5; // of a head of one label a sound
const STRANGE = 0.01; // one in a hundred sounds of its own labels is as strange to a head
const UNUSUAL = 0.05;

/** The label of a head: "Chirping birds" of chirping_birds. */
export function human(label) {
  const words = label.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** "95 %"; what is rounded is never said to be all or nothing. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %";
  if (share < 1 && share >= 0.995) return "> 99 %";
  return `${(100 * share).toFixed(0)} %`;
}

/** "0:02.5" */
export function clockTime(seconds) {
  const tenths = Math.round(10 * seconds);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** What leads the answer. heard: as api.hear gives it; task: the head's, or undefined where there is none. */
export function verdict({ tags, segments }, { task, silent }) {
  if (silent) return "Silence: there is nothing to tell.";
  if (!task) return "This model has no labels: it tells which sounds are alike.";
  if (tags.length === 0) return "None of the sounds it knows.";
  const [{ label, score }] = tags;
  const sure = task === "multilabel" ? segments.some((each) => each.label === label) : score >= SURE;
  return sure ? "It hears" : "It is not sure; it may be";
}

/** known: the share of a head's own sounds that are at least as strange to it; undefined where it cannot tell. */
export function familiarity(known, labels) {
  if (known === undefined || known >= UNUSUAL) return "";
  if (known < STRANGE) return `This is like none of the ${labels} sounds it knows: take its tags for a guess.`;
  return `This is unusual among the ${labels} sounds it knows: take its tags with care.`;
}

/** An error's words, as a sentence. */
export const sentence = ({ message }) => message.charAt(0).toUpperCase() + message.slice(1);

// The calls that this page makes: those that any client would make. Paths are relative, so that the page works
// behind a path prefix.

import * as key from "./key.js";

export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** The answer to GET /models: {default, models: [{card, heads, precision, device}]} */
export const models = () => call("models");

/**
 * A sound's tags, segments, embedding and picture, in one request: the sound is sent once.
 * scorer: {name} of a head, {own, labels} for labels in words, undefined for neither;
 * windowS: seconds of the timeline's windows, null for no timeline;
 * centred: whether to ask for vectors whose cosines begin at 0, which not every model has;
 * columns: of the picture at most, 0 for a model that takes samples, which has no log-mel.
 * {answer: all but embedding and picture, as the server gave it, durationS, known, tags: [{label, score}],
 *  segments: [{label, start_s, end_s, score}], timeline: [{start_s, end_s, tags}], embedding: Float32Array, centred,
 *  logmel: {bands, columns, framesPerColumn, low, high, pixels: Uint8Array, band after band from the lowest}, null
 *  without columns}
 */
export async function hear(sound, { model, scorer, topK, windowS, columns, centred }) {
  const query = new URLSearchParams({ model, ...(columns && { logmel_columns: columns }), ...(centred && { normalize: true }) });
  const tagged = { ...queryOf(scorer), top_k: topK, segments: true, embedding: "base64", ...(windowS && { window_s: windowS.toFixed(2) }) };
  for (const [name, value] of Object.entries(scorer ? tagged : { encoding: "base64" })) query.set(name, value);
  const { embedding, logmel, ...answer } = await call(`${scorer ? "classify" : "embed"}?${query}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: sound,
  });
  return {
    answer,
    durationS: answer.duration_s,
    known: answer.known,
    tags: answer.tags ?? [],
    segments: answer.segments ?? [],
    timeline: answer.timeline ?? [],
    embedding: new Float32Array(bytesOf(embedding).buffer),
    centred,
    logmel: logmel ? pictureOf(logmel) : null,
  };
}

/** How /classify is asked for what scores a sound. */
export function queryOf(scorer) {
  if (!scorer) return {};
  return scorer.own ? { labels: scorer.labels.join(", ") } : { head: scorer.name };
}

const pictureOf = ({ n_mels: bands, frames_per_column: framesPerColumn, pixels, ...picture }) => ({
  ...picture, bands, framesPerColumn, pixels: bytesOf(pixels),
});

/** What a model was taught: {heads: [{head, labels, report}], damaged: [{head, detail}]}; raises ApiError with the code `teaching_off`. */
export const taughtHeads = (model) => call(headsOf(model));

/** One of them, with the report of its last fit. */
export const taughtHead = (model, head) => call(headOf(model, head));

/** {examples: [{id, labels, file, start_s, end_s}]} */
export const examples = (model, head) => call(`${headOf(model, head)}/examples`);

/** label: null for what is none of them. {results: [{file, examples} or {file, detail}], fit, not_fitted_because} */
export function addExamples(model, head, label, files) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  return call(`${headOf(model, head)}/examples?${new URLSearchParams({ ...named(label), fit: "auto" })}`, { method: "POST", body });
}

export const forgetExample = (model, head, id) =>
  call(`${headOf(model, head)}/examples/${encodeURIComponent(id)}?fit=auto`, { method: "DELETE" });

export const forgetLabel = (model, head, label) =>
  call(`${headOf(model, head)}/examples?${new URLSearchParams({ ...named(label), fit: "auto" })}`, { method: "DELETE" });

export const forgetHead = (model, head) => call(headOf(model, head), { method: "DELETE" });

/** The head as a model folder takes it, a Blob. */
export const headFile = (model, head) => call(`${headOf(model, head)}/file`, { read: (answer) => answer.blob() });

const headsOf = (model) => `models/${encodeURIComponent(model)}/heads`;
const headOf = (model, head) => `${headsOf(model)}/${encodeURIComponent(head)}`;
const named = (label) => (label === null ? { none: true } : { label });

async function call(path, { read = (answer) => answer.json(), ...options } = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, ...key.headers() } });
  } catch {
    throw new ApiError(0, "unreachable", "The server does not answer.");
  }
  if (answer.status === 401) key.markAsNeeded();
  if (answer.ok) return read(answer);
  const { error, detail } = await answer.json().catch(() => ({ error: "unknown", detail: answer.statusText }));
  throw new ApiError(answer.status, error, detail);
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

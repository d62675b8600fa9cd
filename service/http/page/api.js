// The calls that this page makes: those that any client would make. Paths are relative, so that the page works
// behind a path prefix.

export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

let key = "";
export const setKey = (value) => { key = value.trim(); };

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError(0, "unreachable", "The server does not answer.");
  }
  if (answer.ok) return answer.json();
  const { error, detail } = await answer.json().catch(() => ({ error: "unknown", detail: answer.statusText }));
  throw new ApiError(answer.status, error, detail);
}

export const models = () => call("models");

const post = (route, sound, parameters) =>
  call(`${route}?${new URLSearchParams(parameters)}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: sound,
  });

/** {duration_s, tags: [{label, score}], timeline: [{start_s, end_s, tags}] with windowS} */
export const classify = (sound, { model, head, topK, windowS }) =>
  post("classify", sound, { model, head, top_k: topK, ...(windowS && { window_s: windowS }) });

/** Float32Array of the clip's embedding. */
export async function embed(sound, { model }) {
  const { embedding } = await post("embed", sound, { model, encoding: "base64" });
  return new Float32Array(bytesOf(embedding).buffer);
}

/** {bands, columns, pixels}: Uint8Array, band after band from the lowest, 0 quiet to 255 loud. */
export async function logmel(sound, { model, columns }) {
  const picture = await post("logmel", sound, { model, columns });
  return { bands: picture.n_mels, columns: picture.columns, pixels: bytesOf(picture.pixels) };
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

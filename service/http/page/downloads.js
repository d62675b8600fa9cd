// What was heard in, files out: the server's answer as JSON, tags and segments as CSV, the vector for NumPy.

const COLUMNS = ["file", "kind", "label", "start_s", "end_s", "score"];

/** parts: as Blob takes them. */
export function save(name, type, parts) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it after the click
}

/** The answer but for its picture; the vector as a list of numbers. */
export function jsonOf(name, heard) {
  return JSON.stringify({ file: name, ...heard.answer, embedding: [...heard.embedding] }, null, 1);
}

/** named: [[file name, what was heard or null]]; a row for each tag, segment and tag of a window. */
export function csvOf(named) {
  const rows = named.flatMap(([name, heard]) => (heard ? rowsOf(name, heard) : []));
  return [COLUMNS, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function rowsOf(name, { durationS, tags, segments, timeline }) {
  return [
    ...tags.map(({ label, score }) => [name, "tag", label, 0, durationS, score]),
    ...segments.map(({ label, start_s, end_s, score }) => [name, "segment", label, start_s, end_s, score]),
    ...timeline.flatMap(({ start_s, end_s, tags: each }) =>
      each.map(({ label, score }) => [name, "window", label, start_s, end_s, score])),
  ];
}

const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : String(value));

/** vector: Float32Array. NumPy's format, version 1.0: the header is filled up to a multiple of 64 bytes. */
export function npyOf(vector) {
  const description = `{'descr': '<f4', 'fortran_order': False, 'shape': (${vector.length},), }`;
  const length = 64 * Math.ceil((10 + description.length + 1) / 64) - 10;
  const magic = new Uint8Array([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, length & 255, length >> 8]);
  const little = new DataView(new ArrayBuffer(4 * vector.length));
  vector.forEach((number, i) => little.setFloat32(4 * i, number, true));
  return [magic, `${description.padEnd(length - 1)}\n`, little.buffer];
}

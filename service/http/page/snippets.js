// The request that this page makes for a sound, as curl, Python and JavaScript would make it.

import * as key from "./key.js";

/** target: absolute address; file: its name; whether a key must be shown is as the server said. */
export function snippets(target, file) {
  const [address, query] = target.split("?");
  const parameters = Object.fromEntries(new URLSearchParams(query));
  const needsKey = key.isNeeded();
  return {
    curl: `curl -F ${shell(`file=@${curlName(file)}`)}${needsKey ? ` -H '${key.HEADER}: YOUR_KEY'` : ""} \\\n  ${shell(target)}`,
    python: [
      "import httpx",
      "",
      `with open(${text(file)}, "rb") as file:`,
      "    answer = httpx.post(",
      `        ${text(address)},`,
      `        params=${text(parameters)},`,
      '        files={"file": file},',
      ...(needsKey ? [`        headers={"${key.HEADER}": "YOUR_KEY"},`] : []),
      "        timeout=60,",
      "    )",
      "print(answer.raise_for_status().json())",
    ].join("\n"),
    javascript: [
      "// file: a File or a Blob",
      `const answer = await fetch(${text(target)}, {`,
      '  method: "POST",',
      `  headers: { "Content-Type": "application/octet-stream"${needsKey ? `, "${key.HEADER}": "YOUR_KEY"` : ""} },`,
      "  body: file,",
      "});",
      "console.log(await answer.json());",
    ].join("\n"),
  };
}

const text = (value) => JSON.stringify(value); // of strings and their objects, Python's and JavaScript's notation too
const shell = (word) => `'${word.replaceAll("'", "'\\''")}'`;

/** curl takes `;` and `,` in a bare file name for the begin of something else. */
const curlName = (name) => (/[;,"\\]/.test(name) ? text(name) : name);

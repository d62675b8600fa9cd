// The sounds that come with the page: each fetched once, drawn on its button, and a File when it is asked for.

import { $ } from "./dom.js";
import { drawWaveform } from "./pictures.js";
import { samplesOf } from "./samples.js";

const files = new Map(); // name -> Promise<File>

export function exampleFile(name) {
  if (!files.has(name)) files.set(name, fetched(name));
  return files.get(name);
}

async function fetched(name) {
  const answer = await fetch(`page/sounds/${name}`);
  return new File([await answer.blob()], name);
}

export async function drawExamples(buttons) {
  for (const button of buttons) {
    const samples = await samplesOf(await exampleFile(button.dataset.sound));
    if (samples) drawWaveform($("canvas", button), samples);
  }
}

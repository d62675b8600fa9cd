// Ask: what is dropped, chosen or recorded becomes a sound with its card; this module takes it in and keeps the list.

import * as api from "./api.js";
import * as choice from "./choice.js";
import { $, all } from "./dom.js";
import { csvOf, save } from "./downloads.js";
import { exampleFile, drawExamples } from "./examples.js";
import { askForKey, said, say } from "./notices.js";
import { Overview } from "./overview.js";
import { onSchemeChange } from "./pictures.js";
import { Recorder } from "./recorder.js";
import { Sound } from "./sound.js";
import * as views from "./views.js";

const sounds = []; // in the order of arrival
const recorder = new Recorder();
const overview = new Overview($("#overview"), choose);
let chosen = null;

export function start() {
  takeFiles();
  drawExamples(all(".example"));
  $("#record").addEventListener("click", toggleRecording);
  for (const button of all(".example")) {
    button.addEventListener("click", async () => add([await exampleFile(button.dataset.sound)]));
  }
  $("#all-csv").addEventListener("click", () => save("sounds.csv", "text/csv", [csvOf(sounds.map(({ name, heard }) => [name, heard]))]));
  $("#remove-all").addEventListener("click", () => { for (const sound of [...sounds]) remove(sound); $("#files").focus(); });
  choice.onChange(analyseAll);
  onSchemeChange(() => { drawExamples(all(".example")); for (const sound of sounds) sound.redraw(); });
}

/** Analyses what waited for a key. */
export const goOn = () => analyseAll(({ heard }) => !heard);

function takeFiles() {
  const drop = $("#drop");
  $("#files").addEventListener("change", (event) => {
    add([...event.target.files]); // the list itself is emptied with the next line
    event.target.value = ""; // the same file may be chosen again
  });
  // Wherever it is dropped: a browser would leave the page and open the file.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => add([...event.clipboardData.files]));
}

async function toggleRecording() {
  await said(async () => {
    if (recorder.isRecording) {
      const blob = await recorder.stop();
      showRecording();
      await add([blob], `recording ${1 + sounds.length}`);
    } else {
      await recorder.start((seconds) => showRecording(seconds));
      showRecording(0);
    }
  });
}

/** seconds: so far; undefined when it is over. */
function showRecording(seconds) {
  const on = seconds !== undefined;
  $("#record").setAttribute("aria-pressed", on);
  $("#record").textContent = on ? `Stop (${seconds.toFixed(0)} s)` : "Record";
  if (!on || seconds === 0) say(on ? "Recording…" : "");
}

/** blobs: Files, or one recording with its name. */
async function add(blobs, name) {
  if (blobs.length === 0) return;
  views.open("ask");
  const added = blobs.map((blob) => new Sound(name ?? blob.name, blob));
  for (const sound of added) {
    $(".remove", sound.card).addEventListener("click", () => { remove(sound); $("#files").focus(); });
    sounds.push(sound);
    $("#sounds").append(sound.card);
  }
  choose(added[0]);
  for (const sound of added) if (sounds.includes(sound)) await analyse(sound);
}

function remove(sound) {
  const place = sounds.indexOf(sound);
  sounds.splice(place, 1);
  sound.remove();
  choose(chosen === sound ? sounds[Math.min(place, sounds.length - 1)] ?? null : chosen);
}

/** The one whose card is seen. */
function choose(sound) {
  chosen = sound;
  for (const each of sounds) each.setVisible(each === sound);
  document.body.classList.toggle("asked", sounds.length > 0);
  overview.show(sounds, chosen);
}

async function analyseAll(which = () => true) {
  for (const sound of sounds.filter(which)) await analyse(sound);
}

async function analyse(sound) {
  if (!choice.model()) return; // for want of a key, or of a server: this comes again with it
  say(`Listening to ${sound.name}…`);
  try {
    await sound.analyse(choice.model(), choice.scorer());
    say(sound.best && `${sound.name}: ${sound.best}`, { heard: true });
  } catch (error) {
    say("");
    if (error.status === 401) askForKey();
    else if (!(error instanceof api.ApiError)) throw error; // on the card, and in the console
  }
  overview.show(sounds, chosen);
}

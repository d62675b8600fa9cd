// What is dropped, chosen or recorded becomes a card: pictures, tags, tags over time, nearest sounds.

import * as api from "./api.js";
import { drawLogmel, drawWaveform } from "./pictures.js";
import { Recorder } from "./recorder.js";

const TOP_K = 5;
const LONG_S = 4; // from here on there are tags over time
const MOST_WINDOWS = 60;
const MOST_ROWS = 6;
const RATE_HZ = 16000; // of the samples that are drawn
const SILENCE = 0.001; // no sample is above it

const $ = (selector, root = document) => root.querySelector(selector);
const sounds = []; // {name, blob, card, embedding, samples} in the order of arrival
const recorder = new Recorder();
let served = [];

async function main() {
  takeFiles();
  $("#record").addEventListener("click", toggleRecording);
  for (const button of document.querySelectorAll(".example")) button.addEventListener("click", addExample);
  $("#model").addEventListener("change", () => { showHeads(); againWithAll(); });
  $("#head").addEventListener("change", againWithAll);
  $("#key").addEventListener("change", () => { api.setKey($("#key").value); loadModels(); });
  await loadModels();
}

async function loadModels() {
  await said($("#error"), async () => {
    const answer = await api.models();
    served = answer.models;
    $("#model").replaceChildren(...served.map(({ card }) => new Option(card.name, card.name)));
    $("#model").value = answer.default;
    showHeads();
  });
}

function showHeads() {
  const { card, heads, precision, device } = chosenModel();
  $("#head").replaceChildren(...heads.map(({ name, labels }) => new Option(`${name} (${labels.length} labels)`, name)));
  $("#head").disabled = heads.length === 0;
  const how = precision ? `, ${precision} on ${device}` : "";
  $("#about").textContent = `${card.name} ${card.version}: ${card.description} ${card.licence}${how}`;
}

const chosenModel = () => served.find(({ card }) => card.name === $("#model").value);

function takeFiles() {
  const drop = $("#drop");
  $("#files").addEventListener("change", (event) => {
    addAll([...event.target.files]); // the list itself is emptied with the next line
    event.target.value = ""; // the same file may be chosen again
  });
  // Wherever it is dropped: a browser would leave the page and open the file.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    addAll([...event.dataTransfer.files]);
  });
}

async function addAll(files) {
  for (const file of files) await add(file.name, file);
}

async function addExample(event) {
  const name = event.currentTarget.dataset.sound;
  const answer = await fetch(`page/sounds/${name}`);
  await add(name, await answer.blob());
}

async function toggleRecording() {
  const button = $("#record");
  await said($("#error"), async () => {
    if (recorder.isRecording) {
      const blob = await recorder.stop();
      setRecording(false);
      await add(`recording ${1 + sounds.length}`, blob);
    } else {
      await recorder.start().catch((error) => { throw new Error(`The microphone cannot be used: ${error.message}`); });
      setRecording(true);
    }
  });
  function setRecording(on) {
    button.setAttribute("aria-pressed", on);
    button.textContent = on ? "Stop" : "Record";
    $("#status").textContent = on ? "Recording…" : "";
  }
}

async function add(name, blob) {
  const card = $("#sound").content.cloneNode(true).firstElementChild;
  const sound = { name, blob, card, embedding: null, samples: samplesOf(blob) };
  $("h3", card).textContent = name;
  $("audio", card).src = URL.createObjectURL(blob);
  $(".remove", card).addEventListener("click", () => remove(sound));
  $(".copy", card).addEventListener("click", () => navigator.clipboard.writeText($("code", card).textContent));
  sounds.push(sound);
  $("#sounds").prepend(card);
  $("#sounds-title").hidden = false;
  await Promise.all([showWaveform(sound), analyse(sound)]);
}

function remove(sound) {
  URL.revokeObjectURL($("audio", sound.card).src);
  sounds.splice(sounds.indexOf(sound), 1);
  sound.card.remove();
  $("#sounds-title").hidden = sounds.length === 0;
  showNearest();
  $("#files").focus();
}

async function againWithAll() {
  for (const sound of sounds) sound.embedding = null;
  for (const sound of sounds) await analyse(sound);
}

/** Everything that the server says of a sound. */
async function analyse(sound) {
  const { card, blob } = sound;
  const model = $("#model").value, head = $("#head").value;
  $("#status").textContent = `Listening to ${sound.name}…`;
  card.setAttribute("aria-busy", "true");
  await said($(".failure", card), async () => {
    showCurl(sound, model, head);
    const [picture, embedding, tagged] = await Promise.all([
      api.logmel(blob, { model, columns: 800 }),
      api.embed(blob, { model }),
      head ? api.classify(blob, { model, head, topK: TOP_K }) : null,
    ]);
    sound.embedding = embedding;
    drawLogmel($(".logmel", card), picture);
    $(".logmel", card).setAttribute("aria-label", `Log-mel of ${sound.name}, ${picture.bands} bands`);
    $(".tags", card).replaceChildren(); // of another head
    $(".timeline", card).hidden = true;
    if (tagged) {
      showTags(sound, tagged);
      await showTimeline(sound, tagged.duration_s, { model, head });
    }
    showNearest();
  });
  card.removeAttribute("aria-busy");
  const best = $(".tags .label", card)?.textContent;
  $("#status").textContent = best ? `${sound.name}: ${best}` : "";
}

/** Runs `work`; an error becomes words in `place`. */
async function said(place, work) {
  place.hidden = true;
  place.textContent = "";
  try {
    await work();
  } catch (error) {
    if (error.code === "unauthorized") $("#key-label").hidden = false;
    place.textContent = error.message[0].toUpperCase() + error.message.slice(1);
    place.hidden = false;
  }
}

/** The mean of its channels at RATE_HZ; null where the browser cannot decode it, which the server may. */
async function samplesOf(blob) {
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ);
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    const mono = decoded.getChannelData(0);
    for (let channel = 1; channel < decoded.numberOfChannels; channel++) {
      const other = decoded.getChannelData(channel);
      for (let i = 0; i < mono.length; i++) mono[i] += other[i];
    }
    return mono.map((sum) => sum / decoded.numberOfChannels);
  } catch {
    return null;
  }
}

async function showWaveform(sound) {
  const canvas = $(".waveform", sound.card);
  canvas.setAttribute("aria-label", `Waveform of ${sound.name}`);
  const samples = await sound.samples;
  if (samples) {
    drawWaveform(canvas, samples);
  } else {
    canvas.closest("figure").hidden = true;
    $("audio", sound.card).hidden = true;
  }
}

function showTags(sound, { tags, duration_s }) {
  $(".facts", sound.card).textContent = `${duration_s.toFixed(2)} s`;
  $(".tags", sound.card).replaceChildren(...tags.map(({ label, score }) => row(label, score, percent(score))));
}

async function showTimeline(sound, durationS, { model, head }) {
  const figure = $(".timeline", sound.card);
  figure.hidden = durationS < LONG_S;
  if (figure.hidden) return;
  const windowS = Math.max(1, durationS / MOST_WINDOWS).toFixed(2);
  const { timeline } = await api.classify(sound.blob, { model, head, topK: TOP_K, windowS });
  const samples = await sound.samples;
  for (const window of timeline) window.isSilent = samples !== null && isSilent(samples, window);
  const rows = rowsOf(timeline.filter((window) => !window.isSilent));
  $("tbody", figure).replaceChildren(...rows.map((label) => timelineRow(label, timeline)));
  figure.hidden = rows.length === 0;
}

/** Whether there is nothing to be tagged: a head has only its own labels, and gives silence one of them. */
function isSilent(samples, { start_s, end_s }) {
  const window = samples.subarray(Math.floor(start_s * RATE_HZ), Math.ceil(end_s * RATE_HZ));
  return window.length > 0 && window.every((sample) => Math.abs(sample) <= SILENCE);
}

/** The labels that are highest in some window, at most MOST_ROWS. */
function rowsOf(timeline) {
  const peaks = new Map();
  for (const { label, score } of timeline.flatMap(({ tags }) => tags)) {
    peaks.set(label, Math.max(score, peaks.get(label) ?? 0));
  }
  return [...peaks].sort(([, a], [, b]) => b - a).slice(0, MOST_ROWS).map(([label]) => label);
}

function timelineRow(label, timeline) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.append(...breakable(label));
  const cells = timeline.map(({ start_s, end_s, tags, isSilent }) => {
    const score = isSilent ? 0 : tags.find((tag) => tag.label === label)?.score ?? 0;
    const cell = document.createElement("td");
    const mark = cell.appendChild(document.createElement("i"));
    mark.style.opacity = score;
    cell.title = `${start_s.toFixed(1)} to ${end_s.toFixed(1)} s: ${isSilent ? "silence" : `${label} ${percent(score)}`}`;
    cell.setAttribute("aria-label", cell.title);
    return cell;
  });
  line.append(head, ...cells);
  return line;
}

function showNearest() {
  for (const sound of sounds) {
    const others = sounds.filter((other) => other !== sound && other.embedding && sound.embedding);
    const near = others.map((other) => [other.name, cosine(sound.embedding, other.embedding)]);
    near.sort(([, a], [, b]) => b - a);
    const place = $(".nearest", sound.card);
    place.hidden = near.length === 0;
    const rows = near.slice(0, TOP_K).map(([name, value]) => row(name, Math.max(0, value), value.toFixed(3)));
    $("ol", place).replaceChildren(...rows);
  }
}

function cosine(a, b) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb || 1);
}

/** A name, a bar of `share` (0 to 1) and a number. */
function row(name, share, number) {
  const item = document.createElement("li");
  for (const [kind, text] of [["label", name], ["bar", ""], ["number", number]]) {
    const part = item.appendChild(document.createElement("span"));
    part.className = kind;
    part.append(...breakable(text));
  }
  const bar = $(".bar", item);
  bar.setAttribute("aria-hidden", "true");
  bar.appendChild(document.createElement("i")).style.width = `${100 * share}%`;
  return item;
}

function showCurl(sound, model, head) {
  const file = sound.blob instanceof File ? sound.name : "sound.wav";
  const url = new URL(`${head ? "classify" : "embed"}?${new URLSearchParams({ model, ...(head && { head }) })}`, document.baseURI);
  $("code", sound.card).textContent = `curl -F 'file=@${file.replaceAll("'", "'\\''")}' '${url}'`;
}

/** The text, which may go on in a new line behind each underscore. */
const breakable = (text) =>
  text.split("_").flatMap((part, i) => (i ? ["_", document.createElement("wbr"), part] : [part]));

const percent = (share) => `${(100 * share).toFixed(0)} %`;

main();

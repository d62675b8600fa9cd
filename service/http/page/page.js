// Starts the page: the models, the key where one is asked for, and what can be done with them.

import * as ask from "./ask.js";
import * as choice from "./choice.js";
import * as listen from "./listen.js";
import { keyIsRight, said, takeKeys } from "./notices.js";
import * as ownLabels from "./own_labels.js";
import * as teach from "./teach.js";
import * as views from "./views.js";

async function start() {
  ask.start();
  ownLabels.start();
  listen.start();
  teach.start();
  views.onChange(show);
  views.start();
  choice.watch();
  takeKeys(loadModels);
  await loadModels();
}

/** name: of the part that is seen; the microphone is let go with the others. */
function show(name) {
  if (name !== "listen") listen.stop();
  if (name === "teach") teach.load();
  else teach.stop();
}

const loadModels = () => said(async () => {
  await choice.load();
  keyIsRight();
  listen.proposeThreshold();
  if (views.current() === "teach") await teach.load();
  await ask.goOn(); // with what waited for a key
});

start();

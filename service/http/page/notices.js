// What the page says above its parts: what it is doing, what went wrong, and that a key is asked for.

import { $ } from "./dom.js";
import * as key from "./key.js";
import { sentence } from "./words.js";

let afterwards = () => {};

/** heard: whether it says what is also seen. */
export function say(words, { heard = false } = {}) {
  $("#status").textContent = words;
  $("#status").classList.toggle("heard", heard);
}

/** Runs `work`; an error becomes words. */
export async function said(work) {
  const place = $("#error");
  place.hidden = true;
  try {
    await work();
  } catch (error) {
    if (error.status === 401) askForKey();
    place.textContent = error.status === 401 ? keyTrouble() : sentence(error);
    place.hidden = place.textContent === "";
  }
}

export function askForKey() {
  $("#key-form").hidden = false;
  $("#key").focus();
}

/** then: what is done with each key that is given; the form is gone where it was right. */
export function takeKeys(then) {
  afterwards = then;
  $("#key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    key.keep($("#key").value);
    await afterwards();
  });
}

export function keyIsRight() {
  $("#key-form").hidden = true;
  $("#key").value = "";
}

/** That the server asks for a key is no trouble; that it does not know the one it was shown is. */
const keyTrouble = () => ($("#key").value ? "The server does not know this key." : "");

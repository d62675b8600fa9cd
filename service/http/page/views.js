// Which of the page's parts is seen: the one that the address names behind its #.

import { $, all } from "./dom.js";

const listeners = [];

/** Shows what the address names, now and whenever it changes. */
export function start() {
  addEventListener("hashchange", show);
  show();
}

export const current = () => {
  const name = location.hash.slice(1);
  return all("main > .view").some((view) => view.id === name) ? name : "ask";
};

export function open(name) {
  if (current() !== name) location.hash = name;
}

/** listener: (name) of the part that is seen from now on */
export function onChange(listener) {
  listeners.push(listener);
}

function show() {
  const name = current();
  for (const view of all("main > .view")) view.hidden = view.id !== name;
  for (const link of all("#views a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name === "ask" ? "viola" : `viola: ${$(`#views a[href="#${name}"]`).textContent}`;
  for (const listener of listeners) listener(name);
}

// What every module does with the document.

export const $ = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** A new element with a class and text in it. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Of buttons that exclude one another, the one that is pressed. */
export function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", button === pressed);
}

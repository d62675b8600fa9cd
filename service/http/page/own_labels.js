// Labels in words, for models that take them: what is typed in, asked for in place of a head.

import * as choice from "./choice.js";
import { $ } from "./dom.js";

const FEWEST = "Give at least two, with a comma between: it tells which of them fits best.";

export function start() {
  const form = $("#own-labels");
  const field = $("input", form);
  field.addEventListener("input", () => field.setCustomValidity(""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const labels = labelsOf(field.value);
    field.setCustomValidity(labels.length < 2 ? FEWEST : "");
    if (field.reportValidity()) choice.askFor(labels);
  });
}

/** "dog, rain,,dog" -> ["dog", "rain"] */
const labelsOf = (text) => [...new Set(text.split(",").map((label) => label.trim()).filter(Boolean))];

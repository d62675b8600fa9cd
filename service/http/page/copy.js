// Text of the page to the clipboard; also where the browser has no clipboard API, which is so over plain HTTP.

/** The sentence to show: that it was copied, or else what to press. */
export async function copy(place) {
  try {
    await navigator.clipboard.writeText(place.textContent);
    return "Copied.";
  } catch { // no such API, or not allowed
    select(place);
    return document.execCommand?.("copy") ? "Selected and copied." : "Selected: press Ctrl+C or ⌘C to copy it.";
  }
}

function select(place) {
  const range = document.createRange();
  range.selectNodeContents(place);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

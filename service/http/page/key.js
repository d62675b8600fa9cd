// The API key, where the server asks for one: kept until the tab is closed, sent as a header, never in an address.

const NAME = "viola-api-key";
export const HEADER = "X-API-Key";

let key = sessionStorage.getItem(NAME) ?? "";
let needed = key !== "";

export const isNeeded = () => needed;
export const markAsNeeded = () => { needed = true; };
/** As browsers can set no header on a WebSocket. */
export const subprotocols = () => (key ? ["viola", `viola.key.${encodeURIComponent(key)}`] : []);
export const headers = () => (key ? { [HEADER]: key } : {});

export function keep(value) {
  key = value.trim();
  sessionStorage.setItem(NAME, key);
}

// What the reader chose, in the address of TensorBoard's own page, so that it can be sent to a colleague:
// #rank_callbacks&p.rank_callbacks.view=heatmap&... is how TensorBoard spells the data of a plugin.

const TAB = "rank_callbacks";
const PREFIX = `p.${TAB}.`;
const NAMES = ["view", "runs", "run", "group", "measure", "layer", "x", "accuracy", "k", "step", "logx", "logy"];
let waiting = null;

/** TensorBoard's window where the browser lets us touch it, else our own. */
function outer() {
  try {
    return window.parent.location.href && window.parent;
  } catch {
    return window;
  }
}

function parts() {
  return outer().location.hash.slice(1).split("&").filter(Boolean);
}

/** The choices in the address; none of those that it does not spell. */
export function readAddress() {
  const chosen = {};
  for (const part of parts()) {
    const [name, value] = part.split("=").map(decoded);
    const key = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : "";
    if (NAMES.includes(key) && value !== undefined) chosen[key] = key === "runs" ? listed(value) : value;
  }
  return chosen;
}

/** Put choices into the address. TensorBoard is not told: its router would rebuild the page for it. */
export function writeAddress(chosen) {
  // A browser refuses more than some hundred changes a minute.
  clearTimeout(waiting);
  waiting = setTimeout(() => replace(chosen), 150);
}

function replace(chosen) {
  const view = outer();
  const kept = parts().filter((part) => !decoded(part.split("=")[0]).startsWith(PREFIX));
  if (view !== window && kept.length && kept[0] !== TAB) return; // another tab is open
  if (!kept.length && view !== window) kept.push(TAB);
  const ours = NAMES.filter((name) => chosen[name]?.length).map((name) => {
    const value = name === "runs" ? JSON.stringify(chosen.runs) : chosen[name];
    return `${encodeURIComponent(PREFIX + name)}=${encodeURIComponent(value)}`;
  });
  view.history.replaceState(view.history.state, "", `#${[...kept, ...ours].join("&")}`);
}

/** Call with the choices of an address that the reader typed or went back to; restore ours where TensorBoard dropped them. */
export function watchAddress(choose, current) {
  outer().addEventListener("hashchange", () => {
    const chosen = readAddress();
    if (Object.keys(chosen).length) choose(chosen);
    else writeAddress(current());
  });
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody's half of a per cent sign
  }
}

function listed(text) {
  try {
    const runs = JSON.parse(text);
    return Array.isArray(runs) && runs.length ? runs.map(String) : null;
  } catch {
    return null;
  }
}

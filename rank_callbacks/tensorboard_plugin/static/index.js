// The page of the Ranks tab: what the reader chose, kept in the address; one chart at a time, asked from the server.
// No build step and no library but plotly, which the server has from the installed package.

import { followReload } from "./reload.js";
import { readAddress, watchAddress, writeAddress } from "./address.js";
import { isDark, onTheme, themed } from "./theme.js";

const VIEWS = {
  depth_profile: { title: "Depth profile", controls: ["group", "measure"] },
  heatmap: { title: "Heatmap", controls: ["run", "group", "measure"] },
  spectrum: { title: "Spectrum", controls: ["run", "group", "measure", "layer", "k"] },
  gradient_bound: { title: "Gradient rank", controls: ["run"] },
  collapse: { title: "Collapse", controls: [] },
  sweep: { title: "Sweep", controls: ["x", "group", "measure", "accuracy"] },
  findings: { title: "Health", controls: [] },
};
const LABELS = {
  run: "Run", group: "Of", measure: "Measure", layer: "Layer", k: "Rank K", x: "Against", accuracy: "Accuracy",
};
// What a view that shows another kind of thing remembers for itself.
const state = { view: "depth_profile", runs: null, step: "", logx: "", logy: "" };
let index = null;
let shown = null; // the server's last answer
let asked = 0; // answers to older questions are dropped
const page = {};

export function render() {
  document.head.append(element("link", { rel: "stylesheet", href: "./static/style.css" }));
  build();
  Object.assign(state, readAddress());
  paint();
  onTheme(paint);
  watchAddress((chosen) => { Object.assign(state, { runs: null, step: "", logx: "", logy: "" }, chosen); update(); }, () => state);
  followReload(reload);
  // Plotly's 4.8 MB travel while the server reads the logs.
  page.plotly = loadScript("./static/plotly.min.js");
  return reload();
}

/** Ask for names and values anew, as TensorBoard's reload button does. */
async function reload() {
  try {
    index = await ask("./index");
    if (!(state.view in VIEWS)) state.view = "depth_profile";
    await update();
  } catch (failure) {
    tell(failure.message, "error");
  }
}

/** Show what is chosen, now. */
async function update() {
  if (!index) return;
  drawControls(state);
  writeAddress(state);
  const question = ++asked;
  page.main.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(`./figure?${query()}`);
    await page.plotly;
    if (question !== asked) return;
    shown = answer;
    drawControls({ ...state, ...answer.choice });
    await draw();
    performance.mark("ranks_drawn"); // what benchmarks/dashboard.py looks for
  } catch (failure) {
    if (question === asked) tell(failure.message, "error");
  } finally {
    if (question === asked) page.main.setAttribute("aria-busy", "false");
  }
}

function choose(changes) {
  Object.assign(state, changes);
  return update();
}

function query() {
  const asks = new URLSearchParams();
  for (const name of ["view", "group", "measure", "layer", "run", "x", "accuracy", "k"]) {
    if (state[name]) asks.append(name, state[name]);
  }
  for (const run of state.runs ?? []) asks.append("runs", run);
  return asks;
}

async function ask(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Error("TensorBoard does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Error(content.error ?? `${answer.status} ${answer.statusText}`);
  return content;
}

// ---------------------------------------------------------------------------------------------------------- drawing

/** Draw the last answer: a chart, a list of findings, or why there is neither. */
async function draw() {
  page.help.textContent = shown.how_to_read;
  page.csv.href = `./csv?${query()}`;
  page.csv.download = `ranks_${shown.choice.view}.csv`;
  page.downloads.hidden = Boolean(shown.message);
  page.png.hidden = !shown.figure;
  page.findings.hidden = !shown.findings;
  page.chart.hidden = !shown.figure;
  if (shown.message) return tell(shown.message, "message");
  tell(index.notes.join(" "), "note");
  if (shown.findings) return drawFindings(shown.findings, shown.cadences);
  await drawChart();
}

async function drawChart() {
  const figure = atStep(withAxes(themed(structuredClone(shown.figure))));
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d"] };
  drawAxisSwitches(figure.layout); // before the chart: what they take of the page it cannot have
  await Plotly.react(page.chart, { data: figure.data, layout: figure.layout, frames: figure.frames ?? [], config });
  if (!page.listens) {
    page.listens = true;
    page.chart.on("plotly_click", (event) => openLayer(event.points[0]));
    page.chart.on("plotly_sliderchange", (event) => remember(event.step.label));
    new ResizeObserver(() => page.chart.offsetParent && Plotly.Plots.resize(page.chart)).observe(page.chart);
  }
  paintRuns();
}

/** A click on a row of the heatmap opens the layer's spectrum. */
function openLayer(point) {
  if (state.view !== "heatmap") return;
  const row = Array.isArray(point.pointIndex) ? point.pointIndex[0] : point.pointNumber[0];
  const layer = point.data.meta?.layers?.[row];
  if (layer) choose({ view: "spectrum", layer, run: shown.choice.run, group: shown.choice.group, measure: "", step: "" });
}

/** The chosen step rather than the last, and the last again once the reader moved there. */
function remember(step) {
  const steps = shown.figure?.layout.sliders?.[0]?.steps ?? [];
  state.step = step === steps.at(-1)?.label ? "" : step;
  writeAddress(state);
}

function atStep(figure) {
  const slider = figure.layout.sliders?.[0];
  const place = slider && state.step ? slider.steps.findIndex((step) => step.label === state.step) : -1;
  if (place < 0) return figure;
  slider.active = place;
  const frame = figure.frames[place];
  frame.data.forEach((changed, trace) => Object.assign(figure.data[frame.traces?.[trace] ?? trace], changed));
  if (frame.layout) Object.assign(figure.layout.title, frame.layout.title);
  return figure;
}

/** Axes of numbers, whose kind the reader may switch; layers and categories stay as they are. */
function numeric(layout, letter) {
  return Object.keys(layout).filter((name) => {
    const axis = layout[name];
    return new RegExp(`^${letter}axis\\d*$`).test(name) && axis.type !== "category" && axis.tickmode !== "array";
  });
}

function withAxes(figure) {
  for (const letter of ["x", "y"]) {
    const kind = state[`log${letter}`];
    if (!kind) continue;
    for (const name of numeric(figure.layout, letter)) {
      const axis = figure.layout[name];
      if ((axis.type ?? "linear") === kind) continue;
      axis.type = kind;
      delete axis.dtick;
      delete axis.rangemode;
      if (axis.range) axis.range = rangeOf(figure, letter, kind);
      axis.autorange = !axis.range;
    }
  }
  return figure;
}

/** A range for all frames: one that moved with them would hide what moves. */
function rangeOf(figure, letter, kind) {
  const traces = [figure, ...(figure.frames ?? [])].flatMap((one) => one.data);
  const values = traces.flatMap((trace) => trace[letter] ?? []).filter((value) => Number.isFinite(value) && (kind !== "log" || value > 0));
  if (!values.length) return undefined;
  const low = values.reduce((one, other) => Math.min(one, other));
  const high = values.reduce((one, other) => Math.max(one, other));
  return kind === "log" ? [Math.log10(low) - 0.05, Math.log10(high) + 0.05] : [Math.min(0, low), 1.05 * high];
}

/** Findings under the run that they are of, and how often its monitors report. */
function drawFindings(findings, cadences) {
  const runs = shown.choice.runs.filter((run) => [...findings, ...cadences].some((one) => one.run === run));
  const parts = runs.flatMap((run) => [
    element("h3", {}, [run]),
    element("ul", {}, findings.filter((found) => found.run === run).map(findingItem)),
    ...cadences.filter((one) => one.run === run).map(({ text }) => element("p", { className: "cadence" }, [text])),
  ]);
  const healthy = findings.length ? [] : [element("p", { className: "finding healthy" }, ["Nothing stands out."])];
  page.findings.replaceChildren(...healthy, ...parts);
  drawAxisSwitches({});
  paintRuns();
}

function findingItem({ severity, text }) {
  return element("li", { className: `finding ${severity}` }, [element("strong", {}, [severity]), element("span", {}, [text])]);
}

function tell(text, kind) {
  page.note.textContent = text;
  page.note.className = kind;
  page.note.setAttribute("role", kind === "error" ? "alert" : "status");
  page.note.hidden = !text;
  if (kind === "note") return;
  for (const part of [page.chart, page.findings, page.downloads, page.axes]) part.hidden = true;
  page.help.textContent = "";
}

// --------------------------------------------------------------------------------------------------------- controls

function build() {
  page.views = element("div", { className: "views", role: "tablist", ariaLabel: "View" });
  page.controls = element("div", { className: "controls" });
  page.axes = element("div", { className: "axes", hidden: true });
  page.note = element("p", { hidden: true });
  page.help = element("p", { className: "help", id: "help" });
  page.chart = element("div", { className: "chart", hidden: true });
  page.findings = element("section", { className: "findings", hidden: true });
  page.png = element("button", { type: "button", onclick: downloadPicture }, ["Download PNG"]);
  page.csv = element("a", { className: "button" }, ["Download CSV"]);
  page.downloads = element("div", { className: "downloads", hidden: true }, [page.png, page.csv]);
  page.filter = element("input", { type: "search", placeholder: "Filter runs", ariaLabel: "Filter runs", oninput: drawRuns });
  page.all = element("button", { type: "button", onclick: () => chooseRuns(visibleRuns()) }, ["All"]);
  page.none = element("button", { type: "button", onclick: () => chooseRuns(visibleRuns().slice(0, 1)) }, ["First only"]);
  page.runs = element("ul", { className: "runs" });
  const heading = element("h2", { id: "runs" }, ["Runs"]);
  const buttons = element("div", { className: "downloads" }, [page.all, page.none]);
  page.side = element("aside", { ariaLabel: "Runs" }, [heading, page.filter, buttons, page.runs]);
  const bar = element("div", { className: "bar" }, [page.controls, page.axes, page.downloads]);
  page.main = element("main", { id: "panel", role: "tabpanel" }, [bar, page.note, page.help, page.chart, page.findings]);
  document.body.append(page.views, element("div", { className: "columns" }, [page.side, page.main]));
  page.views.addEventListener("keydown", moveBetweenViews);
}

function drawControls(chosen) {
  drawViews();
  drawRuns();
  const empty = Boolean(index.empty);
  page.side.hidden = empty;
  page.controls.replaceChildren(...(empty ? [] : VIEWS[state.view].controls.map((name) => control(name, chosen))));
}

function drawViews() {
  const buttons = Object.entries(VIEWS).map(([name, { title }]) => {
    const selected = name === state.view;
    const button = element("button", { type: "button", role: "tab", tabIndex: selected ? 0 : -1 }, [title]);
    button.dataset.view = name;
    button.setAttribute("aria-selected", String(selected));
    button.setAttribute("aria-controls", "panel");
    button.onclick = () => choose({ view: name, step: "", logx: "", logy: "" });
    return button;
  });
  keepFocus(page.views, () => page.views.replaceChildren(...buttons), "view");
}

function moveBetweenViews(event) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  const names = Object.keys(VIEWS);
  const next = names[(names.indexOf(state.view) + move + names.length) % names.length];
  choose({ view: next, step: "", logx: "", logy: "" });
  page.views.querySelector(`[data-view=${next}]`).focus();
}

function control(name, chosen) {
  const label = element("label", {}, [element("span", {}, [LABELS[name]])]);
  const box = name === "k" ? numberBox() : selectBox(name, options(name, chosen), chosen[name] ?? "");
  box.ariaLabel = LABELS[name]; // without it the name would hold all of the options
  label.append(box);
  return label;
}

function numberBox() {
  const box = element("input", { type: "number", min: "1", value: state.k ?? "", placeholder: "classes" });
  box.onchange = () => choose({ k: box.value });
  return box;
}

function selectBox(name, values, value) {
  const box = element("select", {}, values.map((one) => element("option", { value: one, selected: one === value }, [one || "none"])));
  box.dataset.control = name;
  box.onchange = () => choose({ [name]: box.value, step: name === "run" ? state.step : "" }).then(() => refocus(name));
  return box;
}

function refocus(name) {
  page.controls.querySelector(`[data-control=${name}]`)?.focus();
}

function options(name, chosen) {
  const spectra = state.view === "spectrum";
  const groups = spectra ? index.spectra : index.groups;
  const group = chosen.group in groups ? chosen.group : Object.keys(groups)[0];
  const measures = spectra ? Object.keys(groups[group] ?? {}) : groups[group]?.measures ?? [];
  const measure = measures.includes(chosen.measure) ? chosen.measure : measures[0];
  return {
    run: state.runs ?? index.runs,
    group: Object.keys(groups),
    measure: measures,
    layer: groups[group]?.[measure] ?? [],
    x: index.hyperparameters,
    accuracy: index.accuracies,
  }[name] ?? [];
}

function drawAxisSwitches(layout) {
  const switches = ["x", "y"].filter((letter) => numeric(layout, letter).length).map((letter) => {
    const name = numeric(layout, letter)[0];
    const box = element("input", { type: "checkbox", checked: layout[name].type === "log" });
    box.dataset.axis = letter;
    box.onchange = () => { Object.assign(state, { [`log${letter}`]: box.checked ? "log" : "linear" }); writeAddress(state); draw(); };
    return element("label", { className: "switch" }, [box, `log ${letter}`]);
  });
  page.axes.hidden = !switches.length;
  keepFocus(page.axes, () => page.axes.replaceChildren(...switches), "axis");
}

function visibleRuns() {
  const sought = page.filter.value.toLowerCase();
  return index.runs.filter((run) => run.toLowerCase().includes(sought));
}

function drawRuns() {
  if (!index) return;
  const chosen = new Set(state.runs ?? index.runs);
  const items = visibleRuns().map((run) => {
    const box = element("input", { type: "checkbox", checked: chosen.has(run) });
    box.dataset.run = run;
    box.onchange = () => {
      const now = new Set(state.runs ?? index.runs);
      box.checked ? now.add(run) : now.delete(run);
      if (now.size) chooseRuns(index.runs.filter((one) => now.has(one)));
      else box.checked = true; // a chart of no run shows nothing
    };
    const name = element("span", { className: "name", title: run }, [run]);
    return element("li", {}, [element("label", {}, [box, element("i", { className: "swatch" }), name])]);
  });
  keepFocus(page.runs, () => page.runs.replaceChildren(...items), "run");
  paintRuns();
}

function chooseRuns(runs) {
  return choose({ runs: runs.length === index.runs.length || !runs.length ? null : runs });
}

/** The colour of a run's lines beside its name. */
function paintRuns() {
  const colours = new Map();
  for (const trace of (state.view === "depth_profile" && shown?.figure?.data) || []) colours.set(unescaped(trace.name), trace.line?.color);
  for (const item of page.runs.children) {
    const swatch = item.querySelector(".swatch");
    swatch.style.background = colours.get(item.querySelector("input").dataset.run) ?? "";
    swatch.hidden = !swatch.style.background;
  }
}

/** Text as it was before figures/looks.py made it safe for plotly. */
function unescaped(text) {
  return (text ?? "").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

/** Replace what is inside a part of the page; what had the keyboard's focus has it again. */
function keepFocus(part, replace, key) {
  const before = part.contains(document.activeElement) ? document.activeElement.dataset[key] : undefined;
  replace();
  if (before !== undefined) [...part.querySelectorAll(`[data-${key}]`)].find((one) => one.dataset[key] === before)?.focus();
}

// ------------------------------------------------------------------------------------------------------------ others

function paint() {
  document.body.classList.toggle("dark", isDark());
  if (shown?.figure && window.Plotly) draw();
}

function downloadPicture() {
  const { data, layout, clientWidth: width, clientHeight: height } = page.chart;
  const background = getComputedStyle(document.body).backgroundColor;
  const { sliders, updatemenus, ...still } = layout;
  const figure = { data, layout: { ...still, paper_bgcolor: background, plot_bgcolor: background, autosize: false, width, height } };
  return Plotly.downloadImage(figure, { format: "png", width, height, scale: 2, filename: `ranks_${state.view}` });
}

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const script = element("script", { src: address });
    script.onload = resolve;
    script.onerror = () => reject(new Error("plotly.min.js did not load."));
    document.head.append(script);
  });
}

/** An element with properties and children; text is text, whatever markup it looks like. */
function element(name, properties = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) key === "role" ? made.setAttribute(key, value) : (made[key] = value);
  made.append(...children);
  return made;
}

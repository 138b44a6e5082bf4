// Draws the figures that the page holds as JSON, in the colours of the reader's system, and of paper when printed.
"use strict";
const night = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();

function colours(dark) {
  return dark ? { ink: "#e6e6e6", faint: "#484848", paper: "#2a2a2a" } : { ink: "#212121", faint: "#e3e3e3", paper: "#ffffff" };
}

function themed(layout, dark) {
  const { ink, faint, paper } = colours(dark);
  layout.font = { family: "Roboto, Helvetica, Arial, sans-serif", size: 13, ...layout.font, color: ink };
  layout.hoverlabel = { ...layout.hoverlabel, bgcolor: paper, bordercolor: faint, font: { color: ink } };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) layout[name].gridcolor = faint;
  for (const slider of layout.sliders ?? []) Object.assign(slider, { bordercolor: faint, font: { color: ink }, tickcolor: faint });
  for (const menu of layout.updatemenus ?? []) Object.assign(menu, { bgcolor: paper, bordercolor: faint, font: { color: ink } });
  return layout;
}

function draw(chart, dark = night.matches) {
  const figure = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
  drawn.add(chart);
  const config = { responsive: true, displaylogo: false };
  return Plotly.newPlot(chart, { ...figure, layout: themed(figure.layout, dark), config });
}

function paint(dark) {
  for (const chart of drawn) draw(chart, dark);
}

for (const chart of document.querySelectorAll(".chart")) {
  const fold = chart.closest("details");
  if (!fold || fold.open) draw(chart);
  else fold.addEventListener("toggle", () => drawn.has(chart) || draw(chart));
}
night.addEventListener("change", () => paint(night.matches));
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  document.querySelectorAll(".chart").forEach((chart) => draw(chart, false));
});
window.addEventListener("afterprint", () => paint(night.matches));

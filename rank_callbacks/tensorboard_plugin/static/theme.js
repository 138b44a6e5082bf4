// Light and dark as TensorBoard's own page is.

function outerBody() {
  try {
    return window.parent.document.body;
  } catch {
    return document.body;
  }
}

export function isDark() {
  return outerBody().classList.contains("dark-mode");
}

/** Call whenever the reader switches between light and dark. */
export function onTheme(paint) {
  let dark = isDark();
  new MutationObserver(() => {
    if (dark !== isDark()) {
      dark = isDark();
      paint();
    }
  }).observe(outerBody(), { attributes: true, attributeFilter: ["class"] });
}

/** A figure with text, grid, buttons and hover in the page's colours: what the server leaves open. */
export function themed(figure) {
  const dark = isDark();
  const [ink, faint, paper, accent] = dark ? ["#e6e6e6", "#4a4a4a", "#303030", "#ffb74d"] : ["#212121", "#e3e3e3", "#ffffff", "#e65100"];
  const layout = figure.layout;
  layout.font = { family: "Roboto, Helvetica, Arial, sans-serif", size: 13, ...layout.font, color: ink };
  layout.hoverlabel = { bgcolor: paper, bordercolor: faint, ...layout.hoverlabel, font: { color: ink } };
  if (layout.legend?.font) delete layout.legend.font.color;
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    const title = { ...layout[name].title, font: { size: 13, ...layout[name].title?.font } };
    layout[name] = { ...layout[name], gridcolor: faint, title };
  }
  for (const slider of layout.sliders ?? []) {
    Object.assign(slider, { bgcolor: accent, activebgcolor: accent, bordercolor: faint, font: { color: ink }, tickcolor: faint });
  }
  for (const menu of layout.updatemenus ?? []) Object.assign(menu, { bgcolor: paper, bordercolor: faint, font: { color: ink } });
  return figure;
}

"use strict";
// Draws the page's pictures and ties them together: the legend hides optimizers, schedules and sweeps in all
// of them, and runs that are brushed in one are shown in the others. Pictures are Vega-Lite; each has the
// parameters `hidden`, `picked` (run -> true, or false for all) and `picked_settings`.

const page = JSON.parse(document.getElementById("page-data").textContent);
const views = new Map();    // figure id -> Vega view
const options = new Map();  // figure id -> what its tools have set
const hidden = {};
let picked = false;
let pickedSettings = false;
const MOST_OVERLAID = 150;
const rendered = window.rendered = { done: false, figures: [] };

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

// Tables travel as columns and become rows once.
const tables = new Map();
function rowsOf(name) {
  if (!tables.has(name)) {
    const { columns, values } = page.tables[name];
    const count = values.length ? values[0].length : 0;
    const rows = Array.from({ length: count }, (_, i) =>
      Object.fromEntries(columns.map((column, c) => [column, values[c][i]])));
    tables.set(name, rows);
  }
  return tables.get(name);
}

const isDark = () => document.documentElement.dataset.theme === "dark";

function walk(node, visit) {
  if (Array.isArray(node)) node.forEach(child => walk(child, visit));
  else if (node && typeof node === "object") {
    visit(node);
    Object.values(node).forEach(child => walk(child, visit));
  }
}

const scaleOf = ({ zero, ...scale } = {}, type) => type === "log" ? { ...scale, type } : { ...scale, type, zero: false };

// A figure's specification for this width, theme and choice of axes.
function specification(figure, width) {
  const spec = structuredClone(figure.spec);
  const { columns = 1, room = 30, choices = {}, logarithmic = {} } = spec.usermeta ?? {};
  const set = options.get(figure.id);
  delete spec.title;
  const narrow = width < 560;
  spec.config = structuredClone(isDark() ? page.configs.dark : page.configs.light);
  if (narrow) spec.config.legend.columns = 1;
  spec.datasets = Object.fromEntries(figure.tables.map(name => [name, rowsOf(name)]));
  const across = Math.max(1, Math.min(columns, Math.floor(width / 250)));
  const side = Math.min(room, width * 0.45);
  if (spec.facet) {
    spec.columns = across;
    spec.spec.width = Math.max(120, Math.floor((width - side) / across - 32));
  } else if (!spec.hconcat && !spec.vconcat && !spec.concat) {
    spec.width = width - side - 30;
  }
  for (const [channel, choice] of Object.entries(choices)) {
    const chosen = set[channel] ?? choice.now;
    const numeric = rowsOf(figure.tables[0]).some(row => typeof row[chosen] === "number");
    walk(spec, node => {
      const encoding = node.encoding;
      if (!encoding) return;
      const own = encoding[channel];
      if (own?.field === choice.now) {
        Object.assign(own, { field: chosen, title: choice.from[chosen] });
        if (own.axis?.format && !numeric) delete own.axis.format;
        if (own.type === "ordinal") own.sort = channel === "y" && numeric ? "descending" : "ascending";
        if (own.type === "quantitative") own.scale = scaleOf(own.scale, logarithmic[chosen] ? "log" : "linear");
      }
      if (chosen !== choice.now) {
        for (const tip of encoding.tooltip ?? []) if (tip.field === choice.now && !tip.aggregate) tip.field = chosen;
      }
    });
  }
  walk(spec, node => {
    if (!node.encoding) return;
    for (const own of Object.values(node.encoding)) {
      if (page.legend.some(group => group.name === own.field)) own.legend = null;
      if (narrow && own.legend?.gradientLength) own.legend.gradientLength = 110;
    }
    for (const channel of ["x", "y"]) {
      const type = set[`${channel}Scale`];
      const own = node.encoding[channel];
      if (type && own?.field) own.scale = scaleOf(own.scale, type);
      if (type === "linear" && own?.axis) own.axis.tickCount = 5;
    }
    if (room > width * 0.45 && node.encoding.y?.axis) node.encoding.y.axis.labelLimit = side - 10;
  });
  if (spec.usermeta?.brush_axes && narrow) {
    walk(spec, node => { if (node.field === "axis" && node.axis) Object.assign(node.axis, { labelAngle: -30, labelAlign: "left" }); });
  }
  for (const parameter of spec.params ?? []) {
    if (parameter.name === "hidden") parameter.value = { ...hidden };
    if (parameter.name === "picked") parameter.value = picked;
    if (parameter.name === "picked_settings") parameter.value = pickedSettings;
  }
  return spec;
}

async function draw(figure) {
  const place = document.querySelector(`[data-figure="${figure.id}"]`);
  const tooltip = { theme: isDark() ? "dark" : "light" };
  let width = place.clientWidth, view = null;
  for (let attempt = 0; attempt < 4; attempt++) {  // labels take room that is known once they are drawn
    views.get(figure.id)?.finalize();
    ({ view } = await vegaEmbed(place, specification(figure, width), { mode: "vega-lite", actions: false, renderer: "canvas", logLevel: 1, tooltip }));
    views.set(figure.id, view);
    const excess = place.scrollWidth - place.clientWidth;
    if (excess <= 0) break;
    width -= excess + 2;
  }
  place.dataset.drawn = "yes";
  place.dataset.width = place.clientWidth;
  if (figure.brush) view.addSignalListener("brush", (_, value) => brushed(figure, value));
  await overlay(figure, view);
}

// --- runs picked by a brush or by the form ---

function brushed(figure, value) {
  const fields = Object.entries(value ?? {}).filter(([, range]) => range?.length);
  if (!fields.length) return pick(false);
  const needed = figure.spec.usermeta?.brush_axes ? value.axis.length : 1;
  const counts = {};
  for (const row of rowsOf(figure.tables[0])) {
    const inside = fields.every(([field, range]) => typeof range[0] === "number"
      ? row[field] >= Math.min(...range) && row[field] <= Math.max(...range)
      : range.includes(row[field]));
    if (inside && row.run !== null) counts[row.run] = (counts[row.run] ?? 0) + 1;
  }
  pick(Object.keys(counts).filter(run => counts[run] >= needed));
}

let pending = 0;
function pick(runs) {
  picked = runs ? Object.fromEntries(runs.map(run => [run, true])) : false;
  pickedSettings = false;
  if (runs) {
    pickedSettings = {};
    for (const row of rowsOf("runs")) if (picked[row.run]) pickedSettings[row.setting] = true;
  }
  clearTimeout(pending);
  pending = setTimeout(update, 60);
}

function update() {
  for (const figure of page.figures) {
    const view = views.get(figure.id);
    if (!view) continue;
    if (figure.spec.params?.some(parameter => parameter.name === "hidden")) {
      view.signal("hidden", { ...hidden }).signal("picked", picked).signal("picked_settings", pickedSettings);
    }
    overlay(figure, view);
  }
  for (const row of document.querySelectorAll("tr[data-optimizer]")) {
    row.hidden = page.legend.some(({ name }) => hidden[`${name} ${row.dataset[name]}`]);
  }
  const status = document.getElementById("status");
  status.replaceChildren();
  if (picked) {
    const clear = element("button", { type: "button", onclick: () => { pick(false); page.figures.filter(f => f.brush).forEach(draw); } }, "Show all");
    status.append(`${Object.keys(picked).length} runs picked`, clear);
  }
  listPicked();
}

// Single runs, drawn over the means of a picture.
async function overlay(figure, view) {
  const kind = figure.spec.usermeta?.overlay;
  if (kind) {
    const runs = picked ? rowsOf("runs").filter(row => picked[row.run]).slice(0, MOST_OVERLAID) : [];
    const rows = kind === "curves" ? runs.flatMap(curve) : runs.filter(row => row.value !== null)
      .map(row => ({ ...row, low: row.value, high: row.value }));
    view.data(figure.tables[0], [...rowsOf(figure.tables[0]), ...rows].map(row => ({ ...row })));
  }
  await view.runAsync();
}

function curve(run) {
  const values = page.curves.values[run.run];
  if (!values) return [];
  const steps = page.curves.steps[run.sweep];
  const { optimizer, schedule, sweep, panel } = run;
  const setting = page.axes.map(name => `${name} ${run[name]}`).join(", ") + `, seed ${run.seed}`;
  return values.map((value, i) => ({ step: steps[i], value, low: value, high: value, run: run.run, optimizer, schedule, sweep, panel, setting }))
    .filter(row => row.value !== null);
}

// --- controls ---

const PATHS = {
  "circle": "M7,3a4,4 0 1,0 .01,0", "square": "M3,3h8v8h-8z", "triangle-up": "M7,2l5,9h-10z", "diamond": "M7,1l5,6l-5,6l-5,-6z",
  "cross": "M5,2h4v3h3v4h-3v3h-4v-3h-3v-4h3z", "triangle-down": "M7,12l5,-9h-10z", "triangle-right": "M12,7l-9,5v-10z",
};

function swatch(number) {
  const colours = (isDark() ? page.configs.dark : page.configs.light).range.category;
  const dash = page.dashes[number % page.dashes.length].join(",");
  const colour = colours[number % colours.length];
  const made = element("span");
  made.innerHTML = `<svg width="30" height="14" aria-hidden="true"><path d="M0,7h30" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${dash}"/>` +
    `<path transform="translate(8,0)" d="${PATHS[page.shapes[number % page.shapes.length]]}" fill="${colour}"/></svg>`;
  return made.firstChild;
}

function buildLegend() {
  const place = document.getElementById("legend");
  place.replaceChildren();
  for (const { name, entries } of page.legend) {
    if (entries.length < 2) continue;
    const set = element("fieldset", {}, element("legend", {}, name));
    entries.forEach((entry, number) => {
      const key = `${name} ${entry}`;
      const button = element("button", {
        type: "button", "aria-pressed": String(!hidden[key]), "data-key": key, title: "Show or hide; with Shift, show only this",
        onclick: event => {
          if (event.shiftKey) entries.forEach(other => { hidden[`${name} ${other}`] = other !== entry; });
          else hidden[key] = !hidden[key];
          for (const other of set.querySelectorAll("button")) other.setAttribute("aria-pressed", String(!hidden[other.dataset.key]));
          update();
        },
      });
      if (name === page.legend[0].name) button.append(swatch(number));
      button.append(entry);
      set.append(button);
    });
    place.append(set);
  }
}

function buildTools(figure) {
  const place = document.querySelector(`.tools[data-for="${figure.id}"]`);
  const { toggles = [], choices = {} } = figure.spec.usermeta ?? {};
  const set = {};
  options.set(figure.id, set);
  for (const [channel, choice] of Object.entries(choices)) {
    if (Object.keys(choice.from).length < 2) continue;
    const label = channel === "x" ? "across" : "down";
    const select = element("select", { "aria-label": `axis ${label}`, onchange: () => { set[channel] = select.value; delete set[`${channel}Scale`]; draw(figure); } });
    for (const [name, title] of Object.entries(choice.from)) {
      const option = element("option", { value: name }, title);
      option.selected = name === choice.now;
      select.append(option);
    }
    place.append(element("label", {}, `${label} `, select));
  }
  for (const channel of toggles) {
    let first = null;
    walk(figure.spec, node => { first ??= node.encoding?.[channel]?.field ? node.encoding[channel] : null; });
    let logarithmic = first?.scale?.type === "log";
    const button = element("button", {
      type: "button", "aria-pressed": String(logarithmic), "data-toggle": channel,
      onclick: () => {
        logarithmic = !logarithmic;
        set[`${channel}Scale`] = logarithmic ? "log" : "linear";
        button.setAttribute("aria-pressed", String(logarithmic));
        draw(figure);
      },
    }, `log ${channel === "x" ? "horizontal" : "vertical"}`);
    place.append(button);
  }
  if (figure.brush) place.append(element("span", {}, "Drag over runs to see them in every picture."));
  const numbers = document.querySelector(`.numbers[data-for="${figure.id}"]`);
  numbers.addEventListener("toggle", () => numbers.open && numbers.lastElementChild.replaceChildren(table(rowsOf(figure.tables[0]), 200)));
}

const shown = value => typeof value === "number" ? String(Number(value.toPrecision(5))) : String(value ?? "");

function table(rows, most, columns = Object.keys(rows[0] ?? {})) {
  const head = element("tr", {}, ...columns.map(name => element("th", { scope: "col" }, name)));
  const body = rows.slice(0, most).map(row => element("tr", {}, ...columns.map(name => element("td", {}, shown(row[name])))));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  if (rows.length > most) made.prepend(element("caption", {}, `The first ${most} of ${rows.length} rows.`));
  return made;
}

// The form picks runs without a mouse; the list shows what is picked.
function buildPicks() {
  const place = document.getElementById("picks");
  if (!place) return;
  const names = [...page.axes, "seed", "value"].filter((name, i, all) => all.indexOf(name) === i && rowsOf("runs").some(row => typeof row[name] === "number"));
  const select = element("select", { "aria-label": "axis to pick runs by" }, ...names.map(name => element("option", { value: name }, name === "value" ? page.metric : name)));
  select.value = "value";
  const low = element("input", { type: "number", step: "any", size: 6, "aria-label": "from", placeholder: "lowest" });
  const high = element("input", { type: "number", step: "any", size: 6, "aria-label": "to", placeholder: "highest" });
  const go = () => {
    const from = low.value === "" ? -Infinity : Number(low.value);
    const to = high.value === "" ? Infinity : Number(high.value);
    pick(rowsOf("runs").filter(row => row[select.value] !== null && row[select.value] >= from && row[select.value] <= to).map(row => row.run));
  };
  const form = element("form", { class: "tools", onsubmit: event => { event.preventDefault(); go(); } },
    "Pick the runs whose ", select, " is from ", low, " to ", high, element("button", {}, "Pick"));
  place.append(form, element("div", { id: "picked", class: "scroll" }));
}

function listPicked() {
  const place = document.getElementById("picked");
  if (!place) return;
  place.replaceChildren();
  if (!picked) return;
  const rows = rowsOf("runs").filter(row => picked[row.run]);
  const columns = ["sweep", "optimizer", "schedule", ...page.axes, "seed", "valid", "value", "diverged_at"];
  place.append(table(rows, 50, columns.filter((name, i, all) => all.indexOf(name) === i && rows.length && name in rows[0])));
}

// --- theme, size, start ---

const theme = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.lastElementChild.textContent = name === "dark" ? "light" : "dark";
}
const redraw = () => page.figures.forEach(figure => views.has(figure.id) && draw(figure));
theme.addEventListener("click", () => { setTheme(isDark() ? "light" : "dark"); buildLegend(); redraw(); });
const preference = matchMedia("(prefers-color-scheme: dark)");
preference.addEventListener("change", () => { setTheme(preference.matches ? "dark" : "light"); buildLegend(); redraw(); });

let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => page.figures.forEach(figure => {
    const place = document.querySelector(`[data-figure="${figure.id}"]`);
    if (views.has(figure.id) && Math.abs(place.clientWidth - place.dataset.width) > 4) draw(figure);
  }), 150);
});

async function start() {
  setTheme(preference.matches ? "dark" : "light");
  buildLegend();
  page.figures.forEach(buildTools);
  buildPicks();
  for (const figure of page.figures) {  // one after another, so that the page answers meanwhile
    await draw(figure);
    rendered.figures.push(figure.id);
    await new Promise(resolve => setTimeout(resolve));
  }
  rendered.done = true;
}
start();

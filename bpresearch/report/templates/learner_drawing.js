/* How the network, the loss over the steps and numbers are drawn; nothing here knows what a derivative is. */
"use strict";

const KINDS = ["input", "weight", "activation", "loss"];
const RADIUS = 29;

/* A number in four digits, as one writes it. */
function short(x, digits = 4) {
  if (!Number.isFinite(x)) return "not a number";
  const size = Math.abs(x);
  const text = size && (size < 1e-4 || size >= 1e6) ? x.toExponential(digits - 2) : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}

function svgElement(name, attributes = {}, parent = null, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  parent?.append(element);
  return element;
}

/* One pattern for each kind of factor, so that nobody needs to see colours. */
function patterns(svg) {
  const defs = svgElement("defs", {}, svg);
  const add = (kind, size, turn) => svgElement("pattern", {
    id: `pattern-${kind}`, width: size, height: size, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})`,
  }, defs);
  const fill = kind => ({ style: `fill: var(--${kind})` });
  svgElement("rect", { width: 6, height: 6, ...fill("input") }, add("input", 6, 0));
  svgElement("rect", { width: 3, height: 6, ...fill("weight") }, add("weight", 6, 45));
  svgElement("circle", { cx: 3, cy: 3, r: 1.9, ...fill("activation") }, add("activation", 6, 0));
  svgElement("rect", { width: 6, height: 2, ...fill("loss") }, add("loss", 4, 0));
}

/* Where units stand: layers from left to right, or on a narrow screen from top to bottom. */
function layout(net, width) {
  const sizes = [...net.units.map(names => names.length), 1], most = Math.max(...sizes), last = sizes.length - 1;
  const narrow = width < 620, large = most > 2, beside = 122;  // pixels for the signs beside a unit of a narrow drawing
  const across = narrow ? Math.max(large ? 150 : 112, Math.min(260, (width - RADIUS - 6 - beside) / Math.max(most - 1, 1))) : 150;
  const along = narrow ? (large ? 230 : 190) : Math.max(large ? 215 : 150, (width - 110) / last);
  const first = narrow ? RADIUS + 6 : 95, breadth = first + across * (most - 1) + (narrow ? beside : 95);
  const length = along * last + (narrow ? 80 : 110);
  const place = (l, j) => {
    const side = first + across * ((most - 1) / 2 + j - (sizes[l] - 1) / 2), ahead = 45 + l * along;
    return narrow ? { x: side, y: ahead } : { x: ahead, y: side };
  };
  // How far along an edge its sign stands, so that signs of neighbours do not meet.
  const share = (l, j, i) => {
    if (narrow) return sizes[l + 1] > 1 ? 0.29 + ((large ? 0.38 : 0.27) * j) / (sizes[l + 1] - 1) : 0.4;
    return large ? 0.32 + 0.3 * (i % 2) : 0.4;
  };
  return { place, share, narrow, last, width: narrow ? Math.max(width, breadth) : length, height: narrow ? length : breadth, letter: narrow ? 6.6 : 7.1 };
}

const widthOf = (at, text, strip) => at.letter * text.length + (strip ? 24 : 12);

/* A small sign with a text; with `kind`, a strip of its pattern; with `key`, something to choose and drag. */
function tag(parent, at, x, y, text, { kind = "", key = "", chosen = false, label = text, value = 0 } = {}) {
  const wide = widthOf(at, text, kind && !chosen), strip = kind && !chosen;
  const g = svgElement("g", { class: `tag ${kind ? `kind ${kind}` : ""} ${chosen ? "chosen" : ""} ${key ? "grip" : ""}` }, parent);
  svgElement("rect", { x: x - wide / 2, y: y - 12, width: wide, height: 24, rx: 6 }, g);
  if (strip) svgElement("rect", { class: "strip", x: x - wide / 2 + 4, y: y - 8, width: 9, height: 16, style: `fill: url(#pattern-${kind})` }, g);
  svgElement("text", { x: x + (strip ? 6 : 0), y, class: "value" }, g, text);
  if (key) grip(g, key, label, value);
}

function grip(element, key, label, value) {
  for (const [name, text] of Object.entries({ "data-key": key, tabindex: 0, role: "slider", "aria-label": label, "aria-valuenow": value, "aria-valuetext": short(value) }))
    element.setAttribute(name, text);
}

/* The network: every unit, weight and value written on it; what lies on the chosen weight's paths stands out.

`show` holds net, state (values after forward), paths of the chosen weight, chosen (its name). */
function drawNetwork(container, show) {
  const { net, state, paths, chosen } = show, at = layout(net, container.clientWidth);
  const svg = svgElement("svg", { width: at.width, height: at.height, viewBox: `0 0 ${at.width} ${at.height}`, class: at.narrow ? "narrow" : "" });
  patterns(svg);
  const edges = svgElement("g", {}, svg), quiet = svgElement("g", {}, svg), signs = svgElement("g", {}, svg);
  const met = new Map();
  for (const factor of paths.flatMap(path => path.factors))
    met.set([factor.kind, factor.layer, factor.unit, factor.source ?? ""].join(), factor);
  const on = (...what) => met.get(what.join());

  net.weights.forEach((rows, l) => rows.forEach((row, j) => row.forEach((w, i) => {
    const name = net.weight_names[l][j][i], a = at.place(l, i), b = at.place(l + 1, j), t = at.share(l, j, i);
    const passed = on("weight", l, j, i), mine = name === chosen;
    svgElement("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: `edge ${mine ? "chosen" : passed ? "on weight" : ""}` }, edges);
    const x = a.x + t * (b.x - a.x), y = a.y + t * (b.y - a.y);
    tag(mine || passed ? signs : quiet, at, x, y, `${name} ${short(w, 3)}`, { kind: passed && !mine ? "weight" : "", chosen: mine, key: `w:${name}`, label: `weight ${name}, from ${net.units[l][i]} to ${net.units[l + 1][j]}`, value: w });
  })));
  net.targets.forEach((_, k) => {
    const a = at.place(at.last - 1, k), b = at.place(at.last, 0), passed = on("loss", at.last - 2, k, "");
    svgElement("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: `edge ${passed ? "on loss" : ""}` }, edges);
    if (passed) tag(signs, at, a.x + 0.5 * (b.x - a.x), a.y + (at.narrow ? 0.6 : 0.5) * (b.y - a.y), short(passed.value), { kind: "loss" });
  });
  net.units.forEach((names, l) => names.forEach((name, j) => drawUnit(signs, show, at, on, l, j, name)));

  const end = at.place(at.last, 0), box = svgElement("g", { class: "cost" }, signs);
  svgElement("rect", { x: end.x - 42, y: end.y - 27, width: 84, height: 54, rx: 8 }, box);
  svgElement("text", { x: end.x, y: end.y - 10, class: "name" }, box, "loss E");
  svgElement("text", { x: end.x, y: end.y + 11, class: "value" }, box, short(state.cost));
  const held = document.activeElement?.getAttribute("data-key");
  container.replaceChildren(svg);
  if (held) container.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
}

/* A unit with its value, and beside it its bias, its derivative if it is on a path, its target if it has one. */
function drawUnit(parent, { net, state, chosen, paths }, at, on, l, j, name) {
  const { x, y } = at.place(l, j), value = state.values[l][j];
  const source = paths.some(p => p.factors[0].source === j && p.factors[0].layer === l);
  const g = svgElement("g", { class: `unit ${source ? "input" : ""} ${l === 0 ? "grip" : ""}` }, parent);
  svgElement("circle", { cx: x, cy: y, r: RADIUS }, g);
  svgElement("text", { x, y: y - 9, class: "name" }, g, name);
  svgElement("text", { x, y: y + 9, class: "value" }, g, short(value, 4));
  if (l === 0) return grip(g, `i:${j}`, `input ${name}`, value);
  const signs = [], bias = net.bias_names[l - 1][j], slope = on("activation", l - 1, j, "");
  signs.push([`${bias} ${short(net.biases[l - 1][j], 3)}`, { key: `w:${bias}`, chosen: bias === chosen, label: `bias ${bias} of ${name}`, value: net.biases[l - 1][j] }]);
  if (slope) signs.push([`f′ ${short(slope.value)}`, { kind: "activation" }]);
  if (l === net.units.length - 1) signs.push([`t${j + 1} ${short(net.targets[j], 3)}`, { key: `t:${j}`, label: `target of ${name}`, value: net.targets[j] }]);
  signs.forEach(([text, options], n) => {
    const wide = widthOf(at, text, options.kind);
    if (at.narrow) tag(parent, at, x + RADIUS + 4 + wide / 2, y - 13 + 26 * n, text, options);
    else tag(parent, at, x, n === 0 ? y - RADIUS - 15 : y + RADIUS + 15 + 25 * (n - 1), text, options);
  });
}

/* The loss over the steps, each stretch in the style of its rule. */
function drawCurve(container, history) {
  const width = container.clientWidth, height = 170, left = 58, low = height - 28, high = 14;
  const svg = svgElement("svg", { width, height, class: "curve", role: "img", "aria-label": `The loss after ${history.length - 1} steps: ${short(history.at(-1).cost)}` });
  const most = Math.max(...history.map(point => point.cost)) || 1, count = Math.max(history.length - 1, 10);
  const x = n => left + (n / count) * (width - left - 70), y = cost => low - (cost / most) * (low - high);
  svgElement("path", { class: "axis", d: `M${left},${high}V${low}H${width - 60}` }, svg);
  svgElement("text", { x: left - 6, y: high, class: "end" }, svg, short(most, 3));
  svgElement("text", { x: left - 6, y: low, class: "end" }, svg, "0");
  svgElement("text", { x: left - 6, y: (low + high) / 2, class: "end" }, svg, "loss");
  svgElement("text", { x: left, y: low + 16 }, svg, "0");
  svgElement("text", { x: x(count), y: low + 16 }, svg, `${count} steps`);
  history.forEach((point, n) => {
    if (n) svgElement("path", { class: point.rule, d: `M${x(n - 1)},${y(history[n - 1].cost)}L${x(n)},${y(point.cost)}` }, svg);
  });
  const end = history.at(-1);
  svgElement("circle", { cx: x(history.length - 1), cy: y(end.cost), r: 4, style: "fill: var(--ink)" }, svg);
  svgElement("text", { x: x(history.length - 1) + 8, y: y(end.cost) - 8, class: "start" }, svg, short(end.cost, 3));
  container.replaceChildren(svg);
}

/* The page: a network to choose a weight of, to change and to train, with the answer said anew each time. */
"use strict";

const given = JSON.parse(document.getElementById("page-data").textContent);
const page = { net: structuredClone(given.network), chosen: given.chosen, touched: `w:${given.chosen}`, ones: {}, velocity: {}, history: [], rule: null };
const by = id => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.append(...children);
  return found;
}

/* ------------------------------------------------------------------ quantities: weights w:NAME, inputs i:0, targets t:0 */

function quantity(key) {
  const kind = key[0], name = key.slice(2), net = page.net;
  if (kind === "w") return { label: name, get: () => chainRule.valueOf(net, name), set: v => chainRule.assign(net, name, v) };
  const list = kind === "i" ? net.inputs : net.targets;
  const label = kind === "i" ? net.units[0][name] : `t${Number(name) + 1}`;
  return { label, get: () => list[name], set: v => { list[name] = v; } };
}

const keys = () => [
  ...Object.keys(chainRule.places(page.net)).map(name => `w:${name}`),
  ...page.net.inputs.map((_, i) => `i:${i}`), ...page.net.targets.map((_, k) => `t:${k}`),
];

function choose(key) {
  page.touched = key;
  if (key[0] === "w") page.chosen = key.slice(2);
  update();
}

function change(key, value) {
  if (!Number.isFinite(value)) return;
  if (page.net.loss.endsWith("cross_entropy") && key[0] === "t") value = Math.min(1, Math.max(0, value));
  quantity(key).set(Number(value.toPrecision(12)));
  page.touched = key;
  page.velocity = {};
  page.history = [];
  page.rule = null;
  update();
}

/* ------------------------------------------------------------------------------------------------------ what is said */

const product = numbers => numbers.map(x => (x < 0 ? `(${short(x)})` : short(x))).join(" × ");
const added = numbers => numbers.map((x, n) => (n ? (x < 0 ? " − " : " + ") + short(Math.abs(x)) : short(x))).join("");
const total = paths => paths.reduce((all, path) => all + path.product, 0);

function answer(state, paths, gradient) {
  const { net, chosen: w } = page, factors = paths.flatMap(path => path.factors), g = gradient[w];
  const bias = factors[0].source === null, flat = factors.every(f => f.kind !== "activation" || net.activations[f.layer] === "identity");
  const weights = factors.some(f => f.kind === "weight");
  const only = kinds => short(total(chainRule.paths(net, state, w, kinds)));
  const first = bias ? `1 (${w} is a bias)` : `what ${w} is multiplied with (${factors[0].formula})`;
  const parts = [first, "the derivative of the activation", ...(weights ? ["the weights on the way"] : []), "the derivative of the loss"];
  const listed = `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
  if (g === 0)
    return `Here dE/d${w} is 0: on every path from ${w} to the loss one factor is zero. A product needs all of its factors.`;
  const head = flat ? "Of the loss, here: the activations are identities, whose derivative is 1." : weights ? "Both, and the weights between them." : "Both.";
  const body = paths.length === 1
    ? `dE/d${w} = ${product(paths[0].factors.map(f => f.value))} = ${short(g)} is the product of ${listed}.`
    : `${paths.length} paths lead from ${w} to the loss. Along each, dE/d${w} is the product of ${listed}; the products add up: `
      + (paths.length <= 4 ? `${added(paths.map(p => p.product))} = ${short(g)}.` : `${short(g)}.`);
  const tail = flat ? "" : ` Without the activation's derivative it would be ${only({ activation: true })}, without the loss's ${only({ loss: true })}: neither alone is the gradient.`;
  return `${head} ${body}${tail}`;
}

/* The paths as rows of chips; of many, the largest. */
function formula(paths) {
  const most = paths.length > 4 ? 3 : 4, rows = paths.slice(0, most).map((path, n) => {
    const row = element("div", { class: "path" });
    row.append(element("span", { class: "sign" }, n ? "+" : `dE/d${page.chosen} =`));
    path.factors.forEach((factor, k) => {
      if (k) row.append(element("span", { class: "sign" }, "×"));
      const replaced = page.ones[factor.kind] ? "replaced" : "";
      row.append(element("div", { class: `chip ${factor.kind} ${replaced}` }, element("span", {}, factor.formula), element("b", { class: "value" }, short(factor.value))));
    });
    row.append(element("span", { class: "total" }, `= ${short(path.product)}`));
    return row;
  });
  if (paths.length > most) rows.push(element("p", {}, `+ ${paths.length - most} smaller paths, together ${short(total(paths.slice(most)))}`));
  if (paths.length > 1) rows.push(element("p", { class: "total" }, `All paths together: dE/d${page.chosen} = ${short(total(paths), 8)}`));
  by("formula").replaceChildren(...rows);
}

/* ------------------------------------------------------------------------------------------------------- the controls */

function slider() {
  const { label, get } = quantity(page.touched), value = get(), key = page.touched;
  const old = by("slider").querySelector("input[type=range]");
  const most = Math.max(old && old.dataset.for === key ? Number(old.max) : 2, 2 * Math.abs(value));
  if (!old || old.dataset.for !== key) {
    const range = element("input", { type: "range", step: 0.01, "data-for": key, id: "range", "aria-label": `value of ${label}` });
    const number = element("input", { type: "number", step: "any", "aria-label": `value of ${label}, as a number` });
    range.addEventListener("input", () => change(key, Number(range.value)));
    number.addEventListener("change", () => change(key, number.valueAsNumber));
    by("slider").replaceChildren(element("label", { for: "range" }, `${label} =`), number, range);
  }
  const [number, range] = by("slider").querySelectorAll("input");
  [range.min, range.max, range.value] = [-most, most, value];
  if (document.activeElement !== number) number.value = Number(value.toPrecision(8));
}

const SWITCHES = { weight: "weights on the way", activation: "derivatives of the activation", loss: "derivatives of the loss" };

function switches() {
  for (const [kind, words] of Object.entries(SWITCHES)) {
    const box = element("input", { type: "checkbox", name: kind });
    box.addEventListener("change", () => { page.ones[kind] = box.checked; update(); });
    by("switches").append(element("label", {}, box, element("i", { class: `swatch ${kind}` }), `replace the ${words} by 1`));
  }
}

function without(whole, gradient) {
  const kinds = Object.keys(SWITCHES).filter(kind => page.ones[kind]), w = page.chosen;
  if (!kinds.length) return "Switch one on: the formula above, and the steps below, then go without it.";
  const change = gradient[w] === whole[w] ? "It changes nothing here." : `That is no longer the slope of the loss: ${
    gradient[w] * whole[w] < 0 ? "it even points the wrong way." : `it is ${short(gradient[w] / whole[w], 3)} times as large.`}`;
  return `dE/d${w} would be ${short(gradient[w])} instead of ${short(whole[w])}. ${change}`;
}

function steps() {
  const rate = element("input", { type: "number", step: "any", min: 0, id: "rate" });
  rate.value = page.net.learning_rate;
  rate.addEventListener("change", () => { if (Number.isFinite(rate.valueAsNumber)) page.net.learning_rate = rate.valueAsNumber; update(); });
  const again = element("button", { type: "button", id: "again" }, "Start again");
  again.addEventListener("click", () => {
    const { learning_rate } = page.net;
    Object.assign(page, { net: { ...structuredClone(given.network), learning_rate }, velocity: {}, history: [], rule: null });
    update();
  });
  by("steps").append(element("div", { class: "rule" }, element("label", { for: "rate" }, "learning rate"), rate, again));
  for (const [rule, { words, formula }] of Object.entries(chainRule.RULES)) {
    const row = element("div", { class: "rule" }, element("span", { class: "says" }, `${words} `, element("code", {}, formula)));
    for (const count of [1, 50]) {
      const button = element("button", { type: "button", "data-rule": rule, "data-count": count }, count === 1 ? "one step" : "fifty steps");
      button.addEventListener("click", () => take(rule, count));
      row.append(button);
    }
    by("steps").append(row);
  }
}

function take(rule, count) {
  if (!page.history.length) page.history.push({ cost: chainRule.forward(page.net).cost });
  if (rule !== page.rule) page.velocity = {};
  page.rule = rule;
  page.last = { name: page.chosen, before: chainRule.valueOf(page.net, page.chosen) };
  for (let n = 0; n < count; n++) {
    const before = structuredClone(page.net);
    chainRule.step(page.net, rule, page.velocity, page.ones);
    const { cost } = chainRule.forward(page.net);
    if (!Number.isFinite(cost)) {
      page.net = before;
      page.lost = true;
      break;
    }
    page.lost = false;
    page.history.push({ cost, rule });
  }
  update();
}

function after(gradient) {
  const { net, history, chosen: w } = page, g = gradient[w];
  const next = chainRule.valueOf(net, w) - net.learning_rate * g;
  const soon = g === 0 ? `The gradient of ${w} is zero: gradient descent leaves it where it is.`
    : `The next step of gradient descent takes ${w} from ${short(chainRule.valueOf(net, w), 8)} to ${short(next, 8)}: its gradient is ${
      g > 0 ? "positive, so a smaller" : "negative, so a larger"} ${w} makes the loss smaller.`;
  if (history.length < 2) return soon;
  const lost = page.lost ? " The last step went too far: the loss was no number any more, and the step was taken back." : "";
  return `After ${history.length - 1} ${history.length === 2 ? "step" : "steps"} the loss is ${short(history.at(-1).cost)}; it was ${short(history[0].cost)}.${lost} ${soon}`;
}

function numbers(gradient) {
  const table = element("table", {}, element("tr", {}, ...["name", "value", "dE/d…"].map(text => element("th", { scope: "col" }, text))));
  for (const key of keys()) {
    const { label, get } = quantity(key), input = element("input", { type: "number", step: "any", "aria-label": label });
    input.value = Number(get().toPrecision(10));
    input.addEventListener("change", () => change(key, input.valueAsNumber));
    const slope = key[0] === "w" ? short(gradient[label], 9) : "";
    table.append(element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, input), element("td", {}, slope)));
  }
  by("numbers").replaceChildren(table);
}

/* ----------------------------------------------------------------------------------------------------- all of it anew */

function update() {
  const { net, chosen, ones } = page, state = chainRule.forward(net);
  const whole = chainRule.backward(net, state), gradient = chainRule.backward(net, state, ones);
  const paths = chainRule.paths(net, state, chosen, ones);
  by("answer").textContent = answer(state, chainRule.paths(net, state, chosen), whole);
  formula(paths);
  drawNetwork(by("network"), { net, state, paths, chosen });
  slider();
  by("without").textContent = without(whole, gradient);
  by("after").textContent = after(gradient);
  if (page.history.length > 1) drawCurve(by("curve"), page.history);
  else by("curve").replaceChildren();
  numbers(gradient);
}

function listen() {
  const root = by("network");
  root.addEventListener("pointerdown", event => {
    const held = event.target.closest("[data-key]");
    if (!held) return;
    event.preventDefault();
    const key = held.dataset.key, from = event.clientY, value = quantity(key).get();
    let moved = false;
    const move = e => {
      moved ||= Math.abs(e.clientY - from) > 3;
      if (moved) change(key, Number((value + (from - e.clientY) * 0.01).toFixed(2)));
    };
    const end = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      removeEventListener("pointercancel", end);
      if (!moved) choose(key);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
  });
  root.addEventListener("keydown", event => {
    const key = event.target.dataset?.key, by = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 }[event.key];
    if (!key || (by === undefined && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    if (by === undefined) choose(key);
    else change(key, quantity(key).get() + by);
  });
  addEventListener("resize", update);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  by("theme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    dataset.theme = dataset.theme === "dark" ? "light" : "dark";
  });
}

switches();
steps();
listen();
update();
window.rendered = { done: true };

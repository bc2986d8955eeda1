/* The chain rule for a small network of dense layers.

A network is the object that a file holds (bpresearch/theory/network.py): weights[l][j][i] leads from unit i to unit j
of the next layer. Weights of the same name are one weight: its gradient is the sum over the places where it is used. */
"use strict";

const chainRule = (() => {
  const sigmoid = z => 1 / (1 + Math.exp(-z));
  const sum = list => list.reduce((a, b) => a + b, 0);

  // Each activation a = f(z) with its derivative f'(z), and how one writes that by hand.
  const ACTIVATIONS = {
    identity: { f: z => z, slope: () => 1, formula: () => "1" },
    sigmoid: { f: sigmoid, slope: z => sigmoid(z) * (1 - sigmoid(z)), formula: a => `${a} (1 − ${a})` },
    tanh: { f: Math.tanh, slope: z => 1 - Math.tanh(z) ** 2, formula: a => `1 − ${a}²` },
    relu: { f: z => Math.max(z, 0), slope: z => (z > 0 ? 1 : 0), formula: a => `1 if ${a} > 0, else 0` },
    leaky_relu: { f: z => (z >= 0 ? z : 0.01 * z), slope: z => (z >= 0 ? 1 : 0.01), formula: a => `1 if ${a} ≥ 0, else 0.01` },
    softplus: { f: z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))), slope: sigmoid, formula: a => `1 − exp(−${a})` },
  };

  // Each loss as its values, and its derivatives by the outputs.
  const LOSSES = {
    half_squared_error: {
      values: (o, t) => o.map((_, k) => (o[k] - t[k]) ** 2 / 2),
      slopes: (o, t) => o.map((_, k) => o[k] - t[k]),
      formula: (o, t) => `${o} − ${t}`,
    },
    squared_error: {
      values: (o, t) => o.map((_, k) => (o[k] - t[k]) ** 2),
      slopes: (o, t) => o.map((_, k) => 2 * (o[k] - t[k])),
      formula: (o, t) => `2 (${o} − ${t})`,
    },
    binary_cross_entropy: {
      values: (o, t) => o.map((_, k) => -t[k] * Math.log(o[k]) - (1 - t[k]) * Math.log1p(-o[k])),
      slopes: (o, t) => o.map((_, k) => (1 - t[k]) / (1 - o[k]) - t[k] / o[k]),
      formula: (o, t) => `(${o} − ${t}) / (${o} (1 − ${o}))`,
    },
    softmax_cross_entropy: {
      values: (o, t) => {
        const high = Math.max(...o), log = high + Math.log(sum(o.map(v => Math.exp(v - high))));
        return [sum(o.map((_, k) => t[k] * (log - o[k])))];
      },
      slopes: (o, t) => {
        const high = Math.max(...o), parts = o.map(v => Math.exp(v - high)), all = sum(parts);
        return o.map((_, k) => (parts[k] / all) * sum(t) - t[k]);
      },
      formula: (o, t) => `softmax(${o}) − ${t}`,
    },
  };

  /* Forward: z = W a + b, a = f(z), layer by layer, then the loss. */
  function forward(net) {
    const values = [net.inputs], sums = [];
    net.weights.forEach((rows, l) => {
      const before = values[l];
      sums.push(rows.map((row, j) => sum(row.map((w, i) => w * before[i])) + net.biases[l][j]));
      values.push(sums[l].map(ACTIVATIONS[net.activations[l]].f));
    });
    const outputs = values[values.length - 1];
    const each = LOSSES[net.loss].values(outputs, net.targets);
    return { values, sums, cost: sum(each) / (net.reduction === "mean" ? each.length : 1) };
  }

  /* The local derivatives. `ones` names the kinds that are replaced by ones: weight, activation, loss. */
  function factors(net, state, ones = {}) {
    const scale = net.reduction === "mean" ? net.targets.length : 1;
    const outputs = state.values[state.values.length - 1];
    return {
      weight: (l, j, i) => (ones.weight ? 1 : net.weights[l][j][i]),
      activation: (l, j) => (ones.activation ? 1 : ACTIVATIONS[net.activations[l]].slope(state.sums[l][j])),
      loss: k => (ones.loss ? 1 : LOSSES[net.loss].slopes(outputs, net.targets)[k] / scale),
    };
  }

  /* Backward: from the loss to the first layer, every product shared by all that comes before it. */
  function backward(net, state, ones = {}) {
    const local = factors(net, state, ones), deltas = [];
    let bars = net.targets.map((_, k) => local.loss(k));
    for (let l = net.weights.length - 1; l >= 0; l--) {
      deltas[l] = bars.map((bar, j) => bar * local.activation(l, j));
      bars = state.values[l].map((_, i) => sum(deltas[l].map((delta, j) => delta * local.weight(l, j, i))));
    }
    const gradient = {};
    for (const [name, used] of Object.entries(places(net)))
      gradient[name] = sum(used.map(p => deltas[p.layer][p.unit] * (p.source === null ? 1 : state.values[p.layer][p.source])));
    return gradient;
  }

  /* Where each weight and bias is used, by name. */
  function places(net) {
    const found = {};
    net.weight_names.forEach((rows, layer) => {
      rows.forEach((row, unit) => row.forEach((name, source) => (found[name] ??= []).push({ layer, unit, source })));
      net.bias_names[layer].forEach((name, unit) => (found[name] ??= []).push({ layer, unit, source: null }));
    });
    return found;
  }

  /* Every path from a weight to the loss: its factors in order, and their product. */
  function paths(net, state, name, ones = {}) {
    const local = factors(net, state, ones), last = net.weights.length - 1, found = [];
    const unit = (l, j) => net.units[l + 1][j];
    function walk(l, j, list) {
      const slope = ACTIVATIONS[net.activations[l]].formula(unit(l, j));
      list = [...list, { kind: "activation", formula: slope, value: local.activation(l, j), layer: l, unit: j }];
      if (l === last) {
        let formula = LOSSES[net.loss].formula(unit(l, j), `t${j + 1}`);
        if (net.reduction === "mean") formula = `(${formula}) / ${net.targets.length}`;
        list = [...list, { kind: "loss", formula, value: local.loss(j), layer: l, unit: j }];
        found.push({ factors: list, product: list.reduce((p, factor) => p * factor.value, 1) });
        return;
      }
      net.weights[l + 1].forEach((_, k) => walk(l + 1, k, [
        ...list,
        { kind: "weight", formula: net.weight_names[l + 1][k][j], value: local.weight(l + 1, k, j), layer: l + 1, unit: k, source: j },
      ]));
    }
    for (const p of places(net)[name]) {
      const bias = p.source === null;
      walk(p.layer, p.unit, [{
        kind: "input", formula: bias ? "1" : net.units[p.layer][p.source],
        value: bias ? 1 : state.values[p.layer][p.source], layer: p.layer, unit: p.unit, source: p.source,
      }]);
    }
    return found.sort((a, b) => Math.abs(b.product) - Math.abs(a.product));
  }

  function valueOf(net, name) {
    const p = places(net)[name][0];
    return p.source === null ? net.biases[p.layer][p.unit] : net.weights[p.layer][p.unit][p.source];
  }

  function assign(net, name, value) {
    for (const p of places(net)[name])
      if (p.source === null) net.biases[p.layer][p.unit] = value;
      else net.weights[p.layer][p.unit][p.source] = value;
  }

  /* How a weight w changes in one step, from its gradient g; E is the loss, |g| the length of the whole gradient. */
  const RULES = {
    sgd: { words: "Gradient descent: downhill, as far as the slope is steep.", formula: "w − rate · g", move: (g, at) => -at.rate * g },
    momentum: { words: "Momentum: with a memory of the steps before.", formula: "v ← 0.9 v + g,  w − rate · v", move: (g, at) => -at.rate * at.velocity },
    quotient: { words: "Quotient: to where the tangent says the loss is zero.", formula: "w − E g / |g|²", move: (g, at) => (at.square > 0 ? -at.cost * g / at.square : 0) },
  };

  /* One step for all weights, in place; `velocity` is what momentum remembers, by name. */
  function step(net, rule, velocity = {}, ones = {}) {
    const state = forward(net), gradient = backward(net, state, ones);
    const square = sum(Object.values(gradient).map(g => g * g));
    for (const [name, g] of Object.entries(gradient)) {
      velocity[name] = 0.9 * (velocity[name] ?? 0) + g;
      const at = { rate: net.learning_rate, velocity: velocity[name], cost: state.cost, square };
      assign(net, name, valueOf(net, name) + RULES[rule].move(g, at));
    }
    return net;
  }

  return { ACTIVATIONS, LOSSES, RULES, forward, backward, places, paths, valueOf, assign, step };
})();

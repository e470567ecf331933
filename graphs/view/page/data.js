// From the data block to arrays: nodes in topological order, edges sorted by reader; sums; pruning.
const SOURCES = new Set(["token", "position"]);
const INTERIOR = new Set(["feature", "neuron", "lorsa", "head", "skip"]);
const SHORT = { feature: "f", neuron: "n", lorsa: "l", head: "h" };
const data = JSON.parse(document.getElementById("data").textContent);
const compared = data.values.length > 1;
const G = decoded(data);

function bytes(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer;
}

function decoded(given) {
  const n = given.nodes.id.length;
  const source = new (given.edges.wide ? Uint32Array : Uint16Array)(bytes(given.edges.source));
  const flows = given.edges.flow.map((text) => new Float32Array(bytes(text)));
  const target = new Uint32Array(source.length);
  const starts = new Uint32Array(n + 1);
  given.edges.into.forEach((count, row) => {
    starts[row + 1] = starts[row] + count;
    target.fill(row, starts[row], starts[row + 1]);
  });
  const graph = { ...given.nodes, n, m: source.length, source, target, starts, flows };
  graph.flow = Float64Array.from(flows[0]);
  graph.via = given.edges.via;
  graph.column = {};
  for (const name of Object.keys(given.columns)) {
    graph.column[name] = Float64Array.from(given.columns[name][0]);
  }
  // The edges out of a node: outs[row] lists their numbers.
  graph.outs = Array.from({ length: n }, () => []);
  for (let edge = 0; edge < graph.m; edge++) graph.outs[source[edge]].push(edge);
  graph.target_row = graph.kind.indexOf("target");
  return graph;
}

// Between two circuits every column is linear, so the sums close for any mixture of both.
function blend(part) {
  for (const name of Object.keys(data.columns)) {
    const [a, b] = data.columns[name];
    G.column[name] = Float64Array.from(a, (value, row) => (1 - part) * value + part * b[row]);
  }
  const [a, b] = G.flows;
  G.flow = Float64Array.from(a, (value, edge) => (1 - part) * value + part * b[edge]);
}

// The smallest set of entries that holds this share of the sum; all for 1 (graphs/pruning.py).
function strongest(strength, rows, share) {
  if (share >= 1) return rows;
  const order = Array.from(rows).sort((a, b) => strength[b] - strength[a]);
  const whole = order.reduce((sum, row) => sum + strength[row], 0);
  let held = 0;
  let count = 0;
  if (whole > 0) {
    do held += strength[order[count++]];
    while (count < order.length && held < share * whole);
  }
  return order.slice(0, count);
}

// Which nodes and edges stay at this share, and what was cut at every node; everything for 1.
function pruned(share) {
  const size = G.column.attribution.map(Math.abs);
  const nodes = new Uint8Array(G.n);
  const edges = new Uint8Array(G.m);
  const interior = [];
  for (let row = 0; row < G.n; row++) {
    if (INTERIOR.has(G.kind[row])) interior.push(row);
    else if (G.kind[row] !== "error") nodes[row] = 1;
  }
  for (const row of strongest(size, interior, share)) nodes[row] = 1;
  const every = Array.from({ length: G.m }, (_, edge) => edge);
  for (const edge of strongest(G.flow.map(Math.abs), every, share)) {
    edges[edge] = nodes[G.source[edge]] & nodes[G.target[edge]];
  }
  for (let changed = share < 1; changed; ) {
    changed = false;
    const into = new Uint8Array(G.n);
    const out = new Uint8Array(G.n);
    for (let edge = 0; edge < G.m; edge++) {
      if (!edges[edge]) continue;
      edges[edge] = nodes[G.source[edge]] & nodes[G.target[edge]];
      if (edges[edge]) into[G.target[edge]] = out[G.source[edge]] = 1;
    }
    for (let row = 0; row < G.n; row++) {
      const kind = G.kind[row];
      const needy = INTERIOR.has(kind);
      if (nodes[row] && ((needy && !into[row]) || ((needy || SOURCES.has(kind)) && !out[row]))) {
        nodes[row] = 0;
        changed = true;
      }
    }
  }
  let weakest = Infinity;
  for (const row of interior) if (nodes[row]) weakest = Math.min(weakest, size[row]);
  for (let row = 0; row < G.n; row++) {
    if (G.kind[row] === "error") nodes[row] = share >= 1 || size[row] >= weakest;
  }
  const cutIn = Float64Array.from(G.column.in_pruned);
  const cutOut = Float64Array.from(G.column.out_pruned);
  for (let edge = 0; edge < G.m; edge++) {
    if (edges[edge]) continue;
    cutIn[G.target[edge]] += G.flow[edge];
    cutOut[G.source[edge]] += G.flow[edge];
  }
  return { nodes, edges, cutIn, cutOut };
}

// What stands beside the flows at these rows, summed: constants, errors, what was cut.
function booked(kept, rows) {
  const sum = (column) => rows.reduce((total, row) => total + column[row], 0);
  const { in_bias, in_error, in_switch, attribution } = G.column;
  return {
    attribution: sum(attribution),
    inside: [
      ["bias", sum(in_bias)],
      ["error", sum(in_error)],
      ["pruned", sum(kept.cutIn)],
      ["switch", sum(in_switch)],
    ],
    outside: [["pruned", sum(kept.cutOut)]],
  };
}

// Control characters, direction marks and non-characters as escapes (graphs/names.py, readable).
function shown(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Noncharacter_Code_Point}]/gu, (sign) => {
    if (sign === "\u200c" || sign === "\u200d") return sign;
    const known = { "\n": "\\n", "\t": "\\t", "\r": "\\r" }[sign];
    if (known) return known;
    const code = sign.codePointAt(0);
    const digits = code.toString(16);
    if (code < 0x100) return "\\x" + digits.padStart(2, "0");
    return code < 0x10000 ? "\\u" + digits.padStart(4, "0") : "\\U" + digits.padStart(8, "0");
  });
}

function clip(text, length) {
  const signs = Array.from(text);
  return signs.length > length ? signs.slice(0, length - 1).join("") + "…" : text;
}

function number(value) {
  if (!value) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(2) : value.toFixed(size < 1 ? 4 : 3);
  return text.replace("-", "−");
}

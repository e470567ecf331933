// What is drawn: nodes, and groups of nodes as one box with their edges summed.

function labelOf(row) {
  return state.labels[G.id[row]] ?? G.label[row];
}

function nameOf(row) {
  return shown(G.name[row]);
}

function titleOf(row) {
  const label = labelOf(row);
  return label ? `${shown(label)} (${nameOf(row)})` : nameOf(row);
}

function rowsOf(ids) {
  return ids.map((id) => rowOf.get(id)).filter((row) => row !== undefined);
}

function isShown(row, kept) {
  return (
    kept.nodes[row] &&
    !state.hidden.includes(G.kind[row]) &&
    (state.column < 0 || G.pos[row] === state.column || G.kind[row] === "target") &&
    (state.side === "all" || G.side[row] === ["shared", "a", "b"].indexOf(state.side))
  );
}

// Units: {key, rows, kind, row (the strongest), attribution, text}; unitOf: the unit of every row.
function unitsOf(kept) {
  const units = [];
  const unitOf = new Int32Array(G.n).fill(-1);
  const size = (row) => Math.abs(G.column.attribution[row]);
  state.groups.forEach((group, place) => {
    const rows = rowsOf(group.nodes).filter((row) => isShown(row, kept));
    if (!rows.length || group.open) return;
    rows.forEach((row) => (unitOf[row] = units.length));
    const row = rows.reduce((a, b) => (size(b) > size(a) ? b : a));
    const attribution = rows.reduce((sum, one) => sum + G.column.attribution[one], 0);
    units.push({ key: `group ${place}`, rows, row, kind: "group", attribution, group });
  });
  for (let row = 0; row < G.n; row++) {
    if (unitOf[row] >= 0 || !isShown(row, kept)) continue;
    unitOf[row] = units.length;
    const attribution = G.column.attribution[row];
    units.push({ key: `node ${G.id[row]}`, rows: [row], row, kind: G.kind[row], attribution });
  }
  return { units, unitOf };
}

// Edges between units, strongest first: {from, to, flow, side}.
function linksOf(kept, unitOf) {
  const found = new Map();
  for (let edge = 0; edge < G.m; edge++) {
    if (!kept.edges[edge]) continue;
    const from = unitOf[G.source[edge]];
    const to = unitOf[G.target[edge]];
    if (from < 0 || to < 0 || from === to) continue;
    const side = data.edges.side?.[edge] ?? 0;
    const key = from * G.n + to;
    const link = found.get(key);
    if (!link) found.set(key, { from, to, flow: G.flow[edge], side });
    else {
      link.flow += G.flow[edge];
      if (link.side !== side) link.side = 0;
    }
  }
  const links = [...found.values()].filter((link) => link.flow);
  return links.sort((a, b) => Math.abs(b.flow) - Math.abs(a.flow));
}

// Nodes of one position whose signed flows in and out point the same way (cosine ≥ 0.75).
function proposedGroups(kept) {
  const taken = new Set(state.groups.flatMap((group) => group.nodes));
  const candidates = [];
  for (let row = 0; row < G.n; row++) {
    if (INTERIOR.has(G.kind[row]) && isShown(row, kept) && !taken.has(G.id[row])) candidates.push(row);
  }
  const size = (row) => Math.abs(G.column.attribution[row]);
  candidates.sort((a, b) => size(b) - size(a));
  const clusters = [];
  for (const row of candidates) {
    const own = profile(row, kept);
    const near = clusters.find(
      (one) => G.pos[one.rows[0]] === G.pos[row] && cosine(one.profile, own) >= 0.75,
    );
    if (near) near.rows.push(row);
    else clusters.push({ rows: [row], profile: own });
  }
  return clusters
    .filter((one) => one.rows.length > 1)
    .map(({ rows }) => ({
      label: `${rows.length} like ${nameOf(rows[0]).split(/[.@]/)[1]}`,
      nodes: rows.map((row) => G.id[row]),
      open: false,
    }));
}

// Flows in and flows out, each of length 1, by the node at the other end.
function profile(row, kept) {
  const found = new Map();
  const half = (edges, other) => {
    const flows = edges.filter((edge) => kept.edges[edge]);
    const length = Math.hypot(...flows.map((edge) => G.flow[edge])) || 1;
    for (const edge of flows) {
      const key = `${other === G.source ? "in" : "out"} ${other[edge]}`;
      found.set(key, (found.get(key) ?? 0) + G.flow[edge] / length);
    }
  };
  const into = Array.from({ length: G.starts[row + 1] - G.starts[row] }, (_, at) => G.starts[row] + at);
  half(into, G.source);
  half(G.outs[row], G.target);
  return found;
}

function cosine(one, other) {
  let product = 0;
  for (const [key, value] of one) product += value * (other.get(key) ?? 0);
  const length = (found) => Math.hypot(...found.values()) || 1;
  return product / length(one) / length(other);
}

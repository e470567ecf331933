// The strongest paths (graphs/paths.py): k best beginnings at every node, in topological order.
function strongestPaths(kept, k, from, to) {
  const starts = new Set(from);
  const best = Array.from({ length: G.n }, () => []);
  for (let row = 0; row < G.n; row++) {
    if (starts.has(row)) {
      best[row] = [{ weight: 1, row, before: null }];
      continue;
    }
    const found = [];
    const several = new Map(); // edges that join the same two nodes are one step
    for (let edge = G.starts[row]; edge < G.starts[row + 1]; edge++) {
      if (!kept.edges[edge]) continue;
      const writer = G.source[edge];
      several.set(writer, (several.get(writer) ?? 0) + G.flow[edge]);
    }
    for (const [writer, flow] of several) {
      const through = starts.has(writer) ? 1 : G.column.attribution[writer];
      if (!through) continue;
      for (const before of best[writer]) {
        const weight = (before.weight * flow) / through;
        if (weight) found.push({ weight, row, before });
      }
    }
    best[row] = found.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, k);
  }
  return best[to].map((end) => {
    const rows = [];
    for (let step = end; step; step = step.before) rows.unshift(step.row);
    return { rows, flow: end.weight };
  });
}

// Beside the sheet: what is selected, its flows as signed bars that sum, attention, tokens, effects.
const MOST_ROWS = 14;

function drawPanel() {
  const rows = rowsOfKey(selected);
  const parts = rows.length ? (selected.startsWith("group") ? groupParts(rows) : nodeParts(rows[0])) : overview();
  byId("about").replaceChildren(...parts);
  byId("said").textContent = rows.length ? byId("about").querySelector("h2").textContent : "";
}

function overview() {
  const facts = data.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, shown(value))]);
  const parts = explainedNow().map(([name, amount]) => ({ name, amount }));
  return [
    make("h2", {}, "The target"),
    bars("explained", "What it is made of", parts),
    make("p", { class: "note" }, "Select a node for its flows. Press ? for the keys."),
    make("dl", {}, ...facts),
  ];
}

// The target's value: tokens, positions, errors, biases, what was pruned (Graph.explained).
function explainedNow() {
  const sums = { token: 0, position: 0, error: 0, bias: 0, pruned: 0, switch: 0 };
  for (let row = 0; row < G.n; row++) {
    const kind = G.kind[row];
    if (!view.kept.nodes[row] || kind === "error") continue;
    if (SOURCES.has(kind)) sums[kind] += G.column.attribution[row] - view.kept.cutOut[row];
    else {
      for (const [name, amount] of booked(view.kept, [row]).inside) sums[name] += amount;
      if (INTERIOR.has(kind)) sums.pruned -= view.kept.cutOut[row];
    }
  }
  return Object.entries(sums).filter(([name, amount]) => amount || name === "error");
}

function flowsOf(rows, edgesOf, other) {
  const inside = new Set(rows);
  const found = new Map();
  let between = 0;
  for (const row of rows) {
    for (const edge of edgesOf(row)) {
      if (!view.kept.edges[edge]) continue;
      const end = other[edge];
      if (inside.has(end)) {
        between += G.flow[edge];
        continue;
      }
      const via = G.via && G.via[edge] !== "residual" ? ` via ${G.via[edge]}` : "";
      const key = `${end}${via}`;
      const known = found.get(key) ?? { row: end, name: titleOf(end) + via, amount: 0 };
      known.amount += G.flow[edge];
      found.set(key, known);
    }
  }
  const flows = [...found.values()].sort((a, b) => Math.abs(b.amount) - Math.abs(a.amount));
  const rest = flows.splice(MOST_ROWS);
  const amount = rest.reduce((sum, one) => sum + one.amount, 0);
  if (rest.length) flows.push({ name: `${rest.length} others`, amount });
  if (between) flows.push({ name: "between its members", amount: between });
  return flows;
}

function into(row) {
  return Array.from({ length: G.starts[row + 1] - G.starts[row] }, (_, at) => G.starts[row] + at);
}

function sumsOf(rows) {
  const kind = G.kind[rows[0]];
  const { attribution, inside, outside } = booked(view.kept, rows);
  const more = (pairs) => pairs.filter(([, amount]) => amount).map(([name, amount]) => ({ name, amount, booked: true }));
  const parts = [];
  if (INTERIOR.has(kind) || kind === "target") {
    parts.push(bars("inflow", "Flows in", [...flowsOf(rows, into, G.source), ...more(inside)], attribution));
  }
  if (INTERIOR.has(kind) || SOURCES.has(kind)) {
    parts.push(bars("outflow", "Flows out", [...flowsOf(rows, (row) => G.outs[row], G.target), ...more(outside)], attribution));
  }
  return parts;
}

// A table of signed bars and their sum; beside it what it must be.
function bars(name, title, rows, whole) {
  const sum = rows.reduce((total, row) => total + row.amount, 0);
  const largest = Math.max(...rows.map((row) => Math.abs(row.amount)), 1e-300);
  const body = rows.map((row) => {
    const bar = make("i", { class: row.amount < 0 ? "bar negative" : "bar positive" });
    bar.style.width = `${(50 * Math.abs(row.amount)) / largest}%`;
    bar.style[row.amount < 0 ? "right" : "left"] = "50%";
    const known = row.row === undefined ? row.name : make("button", { click: () => select(`node ${G.id[row.row]}`) }, row.name);
    return make("tr", { "data-amount": row.amount, class: row.row === undefined ? "book" : "" },
      make("th", { scope: "row", title: row.name }, known), make("td", { class: "room" }, bar), make("td", {}, number(row.amount)));
  });
  const off = whole === undefined ? 0 : Math.abs(sum - whole);
  const verdict = whole === undefined ? "" : off <= 1e-3 * Math.max(Math.abs(whole), Math.abs(data.values[0]), largest) ? "= attribution" : `attribution: ${number(whole)}`;
  const foot = make("tr", { class: "sum", "data-sum": sum }, make("th", { scope: "row" }, "sum"), make("td", {}, verdict), make("td", {}, number(sum)));
  return make("section", { class: `bars ${name}` }, make("h3", {}, title), make("table", {}, make("tbody", {}, ...body, foot)));
}

function labelField(key, value, placeholder) {
  const field = make("input", { id: "label", value, placeholder, "aria-label": "label", change: () => rename(key, field.value) });
  return field;
}

function nodeParts(row) {
  const id = G.id[row];
  const facts = [["attribution", number(G.column.attribution[row])]];
  if (compared) {
    const [a, b] = data.columns.attribution;
    facts.push(["in a", number(a[row])], ["in b", number(b[row])]);
  }
  if (G.kind[row] !== "target") facts.push(["activation", number(G.column.activation[row])]);
  if (!view.kept.nodes[row]) facts.push(["", "pruned at this share"]);
  const pinned = state.pins.includes(id);
  const member = state.groups.findIndex((one) => one.nodes.includes(id));
  const buttons = [make("button", { id: "pin", click: () => pin([id]) }, pinned ? "unpin" : "pin")];
  if (member >= 0) buttons.push(make("button", { click: () => select(`group ${member}`) }, "its group"));
  if (!["target", "error"].includes(G.kind[row])) {
    buttons.push(make("button", { id: "paths-here", click: () => showPaths([row]) }, "paths through it"));
  }
  return [
    make("h2", {}, nameOf(row)),
    labelField(`node ${id}`, labelOf(row), "label"),
    make("p", { class: "buttons" }, ...buttons),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    ...sumsOf([row]),
    ...attentionParts(row),
    ...tokenParts(id),
    ...measuredParts(id),
    ...cardParts(id),
  ];
}

function groupParts(rows) {
  const place = +selected.split(" ")[1];
  const known = state.groups[place];
  const members = rows.map((row) => make("li", {}, make("button", { click: () => select(`node ${G.id[row]}`) }, titleOf(row)), ` ${number(G.column.attribution[row])}`));
  return [
    make("h2", {}, shown(known.label)),
    labelField(selected, known.label, "name of the group"),
    make("p", { class: "buttons" },
      make("button", { id: "open-group", click: () => act((now) => (now.groups[place].open = !known.open)) }, known.open ? "close" : "open"),
      make("button", { id: "dissolve", click: () => { selected = ""; act((now) => now.groups.splice(place, 1)); } }, "dissolve")),
    ...sumsOf(rows.filter((row) => view.kept.nodes[row])),
    make("h3", {}, `${rows.length} members`),
    make("ul", { class: "members" }, ...members),
  ];
}

// Where a head moved its value from: as the model says where it was asked, else by the edges in.
function attentionParts(row) {
  if (!["head", "lorsa"].includes(G.kind[row])) return [];
  const told = data.details.attention?.[G.id[row]];
  const moved = new Map();
  const looked = { q: 0, k: 0 }; // in a contrast: where it looked differs too
  if (told) told.keys.forEach((key, at) => moved.set(key, told.moved[at]));
  else {
    for (const edge of into(row)) {
      if (!view.kept.edges[edge]) continue;
      const via = G.via?.[edge];
      if (via in looked) {
        looked[via] += G.flow[edge];
        continue;
      }
      const key = G.pos[G.source[edge]];
      moved.set(key, (moved.get(key) ?? 0) + G.flow[edge]);
    }
  }
  const rows = [...moved].map(([pos, amount]) => ({ pos, name: `${tokenAt(pos)}@${pos}`, amount }));
  rows.sort((a, b) => Math.abs(b.amount) - Math.abs(a.amount));
  const rest = rows.splice(8);
  if (rest.length) rows.push({ name: `${rest.length} other keys`, amount: rest.reduce((sum, one) => sum + one.amount, 0) });
  for (const [name, via] of [["its query", "q"], ["its keys", "k"]]) {
    if (looked[via]) rows.push({ name: `looking elsewhere: ${name}`, amount: looked[via] });
  }
  if (!told) rows.push(...booked(view.kept, [row]).inside.filter(([, amount]) => amount).map(([name, amount]) => ({ name, amount })));
  const parts = [bars("moved", "Moved from", rows, G.column.attribution[row])];
  parts.unshift(patternRow(row, told, moved));
  for (const why of told?.why ?? []) {
    const pairs = (title, found, kind) =>
      bars(kind, title, [...found.pairs.map(([query, key, amount]) => ({ name: `${shown(query)} × ${shown(key)}`, amount })), { name: "other pairs", amount: found.rest }]);
    parts.push(pairs(`Why ${tokenAt(why.key)}@${why.key}: score ${number(why.score.value)}`, why.score, "score"));
    if (why.contrast) parts.push(pairs(`Rather than elsewhere: ${number(why.contrast.value)}`, why.contrast, "contrast"));
  }
  return [make("h3", {}, "Attention"), ...parts];
}

function patternRow(row, told, moved) {
  const weights = told ? told.pattern : [...moved.values()].map(Math.abs);
  const keys = told ? told.keys : [...moved.keys()];
  const largest = Math.max(...weights, 1e-300);
  const boxes = data.tokens[0].slice(0, G.pos[row] + 1).map((token, pos) => {
    const weight = keys.includes(pos) ? weights[keys.indexOf(pos)] : 0;
    const title = told ? `pattern ${number(weight)}` : `moved ${number(moved.get(pos) ?? 0)}`;
    const box = make("span", { class: pos === G.pos[row] ? "query" : "", title: `${pos}: ${title}` }, tokenAt(pos));
    const shade = make("i", {});
    shade.style.opacity = weight / largest;
    box.prepend(shade);
    return box;
  });
  return make("div", { class: "pattern", "aria-label": "attention pattern" }, ...boxes);
}

function tokenBars(name, title, told) {
  const part = bars(name, title, told.map(([token, amount]) => ({ name: shown(token), amount })));
  part.querySelector(".sum").remove();
  return part;
}

function tokenParts(id) {
  const told = data.details.tokens?.[id];
  if (!told) return [];
  return [tokenBars("promoted", "Raises the logits of", told.promoted), tokenBars("suppressed", "Lowers the logits of", told.suppressed)];
}

// The feature over the corpus of its card; the tokens only where the node's own are not shown.
function cardParts(id) {
  const card = data.details.cards?.[id];
  if (!card) return [];
  const examples = card.examples.map(([before, token, after, activation]) =>
    make("li", {}, `${number(activation)} `, make("q", {}, shown(before), make("mark", {}, shown(token)), shown(after))));
  const words = data.details.tokens?.[id] ? [] : ["promoted", "suppressed"].filter((name) => card[name].length);
  const titles = { promoted: "Promotes", suppressed: "Suppresses" };
  return [
    make("section", { class: "card" },
      make("h3", {}, `Over many prompts: ${shown(card.name)}`),
      make("p", { class: "note" }, `fires on ${(100 * card.rate).toPrecision(3)} % of tokens, at most ${number(card.strongest)}`),
      make("ul", { class: "examples" }, ...examples)),
    ...words.map((name) => tokenBars(name, titles[name], card[name])),
  ];
}

function measuredParts(id) {
  const told = data.details.measured?.[id];
  if (!told) return [];
  const known = ["predicted", "held", "ungated", "patterns", "free"];
  const rows = Object.entries(told).map(([name, amount]) => ({ name, amount }));
  rows.sort((a, b) => known.indexOf(a.name) - known.indexOf(b.name));
  const part = bars("measured", "Change of the target without it", rows);
  part.querySelector(".sum").remove();
  return [part];
}

function showPaths(through) {
  const pinned = rowsOf(state.pins);
  const sources = [];
  for (let row = 0; row < G.n; row++) if (SOURCES.has(G.kind[row]) && view.kept.nodes[row]) sources.push(row);
  let found;
  let title = "Strongest paths";
  if (!through.length && pinned.length === 2) {
    const [from, to] = pinned.sort((a, b) => a - b);
    found = strongestPaths(view.kept, 8, [from], to);
    title = `Paths from ${titleOf(from)} to ${titleOf(to)}`;
  } else if (through.length) {
    const [row] = through;
    const up = strongestPaths(view.kept, 8, [row], G.target_row);
    const down = SOURCES.has(G.kind[row]) ? [{ rows: [row], flow: 1 }] : strongestPaths(view.kept, 8, sources, row);
    const scale = SOURCES.has(G.kind[row]) ? 1 : G.column.attribution[row];
    const joined = down.flatMap((one) => up.map((two) => ({ rows: [...one.rows, ...two.rows.slice(1)], flow: scale ? (one.flow * two.flow) / scale : 0 })));
    found = joined.sort((a, b) => Math.abs(b.flow) - Math.abs(a.flow)).slice(0, 8);
    title = `Paths through ${titleOf(row)}`;
  } else found = strongestPaths(view.kept, 8, sources, G.target_row);
  const items = found.map(({ rows, flow }) =>
    make("li", { "data-flow": flow },
      make("button", { title: "pin this path", click: () => act((now) => (now.pins = rows.map((row) => G.id[row]))) }, number(flow)),
      " " + rows.map((row) => (row === G.target_row ? "target" : titleOf(row))).join(" → ")));
  byId("about").replaceChildren(make("h2", {}, title), make("ol", { class: "paths" }, ...items),
    make("p", { class: "note" }, found.length ? "The number is what the path carries; click it to pin the path." : "None is left at this share."));
}

// Places on the grid of positions and layers; rows of a layer from below: resid, attn, mid, mlp.
const HALVES = ["resid", "attn", "mid", "mlp"];
const SIZE = { token: 12, gap: 12, line: 12, margin: 8, left: 70, top: 10, empty: 9, rise: 26 };
const MOST_LABELS = 70;

function columnsOf(text) {
  let width = 0;
  for (const sign of text) width += sign.codePointAt(0) > 0x2e7f ? 2 : 1;
  return width;
}

function tokenText(text) {
  const known = shown(text);
  return clip(known.trim() || known.replaceAll(" ", "␣") || "∅", 14);
}

function tokenAt(pos) {
  const texts = [...new Set(data.tokens.map((tokens) => tokens[pos]).filter((one) => one !== undefined))];
  return texts.map(tokenText).join(" | ");
}

function gridRow(unit) {
  if (SOURCES.has(G.kind[unit.row])) return 0;
  if (unit.kind === "target") return 4 * data.n_layers + 2;
  const half = HALVES.indexOf(G.sub[unit.row]);
  const layer = Math.max(0, Math.min(G.layer[unit.row], data.n_layers - (half > 0 ? 1 : 0)));
  return 1 + 4 * layer + (half < 0 ? 3 : half);
}

function placed(units, links) {
  const largest = Math.max(...units.filter((one) => one.kind !== "target").map(sizeOf), 1e-12);
  const named = new Set([...units].sort((a, b) => sizeOf(b) - sizeOf(a)).slice(0, MOST_LABELS));
  const lean = units.map(() => [0, 0]);
  for (const { from, to, flow } of links) {
    for (const [one, other] of [[from, to], [to, from]]) {
      lean[one][0] += Math.abs(flow);
      lean[one][1] += Math.abs(flow) * place(units[other]);
    }
  }
  units.forEach((unit, at) => {
    measure(unit, largest, named);
    unit.lean = SOURCES.has(unit.kind) || !lean[at][0] ? place(unit) : lean[at][1] / lean[at][0];
  });
  const cells = new Map();
  for (const unit of [...units].sort((a, b) => a.lean - b.lean)) {
    const key = `${place(unit)} ${gridRow(unit)}`;
    if (!cells.has(key)) cells.set(key, { pos: place(unit), row: gridRow(unit), units: [] });
    cells.get(key).units.push(unit);
  }
  for (const cell of cells.values()) cell.lines = cell.row ? linesOf(cell.units) : [cell.units];
  const grid = gridOf([...cells.values()]);
  for (const cell of cells.values()) put(cell, grid);
  return grid;
}

function sizeOf(unit) {
  return INTERIOR.has(unit.kind) || unit.kind === "group" ? Math.abs(unit.attribution) : 0;
}

function place(unit) {
  if (unit.kind === "target" && G.pos[unit.row] < 0) return Math.max(0, data.tokens[0].length - 1);
  return Math.max(0, G.pos[unit.row]);
}

function measure(unit, largest, named) {
  const { kind, row } = unit;
  const label = labelOf(row);
  unit.radius = kind === "error" ? 4.5 : 4.5 + 8.5 * Math.sqrt(sizeOf(unit) / largest);
  unit.text = "";
  unit.foot = 0;
  if (kind === "group") {
    unit.text = clip(shown(unit.group.label), 24);
    unit.box = unit.slot = 7.4 * columnsOf(unit.text) + 18;
    unit.radius = 12;
  } else if (SOURCES.has(kind) || kind === "target") {
    const own = kind === "token" ? tokenText(G.token[row]) : kind === "target" ? shown(G.name[row]) : "pos";
    unit.text = clip(label ? shown(label) : own, kind === "target" ? 44 : 16);
    unit.box = (kind === "position" ? 6.2 : 7.4) * columnsOf(unit.text) + 14;
    unit.slot = kind === "target" ? 0 : unit.box;
    unit.radius = SIZE.token;
  } else {
    const own = G.index[row] < 0 ? kind : SHORT[kind] + G.index[row];
    if (label || (named.has(unit) && kind !== "error")) unit.text = clip(label ? shown(label) : own, 18);
    unit.foot = unit.text ? 12 : 0;
    unit.slot = Math.max(2 * unit.radius, 5.6 * columnsOf(unit.text));
  }
  unit.slot += SIZE.gap;
}

function linesOf(units) {
  const room = Math.max(125, Math.sqrt(54 * units.reduce((sum, one) => sum + one.slot, 0)));
  const lines = [];
  let taken = Infinity;
  for (const unit of units) {
    if (taken + unit.slot > room) {
      lines.push([]);
      taken = 0;
    }
    lines[lines.length - 1].push(unit);
    taken += unit.slot;
  }
  return lines;
}

function lineHeight(line) {
  return 2 * Math.max(...line.map((one) => one.radius)) + Math.max(...line.map((one) => one.foot));
}

function cellHeight(lines) {
  return lines.reduce((sum, line) => sum + lineHeight(line) + SIZE.line, SIZE.margin);
}

function gridOf(cells) {
  const n_tokens = Math.max(...data.tokens.map((tokens) => tokens.length), 1);
  const wide = new Map();
  const heights = [SIZE.rise + 36];
  for (let row = 1; row <= 4 * data.n_layers + 2; row++) heights.push([1, 3].includes((row - 1) % 4) ? SIZE.empty : 0);
  heights[4 * data.n_layers + 1] = 0; // the stream behind the last layer, where it is read
  heights[4 * data.n_layers + 2] = 46;
  for (const { pos, row, lines } of cells) {
    const width = Math.max(...lines.map((line) => line.reduce((sum, one) => sum + one.slot, 0)));
    wide.set(pos, Math.max(wide.get(pos) ?? 0, width));
    const least = cellHeight(lines) + (row ? 0 : SIZE.rise);
    heights[row] = Math.max(heights[row], least);
  }
  const columns = [];
  let x = SIZE.left;
  for (let pos = 0; pos < n_tokens; pos++) {
    let last = pos;
    while (n_tokens >= 40 && last + 1 < n_tokens && !wide.has(pos) && !wide.has(last + 1)) last++;
    const gap = last - pos >= 2;
    if (!gap) last = pos;
    const text = gap ? "…" : tokenAt(pos);
    const width = Math.max(gap ? 26 : 7.4 * columnsOf(text) + 10, (wide.get(pos) ?? 0) + SIZE.margin);
    columns.push({ x, width, pos, last, text, gap });
    x += width;
    pos = last;
  }
  const tops = []; // tops[row]: the lower edge of a grid row
  let y = SIZE.top + heights.reduce((sum, height) => sum + height, 0);
  const height = y + 6;
  for (const one of heights) {
    tops.push(y);
    y -= one;
  }
  tops.push(y);
  return { columns, tops, width: x + 16, height };
}

function put(cell, grid) {
  const column = grid.columns.find((one) => one.pos <= cell.pos && cell.pos <= one.last);
  const bottom = grid.tops[cell.row];
  const top = grid.tops[cell.row + 1] + (cell.row ? 0 : SIZE.rise);
  let y = (top + bottom - cellHeight(cell.lines) + SIZE.margin + SIZE.line) / 2;
  for (const line of cell.lines) {
    let x = column.x + (column.width - line.reduce((sum, one) => sum + one.slot, 0)) / 2;
    const radius = Math.max(...line.map((one) => one.radius));
    for (const unit of line) {
      unit.x = x + unit.slot / 2;
      unit.y = y + radius;
      x += unit.slot;
    }
    y += lineHeight(line) + SIZE.line;
  }
  for (const unit of cell.units) {
    if (unit.kind !== "target") continue;
    unit.x = Math.max(8 + unit.box / 2, Math.min(column.x + column.width / 2, grid.width - 8 - unit.box / 2));
  }
}

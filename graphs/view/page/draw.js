// The sheet: bands and columns below, faint edges on a canvas, strong edges and nodes above.
const MOST_STRONG = 400;
let zoom = 1;
let fitted = true; // until someone zooms
let whole = false; // until someone asks for the whole width, however small
const LEGIBLE = 0.7;
let drawing = 0;

function byId(id) {
  return document.getElementById(id);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function mark(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function short(value) {
  return Math.round(value * 10) / 10;
}

function rebuild() {
  const kept = pruned(state.share);
  const { units, unitOf } = unitsOf(kept);
  const links = linksOf(kept, unitOf);
  const grid = placed(units, links);
  view = { kept, units, unitOf, links, grid, index: new Map(units.map((unit, at) => [unit.key, at])) };
  const shapes = [byId("bands"), byId("marks")];
  for (const one of shapes) one.setAttribute("viewBox", `0 0 ${short(grid.width)} ${short(grid.height)}`);
  byId("bands").replaceChildren(...bandShapes(grid), ...columnShapes(grid), mark("g", { id: "rows" }, ...rowNames(grid)));
  byId("nodes").replaceChildren(...units.map(unitShape));
  if (fitted) zoom = fittingZoom();
  resize();
  drawStrong();
  drawPanel();
  drawControls();
  keepInAddress();
}

function resize() {
  const [width, height] = [view.grid.width * zoom, view.grid.height * zoom];
  byId("sheet").style.aspectRatio = width / height; // on paper, where it is as wide as the page
  for (const id of ["sheet", "bands", "marks", "faint"]) {
    byId(id).style.width = `${width}px`;
    byId(id).style.height = `${height}px`;
  }
  keepRowNames();
  drawFaint();
}

// The end of the prompt, where what is explained stands, is what is seen of a wide sheet.
function showEnd() {
  byId("stage").scrollLeft = byId("stage").scrollWidth;
}

function fittingZoom() {
  const stage = byId("stage");
  const wide = Math.min(1, (stage.clientWidth - 10) / view.grid.width);
  return whole ? Math.max(0.1, wide) : Math.max(LEGIBLE, Math.min(wide, (stage.clientHeight - 10) / view.grid.height));
}

function bandShapes(grid) {
  const shapes = [];
  for (let layer = 0; layer <= data.n_layers; layer++) {
    const halves = layer < data.n_layers ? HALVES : HALVES.slice(0, 1);
    const [bottom, top] = [grid.tops[1 + 4 * layer], grid.tops[1 + 4 * layer + halves.length]];
    if (bottom <= top) continue;
    const box = { x: 4, y: short(top), width: short(grid.width - 8), height: short(bottom - top), rx: 5 };
    shapes.push(mark("rect", { class: `band band-${layer % 2}`, ...box }));
    halves.forEach((half, at) => {
      const [low, high] = [grid.tops[1 + 4 * layer + at], grid.tops[2 + 4 * layer + at]];
      if (at && low - high >= 18) shapes.push(mark("path", { class: "line", d: `M66,${short(low)}H${short(grid.width - 4)}` }));
    });
  }
  return shapes;
}

function rowNames(grid) {
  const names = [];
  for (let layer = 0; layer <= data.n_layers; layer++) {
    const halves = layer < data.n_layers ? HALVES : HALVES.slice(0, 1);
    const [bottom, top] = [grid.tops[1 + 4 * layer], grid.tops[1 + 4 * layer + halves.length]];
    if (bottom > top) names.push(mark("text", { class: "layer", x: 12, y: short((top + bottom) / 2 + 4) }, `L${layer}`));
    halves.forEach((half, at) => {
      const [low, high] = [grid.tops[1 + 4 * layer + at], grid.tops[2 + 4 * layer + at]];
      if (low - high >= 18) names.push(mark("text", { class: "half", x: 64, y: short((low + high) / 2 + 3) }, half));
    });
  }
  return names;
}

// The names of the rows stay in sight when a wide sheet is moved.
function keepRowNames() {
  byId("rows").setAttribute("transform", `translate(${short(byId("stage").scrollLeft / zoom)} 0)`);
}

function columnShapes(grid) {
  const filled = new Set(view.units.filter((unit) => unit.kind === "token").map((unit) => unit.row).map((row) => G.pos[row]));
  return grid.columns.flatMap((column) => {
    const shapes = [];
    if (column.pos <= data.explained_at && data.explained_at <= column.last) {
      const box = { x: short(column.x + 1), y: 22, width: short(column.width - 2), height: short(grid.height - 28) };
      shapes.push(mark("rect", { class: "explained", rx: 5, ...box }));
    }
    if (!filled.has(column.pos)) {
      const at = { x: short(column.x + column.width / 2), y: short(grid.height - 20) };
      shapes.push(mark("text", { class: "unused", ...at }, column.text));
    }
    return shapes;
  });
}

function unitShape(unit, at) {
  const sign = unit.attribution < 0 ? "negative" : "positive";
  const side = compared ? `side-${unit.rows.every((row) => G.side[row] === G.side[unit.row]) ? G.side[unit.row] : 0}` : "";
  const name = unit.kind === "group" ? shown(unit.group.label) : titleOf(unit.row);
  const shape = mark("g", {
    class: `unit ${unit.kind} ${sign} ${side}`,
    transform: `translate(${short(unit.x)} ${short(unit.y)})`,
    "data-unit": unit.key,
    "data-at": at,
  });
  shape.append(mark("title", {}, `${name}: ${number(unit.attribution)}`), outline(unit));
  if (unit.text) {
    const y = unit.foot ? unit.radius + 9.5 : 4;
    shape.append(mark("text", { class: unit.foot ? "tag" : "", y: short(y) }, unit.text));
  }
  if (unit.rows.some((row) => state.pins.includes(G.id[row]))) {
    shape.append(mark("circle", { class: "pin", r: 3, cx: short(unit.box ? unit.box / 2 : unit.radius), cy: short(-unit.radius) }));
  }
  return shape;
}

function outline(unit) {
  const { kind, radius } = unit;
  const box = (width, height, rounding) =>
    mark("rect", { class: "shape", x: short(-width / 2), y: short(-height / 2), width: short(width), height: short(height), rx: short(rounding) });
  if (unit.box) return box(unit.box, kind === "target" ? 26 : 24, { token: 4, group: 7 }[kind] ?? 12);
  if (kind === "head" || kind === "error") return box(1.8 * radius, 1.8 * radius, kind === "head" ? 0.4 * radius : 0);
  const [turn, count, stretch] = { neuron: [0, 6, 1.05], lorsa: [0, 4, 1.2], skip: [90, 3, 1.2] }[kind] ?? [];
  if (!count) return mark("circle", { class: "shape", r: short(radius) });
  const corner = (at) => {
    const angle = ((turn + (360 * at) / count) * Math.PI) / 180;
    return `${short(stretch * radius * Math.cos(angle))},${short(-stretch * radius * Math.sin(angle))}`;
  };
  return mark("polygon", { class: "shape", points: Array.from({ length: count }, (_, at) => corner(at)).join(" ") });
}

function ends(link) {
  const [start, end] = [view.units[link.from], view.units[link.to]];
  const [y1, y2] = [start.y - start.radius, end.y + end.radius + end.foot];
  const rise = start.y - end.y;
  const bow = Math.abs(start.x - end.x) > 40 || rise < 70 ? 0 : Math.min(60, 0.14 * rise) * (link.to % 2 ? -1 : 1);
  const lift = Math.max(10, 0.42 * Math.abs(y1 - y2));
  return [start.x, y1, start.x + bow, y1 - lift, end.x + bow, y2 + lift, end.x, y2];
}

function curve(link) {
  const [x1, y1, ...rest] = ends(link).map(short);
  return `M${x1},${y1}C${rest.join(",")}`;
}

// How many of the strongest links hold this share of all |flow|.
function denseLinks() {
  const whole = view.links.reduce((sum, link) => sum + Math.abs(link.flow), 0);
  let held = 0;
  const count = view.links.findIndex((link) => (held += Math.abs(link.flow)) >= state.density * whole * (1 - 1e-12));
  return state.density >= 1 || count < 0 ? view.links.length : count + 1;
}

function strength(link) {
  return (Math.abs(link.flow) / Math.abs(view.links[0]?.flow || 1)) ** 0.6;
}

function inkOf(link) {
  return compared ? ["--shared", "--a", "--b"][link.side] : link.flow < 0 ? "--negative" : "--positive";
}

// A few thousand curves a frame, the strongest first, so that the page answers in between.
function drawFaint() {
  const canvas = byId("faint");
  const { width, height } = view.grid;
  const dots = Math.min(zoom * (window.devicePixelRatio || 1), Math.sqrt(12e6 / (width * height)), 8000 / width, 8000 / height);
  canvas.width = Math.max(1, width * dots);
  canvas.height = Math.max(1, height * dots);
  const paper = canvas.getContext("2d");
  paper.setTransform(dots, 0, 0, dots, 0, 0);
  const style = getComputedStyle(document.documentElement);
  const inks = {};
  for (const name of ["--positive", "--negative", "--shared", "--a", "--b"]) inks[name] = style.getPropertyValue(name);
  const links = view.links.slice(0, denseLinks());
  const run = ++drawing;
  const some = (from) => {
    if (run !== drawing) return;
    for (const link of links.slice(from, from + 2500)) {
      const [x1, y1, ...rest] = ends(link);
      const size = strength(link);
      paper.globalAlpha = 0.07 + 0.4 * size;
      paper.lineWidth = 0.5 + 2.2 * size;
      paper.strokeStyle = inks[inkOf(link)];
      paper.setLineDash(link.flow < 0 ? [5, 4] : []);
      paper.beginPath();
      paper.moveTo(x1, y1);
      paper.bezierCurveTo(...rest);
      paper.stroke();
    }
    if (from + 2500 < links.length) requestAnimationFrame(() => some(from + 2500));
    canvas.dataset.drawn = Math.min(from + 2500, links.length);
  };
  some(0);
}

function focused() {
  const pinned = rowsOf(state.pins).map((row) => view.unitOf[row]);
  return new Set([hovered ? view.index.get(hovered) : -1, unitOfKey(selected), ...pinned].filter((at) => at >= 0));
}

function drawStrong() {
  const focus = focused();
  const strong = view.links.filter((link) => focus.has(link.from) || focus.has(link.to)).slice(0, MOST_STRONG);
  const largest = Math.abs(strong[0]?.flow || 1);
  byId("strong").replaceChildren(...strong.map((link) => {
    const width = short(0.8 + 4 * Math.abs(link.flow / largest));
    const ink = inkOf(link).slice(2);
    return mark("path", { class: `edge ${ink} ${link.flow < 0 ? "dashed" : ""}`, d: curve(link), "stroke-width": width });
  }));
  const near = new Set(strong.flatMap((link) => [link.from, link.to]));
  const at = unitOfKey(selected);
  for (const shape of byId("nodes").children) {
    const own = +shape.dataset.at;
    shape.classList.toggle("selected", own === at);
    shape.classList.toggle("dim", focus.size > 0 && !near.has(own) && !focus.has(own));
  }
  byId("sheet").classList.toggle("focused", focus.size > 0);
}

// Sliders, filters, search, keys: everything that changes what is shown.
let pending = null; // the state before a slider began to move

function drawControls() {
  const { kept } = view;
  let nodes = 0;
  let edges = 0;
  let whole = 0;
  for (let row = 0; row < G.n; row++) {
    if (!INTERIOR.has(G.kind[row])) continue;
    whole++;
    nodes += kept.nodes[row] ? 1 : 0;
  }
  for (let edge = 0; edge < G.m; edge++) edges += kept.edges[edge];
  byId("share").value = Math.round(100 * state.share);
  byId("share-text").textContent = `${Math.round(100 * state.share)} %`;
  byId("density").value = Math.round(100 * state.density);
  byId("density-text").textContent = `${Math.round(100 * state.density)} %`;
  byId("kept").textContent = `${nodes} of ${whole} nodes, ${edges.toLocaleString("en")} of ${G.m.toLocaleString("en")} edges; ${denseLinks().toLocaleString("en")} drawn`;
  byId("kept").dataset.nodes = nodes;
  byId("kept").dataset.edges = edges;
  for (const box of document.querySelectorAll("#kinds input")) box.checked = !state.hidden.includes(box.value);
  for (const token of document.querySelectorAll("#prompt button")) {
    token.setAttribute("aria-pressed", +token.dataset.pos === state.column);
  }
  byId("undo").disabled = !past.length;
  if (compared) {
    byId("mix").value = Math.round(100 * state.mix);
    for (const box of document.querySelectorAll("[name=side]")) box.checked = box.value === state.side;
  }
}

function slide(id, change) {
  byId(id).addEventListener("input", () => {
    pending ??= JSON.stringify(state);
    change(byId(id).value / 100);
  });
  byId(id).addEventListener("change", () => {
    if (pending) remember(pending);
    pending = null;
    drawControls();
    keepInAddress();
  });
}

function toggled(list, value) {
  return list.includes(value) ? list.filter((one) => one !== value) : [...list, value];
}

function buildControls() {
  const texts = data.tokens[0];
  byId("prompt").replaceChildren(...texts.map((_, pos) => make("button", {
    "data-pos": pos,
    class: pos === data.explained_at ? "marked" : "",
    title: `only position ${pos}`,
    click: () => act((now) => (now.column = now.column === pos ? -1 : pos)),
  }, tokenAt(pos))));
  const explained = data.values.map((value, side) => `${shown(data.targets[side])} = ${number(value)}`);
  byId("target").textContent = compared ? `a: ${explained[0]}  ·  b: ${explained[1]}` : explained[0];
  document.title = `${shown(data.targets[0])} · circuit`;
  byId("page").classList.toggle("compared", compared);
  const kinds = ["token", "position", ...INTERIOR, "error"].filter((kind) => G.kind.includes(kind));
  byId("kinds").replaceChildren(...kinds.map((kind) => make("label", {},
    make("input", { type: "checkbox", value: kind, change: () => act((now) => (now.hidden = toggled(now.hidden, kind))) }), kind)));
  byId("compare").hidden = !compared;
  for (const mark of document.querySelectorAll("footer [data-kind]")) mark.hidden = !kinds.includes(mark.dataset.kind);
  byId("left-out").textContent = data.left_out;
  slide("share", (value) => { state.share = Math.max(0.01, value); rebuild(); });
  slide("density", (value) => { state.density = value; drawFaint(); drawControls(); });
  slide("mix", (value) => { state.mix = value; blend(value); rebuild(); });
  for (const box of document.querySelectorAll("[name=side]")) box.addEventListener("change", () => act((now) => (now.side = box.value)));
  const onClick = {
    undo,
    propose: () => act((now) => now.groups.push(...proposedGroups(view.kept))),
    "group-pins": groupPins,
    paths: () => showPaths([]),
    theme: switchTheme,
    "zoom-in": () => zoomTo(zoom * 1.25),
    "zoom-out": () => zoomTo(zoom / 1.25),
    fit: fitWidth,
    "save-svg": () => saved("svg"),
    "save-png": () => saved("png"),
    "save-json": () => saved("json"),
    help: () => byId("keys").showModal(),
  };
  for (const [id, action] of Object.entries(onClick)) byId(id).addEventListener("click", action);
  byId("search").addEventListener("input", search);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && matches().length) select(`node ${G.id[matches()[0]]}`);
    if (event.key === "Escape") { byId("search").value = ""; search(); byId("marks").focus(); }
  });
  listen();
}

function listen() {
  const marks = byId("marks");
  const unitAt = (event) => event.target.closest?.("[data-unit]")?.dataset.unit ?? "";
  marks.addEventListener("pointerover", (event) => {
    const key = unitAt(event);
    if (key === hovered) return;
    hovered = key;
    drawStrong();
  });
  marks.addEventListener("pointerleave", () => { hovered = ""; drawStrong(); });
  marks.addEventListener("click", (event) => {
    const key = unitAt(event);
    if (key && event.shiftKey) pin(rowsOfKey(key).map((row) => G.id[row]));
    else select(key);
  });
  document.addEventListener("keydown", pressed);
  byId("stage").addEventListener("scroll", keepRowNames);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawFaint);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (event.target.matches?.("input:not([type=checkbox]):not([type=range]), select")) {
    if (event.key === "Escape") byId("marks").focus();
    return;
  }
  const steps = { ArrowUp: ["from", "to"], ArrowDown: ["to", "from"] };
  const actions = {
    "/": () => byId("search").focus(),
    "?": () => byId("keys").showModal(),
    u: undo,
    p: () => selected && pin(rowsOfKey(selected).map((row) => G.id[row])),
    g: groupPins,
    r: () => byId("label")?.focus(),
    s: () => showPaths([]),
    t: switchTheme,
    "+": () => zoomTo(zoom * 1.25),
    "-": () => zoomTo(zoom / 1.25),
    0: fitWidth,
    Escape: () => select(""),
    ArrowLeft: () => sideways(-1),
    ArrowRight: () => sideways(1),
    ArrowUp: () => along(...steps.ArrowUp),
    ArrowDown: () => along(...steps.ArrowDown),
  };
  const onRange = event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow");
  if (!actions[event.key] || onRange) return;
  event.preventDefault();
  actions[event.key]();
}

// Along the strongest edge, up to a reader or down to a writer; from nothing, to the target.
function along(own, other) {
  const at = unitOfKey(selected);
  if (at < 0) return select(`node ${G.id[G.target_row]}`);
  const link = view.links.find((one) => one[own] === at);
  if (link) select(view.units[link[other]].key);
}

function sideways(step) {
  const at = unitOfKey(selected);
  if (at < 0) return select(`node ${G.id[G.target_row]}`);
  const row = view.units.filter((unit) => gridRow(unit) === gridRow(view.units[at])).sort((a, b) => a.x - b.x || a.y - b.y);
  const next = row[(row.indexOf(view.units[at]) + step + row.length) % row.length];
  select(next.key);
}

function groupPins() {
  const ids = state.pins.filter((id) => INTERIOR.has(G.kind[rowOf.get(id)]) || SOURCES.has(G.kind[rowOf.get(id)]));
  if (ids.length > 1) group(ids, `${ids.length} nodes`);
  else byId("said").textContent = "Pin two or more nodes (p) to group them.";
}

function matches() {
  const wanted = byId("search").value.trim().toLowerCase();
  if (!wanted) return [];
  const size = (row) => Math.abs(G.column.attribution[row]);
  const found = [];
  for (let row = 0; row < G.n; row++) {
    if (view.kept.nodes[row] && `${titleOf(row)} ${G.kind[row]}`.toLowerCase().includes(wanted)) found.push(row);
  }
  return found.sort((a, b) => size(b) - size(a));
}

function search() {
  const found = matches();
  const searching = byId("search").value.trim() !== "";
  const hit = new Set(found.map((row) => view.unitOf[row]));
  for (const shape of byId("nodes").children) {
    shape.classList.toggle("hit", searching && hit.has(+shape.dataset.at));
    shape.classList.toggle("missed", searching && !hit.has(+shape.dataset.at));
  }
  if (!searching) return drawPanel();
  const items = found.slice(0, 40).map((row) => make("li", {}, make("button", { click: () => select(`node ${G.id[row]}`) }, titleOf(row)), ` ${number(G.column.attribution[row])}`));
  byId("about").replaceChildren(make("h2", {}, `${found.length} found`), make("ul", { class: "members" }, ...items));
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  drawFaint();
}

function zoomTo(factor) {
  fitted = false;
  zoom = Math.max(0.1, Math.min(4, factor));
  resize();
}

function fitWidth() {
  fitted = whole = true;
  zoom = fittingZoom();
  resize();
}

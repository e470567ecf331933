// Files made here: the sheet as SVG and PNG, the circuit as JSON (graphs/files/neuronpedia.py).
function saved(kind) {
  const name = (shown(data.targets[0]).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "circuit") + "." + kind;
  if (kind === "json") return download(new Blob([JSON.stringify(exported())], { type: "application/json" }), name);
  const text = picture();
  if (kind === "svg") return download(new Blob([text], { type: "image/svg+xml" }), name);
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    canvas.toBlob((blob) => download(blob, name), "image/png");
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The sheet with its styles, in the colours that are shown, edges as paths.
function picture() {
  const { width, height } = view.grid;
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "faded", "rule", "band", "positive", "negative", "shared", "a", "b", "explained"];
  const variables = names.map((name) => `--${name}:${style.getPropertyValue(`--${name}`)}`).join(";");
  const sheet = mark("svg", { width: Math.ceil(width), height: Math.ceil(height), viewBox: `0 0 ${short(width)} ${short(height)}`, class: "sheet" });
  const title = mark("title", {}, byId("target").textContent);
  const edges = view.links.slice(0, denseLinks()).reverse().map((link) => {
    const size = strength(link);
    const attributes = { "stroke-width": (0.5 + 2.2 * size).toFixed(2), "stroke-opacity": (0.07 + 0.4 * size).toFixed(2) };
    return mark("path", { class: `edge ${inkOf(link).slice(2)} ${link.flow < 0 ? "dashed" : ""}`, d: curve(link), ...attributes });
  });
  sheet.append(title, mark("style", {}, `svg{${variables}}\n${byId("sheet-style").textContent}`),
    mark("rect", { width: "100%", height: "100%", class: "paper" }),
    byId("bands").cloneNode(true), mark("g", {}, ...edges), byId("strong").cloneNode(true), byId("nodes").cloneNode(true));
  sheet.querySelector("#rows").removeAttribute("transform");
  for (const one of sheet.querySelectorAll("[id]")) one.removeAttribute("id");
  for (const one of sheet.querySelectorAll("[style]")) one.removeAttribute("style");
  return new XMLSerializer().serializeToString(sheet);
}

// Neuronpedia's format, as graphs/files/foreign.py names things in it.
function exported() {
  const { kept } = view;
  const names = new Map();
  for (let row = 0; row < G.n; row++) if (kept.nodes[row]) names.set(row, foreignId(row));
  const nodes = [...names.keys()].map((row) => {
    const ours = { node: G.id[row], kind: G.kind[row], layer: G.layer[row], sublayer: G.sub[row], pos: G.pos[row], index: G.index[row], token: G.pos[row] < 0 ? "" : data.tokens[0][G.pos[row]], label: labelOf(row) };
    for (const name of Object.keys(G.column)) ours[name] = G.column[name][row];
    ours.in_pruned = kept.cutIn[row];
    ours.out_pruned = kept.cutOut[row];
    return { ...foreignNode(row), linear_circuits: ours };
  });
  const links = [];
  for (let edge = 0; edge < G.m; edge++) {
    if (!kept.edges[edge]) continue;
    const link = { source: names.get(G.source[edge]), target: names.get(G.target[edge]), weight: G.flow[edge] };
    if (G.via && G.via[edge] !== "residual") link.via = G.via[edge];
    links.push(link);
  }
  const here = (ids) => rowsOf(ids).flatMap((row) => names.get(row) ?? []);
  const qParams = {
    linkType: "both",
    pinnedIds: here(state.pins),
    supernodes: state.groups.map((one) => [one.label, ...here(one.nodes)]),
    clickedId: here(rowsOfKey(selected).map((row) => G.id[row]))[0] ?? "",
    sg_pos: "",
  };
  const ours = { ...data.metadata.linear_circuits, details: data.details };
  if (compared) ours.target = { ...ours.target, value: G.column.attribution[G.target_row] };
  if (state.share < 1) ours.pruned = state.share * (ours.pruned ?? 1);
  return { metadata: { ...data.metadata, linear_circuits: ours }, qParams, nodes, links };
}

function foreignId(row) {
  const [layer, pos] = [G.layer[row], G.pos[row]];
  let [kind, index] = [G.kind[row], G.index[row]];
  if (kind === "token") return `E_${index}_${pos}`;
  if (kind === "position") return `P_${index}_${pos}`;
  if (kind === "target") return `${data.n_layers}_target_${pos}`;
  if (kind === "feature") kind = G.sub[row] === "mlp" ? "transcoder" : `${G.sub[row]}-sae`;
  if (kind === "error") index = G.sub[row];
  return `${layer}_${kind}_${index}_${pos}`;
}

function foreignNode(row) {
  const [kind, layer, index] = [G.kind[row], G.layer[row], G.index[row]];
  const source = SOURCES.has(kind);
  const attn = G.sub[row] === "attn";
  const types = { token: "embedding", position: "embedding", lorsa: "lorsa", head: "lorsa", target: "logit", error: attn ? "lorsa error" : "mlp reconstruction error", feature: attn ? "lorsa" : undefined };
  const known = INTERIOR.has(kind) && index >= 0 && layer >= 0;
  const label = labelOf(row) || G.name[row];
  return {
    node_id: foreignId(row),
    feature: known ? ((layer + index) * (layer + index + 1)) / 2 + index : null,
    layer: source ? "E" : String(kind === "target" ? data.n_layers : layer),
    ctx_idx: G.pos[row],
    feature_type: types[kind] ?? "cross layer transcoder",
    jsNodeId: `${foreignId(row)}-0`,
    clerp: kind === "target" ? `${shown(label)} (p=1.000)` : label,
    influence: null,
    activation: INTERIOR.has(kind) ? G.column.activation[row] : null,
    is_target_logit: kind === "target",
  };
}

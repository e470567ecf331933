// What a reader chose: all of it plain, so that it can be undone, kept in the address, saved.
const rowOf = new Map(G.id.map((id, row) => [id, row]));
const past = [];
let selected = ""; // "node 12" or "group 0"
let hovered = "";
let view = null; // what is drawn: kept, units, unitOf, links, grid
let state = {
  share: data.share,
  density: 0,
  hidden: [],
  column: -1,
  side: "all",
  mix: 0.5,
  pins: data.pins,
  labels: {},
  groups: data.groups,
};

function act(change) {
  remember(JSON.stringify(state));
  change(state);
  rebuild();
}

function remember(before) {
  past.push(before);
  if (past.length > 200) past.shift();
}

function undo() {
  if (!past.length) return;
  state = JSON.parse(past.pop());
  if (compared) blend(state.mix);
  rebuild();
}

// In a notebook's frame there is no address to keep it in.
function keepInAddress() {
  if (location.protocol !== "file:" || !past.length) return;
  try {
    history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)));
  } catch {
    return;
  }
}

function fromAddress() {
  try {
    const given = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of Object.keys(state)) {
      const same = typeof given[key] === typeof state[key] && Array.isArray(given[key]) === Array.isArray(state[key]);
      if (same && given[key] !== null) state[key] = given[key];
    }
    state.groups = state.groups.filter((one) => typeof one?.label === "string" && Array.isArray(one.nodes));
    for (const [id, label] of Object.entries(state.labels)) {
      if (typeof label !== "string") delete state.labels[id];
    }
  } catch {
    return;
  }
}

function pin(ids) {
  act((now) => {
    const all = ids.every((id) => now.pins.includes(id));
    now.pins = all ? now.pins.filter((id) => !ids.includes(id)) : [...new Set([...now.pins, ...ids])];
  });
}

function rename(key, label) {
  const [what, which] = key.split(" ");
  act((now) => {
    if (what === "group") now.groups[which].label = label || "group";
    else if (label !== G.label[rowOf.get(+which)]) now.labels[which] = label;
    else delete now.labels[which];
  });
}

// A node is in one group at most.
function group(ids, label) {
  act((now) => {
    const rest = now.groups.map((one) => ({ ...one, nodes: one.nodes.filter((id) => !ids.includes(id)) }));
    now.groups = [...rest.filter((one) => one.nodes.length), { label, nodes: ids, open: false }];
    now.pins = now.pins.filter((id) => !ids.includes(id));
  });
  selected = `group ${state.groups.length - 1}`;
  rebuild();
}

function rowsOfKey(key) {
  const [what, which] = key.split(" ");
  if (what === "node" && rowOf.has(+which)) return [rowOf.get(+which)];
  return what === "group" && state.groups[which] ? rowsOf(state.groups[which].nodes) : [];
}

function unitOfKey(key) {
  const rows = rowsOfKey(key);
  return rows.length ? view.unitOf[rows[0]] : -1;
}

function select(key) {
  selected = key;
  drawStrong();
  drawPanel();
  const unit = view.units[unitOfKey(key)];
  if (!unit) return;
  const box = document.querySelector(`[data-unit="${unit.key}"]`).getBoundingClientRect();
  const stage = byId("stage").getBoundingClientRect();
  const off = (low, high, from, to) => (low < from ? low - from - 30 : high > to ? high - to + 30 : 0);
  byId("stage").scrollBy(
    off(box.left, box.right, stage.left, stage.right),
    off(box.top, box.bottom, stage.top, stage.bottom),
  );
}

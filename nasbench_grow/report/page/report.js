"use strict";
// The data come from the records; nothing is computed here but what is shown of them, and in which order.
const { blocks, costs } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");
const MISSING = "–";
const sorting = { column: null, descending: false };
let block = blocks[0];

// --- filters ---

const unique = (values) => [...new Set(values)];

/** Fills a select with [value, text] pairs; keeps its choice where that is still there. */
function offer(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => String(value) === before)) select.value = before;
}

const plain = (values) => unique(values).map((value) => [value, value]);

function chooseBlock() {
  offer(at("task"), plain(blocks.map((one) => one.task)));
  const ofTask = blocks.filter((one) => one.task === at("task").value);
  offer(at("backbone"), plain(ofTask.map((one) => one.backbone)));
  const ofBackbone = ofTask.filter((one) => one.backbone === at("backbone").value);
  offer(at("protocol"), ofBackbone.map((one) => [one.name, one.protocol]));
  block = blocks.find((one) => one.name === at("protocol").value);
  const budgets = unique(block.rows.map((row) => row.budget)).sort((a, b) => b - a);
  offer(at("budget"), [["", "all"], ...budgets.map((budget) => [budget, budget])]);
  offerFamilies();
  sorting.column = null;
}

function offerFamilies() {
  const off = new Set([...document.querySelectorAll("#families input:not(:checked)")].map((box) => box.value));
  const boxes = unique(block.rows.map((row) => row.family)).map((family) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: family });
    box.checked = !off.has(family);
    label.append(box, family || "other");
    return label;
  });
  at("families").replaceChildren(at("families").querySelector("legend"), ...boxes);
}

/** The rows that the filters leave. Dense, which has no budget, stands beside every budget. */
function shownRows() {
  const budget = at("budget").value;
  const families = new Set([...document.querySelectorAll("#families input:checked")].map((box) => box.value));
  const fits = (row) => budget === "" || String(row.budget) === budget || row.method === "dense";
  return block.rows.filter((row) => families.has(row.family) && fits(row));
}

// --- the table ---

/** The number that a cell begins with, or its text; null for a dash. */
function sortable(text) {
  const found = text.replaceAll(",", "").replace("−", "-").match(/^[+-]?\d+(\.\d+)?/);
  if (found) return Number(found[0]);
  return text === MISSING || text === "" ? null : text;
}

/** Missing values come last in either order. */
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return sorting.descending ? -order : order;
}

function drawTable() {
  const left = (head) => (head === "method" ? "left" : "");
  const heads = block.heads.map((head, column) => {
    const th = Object.assign(document.createElement("th"), { className: left(head), scope: "col" });
    if (column === sorting.column) th.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: head });
    button.addEventListener("click", () => {
      sorting.descending = column === sorting.column ? !sorting.descending : column > 1;
      sorting.column = column;
      drawTable();
    });
    th.append(button);
    return th;
  });
  const line = document.createElement("tr");
  line.append(...heads);
  at("comparison").tHead.replaceChildren(line);

  const rows = shownRows();
  if (sorting.column !== null) {
    rows.sort((a, b) => compare(sortable(a.texts[sorting.column]), sortable(b.texts[sorting.column])));
  }
  at("comparison").tBodies[0].replaceChildren(
    ...rows.map((row) => {
      const tr = Object.assign(document.createElement("tr"), { className: row.pareto ? "front" : "" });
      tr.append(
        ...row.texts.map((text, column) =>
          Object.assign(document.createElement("td"), {
            className: left(block.heads[column]), textContent: text, title: column === 1 ? text : "",
          }),
        ),
      );
      return tr;
    }),
  );
  at("count").textContent = `${rows.length} of ${block.rows.length} rows`;
}

// --- the figures ---

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** On a dark ground a colour is mixed with white, or black would not be seen. */
function visible(colour) {
  if (!dark.matches) return colour;
  const parts = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  return `rgb(${parts.map((part) => Math.round(part + 0.5 * (255 - part))).join(",")})`;
}

const faded = (colour) => (colour.startsWith("#") ? `${colour}80` : colour.replace("rgb", "rgba").replace(")", ",0.5)"));

function layout(changes) {
  const axis = { gridcolor: colourOf("--line"), linecolor: colourOf("--line"), zeroline: false, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colourOf("--ink"), size: narrow.matches ? 12 : 14, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 10, r: 10, t: 30, b: 10 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colourOf("--faint"), activecolor: colourOf("--ink") },
    hoverlabel: { bgcolor: colourOf("--raised"), bordercolor: colourOf("--line"), font: { color: colourOf("--ink"), size: 13 }, align: "left" },
    ...changes,
    xaxis: { ...axis, ...changes.xaxis }, yaxis: { ...axis, ...changes.yaxis },
    ...(changes.yaxis2 ? { yaxis2: { ...axis, ...changes.yaxis2 } } : {}),
  };
}

const draw = (id, traces, changes) =>
  Plotly.react(at(id), traces, layout(changes), {
    responsive: true,
    displaylogo: false,
    displayModeBar: narrow.matches ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });

/** An axis of epochs: whole numbers only. */
const epochAxis = (run) => ({
  title: { text: "epoch", standoff: 6 }, tick0: 0, dtick: Math.max(1, Math.ceil(run.epochs.length / (narrow.matches ? 6 : 12))),
});

const short = (value, digits = 3) => (value === null ? MISSING : Number(value.toPrecision(digits)).toLocaleString("en"));

function hover(row) {
  const half = row.half_width === null ? "" : ` ± ${short(row.half_width)}`;
  const lines = [`<b>${row.method}</b>, budget ${row.budget}`, `${block.metric}: ${short(row.metric, 4)}${half}`];
  for (const [name, label] of Object.entries(costs)) {
    if (row.costs[name] !== null) lines.push(`${label.replace(", all that the method took", "")}: ${short(row.costs[name])}`);
  }
  if (row.missed) lines.push("✗ misses the budget");
  return lines.join("<br>");
}

/** The points that no other shown one beats in both axes, cheapest first. Who misses the budget is not among them. */
function front(rows, cost) {
  const better = (a, b) => (block.lower ? a < b : a > b);
  const found = [];
  for (const row of rows.filter((one) => !one.missed).sort((a, b) => a.costs[cost] - b.costs[cost])) {
    const last = found.at(-1);
    if (!last || better(row.metric, last.metric)) {
      if (last && last.costs[cost] === row.costs[cost]) found.pop();
      found.push(row);
    }
  }
  return found;
}

function drawPareto() {
  const cost = at("cost").value;
  const rows = shownRows().filter((row) => row.metric !== null && row.costs[cost] !== null);
  const best = front(rows, cost);
  const methods = unique(rows.map((row) => row.method));
  const traces = methods.map((method) => {
    const mine = rows.filter((row) => row.method === method).sort((a, b) => a.costs[cost] - b.costs[cost]);
    const look = block.looks[method];
    const colour = visible(look.colour);
    return {
      name: method, mode: "lines+markers", x: mine.map((row) => row.costs[cost]), y: mine.map((row) => row.metric),
      customdata: mine.map((row) => [row.method, row.budget]),
      error_y: { array: mine.map((row) => row.half_width ?? 0), thickness: 1, width: 3, color: faded(colour) },
      line: { color: methods.length > 12 ? faded(colour) : colour, width: 1 }, marker: { color: colour, symbol: look.symbol, size: 11, line: { width: 1.5, color: colour } },
      text: mine.map(hover), hovertemplate: "%{text}<extra></extra>",
    };
  });
  if (best.length > 1) {
    traces.unshift({
      name: "front", mode: "lines", x: best.map((row) => row.costs[cost]), y: best.map((row) => row.metric),
      line: { shape: "hv", color: colourOf("--mark"), width: 2, dash: "dot" }, hoverinfo: "skip",
    });
  }
  const values = rows.map((row) => row.metric);
  const spread = Math.max(...values) - Math.min(...values) || 1;
  // Two seeds give huge intervals, which would squeeze all points: they are cut where they leave the axes.
  const range = values.length ? [Math.min(...values) - 0.15 * spread, Math.max(...values) + 0.2 * spread] : undefined;
  const xs = rows.map((row) => row.costs[cost]);
  const below = narrow.matches;
  draw("pareto", traces, {
    height: below ? 420 + 11 * methods.length : Math.max(460, 120 + 21 * methods.length),
    xaxis: { title: { text: costs[cost], standoff: 8 }, rangemode: Math.min(...xs) < 0.6 * Math.max(...xs) ? "tozero" : "normal" }, yaxis: { title: { text: block.metric }, range },
    showlegend: true, hovermode: "closest",
    legend: below ? { orientation: "h", y: -0.25, yanchor: "top", font: { size: 12 } } : { font: { size: 13 }, x: 1.01 },
    annotations: rows.length ? [] : [{ text: "no cell has this figure", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  });
  at("pareto").removeAllListeners?.("plotly_click");
  at("pareto").on("plotly_click", ({ points }) => {
    const picked = points[0]?.customdata;
    if (picked && block.runs.some((run) => runName(run) === nameOf(...picked))) {
      at("run-method").value = nameOf(...picked);
      offerSeeds();
      drawGrowth();
      at("curves").scrollIntoView({ behavior: "smooth", block: "center" });
    }
  });
  at("pareto-note").textContent =
    `Means over seeds with the 95 % Student t interval (cut where it leaves the axes), a line through the budgets of a method. ` +
    `Dotted: the front of what is shown, in these two figures. ` +
    (cost === "wall_s" ? "Times stand only for cells that ran with no other beside them." : "");
}

// --- growth ---

const nameOf = (method, budget) => `${method}, budget ${budget}`;
const runName = (run) => nameOf(run.method, run.budget);

function offerRuns() {
  const names = unique(block.runs.map(runName));
  const preferred = names.find((name) => name.startsWith("grow,")) ?? names.find((name) => name.startsWith("grow"));
  const before = at("run-method").value;
  offer(at("run-method"), names.map((name) => [name, name]));
  if (preferred && !names.includes(before)) at("run-method").value = preferred;
  offerSeeds();
}

function offerSeeds() {
  const seeds = block.runs.filter((run) => runName(run) === at("run-method").value).map((run) => run.seed);
  offer(at("run-seed"), plain(seeds));
}

function drawGrowth() {
  const run = block.runs.find(
    (one) => runName(one) === at("run-method").value && String(one.seed) === at("run-seed").value,
  );
  for (const id of ["curves", "widths"]) at(id).hidden = !run;
  if (!run) return;
  const colour = visible(block.looks[run.method].colour);
  const traces = [
    { name: "MACs", x: run.epochs, y: run.cost, mode: "lines+markers", line: { color: colour }, marker: { size: 4 } },
    { name: "target", x: run.epochs, y: run.target, mode: "lines", line: { color: colourOf("--faint"), dash: "dot" } },
    { name: run.epochs.length ? block.curve : "", x: run.epochs, y: run.metric, yaxis: "y2", mode: "lines", line: { color: visible("#2171B5"), width: 1.5, dash: "dash" } },
  ].filter((trace) => trace.y.some((value) => value !== null));
  const top = 1.12 * Math.max(run.budget, ...run.cost.filter((value) => value !== null));
  draw("curves", traces, {
    height: 320, margin: { l: 10, r: 10, t: 40, b: 10 }, hovermode: "x unified",
    xaxis: epochAxis(run), yaxis: { title: { text: "MACs (share of dense)" }, range: [0, top] },
    yaxis2: { title: { text: block.curve }, overlaying: "y", side: "right", showgrid: false, tickmode: "auto", nticks: 6 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: run.budget, y1: run.budget, line: { color: colourOf("--faint"), width: 1 } }],
  });
  // Widths are given where one changes: fill the epochs between.
  const shares = block.layers.map(() => []);
  const widths = block.layers.map(() => []);
  run.widths.forEach(([begin, values], place) => {
    const end = run.widths[place + 1]?.[0] ?? run.epochs.length;
    for (let epoch = begin; epoch < end; epoch++) {
      values.forEach((width, layer) => {
        shares[layer].push(width === null ? null : width / block.full[layer]);
        widths[layer].push(width ?? MISSING);
      });
    }
  });
  const room = narrow.matches ? 18 : 40;
  const labels = block.layers.map((name) => (name.length > room ? `…${name.slice(1 - room).replace(/^\./, "")}` : name));
  draw("widths", [{
    type: "heatmap", x: run.epochs, y: block.layers.map((_, layer) => layer), z: shares, customdata: widths, text: shares.map((row, layer) => row.map(() => block.layers[layer])),
    zmin: 0, zmax: 1, colorscale: "Viridis", hoverongaps: false,
    colorbar: { title: { text: "width (share of full)", side: "right" }, thickness: 12, outlinewidth: 0 },
    hovertemplate: "%{text}<br>epoch %{x}: %{customdata} channels<extra></extra>",
  }], {
    height: 90 + 15 * block.layers.length,
    xaxis: { ...epochAxis(run), showgrid: false },
    yaxis: { autorange: "reversed", tickvals: labels.map((_, layer) => layer), ticktext: labels, tickfont: { size: 11 }, showgrid: false },
  });
}

// --- together ---

function drawNotes() {
  at("title").textContent = block.title;
  at("notes").replaceChildren(
    ...block.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })),
  );
}

function drawRows() {
  drawTable();
  drawPareto();
}

function drawAll() {
  drawNotes();
  drawRows();
  offerRuns();
  drawGrowth();
}

for (const id of ["task", "backbone", "protocol"]) {
  at(id).addEventListener("change", () => {
    chooseBlock();
    drawAll();
  });
}
at("budget").addEventListener("change", drawRows);
at("families").addEventListener("change", drawRows);
at("cost").addEventListener("change", drawPareto);
at("run-method").addEventListener("change", () => {
  offerSeeds();
  drawGrowth();
});
at("run-seed").addEventListener("change", drawGrowth);
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);

offer(at("cost"), Object.entries(costs));
chooseBlock();
drawAll();

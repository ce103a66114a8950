// Four small charts, drawn as SVG from plain arrays. Each also carries its message as text for those who cannot see it.
let W = 480;   // of the chart that is being drawn
const H = 180, LEFT = 40, RIGHT = 10, TOP = 10, BOTTOM = 22;
const NS = "http://www.w3.org/2000/svg";

function svg(into, label) {
  const box = document.createElementNS(NS, "svg");
  W = into.clientWidth || 480;
  box.setAttribute("viewBox", `0 0 ${W} ${H}`);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  into.replaceChildren(box);
  return box;
}

function add(box, kind, attributes, text) {
  const node = document.createElementNS(NS, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  box.append(node);
  return node;
}

const short = value => !Number.isFinite(value) ? "" : Math.abs(value) >= 1000 ? `${Math.round(value / 100) / 10}k`
  : String(Number(value.toPrecision(2)));

function ticks(top) {
  const step = 10 ** Math.floor(Math.log10(top / 2 || 1));
  const wide = [1, 2, 5, 10].map(by => by * step).find(by => top / by <= 4) ?? top;
  const found = [];
  for (let value = 0; value <= top * 1.0001; value += wide) found.push(value);
  return found;
}

function frame(box, [x0, x1], [y0, y1], xText, yText) {
  const x = value => LEFT + (value - x0) / (x1 - x0 || 1) * (W - LEFT - RIGHT);
  const y = value => H - BOTTOM - (value - y0) / (y1 - y0 || 1) * (H - TOP - BOTTOM);
  for (const [value, text] of yText) {
    add(box, "line", { x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value), class: "grid" });
    add(box, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, text);
  }
  for (const [value, text] of xText) add(box, "text", { x: x(value), y: H - 6, "text-anchor": "middle" }, text);
  return { x, y };
}

function nothing(into, text) {
  add(svg(into, text), "text", { x: W / 2, y: H / 2, "text-anchor": "middle", class: "none" }, text);
}

const path = points => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function clock(rows, x0, x1) {
  const sameDay = x1 - x0 <= 3600;
  return [0, 1, 2, 3].map(i => x0 + (x1 - x0) * (0.08 + 0.28 * i)).map(at => [at, new Date(at * 1000).toLocaleTimeString(
    [], { hour: "2-digit", minute: "2-digit", ...(sameDay ? { second: "2-digit" } : {}) })]);
}

function campaigns(box, rows, x, every) {
  for (const row of rows) if (row.campaign) {
    add(box, "rect", { x: x(row.at), y: TOP, width: Math.max(0.5, x(row.at + every) - x(row.at)), height: H - TOP - BOTTOM,
      class: "campaign" });
  }
}

export function traffic(into, rows, every, span) {
  if (!rows.length) return nothing(into, "no traffic yet");
  const last = rows.at(-1).at, first = last - span;
  const top = Math.max(1, ...rows.map(row => row.inputs / every));
  const flagged = rows.reduce((sum, row) => sum + row.flagged, 0), inputs = rows.reduce((sum, row) => sum + row.inputs, 0);
  const box = svg(into, `${inputs} distinct inputs, ${flagged} of them flagged`);
  const { x, y } = frame(box, [first, last], [0, top], clock(rows, first, last), ticks(top).map(value => [value, short(value)]));
  campaigns(box, rows, x, every);
  for (const [name, look] of [["inputs", "a1"], ["flagged", "a2"]]) {
    const line = rows.map(row => [x(row.at), y(row[name] / every)]);
    add(box, "path", { d: `${path([[line[0][0], y(0)], ...line, [line.at(-1)[0], y(0)]])}Z`, class: look });
  }
}

export function monitor(into, rows, every, span) {
  const known = rows.filter(row => row.statistic !== null);
  if (!known.length) return nothing(into, "no input watched yet");
  const last = rows.at(-1).at, first = last - span, line = known.at(-1).threshold;
  const low = Math.min(0, ...known.map(row => row.statistic)), top = 1.15 * Math.max(line, ...known.map(row => row.statistic));
  const now = known.at(-1).statistic;
  const box = svg(into, `the monitor's statistic is ${now.toFixed(1)}, the alarm line ${line.toFixed(1)}`);
  const { x, y } = frame(box, [first, last], [low, top], clock(rows, first, last), ticks(top).map(value => [value, short(value)]));
  campaigns(box, rows, x, every);
  add(box, "line", { x1: LEFT, x2: W - RIGHT, y1: y(line), y2: y(line), class: "l2 dash" });
  add(box, "path", { d: path(known.map(row => [x(row.at), y(row.statistic)])), class: "l1" });
}

export function strength(into, found, matched, covered) {
  if (!found) return nothing(into, "no flagged input yet");
  const { edge, counts } = found, most = Math.max(...counts);
  const end = Math.max(edge * counts.length, 1.1 * (matched ?? 0), 1.1 * (covered ?? 0)), all = counts.reduce((a, b) => a + b, 0);
  const box = svg(into, `strength of the last ${all} flagged inputs; matched epsilon ${matched?.toFixed(3) ?? "none"}`);
  const { x, y } = frame(box, [0, end], [0, most], ticks(end).map(value => [value, short(value)]),
    ticks(most).filter(Number.isInteger).map(value => [value, short(value)]));
  counts.forEach((count, i) => count && add(box, "rect", { x: x(i * edge), y: y(count), class: "bar",
    width: Math.max(1, x((i + 1) * edge) - x(i * edge) - 1), height: y(0) - y(count) }));
  for (const [value, look, text] of [[covered, 3, "covers"], [matched, 2, "matched"]]) if (value) {
    const right = x(value) > W - 110;
    add(box, "line", { x1: x(value), x2: x(value), y1: TOP, y2: H - BOTTOM, class: `l${look} dash` });
    add(box, "text", { x: x(value) + (right ? -4 : 4), y: TOP + (look === 2 ? 10 : 24), class: `mark m${look}`,
      "text-anchor": right ? "end" : "start" }, `${text} ${value.toFixed(3)}`);
  }
}

export function curve(into, rows, norm) {
  const shown = rows.filter(row => row.norm === norm);
  if (!shown.length) return nothing(into, "this version brings no report");
  const names = [...new Set(shown.map(row => row.label))], end = Math.max(...shown.map(row => row.epsilon)) || 1;
  const said = names.map(name => `${name}: ${shown.filter(row => row.label === name).map(row =>
    `${Math.round(100 * row.accuracy)} % at ${row.epsilon}`).join(", ")}`).join("; ");
  const box = svg(into, said);
  const { x, y } = frame(box, [0, end], [0, 1], ticks(end).map(value => [value, short(value)]),
    [0, .25, .5, .75, 1].map(value => [value, `${100 * value} %`]));
  names.forEach((name, i) => {
    const line = shown.filter(row => row.label === name).sort((a, b) => a.epsilon - b.epsilon);
    add(box, "path", { d: path(line.map(row => [x(row.epsilon), y(row.accuracy)])), class: `l${1 + i % 3}` });
    add(box, "text", { x: W - RIGHT - 6, y: TOP + 14 + 14 * i, "text-anchor": "end", class: `mark m${1 + i % 3}` }, name);
  });
}

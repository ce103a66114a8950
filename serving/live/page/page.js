// The page itself: reads the feed, keeps what the charts show, and offers the operator's actions.
import * as charts from "./charts.js";

const $ = id => document.getElementById(id);
const state = { span: 300, columns: [], seconds: [], minutes: [], frame: null, drawn: 0 };
const KEPT = { seconds: 900, minutes: 1440 };
let key = sessionStorage.getItem("redoubt-key") ?? "";

const time = at => at ? new Date(at * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit",
  minute: "2-digit", second: "2-digit" }) : "";
const figure = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
const whole = value => value === null || value === undefined ? "–" : value.toLocaleString();

function element(kind, text, look) {
  const node = document.createElement(kind);
  if (text !== undefined) node.textContent = text;
  if (look) node.className = look;
  return node;
}

// -- the feed ------------------------------------------------------------------------------------------------------

const headers = () => key ? { Authorization: `Bearer ${key}` } : {};

async function follow() {
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    try {
      const answer = await fetch("live/events", { headers: headers(), cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) return ask(answer.status);
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      $("login").hidden = true;
      $("link").textContent = "live";
      wait = 1;
      await read(answer.body.getReader());
      throw new Error("the connection ended");
    } catch (error) {
      $("link").textContent = `${error.message}; trying again in ${wait} s`;
      banner("alarm", "No connection to the server: these figures are old.");
    }
    await new Promise(done => setTimeout(done, 1000 * wait));
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  for (let text = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n"), name = lines.find(line => line.startsWith("event: "))?.slice(7);
      const data = lines.find(line => line.startsWith("data: "))?.slice(6);
      if (name === "history") past(JSON.parse(data));
      if (name === "frame") show(JSON.parse(data));
    }
  }
}

function ask(status) {
  $("login").hidden = false;
  $("link").textContent = "not signed in";
  $("login-fault").textContent = key ? (status === 403 ? "This key may not look at the page." : "This key is not known.") : "";
  $("key").focus();
}

$("login").addEventListener("submit", event => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("redoubt-key", key);
  $("key").value = "";
  follow();
});

// -- what is kept --------------------------------------------------------------------------------------------------

const named = row => Object.fromEntries(state.columns.map((name, i) => [name, row[i]]));

function past({ columns, seconds, minutes }) {
  state.columns = columns;
  state.seconds = seconds.map(named);
  state.minutes = minutes.map(named);
}

function keep(row) {
  state.seconds.push(row);
  state.seconds.splice(0, state.seconds.length - KEPT.seconds);
  const minute = Math.floor(row.at / 60) * 60, last = state.minutes.at(-1);
  if (!last || last.at < minute) state.minutes.push({ ...row, at: minute });
  else {
    for (const name of ["requests", "failed", "inputs", "flagged"]) last[name] += row[name];
    if (row.statistic !== null) {
      last.statistic = last.statistic === null ? row.statistic : Math.max(last.statistic, row.statistic);
      last.threshold = row.threshold;
    }
    last.campaign ||= row.campaign;
  }
  state.minutes.splice(0, state.minutes.length - KEPT.minutes);
}

// -- what is shown -------------------------------------------------------------------------------------------------

function banner(look, text) {
  const node = $("banner");
  if (node.textContent !== text) node.textContent = text;   // a screen reader speaks only what changed
  node.className = `banner ${look}`;
}

function show(frame) {
  state.frame = frame;
  keep(named(frame.row));
  const open = frame.campaigns.find(row => row.state === "open"), run = frame.retrains.find(row => row.state === "running");
  $("model").textContent = frame.champion ? `${frame.champion.name} v${frame.champion.version}` : "";
  document.title = `${open ? "ATTACK · " : ""}Redoubt`;
  say(frame, open, run);
  $("problem").hidden = !frame.problem;
  $("problem").textContent = frame.problem ?? "";
  tiles(frame, open);
  actions(frame, open);
  steps(run);
  tables(frame);
  pictures(frame);
  if (!document.hidden) draw();
}

// What the states are called where people read them; all others are their own word.
const WORDS = { waiting: "waits for a person" };

function say(frame, open, run) {
  if (!frame.ready) return banner("alarm", "No model is served yet.");
  if (!open) return banner("calm", frame.monitor ? "All clear: the traffic looks like clean inputs." : "Serving without a detector: attacks go unseen.");
  const strength = open.strength ? `, strength ${figure(open.strength.estimate)} ${open.strength.norm}` : "";
  const waits = frame.retrains.find(row => row.campaign === open.id && row.state === "waiting");
  const doing = run ? `; retraining at ${figure(run.epsilon)}${run.step ? `, step ${run.step}` : ""}`
    : waits ? `; version ${waits.version} passed the gate and waits for a person` : open.outcome ? `; ${open.outcome}` : "; gathering evidence";
  banner(open.outcome === "shift" ? "" : "alarm", `${open.outcome === "shift" ? "Shift" : "Campaign"} since ${time(open.opened_at)}: ${open.flagged} inputs flagged${strength}${doing}.`);
}

function tiles(frame, open) {
  const monitor = frame.monitor, minute = state.seconds.filter(row => row.at > frame.row[0] - 60);
  const sum = name => minute.reduce((total, row) => total + row[name], 0);
  const covers = frame.champion?.threats.map(threat => `${threat.norm} ${figure(threat.epsilon)}`).join(", ");
  const rows = [
    ["champion", frame.champion ? `v${frame.champion.version}` : "–", frame.champion ? (covers || "undefended") : ""],
    ["requests, last minute", whole(sum("requests")), `${whole(frame.requests.total)} in all`],
    ["failed", whole(frame.requests.failed), "the server's own faults"],
    ["flagged, last minute", sum("inputs") ? `${(100 * sum("flagged") / sum("inputs")).toFixed(1)} %` : "–",
      monitor ? `${(100 * monitor.null_rate).toFixed(1)} % expected at most` : ""],
    ["statistic", monitor ? figure(monitor.statistic, 1) : "–", monitor ? `alarm at ${figure(monitor.threshold, 1)}` : ""],
    ["campaign", open ? whole(open.flagged) : "none", open ? "flagged inputs" : ""],
  ];
  const rival = frame.challenger, share = value => `${(100 * value).toFixed(1)} %`;
  if (rival) rows.push([`challenger v${rival.version}`, rival.inputs ? share(rival.agreement) : "–",
    `of ${whole(rival.inputs)} inputs decided alike${rival.verdict_agreement === null ? "" : `, verdicts ${share(rival.verdict_agreement)}`}`]);
  $("tiles").replaceChildren(...rows.map(([name, value, more]) => {
    const box = element("div"), dd = element("dd", value);
    dd.append(element("small", more));
    box.append(element("dt", name), dd);
    return box;
  }));
}

function steps(run) {
  $("run-section").hidden = !run?.progress;
  if (!run?.progress) return;
  $("steps").replaceChildren(...run.progress.steps.map(step => element("li",
    `${step.step.replaceAll("_", " ")}${step.seconds ? ` ${Math.round(step.seconds)} s` : ""}`, step.state)));
  const latest = run.progress.latest, facts = [`${run.norm} ${figure(run.epsilon)} for campaign ${run.campaign}`];
  if (latest.epoch) facts.push(`epoch ${latest.epoch}`);
  if (latest.clean_accuracy !== undefined) facts.push(`clean ${(100 * latest.clean_accuracy).toFixed(1)} %`);
  if (latest.robust_accuracy !== undefined) facts.push(`robust ${(100 * latest.robust_accuracy).toFixed(1)} %`);
  if (latest.seconds_left !== undefined) facts.push(`${Math.round(latest.seconds_left)} s left in this step`);
  $("run-text").textContent = facts.join(" · ");
}

async function pictures(frame) {
  const flagged = frame.monitor?.flagged ?? 0;
  if (!frame.quarantine || pictures.seen === flagged) return;
  pictures.seen = flagged;
  const answer = await fetch("quarantine?limit=12", { headers: headers() });
  if (!answer.ok) return;
  const rows = await answer.json();
  $("quarantine-section").hidden = !rows.length;
  const shown = await Promise.all(rows.map(async row => {
    const image = await fetch(`quarantine/${row.id}`, { headers: headers() });
    return image.ok ? [row, URL.createObjectURL(await image.blob())] : null;
  }));
  document.querySelectorAll("#quarantine img").forEach(old => URL.revokeObjectURL(old.src));
  $("quarantine").replaceChildren(...shown.filter(Boolean).map(([row, url]) => {
    const figure_ = element("figure"), image = element("img"), change = element("canvas");
    image.src = url;
    image.width = image.height = change.width = change.height = 64;
    image.alt = `flagged input, strength ${figure(row.strength)}`;
    image.addEventListener("load", () => amplify(image, change));
    figure_.append(image, change, element("figcaption", `${figure(row.strength)} · ${time(row.at)}`));
    return figure_;
  }));
}

// What is rough in the picture: it less its own 3x3 median, four times as strong. Most of a perturbation is in there.
function amplify(image, canvas) {
  const n = image.naturalWidth, paper = new OffscreenCanvas(n, n).getContext("2d");
  paper.drawImage(image, 0, 0);
  const old = paper.getImageData(0, 0, n, n), fresh = paper.createImageData(n, n);
  for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) for (let c = 0; c < 3; c++) {
    const near = [];
    for (let i = -1; i < 2; i++) for (let j = -1; j < 2; j++) {
      near.push(old.data[4 * (Math.min(n - 1, Math.max(0, y + i)) * n + Math.min(n - 1, Math.max(0, x + j))) + c]);
    }
    const at = 4 * (y * n + x) + c;
    fresh.data[at] = 128 + 4 * (old.data[at] - near.sort((a, b) => a - b)[4]);
    fresh.data[4 * (y * n + x) + 3] = 255;
  }
  paper.putImageData(fresh, 0, 0);
  const into = canvas.getContext("2d");
  into.imageSmoothingEnabled = false;
  into.drawImage(paper.canvas, 0, 0, canvas.width, canvas.height);
}

function table(id, columns, rows, none) {
  const head = element("tr"), body = element("tbody");
  head.append(...columns.map(([name, look]) => {
    const cell = element("th", name, look);
    cell.scope = "col";
    return cell;
  }));
  body.append(...rows.map(row => {
    const line = element("tr");
    line.append(...row.map((value, i) => element("td", value, columns[i][1])));
    return line;
  }));
  if (!rows.length) {
    const cell = element("td", none);
    cell.colSpan = columns.length;
    body.append(element("tr"));
    body.lastChild.append(cell);
  }
  const top = element("thead");
  top.append(head);
  const was = $(id).dataset.shown, now = JSON.stringify(rows);
  if (was !== now || !$(id).children.length) {
    $(id).dataset.shown = now;
    $(id).replaceChildren(top, body);
  }
}

function tables(frame) {
  table("campaigns", [["began"], ["ended"], ["version"], ["flagged", "number"], ["strength", "number"], ["matched", "number"],
    ["outcome"], ["reason", "reason"]], frame.campaigns.map(row => [time(row.opened_at), time(row.closed_at) || "running",
    `v${row.model_version}`, whole(row.flagged), row.strength ? `${figure(row.strength.estimate)} ${row.strength.norm}` : "–",
    figure(row.matched), row.outcome ?? "undecided", row.reason ?? ""]), "no campaign so far");
  table("retrains", [["asked"], ["ended"], ["epsilon", "number"], ["state"], ["version"], ["reason", "reason"]],
    frame.retrains.map(row => [time(row.created_at), time(row.finished_at), `${row.norm} ${figure(row.epsilon)}`,
      (WORDS[row.state] ?? row.state) + (row.step ? `, ${row.step}` : ""), row.version ? `v${row.version}` : "", row.reason ?? ""]),
    "no retraining run so far");
}

function draw() {
  const frame = state.frame;
  if (!frame) return;
  const fine = state.span <= KEPT.seconds, every = fine ? 1 : 60, now = frame.row[0];
  const rows = (fine ? state.seconds : state.minutes).filter(row => row.at > now - state.span);
  charts.traffic($("inputs"), rows, every, state.span);
  charts.monitor($("monitor"), rows, every, state.span);
  const open = frame.campaigns.find(row => row.state === "open"), norm = open?.strength?.norm ?? frame.champion?.threats[0]?.norm ?? "Linf";
  const covered = Math.max(0, ...(frame.champion?.threats ?? []).filter(threat => threat.norm === norm).map(threat => threat.epsilon));
  charts.strength($("strength"), frame.strengths, open?.matched, covered || null);
  const shown = frame.curve.some(row => row.norm === norm) ? norm : frame.curve[0]?.norm;
  $("norm").textContent = shown ? `(${shown})` : "";
  charts.curve($("curve"), frame.curve, shown);
}

document.querySelectorAll("[data-span]").forEach(button => button.addEventListener("click", () => {
  state.span = Number(button.dataset.span);
  document.querySelectorAll("[data-span]").forEach(other => other.setAttribute("aria-pressed", other === button));
  draw();
}));
document.addEventListener("visibilitychange", () => document.hidden || draw());

// -- what an operator does -----------------------------------------------------------------------------------------

function actions(frame, open) {
  const { paused, acknowledged, promotion, can_promote } = frame.operations;
  $("acknowledge").hidden = !open || open.id in acknowledged;
  $("pause").textContent = paused ? "Resume retraining" : "Pause retraining";
  $("pause").setAttribute("aria-pressed", Boolean(paused));
  $("promote").disabled = !can_promote || promotion?.state === "running";
  const facts = [];
  if (paused) facts.push(`Retraining is paused by ${paused.by} since ${time(paused.at)}${paused.why ? `: ${paused.why}` : ""}.`);
  if (open && open.id in acknowledged) facts.push(`Campaign acknowledged by ${acknowledged[open.id].by}.`);
  if (promotion) facts.push(`Version ${promotion.version}: ${promotion.state === "running" ? "the gate is judging" : promotion.state}${promotion.reason ? ` (${promotion.reason})` : ""}.`);
  $("switches").textContent = facts.join(" ");
}

async function operate(action, body) {
  $("said").textContent = "…";
  try {
    const answer = await fetch(`operations/${action}`, { method: "POST", body: JSON.stringify(body),
      headers: { ...headers(), "Content-Type": "application/json" } });
    const found = await answer.json();
    $("said").textContent = answer.ok ? `Done: ${found.done}.` : `Not done: ${found.error}`;
  } catch (error) {
    $("said").textContent = `Not done: ${error.message}`;
  }
}

function sure(title, text, label, required) {
  $("sure-title").textContent = title;
  $("sure-text").textContent = text;
  $("sure-label").textContent = label;
  $("sure-value").value = "";
  $("sure-value").required = required;
  $("sure").returnValue = "no";
  $("sure").showModal();
  return new Promise(done => $("sure").addEventListener("close", () =>
    done($("sure").returnValue === "yes" ? $("sure-value").value.trim() : null), { once: true }));
}

// By hand, not as a form's submission: the page's security policy allows none.
$("sure-form").addEventListener("submit", event => event.preventDefault());
$("sure-yes").addEventListener("click", () => $("sure-value").reportValidity() && $("sure").close("yes"));
$("sure-no").addEventListener("click", () => $("sure").close("no"));
$("sure-value").addEventListener("keydown", event => event.key === "Enter" && $("sure-yes").click());

$("acknowledge").addEventListener("click", () =>
  operate("acknowledge", { campaign: state.frame.campaigns.find(row => row.state === "open")?.id ?? "" }));
$("pause").addEventListener("click", async () => {
  if (state.frame.operations.paused) return operate("resume", {});
  const why = await sure("Pause retraining", "No run starts until somebody resumes it; one that is under way goes on.", "Reason", false);
  if (why !== null) operate("pause", { why });
});
$("rollback").addEventListener("click", async () => {
  const why = await sure("Roll back", "The champion before this one goes back into service, on every server.", "Reason", true);
  if (why !== null) operate("rollback", { why });
});
$("promote").addEventListener("click", async () => {
  const version = await sure("Promote", "The gate judges this version against the champion; it is promoted if it passes.", "Version", true);
  if (version !== null) operate("promote", { version });
});

follow();

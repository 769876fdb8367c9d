// Scoring of a file: records are read in the browser, sent in small requests, and shown as scored.
const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_ROWS = 20_000;
const MAX_REQUEST_BYTES = 2 ** 20;
const ROWS_PER_REQUEST = { conversation: 32, pair: 16, group: 1 };
const MAX_CONCURRENT_REQUESTS = 3;
const REFRESH_INTERVAL_MS = 400;

let job = null;

async function openFile(file) {
  if (!file) return;
  chooseTab("tab-file");
  if (file.size > MAX_FILE_BYTES) {
    showError(`${file.name} has ${count(Math.round(file.size / 2 ** 20))} MiB, and the limit of this page is ${MAX_FILE_BYTES / 2 ** 20} MiB. Score large files with: skyreward score.`);
    return;
  }
  let text;
  try {
    text = decodeUtf8(await file.arrayBuffer());
  } catch (error) {
    showError(`${file.name} ${error.message}.`);
    return;
  }
  await startJob(file.name, parseRows(text));
}

async function startJob(name, rows) {
  job?.abort.abort();
  showError("");
  await modelsLoaded;
  $("job").hidden = false;
  if (!rows.length || rows.length > MAX_ROWS) {
    $("job").hidden = true;
    showError(rows.length ? `${name} has ${count(rows.length)} records, and the limit of this page is ${count(MAX_ROWS)}. Score large files with: skyreward score.` : `${name} has no records.`);
    return;
  }
  const current = (job = { name, rows, abort: new AbortController(), tokens: 0, over: false, model: $("model").value });
  Object.assign(view, { filter: "all", sort: "number", down: false, shown: PAGE });
  announce(`Scoring ${name}, ${plural(rows.length, "record")}.`);
  const timer = setInterval(() => showJob(current), REFRESH_INTERVAL_MS);
  showJob(current);
  try {
    const requests = buildRequests(rows);
    await Promise.all(Array.from({ length: MAX_CONCURRENT_REQUESTS }, () => work(current, requests)));
    if (current === job) announce(`Done: ${describe(current)}.`);
  } catch (error) {
    current.abort.abort();
    if (current === job && error.name !== "AbortError") showRequestError(error);
  } finally {
    clearInterval(timer);
    current.over = true;
    if (current === job) showJob(current);
  }
}

/** Group rows of the same kind into requests, in the order of the file. */
function buildRequests(rows) {
  const requests = [];
  const open = {};
  for (const row of rows.filter((row) => row.kind && !row.error)) {
    const size = JSON.stringify(row.record).length;
    const last = open[row.kind];
    if (last && last.rows.length < ROWS_PER_REQUEST[row.kind] && last.size + size < MAX_REQUEST_BYTES) {
      last.rows.push(row);
      last.size += size;
    } else requests.push((open[row.kind] = { kind: row.kind, rows: [row], size }));
  }
  return requests;
}

async function work(current, requests) {
  for (let request = requests.shift(); request; request = requests.shift()) await send(current, request);
}

async function send(current, { kind, rows }) {
  const { signal } = current.abort;
  const [path, body] = buildBody(kind, rows);
  const options = { model: current.model, truncation: truncationOf(current.model, "file-truncation") };
  let response;
  try {
    response = await call(path, { ...options, ...body }, { signal, retry: true });
  } catch (error) {
    // If a request is rejected because of one row, the other rows must still be scored.
    if (![400, 413].includes(error.status)) throw error;
    if (rows.length === 1) {
      rows[0].error = { code: error.code, message: error.message };
    } else {
      const half = rows.length >> 1;
      for (const part of [rows.slice(0, half), rows.slice(half)]) await send(current, { kind, rows: part });
    }
    return;
  }
  current.tokens += response.usage.num_tokens;
  if (kind === "group") applyGroupResults(rows[0], response.results);
  else rows.forEach((row, i) => applyResult(row, response.results[i]));
}

function buildBody(kind, rows) {
  const records = rows.map((row) => row.record);
  if (kind === "conversation") return ["v1/score", { conversations: records.map(toMessages) }];
  if (kind === "pair") return ["v1/compare", { pairs: records.map((record) => pickFields(record, ["prompt", "chosen", "rejected"])) }];
  return ["v1/rank", pickFields(records[0], ["prompt", "responses"])];
}

function applyResult(row, { index, chosen_reward, rejected_reward, ...result }) {
  Object.assign(row, result);
  if (chosen_reward == null) return; // not of a pair, or from a judge
  row.reward = chosen_reward;
  row.others = [rejected_reward];
}

function applyGroupResults(row, results) {
  row.rewards = results.map((result) => result.reward ?? null);
  const sorted = row.rewards.filter((reward) => reward !== null).sort((a, b) => b - a);
  if (sorted.length) [row.reward, ...row.others] = [sorted[0], ...sorted.slice(1)];
  row.error = results.find((result) => result.error)?.error;
  row.truncated = results.some((result) => result.truncated);
  const warnings = [...new Set(results.flatMap((result) => result.warnings ?? []))];
  if (warnings.length) row.warnings = warnings;
}

const isDone = (row) => row.error || row.reward !== undefined || row.margin !== undefined;

function describe({ rows }) {
  const failed = rows.filter((row) => row.error).length;
  return `${plural(rows.length - failed, "record")} scored, ${count(failed)} with an error`;
}

function showJob(current) {
  const { name, rows } = current;
  const done = rows.filter(isDone).length;
  const stop = el("button", { type: "button", id: "stop", onclick: () => current.abort.abort() }, "Stop");
  const isOver = current.over;
  const parts = [el("div", { class: "card" },
    el("div", { class: "row" },
      el("h2", { class: "grow" }, name),
      isOver ? el("button", { type: "button", id: "save", onclick: () => save(current) }, "Save rewards") : stop,
      isOver ? el("button", { type: "button", id: "again", class: "quiet", onclick: () => startJob(name, rows.map(resetRow)) }, "Score again") : "",
    ),
    isOver ? "" : el("progress", { max: rows.length, value: done, "aria-label": `Scoring ${name}` }),
    el("dl", { class: "tiles" }, buildTiles(current, done)),
  )];
  const plots = buildPlots(rows);
  if (plots.length) parts.push(el("div", { class: "plots" }, plots));
  const table = el("div", { class: "card" });
  if (isOver) showTable(table, rows);
  const hadFocus = document.activeElement?.id === "stop";
  $("job").replaceChildren(...parts, ...(isOver ? [table] : []));
  if (hadFocus) (isOver ? $("save") : $("stop")).focus();
}

const resetRow = ({ number, record, line, kind, error }) => ({ number, record, line, kind, ...(kind ? {} : { error }) });

function buildTiles({ rows, tokens }, done) {
  const margins = rows.map((row) => row.margin).filter((margin) => margin !== undefined);
  const right = margins.filter((margin) => margin > 0).length;
  const failed = rows.filter((row) => row.error).length;
  return [
    tile("Rows", done === rows.length ? count(done) : `${count(done)} of ${count(rows.length)}`),
    ...(margins.length ? [tile("Chosen ahead", `${percent(right / margins.length)}`), tile("Mean margin", number(margins.reduce((sum, margin) => sum + margin, 0) / margins.length, { signed: true }))] : []),
    tile("Tokens", count(tokens)),
    tile("Errors", count(failed)),
  ];
}

function buildPlots(rows) {
  const scoredRows = rows.filter((row) => row.reward !== undefined);
  const margins = rows.map((row) => row.margin).filter((margin) => margin !== undefined);
  const pairs = scoredRows.filter((row) => row.kind === "pair");
  const singles = scoredRows.filter((row) => row.kind !== "pair").flatMap((row) => [row.reward, ...(row.others ?? [])]);
  const series = [
    { name: "chosen", values: pairs.map((row) => row.reward), series: 0 },
    { name: "rejected", values: pairs.map((row) => row.others[0]), series: 1 },
    { name: "other rows", values: singles, series: 2 },
  ];
  if (!pairs.length) series[2].name = "rewards";
  return [
    ...(scoredRows.length ? [histogram("Rewards", series)] : []),
    ...(margins.length ? [histogram("Margins, chosen minus rejected", [{ name: "margins", values: margins, series: 3 }])] : []),
  ];
}

/** Names of result columns, as `skyreward score` writes them. */
const RESULTS = ["reward", "chosen_reward", "rejected_reward", "margin", "orders", "consistent", "rewards", "error", "truncated", "warnings", "line"];

/** Choose the saved column name of each result: prefixed if a record has a column of that name. */
function resultNames(rows) {
  const taken = new Set(rows.flatMap(({ record }) => Object.keys(record ?? {})));
  const free = (name) => (taken.has(name) ? free(`skyreward_${name}`) : name);
  return Object.fromEntries(RESULTS.map((name) => [name, free(name)]));
}

function toLine({ record, line, kind, reward, others, margin, orders, consistent, rewards, error, truncated, warnings }, names) {
  const rewardColumns = orders ? { margin, orders, consistent }
    : kind === "pair" && reward !== undefined ? { chosen_reward: reward, rejected_reward: others[0], margin }
    : kind === "group" && rewards ? { rewards } : reward === undefined ? {} : { reward };
  const otherColumns = { ...(error && { error }), ...(truncated && { truncated }), ...(warnings && { warnings }) };
  const results = Object.entries({ ...(record ? {} : { line }), ...rewardColumns, ...otherColumns });
  return JSON.stringify({ ...record, ...Object.fromEntries(results.map(([name, value]) => [names[name], value])) });
}

function save({ name, rows }) {
  const names = resultNames(rows);
  const blob = new Blob(rows.map((row) => `${toLine(row, names)}\n`), { type: "application/jsonl" });
  const link = el("a", { href: URL.createObjectURL(blob), download: name.replace(/(\.\w+)?$/, ".rewards.jsonl") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function setUpFile() {
  $("file").addEventListener("change", (event) => {
    openFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  $("sample-file").addEventListener("click", () => startJob("pairs.jsonl", EXAMPLES.map((example, i) => toRow(example, i + 1))));
  const withFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const mark = (by) => {
    depth = Math.max(0, depth + by);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", (event) => withFiles(event) && mark(1));
  addEventListener("dragleave", (event) => withFiles(event) && mark(-1));
  addEventListener("dragover", (event) => withFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    mark(-depth);
    const files = [...event.dataTransfer.files];
    if (files.every(isImageFile) && !$("panel-answers").hidden) addImages(files, event.target.closest?.("#turns .turn"));
    else openFile(files[0]);
  });
}

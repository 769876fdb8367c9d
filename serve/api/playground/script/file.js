// A file of records: read here, posted in small parts, shown as it comes back.
const MAX_FILE_BYTES = 32 * 2 ** 20;
const MAX_ROWS = 20_000;
const MAX_POST_BYTES = 2 ** 20;
const ROWS_OF_A_POST = { conversation: 32, pair: 16, group: 1 };
const POSTS_AT_A_TIME = 3;
const SHOW_EVERY_MS = 400;

let job = null;

async function takeFile(file) {
  if (!file) return;
  chooseTab("tab-file");
  if (file.size > MAX_FILE_BYTES) {
    complain(`${file.name} has ${count(Math.round(file.size / 2 ** 20))} MiB; here at most ${MAX_FILE_BYTES / 2 ** 20} are read. For large files there is: skyreward score.`);
    return;
  }
  let text;
  try {
    text = utf8Of(await file.arrayBuffer());
  } catch (error) {
    complain(`${file.name} ${error.message}.`);
    return;
  }
  await startJob(file.name, rowsOf(text));
}

async function startJob(name, rows) {
  job?.abort.abort();
  complain("");
  await modelsThere;
  $("job").hidden = false;
  if (!rows.length || rows.length > MAX_ROWS) {
    $("job").hidden = true;
    complain(rows.length ? `${name} has ${count(rows.length)} records; here at most ${count(MAX_ROWS)} are scored. For large files there is: skyreward score.` : `${name} has no records.`);
    return;
  }
  const mine = (job = { name, rows, abort: new AbortController(), tokens: 0, over: false, model: $("model").value });
  Object.assign(view, { filter: "all", sort: "number", down: false, shown: PAGE });
  say(`Scoring ${name}, ${things(rows.length, "record")}.`);
  const timer = setInterval(() => showJob(mine), SHOW_EVERY_MS);
  showJob(mine);
  try {
    const posts = postsOf(rows);
    await Promise.all(Array.from({ length: POSTS_AT_A_TIME }, () => work(mine, posts)));
    if (mine === job) say(`Done: ${describe(mine)}.`);
  } catch (error) {
    mine.abort.abort();
    if (mine === job && error.name !== "AbortError") complainOf(error);
  } finally {
    clearInterval(timer);
    mine.over = true;
    if (mine === job) showJob(mine);
  }
}

/** Rows that go together, in the order of the file. */
function postsOf(rows) {
  const posts = [];
  const open = {};
  for (const row of rows.filter((row) => row.kind && !row.error)) {
    const size = JSON.stringify(row.record).length;
    const last = open[row.kind];
    if (last && last.rows.length < ROWS_OF_A_POST[row.kind] && last.size + size < MAX_POST_BYTES) {
      last.rows.push(row);
      last.size += size;
    } else posts.push((open[row.kind] = { kind: row.kind, rows: [row], size }));
  }
  return posts;
}

async function work(mine, posts) {
  for (let post = posts.shift(); post; post = posts.shift()) await send(mine, post);
}

async function send(mine, { kind, rows }) {
  const { signal } = mine.abort;
  const [path, body] = bodyOf(kind, rows);
  const asked = { model: mine.model, truncation: $("file-truncation").value, ...body };
  let answer;
  try {
    answer = await call(path, asked, { signal, patient: true });
  } catch (error) {
    // A post that is refused for one of its rows must not cost the others their rewards.
    if (![400, 413].includes(error.status)) throw error;
    if (rows.length === 1) {
      rows[0].error = { code: error.code, message: error.message };
    } else {
      const half = rows.length >> 1;
      for (const some of [rows.slice(0, half), rows.slice(half)]) await send(mine, { kind, rows: some });
    }
    return;
  }
  mine.tokens += answer.usage.num_tokens;
  if (kind === "group") takeGroup(rows[0], answer.results);
  else rows.forEach((row, i) => take(row, answer.results[i]));
}

function bodyOf(kind, rows) {
  const records = rows.map((row) => row.record);
  if (kind === "conversation") return ["v1/score", { conversations: records.map(messagesOf) }];
  if (kind === "pair") return ["v1/compare", { pairs: records.map((record) => onlyOf(record, ["prompt", "chosen", "rejected"])) }];
  return ["v1/rank", onlyOf(records[0], ["prompt", "responses"])];
}

function take(row, { index, chosen_reward, rejected_reward, ...result }) {
  Object.assign(row, result);
  if (chosen_reward === undefined) return;
  row.reward = chosen_reward;
  row.others = [rejected_reward];
}

function takeGroup(row, results) {
  row.rewards = results.map((result) => result.reward ?? null);
  const sorted = row.rewards.filter((reward) => reward !== null).sort((a, b) => b - a);
  if (sorted.length) [row.reward, ...row.others] = [sorted[0], ...sorted.slice(1)];
  row.error = results.find((result) => result.error)?.error;
  row.truncated = results.some((result) => result.truncated);
  const warnings = [...new Set(results.flatMap((result) => result.warnings ?? []))];
  if (warnings.length) row.warnings = warnings;
}

const isDone = (row) => row.error || row.reward !== undefined;

function describe({ rows }) {
  const failed = rows.filter((row) => row.error).length;
  return `${things(rows.length - failed, "record")} scored, ${count(failed)} with an error`;
}

function showJob(mine) {
  const { name, rows } = mine;
  const done = rows.filter(isDone).length;
  const stop = el("button", { type: "button", id: "stop", onclick: () => mine.abort.abort() }, "Stop");
  const isOver = mine.over;
  const parts = [el("div", { class: "card" },
    el("div", { class: "row" },
      el("h2", { class: "grow" }, name),
      isOver ? el("button", { type: "button", id: "save", onclick: () => save(mine) }, "Save rewards") : stop,
      isOver ? el("button", { type: "button", id: "again", class: "quiet", onclick: () => startJob(name, rows.map(fresh)) }, "Score again") : "",
    ),
    isOver ? "" : el("progress", { max: rows.length, value: done, "aria-label": `Scoring ${name}` }),
    el("dl", { class: "tiles" }, tilesOf(mine, done)),
  )];
  const figures = figuresOf(rows);
  if (figures.length) parts.push(el("div", { class: "figures" }, figures));
  const table = el("div", { class: "card" });
  if (isOver) showTable(table, rows);
  const hadFocus = document.activeElement?.id === "stop";
  $("job").replaceChildren(...parts, ...(isOver ? [table] : []));
  if (hadFocus) (isOver ? $("save") : $("stop")).focus();
}

const fresh = ({ number, record, line, kind, error }) => ({ number, record, line, kind, ...(kind ? {} : { error }) });

function tilesOf({ rows, tokens }, done) {
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

function figuresOf(rows) {
  const scoredRows = rows.filter((row) => row.reward !== undefined);
  const margins = scoredRows.map((row) => row.margin).filter((margin) => margin !== undefined);
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
    ...(margins.length ? [histogram("Margins, chosen less rejected", [{ name: "margins", values: margins, series: 3 }])] : []),
  ];
}

/** The records with what came of them, under the names that `skyreward score` writes. */
const RESULTS = ["reward", "chosen_reward", "rejected_reward", "margin", "rewards", "error", "truncated", "warnings", "line"];

/** Names under which results are saved: another one where any record has a column of that name. */
function namesOf(rows) {
  const taken = new Set(rows.flatMap(({ record }) => Object.keys(record ?? {})));
  const free = (name) => (taken.has(name) ? free(`skyreward_${name}`) : name);
  return Object.fromEntries(RESULTS.map((name) => [name, free(name)]));
}

function lineOf({ record, line, kind, reward, others, margin, rewards, error, truncated, warnings }, names) {
  const found = kind === "pair" && reward !== undefined
    ? { chosen_reward: reward, rejected_reward: others[0], margin }
    : kind === "group" && rewards ? { rewards } : reward === undefined ? {} : { reward };
  const more = { ...(error && { error }), ...(truncated && { truncated }), ...(warnings && { warnings }) };
  const results = Object.entries({ ...(record ? {} : { line }), ...found, ...more });
  return JSON.stringify({ ...record, ...Object.fromEntries(results.map(([name, value]) => [names[name], value])) });
}

function save({ name, rows }) {
  const names = namesOf(rows);
  const blob = new Blob(rows.map((row) => `${lineOf(row, names)}\n`), { type: "application/jsonl" });
  const link = el("a", { href: URL.createObjectURL(blob), download: name.replace(/(\.\w+)?$/, ".rewards.jsonl") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function setUpFile() {
  $("file").addEventListener("change", (event) => {
    takeFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  $("sample-file").addEventListener("click", () => startJob("pairs.jsonl", EXAMPLES.map((example, i) => rowOf(example, i + 1))));
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
    takeFile(event.dataTransfer.files[0]);
  });
}

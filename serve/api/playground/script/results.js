// Rewards as bars, and their comparison.
let scored = null; // the scored body, the response, and its duration
let running = null;

/** Mark the shown rewards as stale if the draft has changed since. */
function markStale() {
  if (!scored) return;
  const images = (body) => (body.prompt ?? []).flatMap((turn) => (isList(turn.content) ? contentImages(turn.content) : []));
  const [now, before] = [rankBody(), scored.body];
  const isSame = (value, i) => value === images(before)[i];
  $("stale").hidden = JSON.stringify(now, shortened) === JSON.stringify(before, shortened) && images(now).every(isSame);
  $("bars").classList.toggle("stale", !$("stale").hidden);
}

/** Score the draft, and show everything about it. */
async function scoreDraft() {
  if (!rankBody().responses.length) {
    showError("Type at least one answer to score.");
    $("answers").querySelector("textarea").focus();
    return;
  }
  running?.abort();
  const controller = (running = new AbortController());
  const { signal } = controller;
  showError("");
  setBusy(true);
  await modelsLoaded;
  const body = rankBody();
  const started = performance.now();
  try {
    const { model, truncation } = body;
    const response = await call("v1/rank", body, { signal });
    const verdicts = isJudge(model) ? await fetchVerdicts(body, signal) : null;
    const milliseconds = performance.now() - started;
    scored = { body, response, milliseconds, verdicts };
    showScores();
    if (verdicts) {
      $("scored-text").hidden = true;
      return;
    }
    const shown = await call("v1/render", { model, truncation, offsets: true, conversations: conversations(body) }, { signal });
    showRendered(shown.results);
  } catch (error) {
    if (error.name !== "AbortError") showRequestError(error);
  } finally {
    if (running === controller) setBusy(false);
  }
}

function setBusy(isBusy) {
  $("results").setAttribute("aria-busy", String(isBusy));
  $("score").classList.toggle("busy", isBusy);
}

function showScores() {
  const { body, response, milliseconds, verdicts } = scored;
  const { results } = response;
  $("empty").hidden = true;
  const rewards = results.filter((result) => result.reward !== undefined);
  const best = rewards.length ? Math.max(...rewards.map((result) => result.reward)) : null;
  const isPair = results.length === 2 && rewards.length === 2;
  $("bars").replaceChildren(
    ...(isPair ? [verdict(verdicts?.[0].margin ?? results[0].reward - results[1].reward)] : []),
    barList(results, best),
    ...(verdicts ? [verdictTable(verdicts)] : rewards.length > 2 ? [matrix(results)] : []),
    cost(response, milliseconds),
  );
  markStale();
  showCode(body);
  announce(describeScores(results, best));
  const { top } = $("results").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("results").scrollIntoView({ block: "start" });
}

function describeScores(results, best) {
  const failed = results.filter((result) => result.error).length;
  const bestAnswers = results.length - failed === 0 ? "" : results
    .map((result, i) => (result.reward === best ? `${letter(i)} is best, with ${number(best)}. ` : "")).join("");
  return `Scored ${plural(results.length - failed, "answer")}. ${bestAnswers}${failed ? `${failed} could not be scored.` : ""}`;
}

/** Show which of two answers is preferred, with the margin of the first and its probability. */
function verdict(margin) {
  const first = sigmoid(margin);
  const winner = margin >= 0 ? 0 : 1;
  const split = el("div", { class: "split", "aria-hidden": "true" });
  for (const [i, share] of [first, 1 - first].entries()) {
    const bar = el("span");
    bar.style.width = `${100 * share}%`;
    bar.style.background = color(i);
    split.append(bar);
  }
  const words = margin === 0
    ? ["Both have the same reward"]
    : [chip(winner), " preferred over ", chip(1 - winner)];
  return el("div", { class: "verdict" },
    el("p", { class: "lead" }, words),
    el("dl", { class: "tiles" },
      tile("Margin", number(Math.abs(margin), { signed: true })),
      tile("Probability", percent(Math.max(first, 1 - first))),
    ),
    split,
  );
}

const tile = (name, value) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value));

function barList(results, best) {
  const rewards = results.map((result) => result.reward).filter((reward) => reward !== undefined);
  const low = Math.min(0, ...rewards);
  const span = Math.max(0, ...rewards) - low || 1;
  return el("ol", { class: "bars", "aria-label": "Rewards of the answers" },
    results.map((result, i) => (result.error ? failedItem(result, i) : barItem(result, i, { low, span, best }))),
  );
}

function failedItem(result, i) {
  return el("li", {},
    chip(i),
    el("div", { class: "bad" }, el("code", {}, result.error.code), ` ${result.error.message}`),
  );
}

function barItem(result, i, { low, span, best }) {
  const { reward } = result;
  const bar = el("span", { class: "bar" });
  bar.style.left = `${(100 * (Math.min(0, reward) - low)) / span}%`;
  bar.style.width = `${(100 * Math.abs(reward)) / span}%`;
  bar.style.background = color(i);
  const zero = el("span", { class: "zero" });
  zero.style.left = `${(-100 * low) / span}%`;
  const gap = best - reward;
  const facts = [
    gap === 0 ? el("strong", {}, "best") : `${number(-gap, { signed: true })} to the best`,
    result.num_tokens === undefined ? `mean margin over ${plural(result.num_comparisons, "comparison")}` : plural(result.num_tokens, "token"),
    ...(result.step_rewards ? [`${result.aggregation ?? "last"} of ${plural(result.step_rewards.length, "step")}`] : []),
  ];
  if (result.truncated) facts.push(el("strong", { class: "flag" }, "truncated"));
  return el("li", {},
    chip(i),
    el("div", { class: "track", "aria-hidden": "true" }, zero, bar),
    el("span", { class: "reward", title: String(reward) }, number(reward)),
    el("p", { class: "about soft small" }, facts.flatMap((fact, j) => (j ? [" · ", fact] : [fact]))),
    (result.warnings ?? []).map((warning) => el("p", { class: "about note small" }, warning)),
  );
}

/** Show the probability that each of three or more answers is preferred over each other. */
function matrix(results) {
  const indices = results.flatMap((result, i) => (result.error ? [] : [i]));
  const head = el("tr", {}, el("td", {}), indices.map((i) => el("th", { scope: "col" }, chip(i))));
  const rows = indices.map((row) => el("tr", {},
    el("th", { scope: "row" }, chip(row)),
    indices.map((column) => {
      if (row === column) return el("td", { class: "soft" }, "·");
      const share = sigmoid(results[row].reward - results[column].reward);
      const cell = el("td", { class: "share" }, percent(share));
      cell.style.setProperty("--share", `${Math.round(70 * Math.max(0, share - 0.5))}%`);
      return cell;
    }),
  ));
  return el("details", { class: "matrix", open: indices.length <= 6 },
    el("summary", {}, "Pairwise comparison"),
    el("p", { class: "soft small" }, "Probability that the row's answer is preferred over the column's:"),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Pairwise comparison" }, el("table", {},
      el("thead", {}, head), el("tbody", {}, rows),
    )),
  );
}

function cost({ usage, fingerprint }, milliseconds) {
  return el("details", { class: "cost" },
    el("summary", { class: "soft small" },
      `${plural(usage.num_tokens, "token")}: ${count(usage.num_computed_tokens)} computed, ${count(usage.num_cached_tokens)} cached · ${Math.round(milliseconds)} ms`),
    el("dl", { class: "facts-list small" },
      Object.entries(fingerprint).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("code", {}, String(value)))]),
    ),
  );
}

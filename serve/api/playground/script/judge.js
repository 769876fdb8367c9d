// A judge's verdicts: each pair of answers in both orders.

/** Return the verdict on each pair of answers. The service computed them to rank the answers. */
async function fetchVerdicts({ model, prompt, responses, truncation }, signal) {
  const indices = responses.flatMap((_, i) => responses.slice(i + 1).map((_, j) => [i, i + 1 + j]));
  const pairs = indices.map(([first, second]) => ({ prompt, chosen: responses[first], rejected: responses[second] }));
  const { results } = await call("v1/compare", { model, pairs, truncation }, { signal });
  return results.map((result, i) => ({ ...result, answers: indices[i] }));
}

/** Show log-odds and label mass of both orders of each pair, and whether they agree. */
function verdictTable(verdicts) {
  const head = ["Better", "Read first", "Read second", "Margin", "Orders"];
  return el("details", { class: "verdicts", open: verdicts.length <= 6 },
    el("summary", {}, "Verdicts in both orders"),
    el("p", { class: "soft small" }, "Log-odds that the left answer is better if the judge reads it first, and second; the margin is their mean. The label mass is the probability that the reply is one of the two labels."),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Verdicts in both orders" }, el("table", {},
      el("thead", {}, el("tr", {}, head.map((name, i) => el("th", { scope: "col", class: i ? "num" : "" }, name)))),
      el("tbody", {}, verdicts.map(verdictRow)),
    )),
  );
}

function verdictRow({ answers: [first, second], error, orders, margin, consistent }) {
  const names = el("th", { scope: "row" }, chip(first), " than ", chip(second));
  if (error) return el("tr", {}, names, el("td", { class: "bad", colspan: 4 }, el("code", {}, error.code), ` ${error.message}`));
  return el("tr", {},
    names,
    orders.map(({ log_odds, label_mass }) => el("td", { class: "num" },
      number(log_odds, { signed: true }),
      el("div", { class: label_mass < 0.5 ? "small wrong" : "small soft" }, `label mass ${percent(label_mass)}`),
    )),
    el("td", { class: "num" }, number(margin, { signed: true })),
    el("td", { class: consistent ? "num" : "num wrong" }, consistent ? "agree" : "differ"),
  );
}

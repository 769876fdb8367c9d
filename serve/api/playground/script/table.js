// Table of a file's rows with their results: filtered, sorted, a hundred at a time.
const PAGE = 100;
const view = { filter: "all", sort: "number", down: false, shown: PAGE };

const FILTERS = {
  all: ["All rows", () => true],
  wrong: ["Margin not above zero", (row) => row.margin !== undefined && row.margin <= 0],
  error: ["With an error", (row) => row.error],
  cut: ["Truncated or with a warning", (row) => row.truncated || row.warnings],
};
const COLUMNS = { number: "Line", reward: "Reward", margin: "Margin" };

/** Return the last question of a row, by which a visitor recognizes the row. */
function rowSnippet(row) {
  try {
    const { turns, answers } = toDraft(row.record);
    return turns.findLast((turn) => turn.role === "user")?.content || answers[0] || "";
  } catch {
    return row.line ?? JSON.stringify(row.record, shortened);
  }
}

function visibleRows(rows) {
  const filtered = rows.filter(FILTERS[view.filter][1]);
  const key = (row) => row[view.sort];
  const compare = (a, b) => {
    if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
    return (key(a) - key(b)) * (view.down ? -1 : 1);
  };
  return filtered.sort(compare);
}

/** Show the table, with the filter above and a button for more rows below. */
function showTable(container, rows) {
  const rerender = () => showTable(container, rows);
  const shownRows = visibleRows([...rows]);
  const filter = el("select", { id: "filter", onchange: (event) => {
    Object.assign(view, { filter: event.target.value, shown: PAGE });
    rerender();
    $("filter").focus();
  } }, Object.entries(FILTERS).map(([name, [text, test]]) => el("option", { value: name, selected: name === view.filter }, `${text} (${count(rows.filter(test).length)})`)));
  const more = shownRows.length - view.shown;
  container.replaceChildren(
    el("div", { class: "row" },
      el("h3", { class: "grow" }, "Rows"),
      el("div", { class: "field inline" }, el("label", { for: "filter" }, "Show"), filter),
    ),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Rows of the file" },
      el("table", { class: "rows" },
        el("thead", {}, el("tr", {},
          sortHead("number", rerender), sortHead("reward", rerender), el("th", { scope: "col", class: "num" }, "Others"),
          sortHead("margin", rerender), el("th", { scope: "col" }, "Text"),
          el("th", { scope: "col" }, el("span", { class: "unseen" }, "Open")),
        )),
        el("tbody", {}, shownRows.slice(0, view.shown).map(tableRow)),
      ),
    ),
    shownRows.length ? "" : el("p", { class: "soft" }, "No rows match the filter."),
    ...(more > 0 ? [el("button", { type: "button", id: "more", onclick: () => {
      view.shown += PAGE;
      rerender();
      $("more")?.focus();
    } }, `Show ${count(Math.min(PAGE, more))} more of ${count(more)}`)] : []),
  );
}

function sortHead(name, rerender) {
  const isSorted = view.sort === name;
  return el("th", { scope: "col", class: "num", "aria-sort": isSorted ? (view.down ? "descending" : "ascending") : "none" },
    el("button", { type: "button", id: `sort-${name}`, class: "sort", onclick: () => {
      Object.assign(view, { sort: name, down: isSorted && !view.down });
      rerender();
      $(`sort-${name}`).focus();
    } }, COLUMNS[name], el("span", { "aria-hidden": "true" }, isSorted ? (view.down ? " ↓" : " ↑") : " ↕")),
  );
}

function tableRow(row) {
  const flags = [...(row.truncated ? ["truncated"] : []), ...(row.warnings ?? [])];
  return el("tr", { class: row.error ? "failed" : "" },
    el("td", { class: "num soft" }, count(row.number)),
    el("td", { class: "num" }, row.reward === undefined ? "" : number(row.reward)),
    el("td", { class: "num soft" }, (row.others ?? []).map((reward) => (reward === null ? "–" : number(reward))).join(", ")),
    el("td", { class: row.margin <= 0 ? "num wrong" : "num" }, row.margin === undefined ? "" : number(row.margin, { signed: true })),
    el("td", {},
      el("div", { class: "snippet" }, rowSnippet(row).slice(0, 300)),
      row.error ? el("p", { class: "bad small" }, el("code", {}, row.error.code), ` ${row.error.message}`) : "",
      flags.map((flag) => el("p", { class: "note small" }, flag)),
    ),
    el("td", {}, row.kind ? el("button", { type: "button", class: "quiet", "aria-label": `Open line ${row.number}`, onclick: () => openRow(row) }, "Open") : ""),
  );
}

/** Open a row in the fields of the other tab. */
function openRow(row) {
  try {
    writeDraft(toDraft(row.record));
  } catch (error) {
    showError(`Line ${row.number} cannot be opened: ${error.message}.`);
    return;
  }
  showError("");
  $("example").value = "";
  chooseTab("tab-answers");
  $("score").focus();
  announce(`Line ${row.number} is open.`);
}

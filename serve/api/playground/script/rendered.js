// Exactly what was scored: the text, where its tokens end, and the token that was read.
const MAX_MARKED = 20_000; // tokens; more would make the page slow
const FENCE = /^<[|\w/].*>$/s; // what a template puts around turns looks so

let rendered = [];
let shownAnswer = 0;

function showRendered(results) {
  rendered = results;
  shownAnswer = Math.min(shownAnswer, results.length - 1);
  const choices = el("fieldset", { class: "choices" },
    el("legend", { class: "unseen" }, "Answer"),
    results.map((_, i) => {
      const input = el("input", {
        type: "radio", name: "shown", id: `shown-${i}`, class: "unseen", checked: i === shownAnswer,
        onchange: () => { shownAnswer = i; showText(); },
      });
      return el("span", { class: "choice" }, input, el("label", { for: `shown-${i}` }, chip(i), el("span", { class: "unseen" }, `Answer ${letter(i)}`)));
    }),
  );
  const boundaries = el("input", { type: "checkbox", id: "boundaries", onchange: showText });
  $("scored-text").hidden = false;
  $("scored-text").replaceChildren(
    el("div", { class: "row" },
      el("h2", {}, "What was scored"), choices,
      el("span", { class: "field inline check" }, boundaries, el("label", { for: "boundaries" }, "Token boundaries")),
    ),
    el("div", { id: "text-place" }),
  );
  showText();
}

function showText() {
  const result = rendered[shownAnswer];
  const place = $("text-place");
  if (result.error) {
    place.replaceChildren(el("p", { class: "bad" }, el("code", {}, result.error.code), ` ${result.error.message}`));
    return;
  }
  const pieces = piecesOf(result);
  const readout = pieces.find((piece) => piece.first <= result.readout_position && result.readout_position <= piece.last);
  const marks = el("pre", { class: $("boundaries").checked ? "scored bounded" : "scored" }, pieces.map((piece, i) => {
    if (piece === readout) return el("mark", { id: "readout", title: "the readout token" }, visible(piece.text));
    if (FENCE.test(piece.text)) return el("span", { class: "fence" }, piece.text);
    return $("boundaries").checked ? el("span", { class: i % 2 ? "odd" : "even" }, piece.text) : piece.text;
  }));
  const id = result.input_ids[result.readout_position];
  place.replaceChildren(
    el("p", { class: "soft small" },
      el("mark", {}, "Readout"),
      ` token ${count(result.readout_position + 1)} of ${count(result.num_tokens)}, id ${id}`,
      readout ? ["  ", el("code", {}, visible(readout.text))] : [],
      result.offsets ? [] : ". The text was cut, and where its tokens stand is not told.",
      result.truncated ? [" · ", el("strong", { class: "flag" }, "cut to fit")] : [],
    ),
    el("div", { class: "text-box", tabindex: 0, role: "region", "aria-label": `Text that was scored, answer ${letter(shownAnswer)}` }, marks),
    (result.warnings ?? []).map((warning) => el("p", { class: "note small" }, warning)),
  );
  const box = place.querySelector(".text-box");
  const mark = $("readout");
  if (mark) box.scrollTop = mark.offsetTop - box.clientHeight + 2 * mark.offsetHeight;
}

/** The text in pieces, each of one token or of tokens that share characters. */
function piecesOf({ text, offsets, input_ids }) {
  if (!offsets || offsets.length > MAX_MARKED) return [{ text, first: -1, last: -1 }];
  const characters = [...text]; // offsets count characters, not UTF-16 units
  const pieces = [];
  let at = 0;
  for (const [i, [, end]] of offsets.entries()) {
    const last = pieces.at(-1);
    if (end > at) {
      pieces.push({ text: characters.slice(at, end).join(""), first: i, last: i });
      at = end;
    } else if (last) last.last = i;
  }
  if (at < characters.length) pieces.push({ text: characters.slice(at).join(""), first: input_ids.length, last: input_ids.length });
  return pieces;
}

/** White space alone would be a mark that nobody sees. */
const visible = (text) => (text.trim() ? text : JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣"));

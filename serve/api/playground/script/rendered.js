// Exactly what was scored: the text, its token boundaries, and the readout token.
const MAX_MARKED = 20_000; // tokens; more would make the page slow
const FENCE = /^<[|\w/].*>$/s; // matches the markers that a chat template puts around turns

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
    el("div", { id: "text-container" }),
  );
  showText();
}

function showText() {
  const result = rendered[shownAnswer];
  const rewards = scored.response.results[shownAnswer].step_rewards;
  const container = $("text-container");
  if (result.error) {
    container.replaceChildren(el("p", { class: "bad" }, el("code", {}, result.error.code), ` ${result.error.message}`));
    return;
  }
  const spans = splitIntoSpans(result);
  const readout = spans.find((span) => span.first <= result.readout_position && result.readout_position <= span.last);
  const marks = el("pre", { class: $("boundaries").checked ? "scored bounded" : "scored" }, spans.map((span, i) => {
    if (span === readout) return el("mark", { id: "readout", title: "the readout token" }, visible(span.text));
    if (FENCE.test(span.text)) return el("span", { class: "fence" }, span.text);
    return $("boundaries").checked ? el("span", { class: i % 2 ? "odd" : "even" }, span.text) : span.text;
  }));
  const id = result.input_ids[result.readout_position];
  container.replaceChildren(
    ...(result.steps && rewards ? [stepList(result.steps, rewards)] : []),
    el("p", { class: "soft small" },
      el("mark", {}, result.steps ? "Last readout" : "Readout"),
      ` token ${count(result.readout_position + 1)} of ${count(result.num_tokens)}, id ${id}`,
      readout ? ["  ", el("code", {}, visible(readout.text))] : [],
      result.offsets || result.steps ? [] : ". The text was truncated, and the positions of its tokens are unknown.",
      (result.images ?? []).map((image, i) => ` · image ${i + 1}: ${image.width} × ${image.height} pixels, ${plural(image.num_tokens, "token")}`),
      result.truncated ? [" · ", el("strong", { class: "flag" }, "truncated")] : [],
    ),
    el("div", { class: "text-box", tabindex: 0, role: "region", "aria-label": `Text that was scored, answer ${letter(shownAnswer)}` }, marks),
    (result.warnings ?? []).map((warning) => el("p", { class: "note small" }, warning)),
  );
  const box = container.querySelector(".text-box");
  const mark = $("readout");
  if (mark) box.scrollTop = mark.offsetTop - box.clientHeight + 2 * mark.offsetHeight;
}

/** Split the text into spans, each of one token or of tokens that share characters. */
function splitIntoSpans({ text, offsets, input_ids }) {
  if (!offsets || offsets.length > MAX_MARKED) return [{ text, first: -1, last: -1 }];
  const characters = [...text]; // offsets count characters, not UTF-16 units
  const spans = [];
  let at = 0;
  for (const [i, [, end]] of offsets.entries()) {
    const last = spans.at(-1);
    if (end > at) {
      spans.push({ text: characters.slice(at, end).join(""), first: i, last: i });
      at = end;
    } else if (last) last.last = i;
  }
  if (at < characters.length) spans.push({ text: characters.slice(at).join(""), first: input_ids.length, last: input_ids.length });
  return spans;
}

/** Make white space visible: a mark of white space only could not be seen. */
const visible = (text) => (text.trim() ? text : JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣"));

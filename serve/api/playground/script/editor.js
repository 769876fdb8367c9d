// The conversation and its answers. What stands in the fields is the draft; there is no other copy.
const NAMES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

/** What stands in the fields. */
function readDraft() {
  return {
    turns: [...$("turns").children].map((item) => ({
      role: item.querySelector("select").value,
      content: item.querySelector("textarea").value,
    })),
    answers: [...$("answers").children].map((item) => item.querySelector("textarea").value),
  };
}

/** Put a draft in the fields; there are always two answers to type. */
function writeDraft({ turns, answers }) {
  const shown = answers.length ? [...answers] : [""];
  while (shown.length < 2) shown.push("");
  $("turns").replaceChildren(...turns.map((turn) => turnItem(turn.role, turn.content)));
  $("answers").replaceChildren(...shown.map(answerItem));
  renumber();
  markStale();
}

/** The body that the draft is for `/v1/rank`; answers left empty at the end are none. */
function rankBody() {
  const { turns, answers } = readDraft();
  answers.length = answers.findLastIndex((answer) => answer.trim()) + 1;
  return {
    model: $("model").value,
    ...(turns.length ? { prompt: turns } : {}),
    responses: answers,
    truncation: $("truncation").value,
  };
}

/** Each answer with the conversation before it. */
const conversations = (body) =>
  body.responses.map((content) => [...(body.prompt ?? []), { role: "assistant", content }]);

function textArea(content, placeholder) {
  const area = el("textarea", { rows: 2, placeholder, value: content, oninput: () => fit(area) });
  requestAnimationFrame(() => fit(area));
  return area;
}

/** As high as its text, where the style cannot say so. */
function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function turnItem(role, content = "") {
  const options = ROLES.map((name) => el("option", { value: name, selected: name === role }, NAMES[name]));
  const item = el("li", { class: "turn" },
    el("div", { class: "turn-head" },
      el("select", { class: "role", onchange: renumber }, options),
      el("span", { class: "buttons" },
        el("button", { type: "button", class: "icon up", onclick: () => move(item, -1) }, "↑"),
        el("button", { type: "button", class: "icon down", onclick: () => move(item, 1) }, "↓"),
        el("button", { type: "button", class: "icon remove", onclick: () => remove(item, "add-turn") }, "×"),
      ),
    ),
    textArea(content, "What is said"),
  );
  return item;
}

function answerItem(content = "") {
  const item = el("li", { class: "turn answer" },
    el("div", { class: "turn-head" },
      el("span", { class: "which" }),
      el("span", { class: "buttons" },
        el("button", { type: "button", class: "icon remove", onclick: () => remove(item, "add-answer") }, "×"),
      ),
    ),
    textArea(content, "An answer to judge"),
  );
  return item;
}

/** Names and letters follow the order; so does what may be done with each. */
function renumber() {
  const turns = [...$("turns").children];
  turns.forEach((item, i) => {
    const name = `turn ${i + 1}`;
    item.querySelector("select").setAttribute("aria-label", `Role of ${name}`);
    item.querySelector("textarea").setAttribute("aria-label", `Text of ${name}`);
    label(item, ".up", `Move ${name} up`, i === 0);
    label(item, ".down", `Move ${name} down`, i === turns.length - 1);
    label(item, ".remove", `Remove ${name}`, false);
  });
  const answers = [...$("answers").children];
  answers.forEach((item, i) => {
    item.style.setProperty("--key", colour(i));
    item.querySelector(".which").replaceChildren(chip(i));
    item.querySelector("textarea").setAttribute("aria-label", `Answer ${letter(i)}`);
    label(item, ".remove", `Remove answer ${letter(i)}`, answers.length === 1);
  });
}

function label(item, selector, name, disabled) {
  const button = item.querySelector(selector);
  button.setAttribute("aria-label", name);
  button.title = name;
  // Not the attribute: a button that a person is on would lose the focus.
  button.setAttribute("aria-disabled", String(disabled));
}

function move(item, by) {
  const other = by < 0 ? item.previousElementSibling : item.nextElementSibling;
  if (!other) return;
  const focused = document.activeElement;
  if (by < 0) other.before(item);
  else other.after(item);
  renumber();
  markStale();
  focused?.focus();
  say(`Now turn ${[...$("turns").children].indexOf(item) + 1}.`);
}

function remove(item, after) {
  if (item.querySelector(".remove").getAttribute("aria-disabled") === "true") return;
  const next = item.nextElementSibling ?? item.previousElementSibling;
  const name = item.querySelector(".remove").title.replace("Remove ", "");
  item.remove();
  renumber();
  markStale();
  (next?.querySelector(".remove") ?? $(after)).focus();
  say(`Removed ${name}.`);
}

function addTurn() {
  const last = $("turns").lastElementChild?.querySelector("select").value;
  add("turns", turnItem(last === "user" ? "assistant" : "user"));
}

function add(list, item) {
  $(list).append(item);
  renumber();
  markStale();
  item.querySelector("textarea").focus();
}

/** Let a person paste a conversation as JSON. */
function openPaste() {
  $("paste-error").textContent = "";
  $("paste-text").value = "";
  $("paste-dialog").showModal();
}

function loadPasted(event) {
  event.preventDefault();
  let draft;
  try {
    const text = $("paste-text").value;
    // A line of a file is JSON as well; of several lines the first one counts.
    draft = draftOf(JSON.parse(firstOf(text)));
  } catch (error) {
    const what = error instanceof SyntaxError ? `This is no JSON: ${error.message}` : `This cannot be loaded: ${error.message}`;
    $("paste-error").textContent = `${what}.`;
    $("paste-text").focus();
    return;
  }
  $("paste-dialog").close();
  $("example").value = "";
  writeDraft(draft);
  $("score").focus();
  say(`Loaded ${things(draft.turns.length, "turn")} and ${things(draft.answers.length, "answer")}.`);
}

function firstOf(text) {
  try {
    JSON.parse(text);
    return text;
  } catch {
    const [first, ...rest] = text.trim().split(/\r?\n/);
    return rest.some((line) => line.startsWith("{")) ? first : text;
  }
}

function setUpEditor() {
  $("add-turn").addEventListener("click", addTurn);
  $("add-answer").addEventListener("click", () => add("answers", answerItem()));
  $("clear").addEventListener("click", () => {
    $("example").value = "";
    writeDraft({ turns: [{ role: "user", content: "" }], answers: [] });
    $("turns").querySelector("textarea").focus();
  });
  $("paste").addEventListener("click", openPaste);
  $("paste-form").addEventListener("submit", loadPasted);
  $("paste-cancel").addEventListener("click", () => $("paste-dialog").close());
  for (const event of ["input", "change"]) $("draft").addEventListener(event, markStale);
}

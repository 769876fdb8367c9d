// The conversation and its answers. The fields hold the draft; there is no other copy.
const NAMES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

/** Read the draft from the fields. */
function readDraft() {
  return {
    turns: [...$("turns").children].map((item) => ({
      role: item.querySelector("select").value,
      content: item.querySelector("textarea").value,
      images: imagesOf(item),
    })),
    answers: [...$("answers").children].map((item) => item.querySelector("textarea").value),
  };
}

/** Put a draft into the fields, with fields for at least two answers. */
function writeDraft({ turns, answers }) {
  const shown = answers.length ? [...answers] : [""];
  while (shown.length < 2) shown.push("");
  $("turns").replaceChildren(...turns.map((turn) => turnItem(turn.role, turn.content, turn.images)));
  $("answers").replaceChildren(...shown.map(answerItem));
  renumber();
  markStale();
}

/** Return the draft as a body for `/v1/rank`, without trailing empty answers. */
function rankBody() {
  const { turns, answers } = readDraft();
  answers.length = answers.findLastIndex((answer) => answer.trim()) + 1;
  return {
    model: $("model").value,
    ...(turns.length ? { prompt: turns.map(toMessage) } : {}),
    responses: answers,
    truncation: truncationOf($("model").value, "truncation"),
  };
}

/** Return a turn as a message, its images before its text. */
function toMessage({ role, content, images }) {
  if (!images.length) return { role, content };
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: content ? [...parts, { type: "text", text: content }] : parts };
}

/** Each answer, appended to the conversation. */
const conversations = (body) =>
  body.responses.map((content) => [...(body.prompt ?? []), { role: "assistant", content }]);

function textArea(content, placeholder) {
  const area = el("textarea", { rows: 2, placeholder, value: content, oninput: () => fitHeight(area) });
  requestAnimationFrame(() => fitHeight(area));
  return area;
}

/** Make a text area as high as its text, in browsers without `field-sizing`. */
function fitHeight(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function turnItem(role, content = "", images = []) {
  const options = ROLES.map((name) => el("option", { value: name, selected: name === role }, NAMES[name]));
  const item = el("li", { class: "turn" },
    el("div", { class: "turn-head" },
      el("select", { class: "role", onchange: renumber }, options),
      el("span", { class: "buttons" },
        el("button", { type: "button", class: "quiet add-image", onclick: () => chooseImage(item) }, "Add image"),
        el("button", { type: "button", class: "icon up", onclick: () => move(item, -1) }, "↑"),
        el("button", { type: "button", class: "icon down", onclick: () => move(item, 1) }, "↓"),
        el("button", { type: "button", class: "icon remove", onclick: () => remove(item, "add-turn") }, "×"),
      ),
    ),
    el("ul", { class: "images" }, images.map(imageItem)),
    textArea(content, "Text of the turn"),
  );
  item.addEventListener("paste", (event) => pasteImages(event, item));
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
    textArea(content, "An answer to score"),
  );
  return item;
}

/** Update names, letters and buttons to the order of the turns and answers. */
function renumber() {
  const turns = [...$("turns").children];
  turns.forEach((item, i) => {
    const name = `turn ${i + 1}`;
    item.querySelector("select").setAttribute("aria-label", `Role of ${name}`);
    item.querySelector("textarea").setAttribute("aria-label", `Text of ${name}`);
    label(item, ".up", `Move ${name} up`, i === 0);
    label(item, ".down", `Move ${name} down`, i === turns.length - 1);
    label(item, ".remove", `Remove ${name}`, false);
    const adder = item.querySelector(".add-image");
    adder.hidden = !readsImages() || item.querySelector("select").value !== "user";
    adder.setAttribute("aria-label", `Add image to ${name}`);
    const images = [...item.querySelectorAll(".image")];
    images.forEach((image, j) => {
      const title = `image ${j + 1} of ${name}`;
      image.querySelector("img").alt = title[0].toUpperCase() + title.slice(1);
      label(image, ".remove-image", `Remove ${title}`, false);
    });
    const list = item.querySelector(".images");
    list.hidden = !images.length;
    list.setAttribute("aria-label", `Images of ${name}`);
  });
  const answers = [...$("answers").children];
  answers.forEach((item, i) => {
    item.style.setProperty("--key", color(i));
    item.querySelector(".which").replaceChildren(chip(i));
    item.querySelector("textarea").setAttribute("aria-label", `Answer ${letter(i)}`);
    label(item, ".remove", `Remove answer ${letter(i)}`, answers.length === 1);
  });
}

function label(item, selector, name, disabled) {
  const button = item.querySelector(selector);
  button.setAttribute("aria-label", name);
  button.title = name;
  // Not the attribute `disabled`: a focused button would lose the focus.
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
  announce(`Now turn ${[...$("turns").children].indexOf(item) + 1}.`);
}

function remove(item, after) {
  if (item.querySelector(".remove").getAttribute("aria-disabled") === "true") return;
  const next = item.nextElementSibling ?? item.previousElementSibling;
  const name = item.querySelector(".remove").title.replace("Remove ", "");
  item.remove();
  renumber();
  markStale();
  (next?.querySelector(".remove") ?? $(after)).focus();
  announce(`Removed ${name}.`);
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

/** Open the dialog for pasting a conversation as JSON. */
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
    // The text may also be lines of a JSONL file; the first line is used.
    draft = toDraft(JSON.parse(firstRecord(text)));
  } catch (error) {
    const message = error instanceof SyntaxError ? `The text is not valid JSON: ${error.message}` : `The text cannot be loaded: ${error.message}`;
    $("paste-error").textContent = `${message}.`;
    $("paste-text").focus();
    return;
  }
  $("paste-dialog").close();
  $("example").value = "";
  writeDraft(draft);
  $("score").focus();
  announce(`Loaded ${plural(draft.turns.length, "turn")} and ${plural(draft.answers.length, "answer")}.`);
}

function firstRecord(text) {
  try {
    JSON.parse(text);
    return text;
  } catch {
    const [first, ...rest] = text.trim().split(/\r?\n/);
    return rest.some((line) => line.startsWith("{")) ? first : text;
  }
}

function setUpEditor() {
  setUpImages();
  $("add-turn").addEventListener("click", addTurn);
  $("add-answer").addEventListener("click", () => add("answers", answerItem()));
  $("clear").addEventListener("click", () => {
    $("example").value = "";
    writeDraft({ turns: [{ role: "user", content: "", images: [] }], answers: [] });
    $("turns").querySelector("textarea").focus();
  });
  $("paste").addEventListener("click", openPaste);
  $("paste-form").addEventListener("submit", loadPasted);
  $("paste-cancel").addEventListener("click", () => $("paste-dialog").close());
  for (const event of ["input", "change"]) $("draft").addEventListener(event, markStale);
}

// Start reading here: what the page does when it is opened.
const EXAMPLES = JSON.parse($("examples").textContent);
const STARTERS = ["fact-capital-01", "multi-turn-lisbon-01", "code-median-01"];
const MODELS_EVERY_MS = 3000;
let modelsThere; // settled once the list of models was tried

function chooseTab(id) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const is = tab.id === id;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !is;
  }
}

function setUpTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => chooseTab(tab.id));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      chooseTab(next.id);
      next.focus();
    });
  });
}

function loadExample(id) {
  const example = EXAMPLES.find((one) => one.id === id);
  if (!example) return;
  $("example").value = id;
  writeDraft(draftOf(example));
}

function setUpExamples() {
  const topics = Map.groupBy ? Map.groupBy(EXAMPLES, (one) => one.topic) : new Map([["examples", EXAMPLES]]);
  for (const [topic, examples] of topics) {
    $("example").append(el("optgroup", { label: topic },
      examples.map((one) => el("option", { value: one.id }, nameOf(one)))));
  }
  $("example").addEventListener("change", (event) => {
    loadExample(event.target.value);
    event.stopPropagation(); // it is no part of the draft
  });
  $("starters").append(...STARTERS.map((id) => {
    const example = EXAMPLES.find((one) => one.id === id);
    return el("li", {}, el("button", { type: "button", class: "starter", "data-example": id, onclick: () => {
      loadExample(id);
      scoreDraft();
    } }, nameOf(example)));
  }));
}

/** The question of an example, short. */
function nameOf(example) {
  const question = draftOf(example).turns.findLast((turn) => turn.role === "user").content.split("\n")[0];
  return question.length > 72 ? `${question.slice(0, 70)}…` : question;
}

/** Which models there are; asked again until all of them are ready. */
async function loadModels() {
  let models;
  try {
    ({ data: models } = await call("v1/models", undefined, { patient: true }));
  } catch (error) {
    complainOf(error);
    return;
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((model) => el("option", { value: model.id, selected: model.id === chosen }, model.id)));
  const show = () => showFacts(models.find((model) => model.id === $("model").value));
  $("model").onchange = () => {
    show();
    markStale();
  };
  show();
  if (models.some((model) => model.state !== "ready")) setTimeout(loadModels, MODELS_EVERY_MS);
}

function showFacts({ max_model_len, state, fingerprint }) {
  const facts = [`up to ${count(max_model_len)} tokens`];
  if (state === "ready") facts.push(fingerprint.dtype, fingerprint.attention);
  else facts.unshift(`${state}…`);
  $("facts").textContent = facts.join(" · ");
}

function start() {
  setUpTabs();
  setUpEditor();
  setUpExamples();
  setUpFile();
  writeDraft({ turns: [{ role: "user", content: "" }], answers: [] });
  $("draft").addEventListener("submit", (event) => {
    event.preventDefault();
    scoreDraft();
  });
  addEventListener("keydown", (event) => {
    const isTyping = !$("panel-answers").hidden && !$("paste-dialog").open;
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !isTyping) return;
    event.preventDefault();
    scoreDraft();
  });
  // A link to a page cannot bring a key along.
  $("docs").hidden = Boolean(apiKey());
  $("forget").hidden = !apiKey();
  $("forget").addEventListener("click", forgetKey);
  modelsThere = loadModels();
}

start();

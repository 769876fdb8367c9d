// Entry point: sets up the page when it is opened.
const EXAMPLES = JSON.parse($("examples").textContent);
const STARTERS = ["fact-capital-01", "multi-turn-lisbon-01", "code-median-01"];
const KINDS = { classifier: "classifier", step: "step model", judge: "judge" };
const MODELS_POLL_INTERVAL_MS = 3000;
let modelsLoaded; // promise, settled after the first request for the list of models

function chooseTab(id) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isSelected = tab.id === id;
    tab.setAttribute("aria-selected", String(isSelected));
    tab.tabIndex = isSelected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isSelected;
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
  writeDraft(toDraft(example));
}

function setUpExamples() {
  const topics = Map.groupBy ? Map.groupBy(EXAMPLES, (one) => one.topic) : new Map([["examples", EXAMPLES]]);
  for (const [topic, examples] of topics) {
    $("example").append(el("optgroup", { label: topic },
      examples.map((one) => el("option", { value: one.id }, exampleName(one)))));
  }
  $("example").addEventListener("change", (event) => {
    loadExample(event.target.value);
    event.stopPropagation(); // the selection is not part of the draft
  });
  $("starters").append(...STARTERS.map((id) => {
    const example = EXAMPLES.find((one) => one.id === id);
    return el("li", {}, el("button", { type: "button", class: "starter", "data-example": id, onclick: () => {
      loadExample(id);
      scoreDraft();
    } }, exampleName(example)));
  }));
}

/** Return the shortened question of an example. */
function exampleName(example) {
  const question = toDraft(example).turns.findLast((turn) => turn.role === "user").content.split("\n")[0];
  return question.length > 72 ? `${question.slice(0, 70)}…` : question;
}

/** Load the list of models; repeat until all models are ready. */
async function loadModels() {
  let models;
  try {
    ({ data: models } = await call("v1/models", undefined, { retry: true }));
  } catch (error) {
    showRequestError(error);
    return;
  }
  for (const { id, kind, image_limits } of models) {
    kinds.set(id, kind);
    if (image_limits) imageLimits.set(id, image_limits);
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((model) => el("option", { value: model.id, selected: model.id === chosen }, model.id)));
  const show = () => showFacts(models.find((model) => model.id === $("model").value));
  renumber();
  $("model").onchange = () => {
    show();
    renumber();
    markStale();
  };
  show();
  if (models.some((model) => model.state !== "ready")) setTimeout(loadModels, MODELS_POLL_INTERVAL_MS);
}

function showFacts({ kind, reads_images, max_model_len, state, fingerprint }) {
  const facts = [KINDS[kind], ...(reads_images ? ["text and images"] : []), `up to ${count(max_model_len)} tokens`];
  if (state === "ready") facts.push(fingerprint.dtype, fingerprint.attention);
  else facts.unshift(`${state}…`);
  $("facts").textContent = facts.join(" · ");
}

function start() {
  setUpTabs();
  setUpEditor();
  setUpExamples();
  setUpFile();
  writeDraft({ turns: [{ role: "user", content: "", images: [] }], answers: [] });
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
  // A browser sends no API key when it follows a link.
  $("docs").hidden = Boolean(apiKey());
  $("forget").hidden = !apiKey();
  $("forget").addEventListener("click", forgetKey);
  modelsLoaded = loadModels();
}

start();

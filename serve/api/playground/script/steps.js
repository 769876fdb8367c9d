// The steps of an answer with their rewards, from a step model.

/** Show each step, colored by its reward between 0 and 1. */
function stepList(steps, rewards) {
  return el("ol", { class: "steps", "aria-label": "Steps and their rewards" }, steps.map((text, i) => {
    const reward = rewards[i];
    const item = el("li", { title: `reward of step ${i + 1}: ${reward}` },
      el("span", { class: "step" }, text.trim() ? text : visible(text) || "(blank)"),
      el("span", { class: "reward" }, number(reward)),
    );
    item.style.setProperty("--share", `${Math.round(100 * reward)}%`);
    return item;
  }));
}

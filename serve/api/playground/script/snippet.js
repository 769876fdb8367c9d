// The same request from a terminal or a program.
let language = "curl";

/** Show the request of a body as code to copy. */
function showCode(body) {
  const codes = { curl: curlOf(body), python: pythonOf(body) };
  const text = el("pre", { id: "snippet", tabindex: 0, role: "region", "aria-label": "Code" }, codes[language]);
  const names = { curl: "curl", python: "Python" };
  const choices = el("fieldset", { class: "choices" },
    el("legend", { class: "unseen" }, "Language"),
    Object.keys(codes).map((name) => {
      const input = el("input", {
        type: "radio", name: "language", id: `language-${name}`, class: "unseen", checked: name === language,
        onchange: () => { language = name; text.textContent = codes[name]; },
      });
      return el("span", { class: "choice" }, input, el("label", { for: `language-${name}` }, names[name]));
    }),
  );
  const button = el("button", { type: "button", id: "copy", onclick: async () => {
    const done = await copy(codes[language]);
    const told = done ? "Copied" : "Select it, and copy it by hand";
    button.textContent = told;
    say(`${told}.`);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } }, "Copy");
  $("code").hidden = false;
  $("code").replaceChildren(el("div", { class: "row" }, el("h2", {}, "As code"), choices, button), text);
}

function curlOf(body) {
  const lines = [`curl ${base()}v1/rank`, "-H 'Content-Type: application/json'"];
  if (apiKey()) lines.push('-H "Authorization: Bearer $SKYREWARD_API_KEY"');
  // No line of JSON is the end mark: line ends inside of strings are escaped.
  lines.push(`--data-binary @- <<'END'\n${JSON.stringify(body, null, 2)}\nEND\n`);
  return lines.join(" \\\n  ");
}

function pythonOf(body) {
  const headers = apiKey() ? ['    headers={"Authorization": f"Bearer {os.environ[\'SKYREWARD_API_KEY\']}"},'] : [];
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "import httpx",
    "",
    "answer = httpx.post(",
    `    "${base()}v1/rank",`,
    ...headers,
    // Text, lists and objects alone: the same in both languages.
    `    json=${JSON.stringify(body, null, 4).replaceAll("\n", "\n    ")},`,
    "    timeout=600,",
    ")",
    "answer.raise_for_status()",
    'for result in answer.json()["results"]:',
    '    print(result["index"], result.get("reward"), result.get("error"))',
    "",
  ].join("\n");
}

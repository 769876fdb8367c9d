// The same request as code, for a terminal or a program.
let language = "curl";

/** Show the request with a body as code to copy. */
function showCode(body) {
  const codes = { curl: curlCode(body), python: pythonCode(body) };
  // Images would fill the page; the copied code has them whole.
  const seen = JSON.parse(JSON.stringify(body, shortened));
  const shown = { curl: curlCode(seen), python: pythonCode(seen) };
  const text = el("pre", { id: "snippet", tabindex: 0, role: "region", "aria-label": "Code" }, shown[language]);
  const names = { curl: "curl", python: "Python" };
  const choices = el("fieldset", { class: "choices" },
    el("legend", { class: "unseen" }, "Language"),
    Object.keys(codes).map((name) => {
      const input = el("input", {
        type: "radio", name: "language", id: `language-${name}`, class: "unseen", checked: name === language,
        onchange: () => { language = name; text.textContent = shown[name]; },
      });
      return el("span", { class: "choice" }, input, el("label", { for: `language-${name}` }, names[name]));
    }),
  );
  const button = el("button", { type: "button", id: "copy", onclick: async () => {
    const isCopied = await copy(codes[language]);
    const message = isCopied ? "Copied" : "Select the code and copy it";
    button.textContent = message;
    announce(`${message}.`);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } }, "Copy");
  $("code").hidden = false;
  $("code").replaceChildren(el("div", { class: "row" }, el("h2", {}, "As code"), choices, button), text);
}

function curlCode(body) {
  const lines = [`curl ${base()}v1/rank`, "-H 'Content-Type: application/json'"];
  if (apiKey()) lines.push('-H "Authorization: Bearer $SKYREWARD_API_KEY"');
  // No line of the JSON can equal the end marker: line breaks in strings are escaped.
  lines.push(`--data-binary @- <<'END'\n${JSON.stringify(body, null, 2)}\nEND\n`);
  return lines.join(" \\\n  ");
}

function pythonCode(body) {
  const headers = apiKey() ? ['    headers={"Authorization": f"Bearer {os.environ[\'SKYREWARD_API_KEY\']}"},'] : [];
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "import httpx",
    "",
    "response = httpx.post(",
    `    "${base()}v1/rank",`,
    ...headers,
    // Only text, lists and objects: JSON and Python have the same syntax for them.
    `    json=${JSON.stringify(body, null, 4).replaceAll("\n", "\n    ")},`,
    "    timeout=600,",
    ")",
    "response.raise_for_status()",
    'for result in response.json()["results"]:',
    '    print(result["index"], result.get("reward"), result.get("error"))',
    "",
  ].join("\n");
}

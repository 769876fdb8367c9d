// Elements, numbers and what is said to screen readers. Scripts are joined in the order in which
// `serve/api/playground/page.py` lists them, into one module: each may use what the ones before it define.
const $ = (id) => document.getElementById(id);

/** An element; `on*` keys are listeners, true and false set or leave out an attribute. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value") element.value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of a drawing. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Say something to a screen reader, even if it is what was said before. */
function say(text) {
  $("status").textContent = "";
  requestAnimationFrame(() => { $("status").textContent = text; });
}

/** Show what went wrong with the whole request, or nothing any more. */
function complain(message, ...more) {
  $("alert").replaceChildren(
    ...(message ? [el("p", { class: "trouble" }, el("span", {}, message), ...more)] : []),
  );
}

const letter = (index) =>
  index < 26 ? String.fromCharCode(65 + index) : letter(Math.floor(index / 26) - 1) + letter(index % 26);
const colour = (index) => `var(--s${index % 8})`;
const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const count = (number) => number.toLocaleString("en-GB");
const things = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A number with its sign where that matters, and a minus that is as wide as a plus. */
function number(value, { digits = 3, signed = false } = {}) {
  const text = Math.abs(value).toFixed(digits);
  const isZero = Number(text) === 0;
  return (value < 0 && !isZero ? "−" : signed && !isZero ? "+" : "") + text;
}

/** A probability; never 0 or 100% where it is neither. */
function percent(share) {
  if (share > 0.9995 && share < 1) return "> 99.9%";
  if (share < 0.0005 && share > 0) return "< 0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

/** A letter on the colour of its answer. */
function chip(index) {
  const element = el("span", { class: "chip" }, letter(index));
  element.style.setProperty("--key", colour(index));
  return element;
}

/** Copy a text, also where pages that came without TLS may not use the clipboard. */
async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* no permission: the old way may still work */ }
  }
  const before = document.activeElement;
  const field = el("textarea", { class: "unseen", value: text, "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

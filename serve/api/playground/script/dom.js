// Elements, numbers, and announcements for screen readers. `serve/api/playground/page.py` joins the
// scripts into one module, in the order of its list: each may use names of earlier scripts.
const $ = (id) => document.getElementById(id);

/** Create an element; `on*` keys add listeners, true sets and false omits an attribute. */
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

/** Create an SVG element. */
function svgElement(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Announce a text to screen readers, even if the same text was announced before. */
function announce(text) {
  $("status").textContent = "";
  requestAnimationFrame(() => { $("status").textContent = text; });
}

/** Show an error of the whole request; an empty message removes the error. */
function showError(message, ...more) {
  $("alert").replaceChildren(
    ...(message ? [el("p", { class: "trouble" }, el("span", {}, message), ...more)] : []),
  );
}

const letter = (index) =>
  index < 26 ? String.fromCharCode(65 + index) : letter(Math.floor(index / 26) - 1) + letter(index % 26);
const color = (index) => `var(--s${index % 8})`;
const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const count = (number) => number.toLocaleString("en-GB");
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Format a number, with a sign if requested, and a minus as wide as a plus. */
function number(value, { digits = 3, signed = false } = {}) {
  const text = Math.abs(value).toFixed(digits);
  const isZero = Number(text) === 0;
  return (value < 0 && !isZero ? "−" : signed && !isZero ? "+" : "") + text;
}

/** Format a probability; 0% and 100% only for exactly 0 and 1. */
function percent(share) {
  if (share > 0.9995 && share < 1) return "> 99.9%";
  if (share < 0.0005 && share > 0) return "< 0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

/** Create a badge with the letter and the color of an answer. */
function chip(index) {
  const element = el("span", { class: "chip" }, letter(index));
  element.style.setProperty("--key", color(index));
  return element;
}

/** Copy a text, also on pages without TLS, which may not use the clipboard API. */
async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* no permission: execCommand may still work */ }
  }
  const focused = document.activeElement;
  const field = el("textarea", { class: "unseen", value: text, "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return isCopied;
}

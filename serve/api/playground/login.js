// Asks for an API key, fetches the playground with it, and replaces this page by the playground.
const KEY = "skyreward.key";
const form = document.getElementById("login");
const input = document.getElementById("key");
const message = document.getElementById("message");

/** Open the playground with a key; return the error message if this fails. */
async function open(key) {
  let response;
  try {
    response = await fetch("./", { headers: { Accept: "text/html", Authorization: `Bearer ${key}` } });
  } catch (error) {
    // The key has characters that a header cannot carry, or the network is down.
    return error instanceof TypeError && /[^\x20-\x7e]/.test(key)
      ? "API keys consist of printable ASCII characters."
      : "The service cannot be reached.";
  }
  if (response.status === 401) return "This API key is not valid. Ask the operator for a key.";
  if (!response.ok) return `The service responded with status ${response.status}. Try again later.`;
  const page = await response.text();
  sessionStorage.setItem(KEY, key);
  document.open();
  document.write(page);
  document.close();
  return "";
}

async function enter(key) {
  form.setAttribute("aria-busy", "true");
  const error = await open(key);
  form.removeAttribute("aria-busy");
  if (!error) return;
  message.textContent = error;
  input.focus();
  input.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  message.textContent = "";
  const key = input.value.trim();
  if (key) enter(key);
});

const storedKey = sessionStorage.getItem(KEY);
if (storedKey) {
  sessionStorage.removeItem(KEY); // so that a rejected key is not tried at every visit
  enter(storedKey);
} else {
  input.focus();
}

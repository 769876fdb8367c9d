// Asks for a key, fetches the playground with it, and puts that in this page's place.
const KEY = "skyreward.key";
const form = document.getElementById("door");
const input = document.getElementById("key");
const said = document.getElementById("said");

async function open(key) {
  let answer;
  try {
    answer = await fetch("./", { headers: { Accept: "text/html", Authorization: `Bearer ${key}` } });
  } catch (error) {
    // A header cannot carry every character, and a network can be down.
    return error instanceof TypeError && /[^\x20-\x7e]/.test(key)
      ? "A key has no such characters."
      : "The service cannot be reached.";
  }
  if (answer.status === 401) return "This key is not known here. Ask the operator for one.";
  if (!answer.ok) return `The service answered ${answer.status}. Try again in a while.`;
  const page = await answer.text();
  sessionStorage.setItem(KEY, key);
  document.open();
  document.write(page);
  document.close();
  return "";
}

async function enter(key) {
  form.setAttribute("aria-busy", "true");
  const trouble = await open(key);
  form.removeAttribute("aria-busy");
  if (!trouble) return;
  said.textContent = trouble;
  input.focus();
  input.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  said.textContent = "";
  const key = input.value.trim();
  if (key) enter(key);
});

const kept = sessionStorage.getItem(KEY);
if (kept) {
  sessionStorage.removeItem(KEY); // a key that is refused is not tried at every visit
  enter(kept);
} else {
  input.focus();
}

// The public routes, with the visitor's key. The key is in this tab's storage and nowhere else.
const KEY = "skyreward.key";
const MAX_WAIT_S = 30;
const MAX_TRIES = 6;

class ServiceError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Where the service is, whatever stands before its path. */
const base = () => new URL("./", location.href.split(/[?#]/)[0]).href;

const apiKey = () => sessionStorage.getItem(KEY);

/** The answer of a route; with `patient`, an overloaded service is asked again. */
async function call(path, body, { signal, patient = false } = {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await callOnce(path, body, signal);
    } catch (error) {
      const passes = error instanceof ServiceError && [429, 503].includes(error.status);
      if (!passes || !patient || tries >= MAX_TRIES) throw error;
      await pause(Math.min(error.retryAfter || 2, MAX_WAIT_S), signal);
    }
  }
}

async function callOnce(path, body, signal) {
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(base() + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it still running?", 0, "unreachable");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found) return found;
  const said = found?.error;
  const error = new ServiceError(
    said?.message ?? `The service answered ${answer.status}.`, answer.status, said?.code ?? "http",
  );
  error.retryAfter = Number(answer.headers.get("Retry-After")) || 0;
  throw error;
}

function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(new DOMException("stopped", "AbortError"));
    });
  });
}

/** Tell of a failed request, with what a person can do about it. */
function complainOf(error) {
  if (error.status === 401) {
    complain("This key is not known any more. ", el(
      "button", { type: "button", onclick: forgetKey }, "Enter another key",
    ));
  } else {
    const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    complain(`${error.message}${/[.?!]$/.test(error.message) ? "" : "."}${again}`);
  }
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

// Calls of the public routes with the visitor's API key, which only this tab's storage holds.
const KEY = "skyreward.key";
const MAX_WAIT_S = 30;
const MAX_ATTEMPTS = 6;

class ServiceError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Kind of each served model: classifier, step or judge. */
const kinds = new Map();
const isJudge = (model) => kinds.get(model) === "judge";
/** Return the truncation that a visitor selected; step models and judges take none. */
const truncationOf = (model, select) => ["step", "judge"].includes(kinds.get(model)) ? undefined : $(select).value;

/** URL of the service, including any path prefix. */
const base = () => new URL("./", location.href.split(/[?#]/)[0]).href;

const apiKey = () => sessionStorage.getItem(KEY);

/** Return the response of a route; with `retry`, repeat the request while the service is overloaded. */
async function call(path, body, { signal, retry = false } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await callOnce(path, body, signal);
    } catch (error) {
      const isOverloaded = error instanceof ServiceError && [429, 503].includes(error.status);
      if (!isOverloaded || !retry || attempt >= MAX_ATTEMPTS) throw error;
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
  let response;
  try {
    response = await fetch(base() + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it still running?", 0, "unreachable");
  }
  const result = await response.json().catch(() => null);
  if (response.ok && result) return result;
  const details = result?.error;
  const error = new ServiceError(
    details?.message ?? `The service responded with status ${response.status}.`,
    response.status,
    details?.code ?? "http",
  );
  error.retryAfter = Number(response.headers.get("Retry-After")) || 0;
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

/** Show a failed request, and what the visitor can do about it. */
function showRequestError(error) {
  if (error.status === 401) {
    showError("This API key is no longer valid. ", el(
      "button", { type: "button", onclick: forgetKey }, "Enter another key",
    ));
  } else {
    const advice = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    showError(`${error.message}${/[.?!]$/.test(error.message) ? "" : "."}${advice}`);
  }
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

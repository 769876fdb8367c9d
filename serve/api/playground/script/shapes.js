// What people paste and drop: conversations, pairs and groups, as the service's own jobs know them.
const ROLES = ["system", "user", "assistant", "tool"];
const SHAREGPT = { human: "user", gpt: "assistant", system: "system", user: "user", assistant: "assistant", tool: "tool" };

const isText = (value) => typeof value === "string";
const isList = Array.isArray;
const isRecord = (value) => value !== null && typeof value === "object" && !isList(value);

/** Which of the three shapes a record has; null if none. */
function kindOf(record) {
  if (!isRecord(record)) return null;
  if (record.messages != null || (record.conversations != null && record.chosen == null)) return "conversation";
  if (record.chosen != null && record.rejected != null) return "pair";
  if (record.responses != null) return "group";
  return null;
}

/** Messages of a record of one conversation, as the service takes them. */
function messagesOf(record) {
  if (record.messages != null) return record.messages;
  const turns = isList(record.conversations) ? record.conversations : [];
  const messages = turns.map((turn) => ({ role: SHAREGPT[turn?.from] ?? turn?.from, content: turn?.value }));
  return record.system ? [{ role: "system", content: record.system }, ...messages] : messages;
}

/** A pair or a group as its route takes it: without other columns. */
function onlyOf(record, names) {
  return Object.fromEntries(names.filter((name) => record[name] != null).map((name) => [name, record[name]]));
}

/** The text of a message's content; null if it is no text. */
function textOf(content) {
  if (isText(content)) return content;
  if (isList(content) && content.every((part) => isText(part?.text))) return content.map((part) => part.text).join("");
  return null;
}

function turnsOf(messages) {
  return messages.map((message) => {
    const content = textOf(message?.content);
    if (!ROLES.includes(message?.role) || content === null) {
      throw new Error("each message must have a role (system, user, assistant or tool) and a text as its content");
    }
    return { role: message.role, content };
  });
}

const promptOf = (prompt) => (prompt == null ? [] : isText(prompt) ? [{ role: "user", content: prompt }] : turnsOf(prompt));

/** A record as turns and answers; raises an error that tells what is wrong. */
function draftOf(value) {
  const record = isList(value) ? { messages: value } : value;
  const kind = kindOf(record);
  if (kind === "conversation") return splitLast(turnsOf(messagesOf(record)));
  if (kind === "group") return withAnswers(promptOf(record.prompt), record.responses);
  if (kind === "pair") return withAnswers(promptOf(record.prompt), [record.chosen, record.rejected]);
  throw new Error("there are no messages, no chosen and rejected, and no responses in it");
}

function splitLast(turns) {
  const isAnswered = turns.at(-1)?.role === "assistant";
  return isAnswered
    ? { turns: turns.slice(0, -1), answers: [turns.at(-1).content] }
    : { turns, answers: [] };
}

function withAnswers(prompt, answers) {
  if (!isList(answers)) throw new Error("responses must be a list");
  const drafts = answers.map((answer) => {
    if (isText(answer)) return { turns: prompt, answers: [answer] };
    const turns = turnsOf(isList(answer) ? answer : [answer]);
    // The Hugging Face preference format has the prompt in both, and often beside them too.
    const starts = prompt.length && prompt.every((turn, i) => turn.content === turns[i]?.content && turn.role === turns[i]?.role);
    return splitLast(starts ? turns : [...prompt, ...turns]);
  });
  const [first] = drafts;
  const same = JSON.stringify(first?.turns);
  if (drafts.some((draft) => JSON.stringify(draft.turns) !== same || draft.answers.length !== 1)) {
    throw new Error("the answers must follow the same conversation, each an assistant's turn");
  }
  return { turns: first?.turns ?? prompt, answers: drafts.map((draft) => draft.answers[0]) };
}

/** The text of a file. Other encodings than UTF-8 would be read as other letters, so they are an error. */
function utf8Of(buffer) {
  const bytes = new Uint8Array(buffer);
  const [first, second] = bytes;
  const isWide = (first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff) || bytes.subarray(0, 4096).includes(0);
  try {
    if (!isWide) return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch { /* below */ }
  throw new Error(`is not UTF-8${isWide ? " but UTF-16 or UTF-32" : ""}; save it as UTF-8`);
}

/** A value of JSON; a number beyond a double is an error, since it would be saved as null. */
function finiteJson(text) {
  return JSON.parse(text, (key, value) => {
    if (value === Infinity || value === -Infinity) throw new Error("a number is too large for a double");
    return value;
  });
}

/** Rows of a file: JSON lines, or one array of records. */
function rowsOf(text) {
  if (text.trimStart().startsWith("[")) {
    try {
      const records = finiteJson(text);
      if (records.every(isRecord)) return records.map((record, i) => rowOf(record, i + 1));
    } catch { /* lines that each hold a list */ }
  }
  return text.split(/\r?\n/).flatMap((line, i) => {
    if (!line.trim()) return [];
    try {
      return [rowOf(finiteJson(line), i + 1)];
    } catch (error) {
      return [{ number: i + 1, line, kind: null, error: { code: "invalid_json", message: `no JSON: ${error.message}` } }];
    }
  });
}

function rowOf(parsed, number) {
  const record = isList(parsed) ? { messages: parsed } : parsed;
  const kind = kindOf(record);
  const row = { number, record, kind };
  if (!kind) row.error = { code: "unknown_shape", message: "no `messages`, no `chosen` and `rejected`, and no `responses`" };
  return row;
}

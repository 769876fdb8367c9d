// Records that visitors paste and drop: conversations, pairs and groups, in the formats of jobs.
const ROLES = ["system", "user", "assistant", "tool"];
const SHAREGPT = { human: "user", gpt: "assistant", system: "system", user: "user", assistant: "assistant", tool: "tool" };

const isText = (value) => typeof value === "string";
const isList = Array.isArray;
const isRecord = (value) => value !== null && typeof value === "object" && !isList(value);

/** Return which of the three kinds a record is; null if none. */
function recordKind(record) {
  if (!isRecord(record)) return null;
  if (record.messages != null || (record.conversations != null && record.chosen == null)) return "conversation";
  if (record.chosen != null && record.rejected != null) return "pair";
  if (record.responses != null) return "group";
  return null;
}

/** Return the messages of a conversation's record, in the format of the API. */
function toMessages(record) {
  if (record.messages != null) return record.messages;
  const turns = isList(record.conversations) ? record.conversations : [];
  const messages = turns.map((turn) => ({ role: SHAREGPT[turn?.from] ?? turn?.from, content: turn?.value }));
  return record.system ? [{ role: "system", content: record.system }, ...messages] : messages;
}

/** Return the given fields of a record, without other columns. */
function pickFields(record, names) {
  return Object.fromEntries(names.filter((name) => record[name] != null).map((name) => [name, record[name]]));
}

const isImage = (part) => isRecord(part) && ["image", "image_url", "input_image"].includes(part.type);

/** Return the text of a message's content, without images; null if it has other parts. */
function contentText(content) {
  if (isText(content)) return content;
  if (!isList(content) || !content.every((part) => isText(part) || isImage(part) || isText(part?.text))) return null;
  return content.map((part) => (isText(part) ? part : isImage(part) ? "" : part.text)).join("");
}

/** Return a message's images as data URIs, which this page shows before the text. */
function contentImages(content) {
  const images = isList(content) ? content.filter(isImage) : [];
  if (images.some((part, i) => part !== content[i])) throw new Error("images must come before the text of their message");
  return images.map(({ image, image_url }) => {
    const source = image_url?.url ?? image_url ?? image;
    if (!isText(source) || source.includes("://")) throw new Error("each image must be a data URI or base64");
    return source.startsWith("data:") ? source : `data:image/png;base64,${source}`;
  });
}

function toTurns(messages) {
  return messages.map((message) => {
    const content = contentText(message?.content);
    if (!ROLES.includes(message?.role) || content === null) {
      throw new Error("each message must have a role (system, user, assistant or tool) and text or images as its content");
    }
    return { role: message.role, content, images: contentImages(message.content) };
  });
}

const promptTurns = (prompt) => (prompt == null ? [] : isText(prompt) ? [{ role: "user", content: prompt, images: [] }] : toTurns(prompt));

/** Convert a record to turns and answers; the error of a bad record says what is wrong. */
function toDraft(value) {
  const record = isList(value) ? { messages: value } : value;
  const kind = recordKind(record);
  if (kind === "conversation") return splitLast(toTurns(toMessages(record)));
  if (kind === "group") return withAnswers(promptTurns(record.prompt), record.responses);
  if (kind === "pair") return withAnswers(promptTurns(record.prompt), [record.chosen, record.rejected]);
  throw new Error("it has neither messages, nor chosen and rejected, nor responses");
}

function splitLast(turns) {
  const isAnswered = turns.at(-1)?.role === "assistant";
  if (isAnswered && turns.at(-1).images.length) throw new Error("answers must be text");
  return isAnswered
    ? { turns: turns.slice(0, -1), answers: [turns.at(-1).content] }
    : { turns, answers: [] };
}

function withAnswers(prompt, answers) {
  if (!isList(answers)) throw new Error("responses must be a list");
  const drafts = answers.map((answer) => {
    if (isText(answer)) return { turns: prompt, answers: [answer] };
    const turns = toTurns(isList(answer) ? answer : [answer]);
    // The Hugging Face preference format has the prompt in both answers, and often separately too.
    const starts = prompt.length && prompt.every((turn, i) => JSON.stringify(turn) === JSON.stringify(turns[i]));
    return splitLast(starts ? turns : [...prompt, ...turns]);
  });
  const [first] = drafts;
  const same = JSON.stringify(first?.turns);
  if (drafts.some((draft) => JSON.stringify(draft.turns) !== same || draft.answers.length !== 1)) {
    throw new Error("the answers must follow the same conversation, each an assistant's turn");
  }
  return { turns: first?.turns ?? prompt, answers: drafts.map((draft) => draft.answers[0]) };
}

/** Decode a file. An encoding other than UTF-8 is an error: it would be decoded to wrong letters. */
function decodeUtf8(buffer) {
  const bytes = new Uint8Array(buffer);
  const [first, second] = bytes;
  const isWide = (first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff) || bytes.subarray(0, 4096).includes(0);
  try {
    if (!isWide) return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch { /* the error below */ }
  throw new Error(`is not UTF-8${isWide ? " but UTF-16 or UTF-32" : ""}; save it as UTF-8`);
}

/** Parse JSON; a number too large for a double is an error, since it would be saved as null. */
function finiteJson(text) {
  return JSON.parse(text, (key, value) => {
    if (value === Infinity || value === -Infinity) throw new Error("a number is too large for a double");
    return value;
  });
}

/** Parse a file: JSON lines, or one array of records. */
function parseRows(text) {
  if (text.trimStart().startsWith("[")) {
    try {
      const records = finiteJson(text);
      if (records.every(isRecord)) return records.map((record, i) => toRow(record, i + 1));
    } catch { /* lines, each with a list */ }
  }
  return text.split(/\r?\n/).flatMap((line, i) => {
    if (!line.trim()) return [];
    try {
      return [toRow(finiteJson(line), i + 1)];
    } catch (error) {
      return [{ number: i + 1, line, kind: null, error: { code: "invalid_json", message: `not valid JSON: ${error.message}` } }];
    }
  });
}

function toRow(parsed, number) {
  const record = isList(parsed) ? { messages: parsed } : parsed;
  const kind = recordKind(record);
  const row = { number, record, kind };
  if (!kind) row.error = { code: "unknown_shape", message: "neither `messages`, nor `chosen` and `rejected`, nor `responses`" };
  return row;
}

// The dashboard's own script: which page, its stream, the clock on it, and what an operator does.
"use strict";

const SILENCE_MS = 40000; // the server says something every 15 s
const FIRST_PAUSE_MS = 400;
const LONGEST_PAUSE_MS = 10000;
const TOKEN = "interlock-token";
const by = (id) => document.getElementById(id);

// -- the server

/** A request with the token, if there is one; the answer of a refusal is an Error with its detail. */
async function ask(path, { method = "GET", body, signal, accept = "application/json" } = {}) {
  const headers = { accept };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, cache: "no-store", credentials: "omit",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const refused = new Error(problem.detail || problem.error || `the server answered ${answer.status}`);
  refused.status = answer.status;
  throw refused;
}

// -- the page that the address names: #fleet?open=provider:openai

function place() {
  const [name, query] = location.hash.slice(1).split(/\?(.*)/s);
  const page = ["fleet", "sessions", "ledger"].includes(name) ? name : "fleet";
  return { page, query: new URLSearchParams(name === page ? query : "") };
}

function address() {
  const { page, query } = place();
  query.set("view", page);
  return `/dashboard/stream?${query}`;
}

// -- the stream: one for all that is shown

let connection = null; // the AbortController of the stream that counts
let skew = 0; // the server's clock less ours
let shownAt = null; // the server's time of what is shown
let lost = false;

/** Follow the page for as long as it is this one. */
async function follow() {
  connection?.abort();
  const mine = (connection = new AbortController());
  let pause = FIRST_PAUSE_MS;
  while (!mine.signal.aborted) {
    let refused = null;
    try {
      await read(mine, () => { pause = FIRST_PAUSE_MS; });
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401 || error.status === 403) return signIn(error);
      if (error.status && error.status < 500 && error.status !== 429) return refusePage(error);
      if (error.status) refused = error.message;
    }
    if (mine.signal.aborted) return;
    lose(refused);
    await new Promise((done) => {
      const timer = setTimeout(done, pause * (0.5 + Math.random() / 2));
      mine.signal.addEventListener("abort", () => { clearTimeout(timer); done(); });
      addEventListener("online", done, { once: true });
    });
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}

/** One connection, to its end. Silence is one, too. */
async function read(mine, worked) {
  const one = new AbortController();
  const end = () => one.abort();
  mine.signal.addEventListener("abort", end);
  let silence = setTimeout(end, SILENCE_MS);
  try {
    const answer = await ask(address(), { signal: one.signal, accept: "text/event-stream" });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(end, SILENCE_MS);
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (mine.signal.aborted) return;
        await take(event, worked);
      }
    }
  } finally {
    clearTimeout(silence);
    mine.signal.removeEventListener("abort", end);
    one.abort();
  }
}

async function take(event, worked) {
  const data = [];
  let kind = "", at = null;
  for (const line of event.split("\n")) {
    if (line.startsWith("data:")) data.push(line.slice(6));
    else if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("id: ")) at = Number(line.slice(4));
  }
  if (at !== null) { skew = at - Date.now(); shownAt = at; }
  if (kind === "view" || kind === "patch") {
    worked();
    find(lost ? "Connected again." : null);
    await htmx.swap({ text: data.join("\n"), target: by("main"), sourceElement: by("main"), swap: kind === "view" ? "innerMorph" : "none" });
    tick();
    for (const one of document.querySelectorAll(".queue")) one.style.minHeight = `${one.offsetHeight}px`; // grows only
    // A page that was loaded from another version may not fit what this one sends.
    if (by("pulse").dataset.version !== by("version").dataset.version) location.reload();
    document.dispatchEvent(new CustomEvent("interlock:shown"));
  }
}

// -- how the connection is

function find(news) {
  if (news) say(news);
  lost = false;
  document.body.classList.add("live");
  document.body.classList.remove("stale", "closed");
  by("banner").hidden = true;
  by("signin").hidden = true;
  by("page").hidden = false;
  by("link").textContent = "live";
  by("signout").hidden = !sessionStorage.getItem(TOKEN);
}

/** *refused* is what the server said, if it said anything. */
function lose(refused) {
  lost = true;
  document.body.classList.remove("live");
  document.body.classList.add("stale");
  by("link").textContent = "connection lost";
  const state = shownAt === null ? "" : ` This is the state of ${clock(shownAt)}.`;
  by("banner").textContent = `${refused ? sentence(refused) : "Connection lost."}${state} Trying again.`;
  by("banner").hidden = false;
}

function signIn(refused) {
  document.body.classList.remove("live", "stale");
  document.body.classList.add("closed");
  by("banner").hidden = true;
  by("page").hidden = true;
  by("pulse").replaceChildren();
  by("link").textContent = "not signed in";
  const shown = sessionStorage.getItem(TOKEN) !== null;
  const wrong = "This token opens nothing here: it is wrong, was revoked or has expired.";
  by("signin-refusal").textContent = !shown ? "" : refused.status === 401 ? wrong : sentence(refused.message);
  by("signin").hidden = false;
  by("signout").hidden = true;
  by("ask").close();
  by("token").focus();
}

function refusePage(refused) {
  find(null);
  const text = document.createElement("p");
  text.className = "missing";
  text.textContent = sentence(refused.message);
  by("main").replaceChildren(text);
}

by("signin").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = by("token").value.trim();
  if (!token) return;
  sessionStorage.setItem(TOKEN, token);
  by("token").value = "";
  by("signin-refusal").textContent = "";
  by("link").textContent = "connecting";
  follow();
});

by("signout").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});

let unsaid = null;
function say(text) {
  by("said").textContent = text;
  clearTimeout(unsaid);
  unsaid = setTimeout(() => { by("said").textContent = ""; }, 4000);
}

// -- words for numbers

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const clock = (ms) => new Date(ms).toLocaleTimeString(undefined, { hour12: false });

function moment(ms) {
  const then = new Date(ms);
  const today = then.toDateString() === new Date(Date.now() + skew).toDateString();
  return today ? clock(ms) : `${then.toLocaleDateString(undefined, { day: "numeric", month: "short" })} ${clock(ms)}`;
}

function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours}:${String(minutes % 60).padStart(2, "0")} h` : `${Math.floor(hours / 24)} d`;
}

function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const hours = Math.floor(seconds / 3600);
  const rest = `${Math.floor((seconds % 3600) / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${rest.padStart(5, "0")}` : rest;
}

/** Everything on the page that is told by the clock. It stands still while the connection is lost. */
function tick() {
  if (lost) return;
  const now = Date.now() + skew;
  const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  for (const one of document.querySelectorAll("[data-since]")) put(one, duration(now - one.dataset.since));
  for (const one of document.querySelectorAll("[data-until]")) put(one, countdown(one.dataset.until - now));
  for (const one of document.querySelectorAll("[data-took]")) put(one, one.dataset.took < 1000 ? `${one.dataset.took} ms` : duration(one.dataset.took));
  for (const one of document.querySelectorAll("[data-at]")) {
    put(one, moment(Number(one.dataset.at)));
    one.title = new Date(Number(one.dataset.at)).toISOString();
  }
  for (const one of document.querySelectorAll("[data-origin]")) put(one, location.origin);
}
setInterval(tick, 200);

// -- what an operator does: always asked first, always answered

const FIELDS = ["capacity", "cooldown", "seconds"];
let act = null; // what the dialog's yes does; gets a signal that ends with the dialog
let acting = null;

function open({ title, text, yes, fields = [], severe = false, run }) {
  by("ask-title").textContent = title;
  by("ask-text").textContent = text;
  by("ask-yes").textContent = yes;
  by("ask-yes").classList.toggle("severe", severe);
  by("ask-yes").disabled = false;
  by("ask-no").textContent = "Cancel";
  by("ask-refusal").textContent = "";
  for (const name of FIELDS) {
    by(`ask-${name}`).hidden = !fields.includes(name);
    by(name).required = fields.includes(name) && name !== "cooldown"; // which stays, if it is left empty
  }
  act = run;
  by("ask").showModal();
  const first = fields.map((name) => by(name)).find((field) => !field.disabled);
  (first ?? by("ask-no")).focus();
  first?.select();
}

by("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (acting) return;
  acting = new AbortController();
  by("ask-refusal").textContent = "";
  by("ask-yes").disabled = true;
  try {
    const done = await act(acting.signal);
    by("ask").close();
    say(done);
  } catch (error) {
    if (error.name === "AbortError") return;
    by("ask-refusal").textContent = error.status ? sentence(error.message) : "The server did not answer. Try again.";
    by("ask-yes").disabled = false;
  } finally {
    acting = null;
  }
});
by("ask-no").addEventListener("click", () => by("ask").close());
by("ask").addEventListener("close", () => acting?.abort());
by("unlimited").addEventListener("change", (event) => { by("capacity").disabled = event.target.checked; });

const path = (text) => encodeURIComponent(text);
const ACTIONS = {
  limit({ name, title, capacity, configured, cooldown }) {
    const provider = name.startsWith("provider:");
    const most = configured || capacity;
    by("capacity").value = most;
    by("unlimited").checked = by("capacity").disabled = most === "";
    by("cooldown").value = cooldown;
    open({
      title: `Limit of ${title}`, yes: "Set limit", fields: provider ? ["capacity", "cooldown"] : ["capacity"],
      text: "In force at once. Raising it lets in who waits; lowering it takes nothing away from anybody.",
      async run(signal) {
        const unlimited = by("unlimited").checked;
        const body = { capacity: unlimited ? null : Number(by("capacity").value) };
        if (provider && by("cooldown").value !== "" && by("cooldown").value !== cooldown) body.cooldownMs = Number(by("cooldown").value);
        await ask(`/limits/${path(name)}`, { method: "PUT", body, signal });
        return `${title}: ${unlimited ? "unlimited" : `at most ${body.capacity} at once`}.`;
      },
    });
  },
  restore({ name, title, configured }) {
    open({
      title: `Restore ${title} to ${configured}?`, yes: `Restore ${configured}`,
      text: "Its limit was reduced after a 429. If the provider still counts as it did then, it will be reduced again.",
      async run(signal) {
        await ask(`/limits/${path(name)}`, { method: "PUT", body: { capacity: Number(configured) }, signal });
        return `${title}: limit ${configured} again.`;
      },
    });
  },
  pause({ name, title }) {
    by("seconds").value = 60;
    open({
      title: `Pause ${title}?`, yes: "Pause", fields: ["seconds"],
      text: "Nobody new is admitted. Calls under way go on, and who waits keeps its place.",
      async run(signal) {
        const seconds = Number(by("seconds").value);
        await ask(`/providers/${path(name.slice(9))}/pause`, { method: "POST", body: { ms: Math.round(seconds * 1000) }, signal });
        return `${title}: paused for ${seconds} s.`;
      },
    });
  },
  resume({ name, title }) {
    open({
      title: `Resume ${title}?`, yes: "Resume", text: "Its pause ends now, and who waits is admitted.",
      async run(signal) {
        await ask(`/providers/${path(name.slice(9))}/resume`, { method: "POST", signal });
        return `${title}: open.`;
      },
    });
  },
  cancel({ run }) {
    open({
      title: "Cancel this run?", yes: "Cancel run", severe: true, text: `${run} ends cancelled, and what it has done so far stays.`,
      async run(signal) {
        const { status } = await (await ask(`/runs/${path(run)}/cancel`, { method: "POST", signal })).json();
        return `The run is ${status}.`;
      },
    });
    by("ask-no").textContent = "Keep it";
  },
  interrupt({ run }) {
    open({
      title: "Interrupt this run?", yes: "Interrupt run", severe: true, text: `${run} ends interrupted; the session goes on with its next run.`,
      async run(signal) {
        await ask(`/runs/${path(run)}/interrupt`, { method: "POST", signal });
        return "The run is interrupted.";
      },
    });
    by("ask-no").textContent = "Keep it";
  },
  drain({ id, title }) {
    open({
      title: `Drain ${title}?`, yes: "Drain",
      text: "It takes no new run until all that it has are over. Closing this window before that lets new runs in again.",
      async run(signal) {
        by("ask-no").textContent = "Stop draining";
        by("ask-text").textContent = "Draining: waiting for its runs to end.";
        await ask(`/sessions/${path(id)}/drain`, { method: "POST", body: { timeoutMs: 300000 }, signal });
        return `${title}: drained, and open again.`;
      },
    });
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) ACTIONS[button.dataset.do]({ ...button.closest("[data-name], [data-run], [data-id]").dataset });
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-find]")) return;
  event.preventDefault();
  location.hash = `#sessions?id=${encodeURIComponent(event.target.elements[0].value.trim())}`;
});

// -- keys, as in `interlock top`

const PAGES = { 1: "#fleet", 2: "#sessions", 3: "#ledger" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || by("ask").open) return;
  if (event.target.closest("input, select, textarea")) return;
  const row = event.target.closest(".gate") ?? null;
  const press = (what) => {
    event.preventDefault(); // or the key would be typed into what is asked
    row?.querySelector(what)?.click();
  };
  if (PAGES[event.key]) location.hash = PAGES[event.key];
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") move(row, event);
  else if (event.key === "Enter" && event.target === row) press("h3 a");
  else if (event.key === "l") press("[data-do=limit]");
  else if (event.key === "p") press("[data-do=pause], [data-do=resume]");
  else if (event.key === "r") press("[data-do=restore]");
});

function move(row, event) {
  const rows = [...document.querySelectorAll(".gate")];
  if (!rows.length) return;
  event.preventDefault();
  const at = rows.indexOf(row) + (event.key === "ArrowDown" ? 1 : -1);
  const next = rows[row ? Math.max(0, Math.min(at, rows.length - 1)) : 0];
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

// -- start

let last = null;
function show() {
  if (location.hash === "#main") return;
  const { page, query } = place();
  if (last !== null && last !== page) scrollTo(0, 0);
  last = page;
  for (const one of document.querySelectorAll("[data-page]")) {
    if (one.dataset.page === page) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  by("page").classList.toggle("with-history", page === "fleet");
  by("history").hidden = page !== "fleet";
  const what = query.get("id") ?? query.get("limit");
  document.title = `${what ? `${what.slice(0, 60)} · ` : ""}${page.charAt(0).toUpperCase()}${page.slice(1)} · Interlock`;
  document.dispatchEvent(new CustomEvent("interlock:page", { detail: { page, open: query.get("open") } }));
  follow();
}
by("link").textContent = "connecting";
addEventListener("hashchange", show);
addEventListener("pageshow", (event) => { if (event.persisted) show(); });

// A browser has six connections for all its tabs: one that nobody looks at gives its own back.
const REST_MS = 20000;
let resting = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(resting);
  if (document.hidden) resting = setTimeout(() => { connection?.abort(); connection = null; }, REST_MS);
  else if (connection === null && by("signin").hidden) follow();
});
show();

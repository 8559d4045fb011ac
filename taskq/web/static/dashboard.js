// The script of the dashboard: asks for the part of a page that changes every 2 s and puts what is new in its place,
// without losing focus, selection, scroll or what was typed. Pages work without it, and then do not update.
"use strict";
const EVERY_MS = 2000, MOST_LINES = 2000, TOLD_MS = 6000;
const main = document.getElementById("main");
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
let isPaused = false, isAsking = false, tag = main.dataset.tag || "";

// -- times, told as their distance from now
function spanText(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const pad = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days}d ${pad(hours % 24)}h`;
  return hours ? `${hours}h ${pad(minutes % 60)}m` : `${minutes}m ${pad(Math.round(seconds) % 60)}s`;
}
function tellTimes(root) {
  for (const each of all("time", root)) {
    const at = new Date(each.dateTime), ahead = (at - Date.now()) / 1000;
    const text = "since" in each.dataset ? `for ${spanText(Math.max(-ahead, 0))}`
      : Math.abs(ahead) < 1 ? "now" : ahead > 0 ? `in ${spanText(ahead)}` : `${spanText(-ahead)} ago`;
    if (each.firstChild.data !== text) each.firstChild.data = text; // what is selected stays selected
    each.title = at.toLocaleString();
  }
}

// -- what is new takes its place
// by getAttribute, as the fields of a form hide its properties: `id`, `action`
const keyOf = (node) => node.nodeType === 1 ? node.getAttribute("id") || node.dataset.key || "" : "";
const KEPT = new Set(["open", "checked", "aria-pressed"]); // what somebody has done here
function update(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const isTyped = old.matches("textarea, select, input:not([type=hidden])");
  for (const { name, value } of [...fresh.attributes]) {
    if (!KEPT.has(name) && !(isTyped && name === "value") && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!KEPT.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  if (!old.matches("textarea, [data-load]")) morph(old, fresh);
}
const isAlike = (one, other) => !keyOf(one) && one.nodeName === other.nodeName
  && (one.nodeType !== 1 || one.getAttribute("class") === other.getAttribute("class"));
function morph(old, fresh) {
  const keyed = new Map([...old.children].filter(keyOf).map((each) => [keyOf(each), each]));
  const kept = new Set([...fresh.children].map(keyOf));
  let at = old.firstChild;
  const drop = () => { const gone = at; at = at.nextSibling; gone.remove(); };
  for (const next of [...fresh.childNodes]) {
    while (at && keyOf(at) && !kept.has(keyOf(at))) drop(); // before others would have to move, which costs the focus
    let match = keyed.get(keyOf(next)) || null;
    if (!keyOf(next)) for (match = at; match && !isAlike(match, next);) match = keyOf(match) ? null : match.nextSibling;
    if (match?.nodeName === next.nodeName) {
      if (!keyOf(next)) while (at !== match) drop();
      if (match === at) at = at.nextSibling;
      else old.insertBefore(match, at);
      update(match, next);
    } else old.insertBefore(next, at);
  }
  while (at) drop();
}
async function ask() {
  if (isAsking) return;
  isAsking = true;
  try {
    const answer = await fetch(location.href, { headers: { "taskq-part": "1", "If-None-Match": tag }, cache: "no-store" });
    document.body.classList.toggle("stale", !answer.ok && answer.status !== 304);
    if (answer.status === 304) return;
    const part = new DOMParser().parseFromString(await answer.text(), "text/html").body;
    if (!answer.ok) return tell(find("p", part)?.textContent || "The dashboard does not answer.", true);
    tag = answer.headers.get("ETag") || "";
    tellTimes(part);
    const focused = document.activeElement;
    morph(main, part);
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    load();
  } catch {
    document.body.classList.add("stale");
  } finally {
    isAsking = false;
  }
}
async function load() { // what is asked for when it changes, not every 2 s
  for (const each of all("[data-load]")) {
    if (each.loaded === each.dataset.version) continue;
    each.loaded = each.dataset.version;
    const answer = await fetch(each.dataset.load, { headers: { "taskq-part": "1" } });
    each.replaceChildren(...new DOMParser().parseFromString(await answer.text(), "text/html").body.childNodes);
  }
}

// -- what somebody does
let toldAt;
function tell(text, isBad) {
  const place = document.getElementById("told");
  place.textContent = text;
  place.className = isBad ? "bad shown" : "shown";
  clearTimeout(toldAt);
  toldAt = setTimeout(() => { place.className = ""; }, TOLD_MS);
}
async function send(form, button) {
  const body = new URLSearchParams(new FormData(form, button));
  const question = document.getElementById("question");
  try {
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { "taskq-script": "1" } });
    const done = await answer.json();
    if (question.open) question.close();
    if (done.question) {
      question.innerHTML = done.question; // made by our template, which escapes
      question.showModal();
      return;
    }
    tell(done.told, done.failed);
    if (done.go && answer.ok && done.go !== location.pathname) location.assign(done.go);
    else ask();
  } catch {
    tell("The dashboard does not answer: was it stopped?", true);
  }
}
function follow(button) {
  const isOn = button.getAttribute("aria-pressed") !== "true", lines = document.getElementById("lines");
  button.setAttribute("aria-pressed", isOn);
  button.textContent = isOn ? "Stop" : "Follow";
  if (!isOn) return button.source.close();
  find("[data-none]")?.remove();
  button.source = new EventSource(button.dataset.follow);
  button.source.onmessage = (event) => {
    const told = JSON.parse(event.data), line = document.createElement("span");
    const isAtEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 20;
    line.className = `line ${told.level}`;
    line.innerHTML = told.html; // made by the server, which escapes
    lines.append(line);
    while (lines.children.length > MOST_LINES) lines.firstElementChild.remove();
    if (isAtEnd) lines.scrollTop = lines.scrollHeight;
  };
}
function pause() {
  isPaused = !isPaused;
  for (const each of all("[data-pause]")) {
    each.setAttribute("aria-pressed", isPaused);
    each.textContent = isPaused ? "go on updating" : "pause updates";
  }
}
function changeTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  localStorage.setItem("taskq-theme", document.documentElement.dataset.theme = isDark ? "light" : "dark");
}
function step(by) {
  const rows = all("tbody tr", main).filter((row) => find("a", row));
  const here = rows.indexOf(document.activeElement.closest("tr"));
  if (rows.length) find("a", rows[Math.min(Math.max(here + by, 0), rows.length - 1)]).focus();
}
const KEYS = {
  "/": () => find("[data-find]").focus(), f: () => find("[data-filter]")?.focus(), j: () => step(1), k: () => step(-1),
  x: () => find("input[type=checkbox]", document.activeElement.closest("tr") || main)?.click(),
  p: pause, t: changeTheme, "?": () => document.getElementById("keys").showModal(),
};
let isGoing = false;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || find("dialog[open]")) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
  const go = isGoing && find(`[data-go="${CSS.escape(event.key)}"]`), does = go ? () => go.click() : KEYS[event.key];
  isGoing = event.key === "g" && !go;
  if (does) { event.preventDefault(); does(); }
});
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  event.preventDefault();
  send(event.target, event.submitter);
});
document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  if (on("[data-copy]")) navigator.clipboard?.writeText(on("[data-copy]").dataset.copy).then(() => tell("Copied."));
  if (on("[data-close]")) on("dialog").close();
  if (on("[data-follow]")) follow(on("[data-follow]"));
  if (on("[data-pause]")) pause();
  if (on("[data-theme-button]")) changeTheme();
  if (on("[data-keys-button]")) document.getElementById("keys").showModal();
  if (on("[data-all]")) all("tbody input[type=checkbox]", main).forEach((each) => { each.checked = event.target.checked; });
});
const theme = localStorage.getItem("taskq-theme");
if (theme) document.documentElement.dataset.theme = theme;
tellTimes(document);
load();
setInterval(() => { if (!document.hidden) tellTimes(document); }, 1000);
async function goOn() { // a page that takes long to make is asked for less often
  const began = performance.now();
  if (!isPaused && !document.hidden) await ask();
  setTimeout(goOn, Math.max(EVERY_MS, 10 * (performance.now() - began)));
}
if ("live" in main.dataset) setTimeout(goOn, EVERY_MS);
const lines = document.getElementById("lines");
if (lines) lines.scrollTop = lines.scrollHeight;

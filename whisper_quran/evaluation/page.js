"use strict";
// A page draws itself from the data beside this script. Everything shown is made with textContent and attributes and
// nothing is parsed as HTML, so that the data may hold any text.

const data = JSON.parse(document.getElementById("data").textContent);

const $ = id => document.getElementById(id);
const count = n => n.toLocaleString("en");
const plural = (n, noun) => `${count(n)}\u00a0${noun}${n === 1 ? "" : "s"}`;
const isArabic = text => /[\u0590-\u08ff\ufb1d-\ufefc]/.test(text);
/** The attributes of an element with this text in it. */
const written = text => isArabic(text) ? {lang: "ar", dir: "rtl"} : {dir: "ltr"};

function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(node.style, value);
    else if (typeof value === "function") node[name] = value;
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter(child => child !== undefined && child !== null && child !== false));
  return node;
}
const h = (tag, attributes = {}, ...children) => element(document.createElement(tag), attributes, children);
// Long names of models and reciters may break after a slash or an underscore.
const breakable = name => h("bdi", {}, name.split(/(?<=[/_])/).flatMap(part => [part, h("wbr")]));
const ar = (...text) => h("bdi", {class: "ar", lang: "ar"}, text.flat());

// ---- texts with what was heard differently

/** The parts of an alignment, in reading order, each with its words of the reference; right ones have no kind. */
function partsWith(words, parts) {
  let at = 0;
  return [...parts, words.length].map(part => {
    const [kind, length, heard = "", times = 1, letters] = Array.isArray(part) ? part : [undefined, part];
    const [name, label] = data.kinds[kind] ?? [];
    return {kind: name, label, expected: words.slice(at, at += length), heard, times, letters};
  }).filter(({expected, heard}) => expected.length || heard);
}

const marked = (kind, label, ...children) =>
  h("span", {class: kind, role: "group", "aria-label": label, title: label}, ...children);

/** One part: what is right as it is, `drawn` already, and errors marked as such, with their kind. */
function drawPart({kind, label, expected, heard, times}, drawn = expected) {
  const said = times > 1 ? `${heard} ×${times}` : heard;
  if (!kind) return drawn;
  if (!heard) return marked("d", `deletion: ${label}`, drawn);
  if (!expected.length) return marked("i", `insertion: ${label}`, said);
  return marked("s", `substitution: ${label}`, h("span", {}, drawn), h("span", {}, said));
}

/** Explain the marks, by a word in the script of the page. */
function drawKey(rtl) {
  const [word, other] = rtl ? ["كلمة", "كلمات"] : ["word", "ward"];
  $("key").append(...[
    [word, other, "the reference above, what was heard below"],
    [word, "", "not heard"],
    ["", word, "heard, not in the reference"],
  ].map(([expected, heard, meaning]) => h("span", {}, h("span", {class: "sample", ...written(word)},
    drawPart({kind: "sample", label: meaning, expected, heard})), meaning)));
}

const drawFacts = () => $("measured").append(...Object.entries(data.facts).flatMap(([name, value]) =>
  [h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));

// ---- the player

/** The player stands below the page, which is made longer by its height. */
function showPlayer(shown) {
  $("player").hidden = !shown;
  document.documentElement.style.setProperty("--player", `${$("player").offsetHeight}px`);
}

function closePlayer() {
  $("audio").removeAttribute("src");
  $("audio").load(); // stops it
  showPlayer(false);
}
$("close").onclick = closePlayer;
document.addEventListener("keydown", event => { if (event.key === "Escape") closePlayer(); });

/** Play a recording from a second on. */
function play(name, address, from = 0) {
  const audio = $("audio"), tell = text => { $("playing").textContent = text; };
  const failed = error => error.name === "AbortError" || // another is played in its place
    tell(`${name} cannot be played: the file has moved, or is of a kind that this browser does not play`);
  audio.src = address;
  audio.currentTime = from;
  tell(name);
  showPlayer(true);
  audio.play().catch(failed);
}

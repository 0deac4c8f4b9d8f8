"use strict";
// The page draws itself from the data beside this script. Everything shown is made with textContent and attributes and
// nothing is parsed as HTML, so that the data may hold any text.

const data = JSON.parse(document.getElementById("data").textContent);
const SURAHS = `,الفاتحة,البقرة,آل عمران,النساء,المائدة,الأنعام,الأعراف,الأنفال,التوبة,يونس,هود,يوسف,الرعد,إبراهيم,
الحجر,النحل,الإسراء,الكهف,مريم,طه,الأنبياء,الحج,المؤمنون,النور,الفرقان,الشعراء,النمل,القصص,العنكبوت,الروم,لقمان,السجدة,
الأحزاب,سبأ,فاطر,يس,الصافات,ص,الزمر,غافر,فصلت,الشورى,الزخرف,الدخان,الجاثية,الأحقاف,محمد,الفتح,الحجرات,ق,الذاريات,
الطور,النجم,القمر,الرحمن,الواقعة,الحديد,المجادلة,الحشر,الممتحنة,الصف,الجمعة,المنافقون,التغابن,الطلاق,التحريم,الملك,
القلم,الحاقة,المعارج,نوح,الجن,المزمل,المدثر,القيامة,الإنسان,المرسلات,النبأ,النازعات,عبس,التكوير,الانفطار,المطففين,
الانشقاق,البروج,الطارق,الأعلى,الغاشية,الفجر,البلد,الشمس,الليل,الضحى,الشرح,التين,العلق,القدر,البينة,الزلزلة,العاديات,
القارعة,التكاثر,العصر,الهمزة,الفيل,قريش,الماعون,الكوثر,الكافرون,النصر,المسد,الإخلاص,الفلق,الناس`.split(/,\s*/);
// A model is a colour and a shape, so that it is known without the colour: circle, square, triangles, diamond, plus.
const SHAPES = ["M5 0a5 5 0 1 0 .01 0z", "M.8 .8h8.4v8.4h-8.4z", "M5 0l5 9.4h-10z", "M5-.6l5.6 5.6-5.6 5.6-5.6-5.6z",
  "M0 .6h10l-5 9.4z", "M3 0h4v3h3v4h-3v3h-4v-3h-3v-4h3z"];
const COMMONEST = 60; // errors listed of each kind
const CHUNK = 20; // recordings that come into the page together

const $ = id => document.getElementById(id);
const sum = numbers => numbers.reduce((a, b) => a + b, 0);
const count = n => n.toLocaleString("en");
const plural = (n, noun) => `${count(n)}\u00a0${noun}${n === 1 ? "" : "s"}`;
const percent = (fraction, digits = 1) => Number.isFinite(fraction) ? `${(100 * fraction).toFixed(digits)} %` : "–";
/** A rate with half the width of its 95 % interval, if there is one: 52.4 ± 3.1 %. */
const plusMinus = (rate, half) => half > 0 ? percent(rate).replace(" ", ` ± ${(100 * half).toFixed(1)} `) : percent(rate);
const halfWidth = interval => interval ? (interval[1] - interval[0]) / 2 : 0;
const color = model => `var(--model-${model % SHAPES.length})`;
const shape = model => SHAPES[(model + Math.floor(model / SHAPES.length)) % SHAPES.length];
const direction = text => /[\u0590-\u08ff\ufb1d-\ufefc]/.test(text) ? "rtl" : "ltr";

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
const svg = (tag, attributes = {}, ...children) =>
  element(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const mark = model => svg("svg", {class: "mark", viewBox: "-1 -1 12 12", "aria-hidden": "true"},
  svg("path", {d: shape(model), style: {fill: color(model)}}));
// Long names of models and reciters may break after a slash or an underscore.
const breakable = name => h("bdi", {}, name.split(/(?<=[/_])/).flatMap(part => [part, h("wbr")]));
const named = model => h("span", {class: "name"}, mark(model), breakable(data.models[model]));

// ---- the data: a recording is one reciter's one ayah, with a run for each model that heard it

const ayat = data.ayat.map(([surah, name, reference]) => ({surah, name, words: reference ? reference.split(" ") : []}));
const quran = ayat.some(ayah => ayah.surah);
const noun = quran ? "recitation" : "recording";
const rtl = ayat.some(ayah => direction(ayah.words.join(" ")) === "rtl");
const place = ayah => ayah.surah ? `${ayah.surah}:${ayah.name}` : ayah.name;
const surahName = surah => SURAHS[surah] ?? "";
const recordings = readRecordings();

function readRecordings() {
  const naturally = new Intl.Collator("en", {numeric: true}).compare;
  const inOrder = [...ayat].sort((a, b) => a.surah - b.surah || naturally(a.name, b.name));
  inOrder.forEach((ayah, order) => { ayah.order = order; });
  const found = new Map();
  for (const [model, reciter, index, seconds, parts] of data.rows) {
    const key = reciter * ayat.length + index, ayah = ayat[index];
    if (!found.has(key)) found.set(key, {reciter, ayah, seconds, words: ayah.words.length, runs: []});
    found.get(key).runs[model] = {parts, ...countErrors(parts)};
  }
  for (const [reciter, index, addresses, damaged] of data.audio)
    Object.assign(found.get(reciter * ayat.length + index), {addresses, damaged});
  return [...found.values()].sort((a, b) => a.ayah.order - b.ayah.order || a.reciter - b.reciter);
}

function countErrors(parts) {
  let substitutions = 0, deletions = 0, insertions = 0;
  for (const [, expected, words, times = 1] of parts.filter(Array.isArray)) {
    const heard = words ? words.split(" ").length * times : 0;
    substitutions += Math.min(expected, heard);
    deletions += Math.max(expected - heard, 0);
    insertions += Math.max(heard - expected, 0);
  }
  return {substitutions, deletions, insertions, errors: substitutions + deletions + insertions};
}

/** What a model heard, in reading order: right words have no kind. `name` is the same for errors that are alike. */
function partsOf(recording, model) {
  const {words} = recording.ayah;
  let at = 0;
  return [...recording.runs[model].parts, words.length].map(part => {
    const [kind, length, heard = "", times = 1, letters] = Array.isArray(part) ? part : [undefined, part];
    const expected = words.slice(at, at += length).join(" ");
    return {kind: data.kinds[kind]?.[0], label: data.kinds[kind]?.[1], expected, heard, times, letters,
      name: `${expected} > ${heard}`, errors: Math.max(length, heard ? heard.split(" ").length * times : 0)};
  }).filter(({expected, heard}) => expected || heard);
}
const errorsOf = (recording, model) => partsOf(recording, model).filter(({kind}) => kind);

/** Text as it is searched: without vowel signs and tatweel, and with one alef, one ya, and no ta marbuta. */
function fold(text) {
  const bare = text.normalize("NFD").replace(/[\p{M}\u0640]/gu, "").toLowerCase();
  return bare.replace(/ٱ/g, "ا").replace(/[ىی]/g, "ي").replace(/ة/g, "ه");
}

/** What a search looks through: the ayah's number, the reference, and what each model heard; made when first asked for. */
function searchable(recording) {
  const {ayah, runs} = recording;
  const heard = (run, model) => run.errors ? partsOf(recording, model).map(part => part.kind ? part.heard : part.expected) : [];
  return recording.searchable ??= fold([place(ayah), ayah.words.join(" "),
    ...runs.map((run, model) => heard(run, model).join(" "))].join("\n"));
}

// ---- the table

function drawTable() {
  const all = data.reciters.length > 1, quality = [];
  for (const [number, model] of data.models.entries()) {
    const cells = data.reciters.map(name => data.results.find(row => row.model === model && row.reciter === name));
    const heard = recordings.filter(recording => recording.runs[number]);
    const total = name => sum(cells.map(cell => cell?.[name] ?? 0));
    const share = name => total(name) / total("words");
    const overall = data.overall.find(row => row.model === model), rates = [...cells, ...(all ? [overall] : [])];
    quality.push({number, rates, share, rtf: total("wall_s") / total("audio_s"),
      parameters: cells.find(cell => cell?.parameters)?.parameters,
      right: heard.filter(recording => !recording.runs[number].errors).length / heard.length});
  }
  const columns = [...data.reciters.map(breakable), ...(all ? ["All reciters"] : [])];
  const rateOf = (line, column) => line.rates[column]?.wer ?? NaN;
  const lowest = columns.map((_, column) =>
    Math.min(...quality.map(line => rateOf(line, column)).filter(Number.isFinite)));
  const highest = Math.max(...quality.flatMap(line => line.rates.map(row => row?.wer ?? 0)));
  const sized = quality.some(line => line.parameters);
  const right = quran ? "Ayat all right" : "All right";
  const heads = [...columns, "Substituted", "Deleted", "Inserted", right, ...(sized ? ["Parameters"] : []), "RTF"];
  $("table").append(
    h("thead", {}, h("tr", {}, ["Word error rate", ...heads].map(head => h("th", {scope: "col"}, head)))),
    h("tbody", {}, quality.map(line => h("tr", {},
      h("th", {scope: "row"}, named(line.number)),
      line.rates.map((row, column) => {
        const wer = row?.wer, best = quality.length > 1 && wer === lowest[column];
        const width = `${highest ? 100 * (wer ?? 0) / highest : 0}%`;
        return h("td", best ? {class: "best", title: "the lowest of this column"} : {},
          h("div", {class: "rate"}, plusMinus(wer, halfWidth(row?.wer_interval))),
          h("small", {}, `CER ${plusMinus(row?.cer, halfWidth(row?.cer_interval))}`),
          h("div", {class: "bar"}, h("i", {style: {width, background: color(line.number)}})));
      }),
      ["substitutions", "deletions", "insertions"].map(name => h("td", {}, percent(line.share(name)))),
      h("td", {}, percent(line.right)),
      sized && h("td", {}, line.parameters ? `${(line.parameters / 1e6).toFixed(line.parameters < 1e7 ? 1 : 0)} M` : "–"),
      h("td", {title: "seconds of computing for a second of audio"},
        line.rtf > 0 ? [`${+line.rtf.toPrecision(2)}`, h("small", {}, `${+(1 / line.rtf).toPrecision(3)}× real time`)]
          : "–")))));
}

// ---- filters: the charts and the commonest errors follow model, reciter and surah; the list follows all of them

const state = {model: "", reciter: "", surah: "", query: "", sort: "errors", kind: "", letters: "", error: ""};
const SORTS = {
  errors: ["Most errors first", (a, b) => b.errors - a.errors || b.wer - a.wer],
  wer: ["Highest WER first", (a, b) => b.wer - a.wer || b.errors - a.errors],
  order: [quran ? "Order of the mushaf" : "Order of names", () => 0],
  duration: ["Longest first", (a, b) => b.recording.seconds - a.recording.seconds],
};

function drawFilters() {
  const surahs = [...new Set(ayat.map(ayah => ayah.surah))].sort((a, b) => a - b);
  const choose = (name, label, options) => options.length > 1 && h("select", {
    id: `by-${name}`, "aria-label": label, onchange: event => update({[name]: event.target.value}),
  }, options.map(([value, text]) => h("option", {value}, text)));
  const anyOf = (all, names) => names.length > 1 ? [["", all], ...names] : [];
  let typing;
  const search = h("input", {
    id: "by-query", type: "search", dir: "auto", "aria-label": "Search the reference and what was heard",
    placeholder: quran ? "Search words, or 2:255" : "Search words or names",
    oninput: () => { clearTimeout(typing); typing = setTimeout(() => update({query: search.value}), 120); },
  });
  const chip = h("button", {id: "chip", type: "button", hidden: "", onclick: () => update({kind: "", letters: "", error: ""})});
  $("filters").onsubmit = event => event.preventDefault();
  $("filters").append(...[
    choose("model", "Model", anyOf("All models", data.models.map((name, model) => [model, name]))),
    choose("reciter", "Reciter", anyOf("All reciters", data.reciters.map((name, reciter) => [reciter, name]))),
    choose("surah", "Surah", anyOf("All surahs", surahs.map(surah => [surah, `${surah} ${surahName(surah)}`]))),
    choose("sort", "Sort by", Object.entries(SORTS).map(([value, [text]]) => [value, text])),
    search, chip, h("output", {id: "status", role: "status"})].filter(Boolean));
}

function update(change) {
  Object.assign(state, change);
  const models = [...data.models.keys()].filter(model => state.model === "" || model === +state.model);
  const heard = recordings.filter(({reciter, runs}) =>
    (state.reciter === "" || reciter === +state.reciter) && models.some(model => runs[model]));
  const inSurah = heard.filter(({ayah}) => state.surah === "" || ayah.surah === +state.surah);
  const drawn = ["model", "reciter", "surah"].some(name => name in change);
  if (drawn) drawCharts(heard, inSurah, models);
  for (const name of Object.keys(TALLIES))
    if (name !== "error" ? drawn : drawn || "kind" in change) drawTally(name, inSurah, models);
  const chosen = Object.keys(TALLIES).filter(name => state[name]);
  const query = fold(state.query.trim());
  const listed = inSurah
    .filter(recording => !query || searchable(recording).includes(query))
    .filter(recording => !chosen.length || models.some(model => recording.runs[model]?.errors &&
      errorsOf(recording, model).some(part => chosen.every(name => TALLIES[name].of(part) === state[name]))))
    .map(recording => {
      const runs = models.map(model => recording.runs[model]).filter(Boolean), errors = sum(runs.map(run => run.errors));
      return {recording, errors, wer: errors / (recording.words * runs.length || 1)};
    })
    .sort(SORTS[state.sort][1]);
  drawAyat(listed.map(({recording}) => recording), models);
  const everything = plural(recordings.length, noun);
  $("status").textContent = listed.length === recordings.length ? everything : `${count(listed.length)} of ${everything}`;
  if ($("by-surah")) $("by-surah").value = state.surah;
  showChosen(chosen);
}

function showChosen(chosen) {
  for (const button of document.querySelectorAll("[data-value]"))
    button.setAttribute("aria-pressed", state[button.dataset.tally] === button.dataset.value);
  const said = chosen.map(name => name === "kind" ? new Map(data.kinds).get(state.kind) : state[name]);
  $("chip").hidden = !said.length;
  $("chip").replaceChildren(...said.flatMap(text => [h("bdi", {}, text), " "]), "×");
  $("chip").setAttribute("aria-label", `Only ${said.join(", ")}: show all again`);
}

// ---- the charts

function drawCharts(heard, inSurah, models) {
  const length = quran ? "WER by ayah length" : "WER by length";
  const pick = surah => update({surah: state.surah === `${surah}` ? "" : `${surah}`});
  const surahs = tallied(heard, ({ayah}) => ayah.surah)
    .map(column => ({...column, tick: `${column.key}`, label: `Surah ${column.key} \u2068${surahName(column.key)}\u2069`}));
  const words = binned(inSurah, data.bins.words, "words", recording => recording.words, 1);
  const seconds = binned(inSurah, data.bins.seconds, "s", recording => recording.seconds, 0);
  $("charts").replaceChildren(...[
    quran && chart("WER by surah", surahs, models, {wide: true, pick, picked: +state.surah}),
    chart(`${length}, words`, words, models, {}),
    chart(`${length}, seconds`, seconds, models, {})].filter(Boolean));
  for (const drawn of $("charts").children) drawn.draw();
}

/** A column for each value of `keyOf`: errors and words of each model, added up over the recordings. */
function tallied(list, keyOf) {
  const columns = new Map();
  for (const recording of list) {
    const key = keyOf(recording);
    if (!columns.has(key)) {
      const zeros = () => data.models.map(() => 0);
      columns.set(key, {key, recordings: 0, errors: zeros(), words: zeros(), heard: data.models.map(() => [])});
    }
    const column = columns.get(key);
    column.recordings++;
    recording.runs.forEach((run, model) => {
      column.errors[model] += run.errors;
      column.words[model] += recording.words;
      column.heard[model].push([run.errors, recording.words]);
    });
  }
  return [...columns.values()].sort((a, b) => a.key - b.key);
}

const rateIn = ({errors, words}, model) => errors[model] / words[model];

/** Half the width of a rate's 95 % interval, from the spread of its recordings: what the bootstrap comes to. */
function chanceIn(column, model) {
  const heard = column.heard[model], rate = rateIn(column, model);
  const spread = sum(heard.map(([errors, words]) => (errors - rate * words) ** 2));
  return 1.96 * Math.sqrt(spread * heard.length / (heard.length - 1)) / column.words[model];
}

/** Columns by length. `step` is 1 where lengths are whole: the bin from 4 to below 7 is then named 4–6. */
function binned(list, bins, unit, lengthOf, step) {
  const columns = tallied(list.filter(recording => lengthOf(recording) >= bins[0]),
    recording => bins.findLastIndex(least => lengthOf(recording) >= least));
  return columns.map(column => {
    const low = bins[column.key], next = bins[column.key + 1];
    const tick = next === undefined ? `${low}+` : `${low}–${next - step}`;
    return {...column, tick, label: `${tick} ${unit}`};
  });
}

function chart(title, columns, models, options) {
  const readout = h("p", {class: "readout small"}), box = h("div");
  const tell = column => readout.replaceChildren(...(column ? [`${column.label} · ${plural(column.recordings, noun)}`,
    ...models.flatMap(model => [mark(model), plusMinus(rateIn(column, model), chanceIn(column, model))])]
    : options.pick ? [h("span", {class: "hint"}, "Point for figures, click to filter")] : []));
  const figure = h("figure", {class: options.wide ? "card wide" : "card"},
    h("figcaption", {class: "caption"}, h("h3", {}, title), readout), box);
  figure.draw = width => {
    tell();
    box.replaceChildren(plot(title, columns, models, width ?? Math.max(box.clientWidth, 240), tell, options));
  };
  return figure;
}

/** An SVG as wide as its place: `wide` is a dot for each model in many columns, otherwise lines over a few bins. */
function plot(title, columns, models, width, tell, {wide, pick, picked}) {
  const height = wide ? 230 : 200, left = 38, top = 14, bottom = height - (wide ? 20 : 44);
  const band = Math.min((width - left - 4) / Math.max(columns.length, 1), 120);
  const rates = columns.map(column => models.map(model => rateIn(column, model)));
  // Invented words can carry a rate far beyond 100 %: from twice that on, dots are on the top line, with the figure.
  const highest = Math.min(2, Math.max(.01, ...rates.flat().filter(Number.isFinite)));
  const step = [.002, .005, .01, .02, .05, .1, .2, .4].find(size => highest / size <= 5);
  const lines = Math.ceil(highest / step - 1e-9), limit = lines * step;
  const x = column => left + (column + .5) * band;
  const y = rate => bottom - Math.min(rate, limit) / limit * (bottom - top);
  const most = Math.max(...columns.map(column => column.recordings));
  const cursor = svg("rect", {class: "cursor", y: top, height: bottom - top, width: band, visibility: "hidden"});
  const parts = [cursor];
  for (let line = 0; line <= lines; line++) parts.push(
    svg("line", {class: "grid", x1: left, x2: width - 4, y1: y(line * step), y2: y(line * step)}),
    svg("text", {x: left - 7, y: y(line * step) + 4, "text-anchor": "end"}, percent(line * step, step < .01 ? 1 : 0)));
  const every = [1, 2, 5, 10, 20, 50].find(number => number * band >= 30) ?? 100;
  columns.forEach((column, number) => {
    const finite = rates[number].filter(Number.isFinite);
    if (wide && columns.length > 20 ? number === 0 || column.key % every === 0 : number % Math.ceil(34 / band) === 0)
      parts.push(svg("text", {x: x(number), y: height - 5, "text-anchor": "middle"}, column.tick));
    if (wide && finite.length > 1) parts.push(svg("line", {class: "grid", "stroke-width": band < 6 ? 1 : 2,
      x1: x(number), x2: x(number), y1: y(Math.min(...finite)), y2: y(Math.max(...finite))}));
    const share = 14 * column.recordings / most;
    if (!wide) parts.push(
      svg("rect", {class: "count", x: x(number) - band * .3, width: band * .6, y: height - 20 - share, height: share}));
  });
  const scale = Math.max(3.5, Math.min(wide ? 7 : 9, band * .8)) / 10;
  models.forEach((model, index) => {
    const points = columns.map((_, number) => [x(number), y(rates[number][index])]).filter(([, at]) => Number.isFinite(at));
    columns.forEach((column, number) => {
      const rate = rates[number][index], half = chanceIn(column, model);
      if (half > 0 && band > 12) parts.push(svg("line", {class: "chance", style: {stroke: color(model)},
        x1: x(number), x2: x(number), y1: y(Math.max(rate - half, 0)), y2: y(rate + half)}));
      if (rate > limit) parts.push(svg("text", {x: x(number) + 7, y: top + 4}, percent(rate, 0)));
    });
    if (!wide) parts.push(svg("polyline", {points: points.join(" "), fill: "none", "stroke-width": 1.5,
      style: {stroke: color(model)}}));
    for (const [cx, cy] of points) parts.push(svg("path", {d: shape(model), style: {fill: color(model)},
      transform: `translate(${cx} ${cy}) scale(${scale}) translate(-5 -5)`}));
  });
  const point = column => {
    cursor.setAttribute("visibility", column ? "visible" : "hidden");
    if (column) cursor.setAttribute("x", left + columns.indexOf(column) * band);
    tell(column);
  };
  const resting = columns.find(column => column.key === picked);
  const under = event => columns[Math.floor((event.clientX - drawn.getBoundingClientRect().left - left) / band)];
  const said = models.map((model, index) => `${data.models[model]}: ` +
    columns.map((column, number) => `${column.label} ${plusMinus(rates[number][index], chanceIn(column, model))}`).join(", "));
  const drawn = svg("svg", {
    class: "plot", role: "img", "aria-label": [title, ...said].join(". "), viewBox: `0 0 ${width} ${height}`, height,
    style: {cursor: pick ? "pointer" : ""}, onpointermove: event => point(under(event) ?? resting),
    onpointerleave: () => point(resting), onclick: event => pick && under(event) && pick(under(event).key),
  }, parts);
  if (resting) point(resting);
  return drawn;
}

// ---- kinds of error, and the commonest

const arrow = rtl ? "heard ← reference" : "reference → heard";
const TALLIES = {
  kind: {title: "Kinds of error", explanation: "words, and the commonest example", of: part => part.kind},
  error: {title: "The commonest errors", explanation: arrow, of: part => part.name},
  letters: {title: "Letters confused", explanation: arrow, of: part => part.letters},
};

function drawTally(name, list, models) {
  const {title, explanation, of} = TALLIES[name], found = new Map();
  for (const recording of list) for (const model of models) if (recording.runs[model]?.errors) {
    for (const part of errorsOf(recording, model)) {
      const value = of(part);
      if (!value || name === "error" && state.kind && part.kind !== state.kind) continue;
      if (!found.has(value)) found.set(value, {name, value, part, times: 0, by: data.models.map(() => 0), examples: {}});
      const line = found.get(value), number = name === "kind" ? part.errors : 1;
      line.times += number;
      line.by[model] += number;
      const seen = line.examples[part.name] = (line.examples[part.name] ?? 0) + 1;
      if (seen > (line.examples[line.part.name] ?? 0)) line.part = part;
    }
  }
  const lines = [...found.values()].sort((a, b) => b.times - a.times).slice(0, COMMONEST);
  $(`tally-${name}`).replaceChildren(
    h("div", {class: "caption"}, h("h3", {}, title), h("span", {class: "small"}, explanation)),
    h("ol", {}, lines.map(line => h("li", {}, tallyButton(line, models, lines[0].times)))),
    lines.length ? "" : h("p", {class: "small"}, "none"));
}

function tallyButton({name, value, part, times, by}, models, most) {
  const [expected, heard] = name === "letters" ? value.split(">") : [part.expected, part.heard];
  const dir = direction(expected + heard), repeated = part.times > 1 ? ` ×${part.times}` : "";
  return h("button", {
    type: "button", "data-tally": name, "data-value": value,
    title: models.map(model => `${data.models[model]}: ${count(by[model])}`).join("\n"),
    onclick: () => update({[name]: state[name] === value ? "" : value}),
  },
  name === "kind" && h("span", {class: "kind"}, part.label),
  h("span", {class: "tally"}, h("b", {}, count(times)), h("span", {}, models.filter(model => by[model]).map(model =>
    h("i", {style: {width: `${100 * by[model] / most}%`, background: color(model)}})))),
  h("span", {class: "words", dir}, h("bdi", {}, expected || "+"),
    h("span", {class: "arrow", role: "img", "aria-label": "heard as"}, dir === "rtl" ? "←" : "→"),
    h("bdi", {}, heard ? heard + repeated : "–")));
}

// ---- the ayat

const marked = (kind, label, ...children) =>
  h("span", {class: kind, role: "group", "aria-label": label, title: label}, ...children);

/** One part of the text: what is right as it is, and errors marked as such, with their kind. */
function drawPart({kind, label, expected, heard, times}) {
  const said = times > 1 ? `${heard} ×${times}` : heard;
  if (!kind) return expected;
  if (!heard) return marked("d", `deletion: ${label}`, expected);
  if (!expected) return marked("i", `insertion: ${label}`, said);
  return marked("s", `substitution: ${label}`, h("span", {}, expected), h("span", {}, said));
}

function aligned(recording, model) {
  const text = recording.ayah.words.join(" ");
  return h("p", {class: "text", dir: text ? direction(text) : "auto"},
    partsOf(recording, model).flatMap(part => [drawPart(part), " "]));
}

function article(recording, models) {
  const {ayah, runs, words, seconds} = recording, reciter = data.reciters[recording.reciter];
  return h("article", {"aria-label": `${place(ayah)}, ${reciter}`},
    h("div", {class: "where"},
      h("b", {}, h("bdi", {}, place(ayah)), ayah.surah ? [" ", h("bdi", {class: "ar"}, surahName(ayah.surah))] : null),
      h("div", {}, breakable(reciter)), h("div", {}, `${plural(words, "word")} · ${seconds.toFixed(1)} s`),
      recording.addresses && h("button", {class: "play", type: "button", "aria-label": `Play ${place(ayah)}, ${reciter}`,
        onclick: () => play(recording)}, "▶ Play"),
      recording.damaged && h("div", {class: "damaged"}, "audio damaged or cut short")),
    h("div", {}, models.filter(model => runs[model]).map(model => {
      const run = runs[model];
      const kinds = ["substitution", "deletion", "insertion"].filter(kind => run[`${kind}s`])
        .map(kind => plural(run[`${kind}s`], kind)).join(", ");
      return h("div", {class: "run"},
        h("div", {class: "counts"}, named(model),
          run.errors ? `${percent(run.errors / words)} · ${kinds}` : "✓ every word right"),
        run.errors || models.length === 1 ? aligned(recording, model) : null);
    })));
}

/** Play a recording, which may be several files, one after the other. */
function play({ayah, reciter, addresses}) {
  const audio = $("audio"), left = [...addresses], name = `${place(ayah)}, ${data.reciters[reciter]}`;
  const failed = () => {
    $("playing").textContent = `${name} cannot be played: the file has moved, or is of a kind that this browser does not play`;
  };
  audio.onended = () => {
    if (!left.length) return;
    audio.src = left.shift();
    audio.play().catch(error => error.name === "AbortError" || failed());
  };
  $("playing").textContent = name;
  $("player").hidden = false;
  $("close").onclick = () => { audio.pause(); $("player").hidden = true; };
  audio.onended();
}

// Only the chunks near the window hold their ayat; the others keep their height, so that the page scrolls as a whole.
let watcher;
function drawAyat(list, models) {
  watcher?.disconnect();
  watcher = new IntersectionObserver(
    entries => { for (const {target, isIntersecting} of entries) target.fill(isIntersecting); }, {rootMargin: "1500px 0px"});
  const chunks = [];
  for (let at = 0; at < list.length; at += CHUNK) {
    const some = list.slice(at, at + CHUNK), chunk = h("div", {class: "chunk"});
    chunk.style.height = `${sum(some.map(({words}) => 80 + 3 * words * models.length))}px`;
    chunk.fill = wanted => {
      if (wanted === chunk.hasChildNodes()) return;
      chunk.style.height = wanted ? "" : `${chunk.offsetHeight}px`;
      chunk.replaceChildren(...(wanted ? some.map(recording => article(recording, models)) : []));
    };
    chunks.push(chunk);
  }
  $("ayat").replaceChildren(...(chunks.length ? chunks : [h("p", {class: "soft"}, "Nothing fits these filters.")]));
  for (const chunk of chunks) watcher.observe(chunk);
  const printed = count(Math.min(list.length, CHUNK));
  $("print-note").textContent = `The first ${printed} of ${count(list.length)}; all are in predictions.csv.`;
}

// ---- what is drawn once

/** A table that is made when it is first unfolded. */
function unfolded(summary, rows) {
  const table = h("table");
  const fill = () => table.hasChildNodes() || table.append(...rows.map(row => h("tr", {}, row.map(cell => h("td", {}, cell)))));
  return h("details", {class: "small", ontoggle: fill}, h("summary", {}, summary), table);
}

function drawFrame() {
  const seconds = sum(recordings.map(recording => recording.seconds));
  const audio = seconds < 3600 ? `${(seconds / 60).toFixed(1)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
  const compared = {diacritics: "without diacritics", none: "as they are",
    full: "without diacritics, marks and variants of letters"}[data.normalization];
  $("title").textContent = data.models.length > 1 ? "What the models heard" : "What the model heard";
  document.title = `${$("title").textContent}: ${data.models.join(", ")}`;
  $("subtitle").textContent = [plural(data.models.length, "model"), plural(data.reciters.length, "reciter"),
    plural(recordings.length, noun), `${audio} of audio`, ...(compared ? [`words compared ${compared}`] : [])].join(" · ");
  $("legend").append(...(data.models.length > 1 ? data.models.map((_, model) => named(model)) : []));
  const [word, other] = rtl ? ["كلمة", "كلمات"] : ["word", "ward"];
  $("key").append(...[
    [{expected: word, heard: other}, "the reference above, what was heard below"],
    [{expected: word}, "not heard"],
    [{heard: word}, "heard, not in the reference"],
  ].map(([sample, meaning]) => h("span", {}, h("span", {class: "sample", dir: direction(word)}, drawPart({kind: "sample", label: meaning, ...sample})), meaning)));
  if (data.differences.length > 1) $("differences").append(
    unfolded("Is a difference chance? Any two models on the same recordings", data.differences));
  if (data.skipped.length) $("skipped").append(unfolded(
    `${plural(data.skipped.length, "recording")} left out and counted nowhere, with the reasons`,
    data.skipped.map(({file, reason}) => [file, reason])));
  const facts = {rates: "errors of the whole column divided by the words (CER: characters) of its references",
    "±": "half of the interval that the rate is in at 95 %, were other recordings drawn (bootstrap)",
    p: "how likely a difference as large is if there is none (paired bootstrap)",
    ...(compared ? {words: `compared ${compared}`} : {}), ...data.environment};
  $("measured").append(...Object.entries(facts).flatMap(([name, value]) =>
    [h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));
}

drawFrame();
drawTable();
drawFilters();
update(state);

let widthDrawn = innerWidth;
window.addEventListener("resize", () => {
  if (innerWidth === widthDrawn) return;
  widthDrawn = innerWidth;
  for (const drawn of $("charts").children) drawn.draw();
});
// Paper gets the charts at its own width and the first chunk of the list.
window.addEventListener("beforeprint", () => {
  watcher.disconnect();
  for (const drawn of $("charts").children) drawn.draw(drawn.classList.contains("wide") ? 660 : 310);
  document.querySelectorAll(".chunk").forEach((chunk, number) => chunk.fill(number === 0));
});
window.addEventListener("afterprint", () => update(state));

// A model is a colour and a shape, so that it is known without the colour: circle, square, triangles, diamond, plus.
const SHAPES = ["M5 0a5 5 0 1 0 .01 0z", "M.8 .8h8.4v8.4h-8.4z", "M5 0l5 9.4h-10z", "M5-.6l5.6 5.6-5.6 5.6-5.6-5.6z",
  "M0 .6h10l-5 9.4z", "M3 0h4v3h3v4h-3v3h-4v-3h-3v-4h3z"];
const LENGTHS = [1, 4, 7, 11, 16, 21, 31, 51]; // words: the least of each column of a chart
const COMMONEST = 60; // errors listed of each kind
const FIRST = 20, MORE = 100; // recordings listed at first, and added when asked for

const names = data.models.map(({short}) => short);
const sum = numbers => numbers.reduce((a, b) => a + b, 0);
const percent = (fraction, digits = 1) => Number.isFinite(fraction) ? `${(100 * fraction).toFixed(digits)} %` : "–";
/** A rate with its 95 % interval, if there is one, as plus_minus of chance.py: 52.4 ± 3.1 %. */
const rateText = ({rate, low, high}) => !(high >= 0) ? percent(rate)
  : rate ? percent(rate).replace(" ", ` ± ${(50 * (high - low)).toFixed(1)} `) : `${percent(rate)} (at most ${percent(high)})`;
const color = model => `var(--model-${model % SHAPES.length})`;
const shape = model => SHAPES[(model + Math.floor(model / SHAPES.length)) % SHAPES.length];
const svg = (tag, attributes = {}, ...children) =>
  element(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const mark = model => svg("svg", {class: "mark", viewBox: "-1 -1 12 12", "aria-hidden": "true"},
  svg("path", {d: shape(model), style: {fill: color(model)}}));
const named = model => h("span", {class: "name", title: data.models[model].name}, mark(model), breakable(names[model]));

// ---- the data: a recording is one reciter's one ayah, with a run for each model that heard it

const ayat = data.ayat.map(([surah, name, reference]) => ({surah, name, words: reference ? reference.split(" ") : []}));
const quran = ayat.some(ayah => ayah.surah);
const noun = quran ? "recitation" : "recording";
const rtl = ayat.some(ayah => isArabic(ayah.words.join(" ")));
const place = ayah => ayah.surah ? `${ayah.surah}:${ayah.name}` : ayah.name;
const surahName = surah => data.surahs[surah] ?? "";
const byKey = new Map(data.recordings.map(([reciter, index, seconds, address, damaged]) => [`${reciter} ${index}`,
  {reciter, ayah: ayat[index], words: ayat[index].words.length, runs: [], seconds, address, damaged}]));
const recordings = [...byKey.values()];
for (const [model, reciter, index, [substitutions, deletions, insertions], parts] of data.rows) {
  const errors = substitutions + deletions + insertions;
  byKey.get(`${reciter} ${index}`).runs[model] = {parts, substitutions, deletions, insertions, errors};
}

/** What a model heard, in parts. `name` is the same for errors that are alike. */
function partsOf(recording, model) {
  return partsWith(recording.ayah.words, recording.runs[model].parts).map(part => {
    const {heard, times} = part, length = part.expected.length, expected = part.expected.join(" ");
    return {...part, expected, name: `${expected} > ${heard}`,
      errors: Math.max(length, heard ? heard.split(" ").length * times : 0)};
  });
}
const errorsOf = (recording, model) =>
  recording.runs[model]?.errors ? partsOf(recording, model).filter(({kind}) => kind) : [];

/** Text as it is searched: without vowel signs and tatweel, and with one alef, one ya, and no ta marbuta. */
function fold(text) {
  const bare = text.normalize("NFD").replace(/[\p{M}\u0640]/gu, "").toLowerCase();
  return bare.replace(/ٱ/g, "ا").replace(/[ىی]/g, "ي").replace(/ة/g, "ه");
}

/** What a search looks through: names, the reference, and what each model heard. */
function searchable(recording) {
  const {ayah, runs, reciter} = recording;
  const heard = runs.map((run, model) =>
    run.errors ? partsOf(recording, model).map(part => part.kind ? part.heard : part.expected).join(" ") : "");
  return fold([ayah.surah ? surahName(ayah.surah) : ayah.name, data.reciters[reciter], ayah.words.join(" "), ...heard].join("\n"));
}

/** Whether a query fits: "2:5" that ayah alone, anything else a part of the texts and names. */
function fits(recording, query) {
  const [, surah, number] = query.match(/^(\d+):(\d+)$/) ?? [], {ayah} = recording;
  if (!surah) return (recording.searchable ??= searchable(recording)).includes(query);
  const [first, last = first] = ayah.name.replace(/ .*/, "").split("-");
  return ayah.surah === +surah && +first <= +number && +number <= +last;
}

// ---- the table

function drawTable() {
  const cell = (model, {reciter, wer, cer, width, best}) => h("td",
    best ? {class: "best", title: "the lowest of this column"} : {},
    h("button", {class: "rate", type: "button",
      "aria-label": `${names[model]}, ${reciter ?? "all reciters"}: ${wer}. Show it alone`,
      onclick: () => update({model: names[model], reciter: reciter ?? ""})}, wer),
    h("small", {}, `CER ${cer}`),
    h("div", {class: "bar"}, h("i", {style: {width: `${width}%`, background: color(model)}})));
  $("table").append(
    h("thead", {}, h("tr", {}, data.table.heads.map(head => h("th", {scope: "col"}, breakable(head))))),
    h("tbody", {}, data.table.lines.map(({cells, facts}, model) => h("tr", {},
      h("th", {scope: "row"}, named(model)), cells.map(each => cell(model, each)),
      facts.map(([text, small]) => h("td", {}, text, small && h("small", {}, small)))))));
}

// ---- filters: the charts and the commonest errors follow model, reciter and surah; the list follows all of them

const BLANK = {model: "", reciter: "", surah: "", query: "", sort: "errors", kind: "", letters: "", error: ""};
const state = {...BLANK};
let drawn = {}; // the state that the page shows
const SORTS = {
  errors: ["Most errors first", (a, b) => b.errors - a.errors || b.wer - a.wer],
  wer: ["Highest WER first", (a, b) => b.wer - a.wer || b.errors - a.errors],
  order: [quran ? "Order of the mushaf" : "Order of names", () => 0],
  duration: ["Longest first", (a, b) => b.recording.seconds - a.recording.seconds],
};

function drawFilters() {
  const select = (name, options) => {
    $(`by-${name}`).append(...options.map(([value, text = value]) => h("option", {value}, text)));
    $(`by-${name}`).onchange = event => update({[name]: event.target.value});
    $(`by-${name}`).hidden = options.length < 3; // one of a kind need not be chosen
  };
  select("model", [["", "All models"], ...names.map(name => [name])]);
  select("reciter", [["", "All reciters"], ...data.reciters.map(name => [name])]);
  select("surah", [["", "All surahs"], ...Object.entries(data.surahs).map(each => [each[0], each.join(" ")])]);
  select("sort", Object.entries(SORTS).map(([value, [text]]) => [value, text]));
  let typing;
  $("by-query").placeholder = quran ? "Search words, names, or 2:255" : "Search words or names";
  $("by-query").oninput = event => {
    clearTimeout(typing);
    typing = setTimeout(() => update({query: event.target.value}), 120);
  };
  $("chip").onclick = () => update({kind: "", letters: "", error: ""});
  $("filters").onsubmit = event => event.preventDefault();
}

/** The address holds what is chosen, so that it can be kept, sent and opened again. */
function readAddress() {
  const said = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => Object.hasOwn(BLANK, name));
  update({...BLANK, ...Object.fromEntries(said)});
}

/** Choose something else, and draw what follows from it. */
function update(change) {
  Object.assign(state, change);
  for (const name of ["model", "reciter", "surah", "sort", "query"]) {
    $(`by-${name}`).value = state[name];
    state[name] = $(`by-${name}`).value || BLANK[name]; // what is no option chooses nothing
  }
  const models = [...data.models.keys()].filter(model => !state.model || names[model] === state.model);
  const heard = recordings.filter(({reciter, runs}) =>
    (!state.reciter || data.reciters[reciter] === state.reciter) && models.some(model => runs[model]));
  const inSurah = heard.filter(({ayah}) => !state.surah || ayah.surah === +state.surah);
  const differs = (...names) => names.some(name => drawn[name] !== state[name]);
  if (differs("model", "reciter", "surah")) {
    drawCharts(heard, inSurah, models);
    drawTally("kind", inSurah, models);
    drawTally("letters", inSurah, models);
  }
  if (differs("model", "reciter", "surah", "kind")) drawTally("error", inSurah, models);
  const chosen = Object.keys(TALLIES).filter(name => state[name]);
  const query = fold(state.query.trim());
  const listed = inSurah
    .filter(recording => !query || fits(recording, query))
    .filter(recording => !chosen.length || models.some(model =>
      errorsOf(recording, model).some(part => chosen.every(name => TALLIES[name](part) === state[name]))))
    .map(recording => {
      const runs = models.map(model => recording.runs[model]).filter(Boolean), errors = sum(runs.map(run => run.errors));
      return {recording, errors, wer: errors / (recording.words * runs.length || 1)};
    })
    .sort(SORTS[state.sort][1]);
  drawAyat(listed.map(({recording}) => recording), models);
  const everything = plural(recordings.length, noun);
  $("status").textContent = listed.length === recordings.length ? everything : `${count(listed.length)} of ${everything}`;
  for (const button of document.querySelectorAll("[data-value]"))
    button.setAttribute("aria-pressed", state[button.dataset.tally] === button.dataset.value);
  const said = chosen.map(name => name === "kind" ? new Map(data.kinds).get(state.kind) ?? state.kind : state[name]);
  $("chip").hidden = !said.length;
  $("chip").textContent = `${said.map(text => `\u2068${text}\u2069`).join(" ")} ×`;
  const address = `${new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== BLANK[name]))}`;
  if (address !== location.hash.slice(1)) history.replaceState(null, "", `#${address}`);
  drawn = {...state};
}

// ---- the charts

function drawCharts(heard, inSurah, models) {
  const range = bin => bin + 1 < LENGTHS.length ? `${LENGTHS[bin]}–${LENGTHS[bin + 1] - 1}` : `${LENGTHS[bin]}+`;
  const surahs = tallied(heard, ({ayah}) => ayah.surah, surah => surah, surah => `Surah ${surah} \u2068${surahName(surah)}\u2069`);
  const lengths = tallied(inSurah.filter(({words}) => words), ({words}) => LENGTHS.findLastIndex(least => words >= least),
    range, bin => `${range(bin)} words`);
  const pick = surah => update({surah: state.surah === `${surah}` ? "" : `${surah}`});
  $("charts").replaceChildren(...(quran ? [drawChart("WER by surah", surahs, models, pick)] : []),
    drawChart(quran ? "WER by ayah length" : "WER by length", lengths, models));
}

/** A column for each value of `keyOf`, with its recordings, and the rate of each model over them. */
function tallied(list, keyOf, tickOf, labelOf) {
  return [...Map.groupBy(list, keyOf)].sort(([a], [b]) => a - b).map(([key, recordings]) => ({
    key, tick: tickOf(key), label: labelOf(key), recordings, rates: names.map((_, model) => rateOf(recordings, model)),
  }));
}

/** A model's rate, and the ends of its 95 % interval: rate_interval of chance.py. */
function rateOf(recordings, model) {
  const heard = recordings.filter(({runs}) => runs[model]), words = sum(heard.map(({words}) => words));
  const rate = sum(heard.map(({runs}) => runs[model].errors)) / words;
  const spread = sum(heard.map(({runs, words}) => (runs[model].errors - rate * words) ** 2));
  if (heard.length < 2 && rate) return {rate};
  const variance = Math.max(spread * heard.length / Math.max(1, heard.length - 1) / words ** 2, rate / words);
  const c = 1.96 ** 2 * (rate ? variance / rate : 1 / words), half = Math.sqrt(c * rate + c ** 2 / 4);
  return {rate, low: Math.max(0, rate + c / 2 - half), high: rate + c / 2 + half};
}

/** A chart as wide as its place: a dot for each model in each column. `pick` is called with the key of one chosen. */
function drawChart(title, columns, models, pick) {
  const width = Math.max($("charts").clientWidth - 38, 240), height = 210, left = 38, top = 14, bottom = height - 20;
  const band = Math.min((width - left - 4) / Math.max(columns.length, 1), 120);
  const rates = columns.flatMap(column => models.map(model => column.rates[model].rate));
  // Invented words can carry a rate far beyond 100 %: from twice that on, dots are on the top line, with the figure.
  const highest = Math.min(2, Math.max(.01, ...rates.filter(Number.isFinite)));
  const step = [.002, .005, .01, .02, .05, .1, .2, .4].find(size => highest / size <= 5);
  const lines = Math.ceil(highest / step - 1e-9), limit = lines * step;
  const x = column => left + (column + .5) * band;
  const y = rate => bottom - Math.min(rate, limit) / limit * (bottom - top);
  const cursor = svg("rect", {class: "cursor", y: top, height: bottom - top, width: band});
  const parts = [cursor];
  for (let line = 0; line <= lines; line++) parts.push(
    svg("line", {class: "grid", x1: left, x2: width - 4, y1: y(line * step), y2: y(line * step)}),
    svg("text", {x: left - 7, y: y(line * step) + 4, "text-anchor": "end"}, percent(line * step, step < .01 ? 1 : 0)));
  const scale = Math.max(3.5, Math.min(7, band * .8)) / 10, every = Math.ceil(34 / band);
  columns.forEach(({tick, rates}, number) => {
    if (number % every === 0) parts.push(svg("text", {x: x(number), y: height - 5, "text-anchor": "middle"}, tick));
    for (const model of models.filter(model => rates[model].rate >= 0)) {
      const {rate, low, high} = rates[model];
      if (high >= 0 && band > 12) parts.push(svg("line", {class: "chance", style: {stroke: color(model)},
        x1: x(number), x2: x(number), y1: y(low), y2: y(high)}));
      if (rate > limit) parts.push(svg("text", {x: x(number) + 7, y: top + 4}, percent(rate, 0)));
      parts.push(svg("path", {d: shape(model), style: {fill: color(model)},
        transform: `translate(${x(number)} ${y(rate)}) scale(${scale}) translate(-5 -5)`}));
    }
  });
  const readout = h("p", {class: "readout small"});
  const point = column => {
    cursor.setAttribute("x", left + columns.indexOf(column) * band);
    cursor.setAttribute("visibility", column ? "visible" : "hidden");
    readout.replaceChildren(...(column ? [`${column.label} · ${plural(column.recordings.length, noun)}`,
      ...models.flatMap(model => [mark(model), rateText(column.rates[model])])]
      : pick ? ["Point for figures, click to filter"] : []));
  };
  const under = event => columns[Math.floor((event.clientX - chart.getBoundingClientRect().left - left) / band)];
  const figures = models.map(model =>
    `${names[model]}: ${columns.map(({label, rates}) => `${label} ${rateText(rates[model])}`).join(", ")}`);
  const chart = svg("svg", {
    class: pick ? "plot picks" : "plot", role: "img", "aria-label": [title, ...figures].join(". "), width, height,
    onpointermove: event => point(under(event)), onpointerleave: () => point(),
    onclick: event => pick && under(event) && pick(under(event).key),
  }, parts);
  point();
  return h("figure", {class: "card"}, h("figcaption", {class: "caption"}, h("h3", {}, title), readout), chart);
}

// ---- kinds of error, and the commonest

const TALLIES = {kind: part => part.kind, error: part => part.name, letters: part => part.letters};

function drawTally(name, list, models) {
  const found = new Map();
  for (const recording of list) for (const model of models) for (const part of errorsOf(recording, model)) {
    const value = TALLIES[name](part);
    if (!value || name === "error" && state.kind && part.kind !== state.kind) continue;
    if (!found.has(value)) found.set(value, {name, value, part, times: 0, by: data.models.map(() => 0), examples: {}});
    const line = found.get(value), number = name === "kind" ? part.errors : 1;
    line.times += number;
    line.by[model] += number;
    const seen = line.examples[part.name] = (line.examples[part.name] ?? 0) + 1;
    if (seen > (line.examples[line.part.name] ?? 0)) line.part = part;
  }
  const lines = [...found.values()].sort((a, b) => b.times - a.times).slice(0, COMMONEST);
  $(`tally-${name}`).replaceChildren(...lines.map(line => h("li", {}, tallyButton(line, models, lines[0].times))));
}

function tallyButton({name, value, part, times, by}, models, most) {
  const [expected, heard] = name === "letters" ? value.split(">") : [part.expected, part.heard];
  const repeated = part.times > 1 ? ` ×${part.times}` : "";
  return h("button", {
    type: "button", "data-tally": name, "data-value": value,
    title: models.map(model => `${names[model]}: ${count(by[model])}`).join("\n"),
    onclick: () => update({[name]: state[name] === value ? "" : value}),
  },
  name === "kind" && h("span", {class: "kind"}, part.label),
  h("span", {class: "tally"}, h("b", {}, count(times)), h("span", {}, models.filter(model => by[model]).map(model =>
    h("i", {style: {width: `${100 * by[model] / most}%`, background: color(model)}})))),
  h("span", {class: "words", ...(rtl ? {lang: "ar", dir: "rtl"} : {})}, h("bdi", {}, expected || "+"),
    h("span", {class: "arrow", role: "img", "aria-label": "heard as"}, rtl ? "←" : "→"),
    h("bdi", {}, heard ? heard + repeated : "–")));
}

// ---- the ayat

function article(recording, models) {
  const {ayah, runs, words, seconds} = recording, reciter = data.reciters[recording.reciter];
  const direction = words ? written(ayah.words.join(" ")) : {dir: "auto"};
  return h("article", {"aria-label": `${place(ayah)}, ${reciter}`},
    h("div", {class: "where"},
      h("b", {}, h("bdi", {}, place(ayah)), ayah.surah ? [" ", ar(surahName(ayah.surah))] : null),
      h("div", {}, reciter), h("div", {}, `${plural(words, "word")} · ${seconds.toFixed(1)} s`),
      recording.address && h("button", {class: "play", type: "button", "aria-label": `Play ${place(ayah)}, ${reciter}`,
        onclick: () => play(`${place(ayah)}, ${reciter}`, recording.address)}, "▶ Play"),
      recording.damaged && h("div", {class: "damaged"}, "audio damaged or cut short")),
    h("div", {}, models.filter(model => runs[model]).map(model => {
      const run = runs[model];
      const kinds = ["substitution", "deletion", "insertion"].filter(kind => run[`${kind}s`])
        .map(kind => plural(run[`${kind}s`], kind)).join(", ");
      return h("div", {class: "run"},
        h("div", {class: "counts"}, named(model),
          run.errors ? `${percent(run.errors / words)} · ${kinds}` : "✓ every word right"),
        (run.errors || models.length === 1) &&
          h("p", {class: "text", ...direction}, partsOf(recording, model).flatMap(part => [drawPart(part), " "])));
    })));
}

function drawAyat(found, models) {
  let shown = 0;
  const add = number => {
    $("ayat").append(...found.slice(shown, shown += number).map(recording => article(recording, models)));
    $("more").hidden = shown >= found.length;
    $("more").textContent = `Show ${count(Math.min(MORE, found.length - shown))} more of ${count(found.length)}`;
  };
  $("ayat").replaceChildren(...(found.length ? [] : [h("p", {class: "soft"}, "Nothing fits these filters.")]));
  add(FIRST);
  $("more").onclick = () => add(MORE);
}

// ---- what is drawn once

$("title").textContent = data.title;
$("subtitle").textContent = data.subtitle.join(" · ");
$("legend").append(...(names.length > 1 ? names.map((_, model) => named(model)) : []));
drawKey(rtl);
$("unfolded").append(...data.unfolded.filter(([,, rows]) => rows.length).map(([id, summary, rows]) =>
  h("details", {class: "small", id}, h("summary", {}, summary),
    h("table", {}, rows.map(row => h("tr", {}, row.map(cell => h("td", {}, cell))))))));
drawFacts();
drawTable();
drawFilters();
readAddress();
window.addEventListener("hashchange", () => location.hash === "#ayat" || readAddress());
window.addEventListener("resize", () => { drawn = {}; update({}); });

// Every word of a recitation is an element with its number in the recording. Pressing one plays it, and the one that is
// being said is marked while its recording plays.

const clock = seconds => {
  const whole = Math.floor(seconds), hours = Math.floor(whole / 3600), two = n => `${n}`.padStart(2, "0");
  return `${hours ? `${hours}:${two(Math.floor(whole / 60) % 60)}` : Math.floor(whole / 60)}:${two(whole % 60)}`;
};
const spoken = data.recordings.map(() => []); // of each recording {start, end, node} of its words, in order
let playing; // the number of the recording in the player

function playFrom(number, second) {
  const {name, address} = data.recordings[number], audio = $("audio");
  if (playing === number && !$("player").hidden && !audio.error) {
    audio.currentTime = second;
    audio.play();
  } else {
    playing = number;
    play(name, address, second);
  }
}

const playButton = (number, second, label, text) => h("button", {class: "play", type: "button", dir: "ltr", "aria-label": label,
  onclick: () => playFrom(number, second)}, `▶ ${text}`);

/** One line, the preface or an ayah: when it is said, and its text with what was heard differently. */
function drawLine(number, [place, words, parts]) {
  const [, start] = words[0], firstWord = spoken[number].length;
  const nodes = words.map(([text, start, end]) => {
    const first = spoken[number].length === firstWord; // of the line, which is one stop of the Tab key
    const node = h("span", {class: "word", role: "button", tabindex: first ? 0 : -1, "data-word": spoken[number].length}, text);
    spoken[number].push({start, end, node});
    return node;
  });
  const drawn = partsWith(nodes, parts).flatMap(part =>
    [drawPart(part, part.expected.flatMap((node, at) => at ? [" ", node] : [node])), " "].flat());
  return h("article", {dir: "rtl"},
    h("div", {class: "where"}, place && h("b", {}, place),
      playButton(number, start, `Play ${place || "what is said before"}, at ${clock(start)}`, clock(start))),
    h("p", {class: "text", ...written(words.map(([text]) => text).join(" "))}, drawn));
}

/** Arrows go from word to word, Enter and Space play the word. */
function pressWord(event, number) {
  const word = event.target.closest(".word"), step = {ArrowLeft: 1, ArrowRight: -1}[event.key];
  if (!word || !(step || ["Enter", " "].includes(event.key))) return;
  event.preventDefault();
  const place = spoken[number][+word.dataset.word + (step ?? 0)];
  if (step) place?.node.focus();
  else playFrom(number, place.start);
}

function drawRecitation(number, {surah, name, ayat, confidence, lines}) {
  return [
    h("h3", {dir: "rtl"}, ar(`سورة ${name}`), " ", h("bdi", {}, `surah ${surah}, ayah ${ayat}`), " ",
      h("bdi", {class: "small"}, `confidence ${confidence}`)),
    ...lines.map(line => drawLine(number, line)),
  ];
}

function drawOther(number, {start, heard}) {
  return [
    h("h3", {}, "Not the Qur'an ", playButton(number, start, `Play what is not the Qur'an, at ${clock(start)}`, clock(start))),
    h("p", {class: "text soft", ...written(heard)}, heard)];
}

function drawRecording({file, name, duration, heard, damaged, recitations, others}, number) {
  const unknown = () => [
    h("h3", {}, "Not the Qur'an"),
    h("p", {class: "text soft", ...written(heard)}, heard || "Nothing was heard.")];
  return h("section", {id: `recording-${number}`, "aria-label": name, onkeydown: event => pressWord(event, number),
    onclick: ({target}) => {
      const word = target.closest(".word") ?? target.closest(".s")?.querySelector(".word");
      if (word) playFrom(number, spoken[number][word.dataset.word].start);
    }},
  h("div", {class: "recording"}, h("h2", {title: file}, breakable(name)),
    h("span", {class: "small"}, duration),
    damaged && h("span", {class: "small damaged"}, "audio damaged or cut short"),
    playButton(number, 0, `Play ${name}`, "Play")),
  recitations.length
    ? [...recitations.flatMap(each => drawRecitation(number, each)), ...others.flatMap(each => drawOther(number, each))]
    : unknown());
}

function drawContents() {
  $("contents").hidden = data.recordings.length < 2;
  $("contents").append(h("ol", {}, data.recordings.map(({name, recitations}, number) => h("li", {},
    h("a", {href: `#recording-${number}`}, breakable(name)), " ",
    h("span", {class: "soft"}, recitations.length ? recitations.flatMap(({surah, name, ayat}, at) =>
      [at > 0 && ", ", ar(name), ` ${surah}:${ayat.replace(" to ", "–")}`]) : "not the Qur'an")))));
}

/** Mark the word that is being said, as long as its recording plays, and keep it in sight. */
let frame, before;
function follow() {
  const audio = $("audio"), time = audio.currentTime, hidden = $("player").hidden;
  const now = hidden ? undefined : spoken[playing]?.findLast(({start, end}) => start <= time && time < end);
  if (now !== before) {
    before?.node.classList.remove("now");
    now?.node.classList.add("now");
    const at = before?.node.getBoundingClientRect() ?? {top: 0, bottom: 1}; // who has gone elsewhere is left there
    if (at.top < innerHeight && at.bottom > 0) now?.node.scrollIntoView({block: "nearest"});
    before = now;
  }
  cancelAnimationFrame(frame);
  if (!audio.paused) frame = requestAnimationFrame(follow);
}

$("title").textContent = document.title = data.title;
$("subtitle").textContent = data.subtitle.join(" · ");
$("recordings").append(...data.recordings.map(drawRecording));
if (data.recordings.some(({recitations}) => recitations.length)) drawKey(true);
drawContents();
drawFacts();
for (const event of ["playing", "seeked", "pause", "emptied"]) $("audio").addEventListener(event, follow);
